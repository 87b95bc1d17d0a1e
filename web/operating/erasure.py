"""`DELETE /subjects?sub=...` and `/subjects/{sub}`: the erasure of a person.

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
from storage.records import ERASED_ROWS_MAX, Erased, Erasure
from web.contract.errors import Problem
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.records import diagnosis_id_as_json
from web.http.bodies import whole_request
from web.identity import rights
from web.identity.access import Access, require
from web.operating.audit_rows import ERASED, act, erased_object, spellings_of
from web.operating.consequences import Consequences
from web.operating.draining import unless_stopping

ROUNDS_MAX: Final = 10
"""How often traces of a person's connections are erased. More are needed only if the person keeps coming back."""


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
        whose, whole = OfUser(sub), Erasure(sub, ERASED, spellings_of(sub))
        # Somebody who erases itself is not named.
        who = replace(asked.who, sub=ERASED) if asked.who.sub == sub else asked.who

        async def carry_out() -> tuple[int, Erased]:
            elsewhere = await registry.count_everywhere_elsewhere(whose)
            access.judge_token(asked.who)
            ended = registry.count_everywhere(whose) + elsewhere
            erased = await acts.store.erase(whole, act(who, "subject.erase", connections=ended))
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
                **erased_object(ended, erased),
                "owned": [diagnosis_id_as_json(one) for one in erased.owned],
                "owned_total": erased.owned_total,
            }
        )

    return {"eraseSubjectByQuery": erase_by_query, "eraseSubject": erase_by_path}


def _together(erased: Erased, left: Erased) -> Erased:
    """Both passes; a cursor that was there again is counted once."""
    audit_rows, access_rows = erased.audit_rows + left.audit_rows, erased.access_rows + left.access_rows
    return replace(erased, audit_rows=audit_rows, access_rows=access_rows)
