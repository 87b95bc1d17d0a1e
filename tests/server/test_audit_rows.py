"""What acts say in the audit trail, byte for byte: rows of former versions lie beside them, and people search both."""

from __future__ import annotations

import pytest

from actors.slot import ActorState
from storage.records import (
    Act,
    Diagnosis,
    Dropped,
    Epoch,
    Erased,
    NewAuditRow,
    Purged,
    Registered,
    Revocation,
    RevocationMade,
    Seq,
    Window,
)
from storage.sqlite.runs import SELF
from web.contract.principals import Principal
from web.operating.audit_rows import act, row_of

WHO = Principal('op"é', frozenset({"operate"}))


def window(head: int, floor: int, purged: int = 0) -> Window:
    return Window(Epoch("e1"), Seq(head), Seq(floor), Seq(purged))


FORMER = Diagnosis("42", "amira", ("bo", "cyr us"), Epoch("e1"), 1.5)
LATER = Diagnosis("42", 'b"o', (), Epoch("e1"), 1.5)
FIRST = Revocation(7, "bo", None, 1790000000.25, 1790000010.25)
AGAIN = Revocation(8, "bo", None, 1790000001.0, 1790000011.0)
TOKEN = Revocation(9, None, "t-1", 1790000001.0, 1790000011.0)

RIGHTS = '{"owner":"amira","viewers":["bo","cyr us"]}'
REVOKED = '{"id":7,"sub":"bo","at":"2026-09-21T14:13:20.250Z","covers_until":"2026-09-21T14:13:30.250Z"}'
REVOKED_AGAIN = '{"id":8,"sub":"bo","at":"2026-09-21T14:13:21.000Z","covers_until":"2026-09-21T14:13:31.000Z"}'
REVOKED_TOKEN = '{"id":9,"jti":"t-1","at":"2026-09-21T14:13:21.000Z","covers_until":"2026-09-21T14:13:31.000Z"}'

LEAVING = act(WHO, "subscriber.disconnect", diagnosis_id="42", sub="b o", device=None, connections=2)
ANYBODY = act(WHO, "subscriber.disconnect", diagnosis_id="42", sub=None, device="phone", connections=2)
RESTART: dict[str, str | int | None] = {
    "diagnosis_id": "42",
    "state": ActorState.RUNNING,
    "incarnation": 1,
    "next_state": ActorState.PASSIVE,
    "next_incarnation": 2,
}
RESTARTED = ('{"state":"running","incarnation":1}', '{"state":"passive","incarnation":2}')

# The act, its answer, and target, state before, state after and diagnosis of its row, as they have been stored.
ROWS: list[tuple[Act, object, tuple[str, str | None, str | None, str | None]]] = [
    (act(WHO, "diagnosis.register"), Registered(FORMER, True, None), ("42", None, RIGHTS, "42")),
    (
        act(WHO, "diagnosis.register"),
        Registered(LATER, False, FORMER),
        ("42", RIGHTS, '{"owner":"b\\"o","viewers":[]}', "42"),
    ),
    (act(WHO, "diagnosis.delete"), FORMER, ("42", RIGHTS, None, "42")),
    (
        act(WHO, "outbox.purge", diagnosis_id="42"),
        Purged(window(3, 0), window(3, 3, 3)),
        ("42", '{"epoch":"e1","head":3,"floor":0}', '{"epoch":"e1","head":3,"floor":3}', "42"),
    ),
    (
        act(WHO, "outbox.read", diagnosis_id="42", epoch="e1", head=9, floor=2, first=3, last=5, events=3),
        None,
        ("42", '{"epoch":"e1","head":9,"floor":2}', '{"first":3,"last":5,"events":3}', "42"),
    ),
    (LEAVING, 3, ("42", '{"sub":"b o","device":null}', '{"disconnected":2,"forgotten":3}', "42")),
    (ANYBODY, None, ("42", '{"sub":null,"device":"phone"}', '{"disconnected":2,"forgotten":0}', "42")),
    (act(WHO, "actor.restart", **RESTART), None, ("42", *RESTARTED, "42")),
    (act(WHO, "actor.stop", **RESTART), None, ("42", *RESTARTED, "42")),
    (act(WHO, "revocation.add"), RevocationMade(FIRST, None), ('{"sub":"bo"}', None, REVOKED, None)),
    (act(WHO, "revocation.add"), RevocationMade(AGAIN, FIRST), ('{"sub":"bo"}', REVOKED, REVOKED_AGAIN, None)),
    (act(WHO, "revocation.add"), RevocationMade(TOKEN, None), ('{"jti":"t-1"}', None, REVOKED_TOKEN, None)),
    (act(WHO, "revocation.lift"), TOKEN, ("9", REVOKED_TOKEN, None, None)),
    (
        act(WHO, "subject.erase", connections=2),
        Erased(3, 4, 5, 6, ("x",), 1),
        (
            "[erased]",
            None,
            '{"connections":2,"cursors":3,"viewer_entries":4,"audit_rows":5,"access_rows":6}',
            None,
        ),
    ),
    (
        act(WHO, "database.backup", name="x é.db", path="/data/x é.db"),
        None,
        ("x é.db", None, '{"path":"/data/x é.db"}', None),
    ),
    (act(WHO, "database.check"), None, ("", None, None, None)),
    (act(WHO, "server.drain"), None, ("", None, None, None)),
    (
        Act(SELF, "outbox.drop_damaged"),
        Dropped("42", "event 3 fails its checksum", 4, window(7, 3), False),
        (
            "42",
            '{"damage":"event 3 fails its checksum"}',
            '{"epoch":"e1","head":7,"floor":3,"dropped":4}',
            "42",
        ),
    ),
]


@pytest.mark.parametrize(("done", "answer", "expected"), ROWS)
def test_a_row_says_what_it_has_always_said(
    done: Act, answer: object, expected: tuple[str, str | None, str | None, str | None]
) -> None:
    target, before, after, diagnosis_id = expected
    assert row_of(done, answer) == NewAuditRow(done.who, done.what, target, before, after, diagnosis_id)


def test_an_act_that_no_row_tells_of_or_with_another_answer_is_no_act() -> None:
    with pytest.raises(LookupError, match=r"outbox\.burn with Purged"):
        row_of(act(WHO, "outbox.burn"), Purged(window(1, 0), window(1, 1, 1)))
    with pytest.raises(LookupError, match=r"diagnosis\.delete with int"):
        row_of(act(WHO, "diagnosis.delete"), 3)
