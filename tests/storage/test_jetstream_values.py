"""What the replicated store writes: entries of logs, acts, subjects. Without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.changes import DiagnosisDeleted, DiagnosisRegistered, RevocationsLifted, TokensRevoked
from storage.errors import Unstorable
from storage.jetstream import acts
from storage.jetstream.acts import ActSaid, Deleted, Known, Lifted, Made, Registered, Revoked
from storage.jetstream.entries import (
    ENDED,
    GENERATION_MARK,
    HEADER,
    NOTHING,
    PURGED,
    TRIMMED,
    Entry,
    appended,
    begun,
    entry_of,
    log_of,
    marked,
    text_of,
)
from storage.jetstream.layout import Layout, differing, digest
from storage.nats.wire import Outgoing, headers_of, publish
from storage.records import Diagnosis, Epoch, Revocation, SubscriberId

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
REGISTRATIONS = TEXTS.filter(lambda text: GENERATION_MARK not in text)


@given(TEXTS, REGISTRATIONS, TEXTS, st.binary(max_size=50), st.floats(allow_nan=False, allow_infinity=False))
def test_an_entry_is_read_as_it_was_written(kind: str, epoch: str, node: str, body: bytes, at: float) -> None:
    entry = appended(begun(NOTHING, epoch), kind, body, at, node)
    frame = publish(Outgoing("a", body, {HEADER: text_of(entry)}))
    block = frame[frame.index(b"\r\n") + 2 :].removesuffix(body + b"\r\n")
    read = entry_of(7, headers_of(block), body)
    expected = entry._replace(pos=7)
    # An empty name is written as a hyphen.
    assert read == expected._replace(registration=epoch or "-", node=node or "-")


def written(*kinds: str, epoch: str = "e", begin: Entry = NOTHING) -> list[Entry]:
    """The entries of a log that these were written to, one after another; its newest hundred."""
    found: list[Entry] = []
    head = begun(begin, epoch)
    for pos, kind in enumerate(kinds, start=begin.pos + 1):
        if kind.startswith("!"):
            found = []
            head = marked(head, kind, "n", is_purge=kind == PURGED)
        else:
            head = appended(head, kind, b"%d" % pos, 5.0, "n")
        head = head._replace(pos=pos)
        found.append(head)
    return found[-100:]


def window(*kinds: str) -> tuple[int, int, int, list[int]]:
    """The window of such a log, and the numbers of its events."""
    entries = written(*kinds)
    log = log_of("e", entries, [one.pos for one in entries])
    assert log.damage is None
    return log.window.head, log.window.floor, log.window.purged, [one.seq for one in log.events]


def test_a_log_says_what_it_retains() -> None:
    assert window() == (0, 0, 0, [])
    assert window("k", "k") == (2, 0, 0, [1, 2])
    assert window("k", "k", PURGED) == (2, 2, 2, [])
    assert window("k", "k", PURGED, "k") == (3, 2, 2, [3])
    assert window("k", "k", TRIMMED, "k") == (3, 2, 0, [3])
    assert window("k", PURGED, "k", TRIMMED) == (2, 2, 1, [])
    assert window(*["k"] * 130) == (130, 30, 0, list(range(31, 131)))
    assert window(*["k"] * 7, PURGED, *["k"] * 101) == (108, 8, 7, list(range(9, 109)))


def test_a_registration_after_a_deletion_begins_at_one() -> None:
    ended = written("k", "k", ENDED)
    entries = ended + written("k", epoch="f", begin=ended[-1])
    log = log_of("f", entries, [one.pos for one in entries])
    assert (log.window.epoch, log.window.head, [one.seq for one in log.events]) == ("f", 1, [1])
    assert log.is_of_newest
    former = log_of("e", entries, [one.pos for one in entries])
    assert (former.window.head, former.is_of_newest) == (0, False)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_what_a_disk_has_changed_is_damage(at: int) -> None:
    entries: list[Entry | None] = list(written(*["k"] * 5))
    poses = [1, 2, 3, 4, 5]
    entry = entries[at]
    assert entry is not None
    other = log_of("e", [*entries[:at], entry._replace(body=b"other"), *entries[at + 1 :]], poses)
    assert other.damage is not None
    assert f"event {at + 1}" in other.damage.what
    unreadable = log_of("e", [*entries[:at], None, *entries[at + 1 :]], poses).damage
    assert unreadable is not None
    # Of the newest nobody knows which number it had.
    assert (unreadable.head, unreadable.floor, unreadable.is_head_trusted) == (
        (4, 4, False) if at == 4 else (5, at + 1, True)
    )
    if at == 2:
        assert log_of("e", [*entries[:at], *entries[at + 1 :]], [1, 2, 4, 5]).damage is not None


def test_what_somebody_else_has_put_between_entries_is_damage_that_can_be_dropped() -> None:
    entries = written(*["k"] * 5)
    found = log_of("e", [*entries[:2], None, *entries[2:]], [1, 2, 3, 4, 5, 6]).damage
    assert found is not None
    assert (found.what, found.head, found.floor, found.is_head_trusted) == ("an entry cannot be read", 5, 2, True)


@pytest.mark.parametrize("text", ["", "1", "1 2.0 k e 0 0 x n", "x 2.0 k e 0 0 5 n", "1 2.0 k e 0 0 5 n more"])
def test_a_header_that_says_nothing_is_no_entry(text: str) -> None:
    assert entry_of(1, {HEADER: text}, b"") is None
    assert entry_of(1, {}, b"") is None


DIAGNOSIS = Diagnosis("d", "amira", ("bo", "سارا"), Epoch("e"), 5.0)
REVOCATION = Revocation(2, "amira", None, 5.0, 6.0)


def test_an_act_is_read_as_it_was_written() -> None:
    made: list[Made] = [Registered(DIAGNOSIS), Deleted("d"), Revoked(REVOCATION), Lifted(2, "amira", None)]
    for also in (acts.Purged("d", begun(NOTHING, "e").window), acts.Erased("digest", "[erased]"), None):
        act = ActSaid("id", 5.0, acts.Row(5.0, "op", "what", "d", None, "after", None), made, also)
        assert acts.decoded(acts.encoded(act)) == act
    for one in made:
        assert acts.made_of(acts.encoded(one)) == one


def test_whoever_applies_acts_in_order_knows_what_they_made_and_what_to_tell() -> None:
    known = Known()
    made: list[list[Made]] = [
        [Registered(DIAGNOSIS)],
        [Revoked(REVOCATION)],
        [],
        [Lifted(2, "amira", None)],
        [Deleted("d")],
    ]
    told = []
    for number, one in enumerate(made, start=1):
        told.append(known.apply(number, ActSaid(str(number), 5.0, made=one), 10 * number, number))
        if number == 2:
            assert known.diagnosis("d") == DIAGNOSIS
            assert known.revocation_of("amira", None) == (REVOCATION, 19)
    assert told == [
        DiagnosisRegistered(1, DIAGNOSIS),
        TokensRevoked(2, REVOCATION),
        None,
        RevocationsLifted(4, (REVOCATION,)),
        DiagnosisDeleted(5, DIAGNOSIS),
    ]
    assert (len(known), known.revocations(), known.applied, known.number_pos) == (0, [], 5, 51)
    assert (known.pos_of("d"), known.revocation_of("amira", None)) == (49, (None, 39))


def test_what_is_older_than_what_is_known_changes_nothing() -> None:
    known = Known()
    known.take(Registered(DIAGNOSIS), 10)
    known.take(Deleted("d"), 5)
    known.take(Revoked(REVOCATION), 10)
    known.take(Lifted(2, "amira", None), 9)
    assert known.diagnosis("d") == DIAGNOSIS
    assert known.revocations() == [REVOCATION]


def test_diagnoses_are_paged_by_id_and_owner() -> None:
    known = Known()
    for pos, name in enumerate("cadbe", start=1):
        known.take(Registered(Diagnosis(name, "amira" if name in "bd" else "bo", (), Epoch("e"), 5.0)), pos)
    known.take(Deleted("c"), 9)
    assert [one.diagnosis_id for one in known.page(None, "")] == list("abde")
    assert [one.diagnosis_id for one in known.page(None, "b")] == list("de")
    assert [one.diagnosis_id for one in known.page("amira", "")] == list("bd")


def test_names_stand_in_subjects_as_digests_and_differ_where_names_do() -> None:
    layout = Layout("x")
    names = [SubscriberId(None, None), SubscriberId("", None), SubscriberId("a b", "*"), SubscriberId("a b", ">")]
    subjects = {layout.cursor("d", one) for one in names} | {layout.who(one) for one in names}
    assert len(subjects) == 8
    assert all("a b" not in one and "*" not in one and ">" not in one for one in subjects)
    assert layout.revocation("a", None) != layout.revocation(None, "a")
    assert digest("a", "b") != digest("ab") != digest("a=b")


@pytest.mark.parametrize("bad", ["", "a.b", "*", ">", "a b", "a\r\nb", "x" * 65, "ä"])
def test_no_id_can_mean_another_subject(bad: str) -> None:
    with pytest.raises(Unstorable):
        Layout("x").log(bad)
    with pytest.raises(ValueError, match="name of an installation"):
        Layout(bad)


def test_a_stream_differs_where_a_setting_does_and_not_where_the_server_says_more() -> None:
    wanted = Layout("x").streams(3)[0]
    assert differing(wanted, {**wanted, "max_consumers": -1, "republish": {**wanted["republish"], "more": 1}}) == []
    assert differing(wanted, {**wanted, "storage": "memory", "allow_atomic": None}) == [
        "storage is 'memory', not 'file'",
        "allow_atomic is None, not True",
    ]
    without = {name: value for name, value in wanted.items() if name not in {"max_age", "republish"}}
    assert len(differing(wanted, without)) == 1
