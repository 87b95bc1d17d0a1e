"""`DELETE /subjects?sub=...` and `/subjects/{sub}`: the erasure of a person, and what of it an audit row may keep.

What is erased is the name. Diagnoses it owns, events that were published, and keys stay: a diagnosis is deleted by
whoever may, an event says nothing about who follows, and no key tells whose it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import trio

from actors.acts import Acts
from actors.registry import Registry
from actors.which import OfUser
from storage.records import ERASED_ROWS_MAX, AuditRow, Erased, Erasure, NewAuditRow
from web.contract import wire
from web.contract.errors import Problem
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.records import diagnosis_id_as_json
from web.http.bodies import whole_request
from web.identity import rights
from web.identity.access import Access, require
from web.operating.consequences import Consequences
from web.operating.draining import unless_stopping

ERASED: Final = "[erased]"
"""Stands where the name stood."""

ROUNDS_MAX: Final = 10
"""How often traces of a person's connections are erased. More are needed only if the person keeps coming back."""

NAMELESS_TARGETS: Final = ("diagnosis.", "actor.", "outbox.", "subscriber.", "database.", "revocation.lift")
"""Acts whose target is a diagnosis, a file or a number, even where a person has the same name."""


def erasure(
    access: Access, acts: Acts, consequences: Consequences, registry: Registry, stopping: trio.Event
) -> Handlers:
    """Both operations: a path cannot hold every name (one that begins with `/`), a query can."""

    async def erase_by_query(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        sub = asked.query.get("sub")
        if not sub:
            raise Problem("invalid_field", "sub must be the name to erase, of at least one character")
        return await erase(asked, sub)

    async def erase_by_path(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        return await erase(asked, asked.parameters["sub"])

    async def erase(asked: Request, sub: str) -> Answer:
        who, whose, connections = asked.who, OfUser(sub), 0
        whole = Erasure(sub, ERASED, spellings_of(sub), lambda row: without_name(row, sub))

        def act(erased: Erased) -> NewAuditRow:
            after = wire.encode(_changed(connections, erased)).decode()
            return NewAuditRow(ERASED if who.sub == sub else who.sub or "", "subject.erase", ERASED, after=after)

        async def carry_out() -> tuple[int, Erased]:
            nonlocal connections
            access.judge_token(who)
            connections = ended = registry.count_everywhere(whose)
            erased = await acts.store.erase(whole, act)
            await consequences.settled()
            for _ in range(ROUNDS_MAX):
                # What its connections have left since is erased, too: cursors they moved, rows of their end. It is the
                # barrier as well, behind everything that was handed over while it still was a viewer.
                # No checkpoint until the store has taken it: nothing of before may reach it after that.
                ended += registry.erase(whose, ERASED)
                left = await acts.store.erase(whole)
                erased = _together(erased, left)
                if left.cursors < ERASED_ROWS_MAX:
                    break
                # The first step did not take all: an actor that was loaded meanwhile may know the person from the rest.
            return ended, erased

        await whole_request(asked)
        unless_stopped = partial(unless_stopping, stopping, carry_out, "the erasure is not whole: repeat it")
        ended, erased = await acts.carry_through(unless_stopped)
        return answer(
            {
                **_changed(ended, erased),
                "owned": [diagnosis_id_as_json(one) for one in erased.owned],
                "owned_total": erased.owned_total,
            }
        )

    return {"eraseSubjectByQuery": erase_by_query, "eraseSubject": erase_by_path}


def _together(erased: Erased, left: Erased) -> Erased:
    """Both passes; a cursor that was there again is counted once."""
    audit_rows, access_rows = erased.audit_rows + left.audit_rows, erased.access_rows + left.access_rows
    return replace(erased, audit_rows=audit_rows, access_rows=access_rows)


def _changed(connections: int, erased: Erased) -> dict[str, object]:
    return {
        "connections": connections,
        "cursors": erased.cursors,
        "viewer_entries": erased.viewers,
        "audit_rows": erased.audit_rows,
        "access_rows": erased.access_rows,
    }


def spellings_of(sub: str) -> list[str]:
    """How a name stands in an audit row: as it is, and within JSON."""
    return list(dict.fromkeys([sub, wire.encode(sub).decode()[1:-1]]))


def without_name(row: AuditRow, sub: str) -> AuditRow:
    """The row with the stand-in in place of the name, wherever a whole text is the name."""
    return replace(
        row,
        who=ERASED if row.who == sub else row.who,
        target=row.target if row.what.startswith(NAMELESS_TARGETS) else _text_without(row.target, sub),
        before=row.before and _text_without(row.before, sub),
        after=row.after and _text_without(row.after, sub),
    )


def _text_without(text: str, sub: str) -> str:
    """A text is a JSON object, or plain words."""
    if text.startswith("{"):
        return wire.rewritten(text, lambda value: ERASED if value == sub else value)
    return ERASED if text == sub else text
