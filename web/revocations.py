"""`/revocations`: refuse tokens before their time (PROTOCOL section 8)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import trio
from quart import Blueprint, Response, request

from actors.subscriber import Ending, Subscriber
from storage.errors import StorageError
from storage.records import NewAuditRow, Revocation, RevocationMade
from storage.store import Store
from web import rights, wire
from web.access import authenticate_for
from web.bodies import answer, read_json_body, whole_request
from web.errors import Problem
from web.judging import judge_token
from web.paging import page_of
from web.records import NUMBER
from web.revoked import Revoked
from web.services import Services
from web.tokens import LEEWAY_SECONDS, Principal

EXPIRE_EVERY_SECONDS: Final = 3600.0
"""Time between two looks for revocations that have outlived every token they refuse."""

PAGE_REVOCATIONS: Final = 1000
"""Revocations read from the store at once."""


def revocations(services: Services) -> Blueprint:
    """The three routes."""
    blueprint = Blueprint("revocations", __name__)

    @blueprint.post("/revocations")
    async def revoke() -> Response:
        who = authenticate_for(services, rights.OPERATE)
        wanted = wire.decode_revocation(await read_json_body())

        async def carry_out() -> RevocationMade:
            judge_token(services, who)
            made = await services.acts.store.revoke(
                sub=wanted.sub, token_id=wanted.jti, leeway_seconds=LEEWAY_SECONDS, audit=partial(_adding, who)
            )
            services.revoked.add(made.revocation)
            await services.registry.end_everywhere(_is_covered(services.revoked), Ending.REVOKED)
            await services.acts.store.barrier()
            return made

        made = await services.acts.carry_through(carry_out)
        return answer(_shown(made.revocation), 201)

    @blueprint.get("/revocations")
    async def list_revocations() -> Response:
        authenticate_for(services, rights.OPERATE)
        page = page_of(request.args)
        found = await services.store.revocations(after=page.after_number, limit=page.limit + 1)
        return answer(page.of(found, _shown, lambda one: str(one.number)))

    @blueprint.delete("/revocations/<number>")
    async def lift(number: str) -> Response:
        who = authenticate_for(services, rights.OPERATE)
        if not NUMBER.fullmatch(number):
            raise Problem("not_found", "there is no revocation with this id")
        await whole_request()

        async def carry_out() -> Revocation:
            judge_token(services, who)
            lifted = await services.acts.store.lift_revocation(int(number), partial(_lifting, who))
            services.revoked.lift(lifted)
            return lifted

        return answer(_shown(await services.acts.carry_through(carry_out)))

    return blueprint


async def load_revoked(store: Store) -> Revoked:
    """Everything that is revoked now."""
    revoked = Revoked()
    last = 0
    while page := await store.revocations(after=last, limit=PAGE_REVOCATIONS):
        for one in page:
            revoked.add(one)
        last = page[-1].number
    return revoked


async def expire_revocations(store: Store, revoked: Revoked, lifetime_seconds_max: int) -> None:
    """Drop revocations once no token they refuse can live any more; until cancelled."""
    while True:
        try:
            expired = await store.expire_revocations(lifetime_seconds_max + LEEWAY_SECONDS)
        except StorageError:
            pass  # Nothing is lost: the next look finds it.
        else:
            for one in expired:
                revoked.lift(one)
        await trio.sleep(EXPIRE_EVERY_SECONDS)


def _is_covered(revoked: Revoked) -> Callable[[Subscriber], bool]:
    def covered(subscriber: Subscriber) -> bool:
        who = subscriber.principal
        assert isinstance(who, Principal), "connections are admitted by web.sockets"
        return revoked.covering(who.sub, who.token_id, who.issued_at) is not None

    return covered


def _adding(who: Principal, made: RevocationMade) -> NewAuditRow:
    target = wire.encode(_named(made.revocation)).decode()
    before = None if made.before is None else _as_text(made.before)
    return NewAuditRow(who.sub or "", "revocation.add", target, before, _as_text(made.revocation))


def _lifting(who: Principal, lifted: Revocation) -> NewAuditRow:
    return NewAuditRow(who.sub or "", "revocation.lift", str(lifted.number), before=_as_text(lifted))


def _as_text(one: Revocation) -> str:
    return wire.encode(_shown(one)).decode()


def _shown(one: Revocation) -> dict[str, object]:
    covers_until = wire.timestamp(one.covers_until)
    return {"id": one.number, **_named(one), "at": wire.timestamp(one.at), "covers_until": covers_until}


def _named(one: Revocation) -> dict[str, object]:
    return {"jti": one.token_id} if one.sub is None else {"sub": one.sub}
