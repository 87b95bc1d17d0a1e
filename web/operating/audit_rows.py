"""What each act says in the audit trail: the one table of acts, and what of a row stays when a person is erased. Pure.

The composition root hands `AUDIT_ROWS` to the store. A handler hands it acts (`act`), which are values. The texts of a
row are JSON objects. Their form does not change: rows of former versions lie beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from storage.audit_rows import AuditRows
from storage.records import (
    Act,
    AuditRow,
    Diagnosis,
    Dropped,
    Erased,
    Erasure,
    NewAuditRow,
    Purged,
    Registered,
    Revocation,
    RevocationMade,
    Window,
)
from web.contract import wire
from web.contract.principals import Principal

ERASED: Final = "[erased]"
"""Stands where the name stood."""

NAMELESS_TARGETS: Final = ("diagnosis.", "actor.", "outbox.", "subscriber.", "database.", "revocation.lift")
"""Acts whose target is a diagnosis, a file or a number, even where a person has the same name."""


def act(who: Principal, what: str, **parameters: str | int | None) -> Act:
    """What somebody does."""
    return Act(who.sub or "", what, parameters)


def row_of(act: Act, answer: object = None) -> NewAuditRow:
    """The row of an act that was answered so; `None`: the row is stored before the act is done.

    Raises:
        LookupError: there is no such act, or it is answered otherwise.
    """
    told = act.parameters
    match act.what, answer:
        case "diagnosis.register", Registered(diagnosis=diagnosis, before=before):
            was = None if before is None else _rights(before)
            return _row_about(act, diagnosis.diagnosis_id, was, _rights(diagnosis))
        case "diagnosis.delete", Diagnosis():
            return _row_about(act, answer.diagnosis_id, _rights(answer))
        case "outbox.purge", Purged(before=before, after=after):
            return _row_about(act, told["diagnosis_id"], _text(positions(before)), _text(positions(after)))
        case "outbox.read", None:
            stood = _text({name: told[name] for name in ("epoch", "head", "floor")})
            shown = _text({name: told[name] for name in ("first", "last", "events")})
            return _row_about(act, told["diagnosis_id"], stood, shown)
        case "outbox.drop_damaged", Dropped():
            left = _text({**positions(answer.after), "dropped": answer.events})
            return _row_about(act, answer.diagnosis_id, _text({"damage": answer.damage}), left)
        case "subscriber.disconnect", int() | None:
            whom = _text({"sub": told["sub"], "device": told["device"]})
            done = _text(disconnected_object(told["connections"], answer or 0))
            return _row_about(act, told["diagnosis_id"], whom, done)
        case "actor.restart" | "actor.stop", None:
            is_now = _text({"state": told["state"], "incarnation": told["incarnation"]})
            will_be = _text({"state": told["next_state"], "incarnation": told["next_incarnation"]})
            return _row_about(act, told["diagnosis_id"], is_now, will_be)
        case "revocation.add", RevocationMade(revocation=revocation, before=before):
            was = None if before is None else _text(revocation_object(before))
            target = _text(_revoked(revocation))
            return NewAuditRow(act.who, act.what, target, was, _text(revocation_object(revocation)))
        case "revocation.lift", Revocation():
            return NewAuditRow(act.who, act.what, str(answer.number), _text(revocation_object(answer)))
        case "subject.erase", Erased():
            done = _text(erased_object(told["connections"], answer))
            return NewAuditRow(act.who, act.what, ERASED, after=done)
        case "database.backup", None:
            return NewAuditRow(act.who, act.what, str(told["name"]), after=_text({"path": told["path"]}))
        case "database.check" | "server.drain", None:
            return NewAuditRow(act.who, act.what, "")
    raise LookupError(f"no audit row says {act.what} with {type(answer).__name__}")


def _row_about(
    act: Act, diagnosis_id: str | int | None, before: str | None = None, after: str | None = None
) -> NewAuditRow:
    """The row of an act on a diagnosis."""
    assert isinstance(diagnosis_id, str), "an act on a diagnosis names it"
    return NewAuditRow(act.who, act.what, diagnosis_id, before, after, diagnosis_id)


def positions(window: Window) -> dict[str, str | int]:
    """Where an outbox stands."""
    return {"epoch": window.epoch, "head": window.head, "floor": window.floor}


def revocation_object(one: Revocation) -> dict[str, object]:
    """A revocation as rows and answers show it."""
    covers_until = wire.timestamp(one.covers_until)
    return {"id": one.number, **_revoked(one), "at": wire.timestamp(one.at), "covers_until": covers_until}


def disconnected_object(connections: object, cursors: int) -> dict[str, object]:
    """How many connections were ended and cursors forgotten."""
    return {"disconnected": connections, "forgotten": cursors}


def erased_object(connections: object, erased: Erased) -> dict[str, object]:
    """What an erasure has changed, as its row and its answer show it."""
    return {
        "connections": connections,
        "cursors": erased.cursors,
        "viewer_entries": erased.viewers,
        "audit_rows": erased.audit_rows,
        "access_rows": erased.access_rows,
    }


def _revoked(one: Revocation) -> dict[str, object]:
    return {"jti": one.token_id} if one.sub is None else {"sub": one.sub}


def _rights(diagnosis: Diagnosis) -> str:
    return _text({"owner": diagnosis.owner, "viewers": list(diagnosis.viewers)})


def _text(shown: Mapping[str, object]) -> str:
    return wire.encode(shown).decode()


# Erasing


def spellings_of(sub: str) -> list[str]:
    """How a name stands in an audit row: as it is, and within JSON."""
    return list(dict.fromkeys([sub, wire.encode(sub).decode()[1:-1]]))


def without_name(row: AuditRow, erasure: Erasure) -> AuditRow:
    """The row with the stand-in in place of the name, wherever a whole text is the name."""

    def text_without(text: str) -> str:
        """A text is a JSON object, or plain words."""
        if text.startswith("{"):
            return wire.rewritten(text, lambda value: erasure.stand_in if value == erasure.sub else value)
        return erasure.stand_in if text == erasure.sub else text

    return replace(
        row,
        who=erasure.stand_in if row.who == erasure.sub else row.who,
        target=row.target if row.what.startswith(NAMELESS_TARGETS) else text_without(row.target),
        before=row.before and text_without(row.before),
        after=row.after and text_without(row.after),
    )


AUDIT_ROWS: Final = AuditRows(row_of, without_name)
