"""`/revocations`: refuse tokens before their time (PROTOCOL section 8)."""

from __future__ import annotations

import contextlib
from typing import Final

import trio

from actors.acts import Acts
from storage.errors import StorageError
from storage.records import Revocation, RevocationMade
from storage.store import RevocationStore
from web.contract import wire
from web.contract.errors import Problem
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.paging import page_of
from web.contract.records import NUMBER
from web.http.bodies import read_json_body, whole_request
from web.identity import rights
from web.identity.access import Access, require
from web.identity.tokens import LEEWAY_SECONDS
from web.operating.audit_rows import act, revocation_object
from web.operating.consequences import Consequences

EXPIRE_EVERY_SECONDS: Final = 3600.0
"""Time between two looks for revocations that have outlived every token they refuse."""


def revocations(access: Access, acts: Acts, consequences: Consequences, store: RevocationStore) -> Handlers:
    """The three operations."""

    async def revoke(asked: Request) -> Answer:
        who = asked.who
        require(who, rights.OPERATE)
        wanted = wire.decode_revocation(await read_json_body(asked))

        async def carry_out() -> RevocationMade:
            access.judge_token(who)
            made = await acts.store.revoke(
                sub=wanted.sub, token_id=wanted.jti, leeway_seconds=LEEWAY_SECONDS, act=act(who, "revocation.add")
            )
            await consequences.settled()
            return made

        made = await acts.carry_through(carry_out)
        return answer(revocation_object(made.revocation), 201)

    async def list_revocations(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        page = page_of(asked.query)
        found = await store.revocations(after=page.after_number, limit=page.limit + 1)
        return answer(page.of(found, revocation_object, lambda one: str(one.number)))

    async def lift(asked: Request) -> Answer:
        who, number = asked.who, asked.parameters["number"]
        require(who, rights.OPERATE)
        if not NUMBER.fullmatch(number):
            raise Problem("not_found", "there is no revocation with this id")
        await whole_request(asked)

        async def carry_out() -> Revocation:
            access.judge_token(who)
            return await acts.store.lift_revocation(int(number), act(who, "revocation.lift"))

        return answer(revocation_object(await acts.carry_through(carry_out)))

    return {"revokeTokens": revoke, "listRevocations": list_revocations, "liftRevocation": lift}


async def expire_revocations(store: RevocationStore, lifetime_seconds_max: int) -> None:
    """Drop revocations once no token they refuse can live any more; until cancelled."""
    while True:
        with contextlib.suppress(StorageError):  # nothing is lost: the next look finds it
            await store.expire_revocations(lifetime_seconds_max + LEEWAY_SECONDS)
        await trio.sleep(EXPIRE_EVERY_SECONDS)
