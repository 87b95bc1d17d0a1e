"""`/diagnoses`: the registry of diagnoses, their owners and viewers (PROTOCOL section 8)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from quart import Blueprint, Response, request

from actors.roster import Subscriber
from actors.transport import Ending
from storage.records import Diagnosis, NewAuditRow, Registered
from web.contract import wire
from web.contract.paging import PAGE_BYTES_MAX, page_of
from web.contract.records import diagnosis_id_as_json, diagnosis_id_of
from web.http.bodies import answer, read_json_body, whole_request
from web.identity import rights
from web.identity.access import authenticate, authenticate_for, authorized_diagnosis
from web.identity.judging import judge_token
from web.identity.tokens import Principal
from web.server.services import Services


def diagnoses(services: Services) -> Blueprint:
    """The routes of the registry."""
    blueprint = Blueprint("diagnoses", __name__)

    @blueprint.get("/diagnoses")
    async def list_diagnoses() -> Response:
        who = authenticate(services)
        page = page_of(request.args)
        owner = None if rights.may_register(who) else who.sub
        found = await services.store.diagnoses(
            owner=owner, after=page.after, limit=page.limit + 1, bytes_max=PAGE_BYTES_MAX
        )
        return answer(page.of(found, _registration, lambda one: one.diagnosis_id))

    @blueprint.put("/diagnoses/<diagnosis_id>")
    async def register(diagnosis_id: str) -> Response:
        who = authenticate_for(services, rights.REGISTER)
        checked_id = diagnosis_id_of(diagnosis_id)
        wanted = wire.decode_registration(await read_json_body())
        viewers = tuple(dict.fromkeys(wanted.viewers))

        async def carry_out() -> Registered:
            judge_token(services, who)
            store, act = services.acts.store, partial(_registering, who)
            registered = await store.register(checked_id, wanted.owner, viewers, act)
            lost = _lost_the_right(services, registered.diagnosis)
            await services.registry.end_where(checked_id, lost, Ending.VIEWER_REMOVED)
            await store.barrier()
            return registered

        registered = await services.acts.carry_through(carry_out)
        return answer(_registration(registered.diagnosis), 201 if registered.created else 200)

    @blueprint.get("/diagnoses/<diagnosis_id>")
    async def show(diagnosis_id: str) -> Response:
        who = authenticate(services)
        checked_id = diagnosis_id_of(diagnosis_id)
        diagnosis = await authorized_diagnosis(services, who, checked_id, rights.may_see_registration)
        return answer(_registration(diagnosis))

    @blueprint.delete("/diagnoses/<diagnosis_id>")
    async def delete(diagnosis_id: str) -> Response:
        who = authenticate_for(services, rights.REGISTER)
        checked_id = diagnosis_id_of(diagnosis_id)
        await whole_request()

        async def carry_out() -> Diagnosis:
            judge_token(services, who)
            deleted = await services.acts.store.delete(checked_id, partial(_deleting, who))
            await services.registry.retire(checked_id)
            await services.acts.store.barrier()
            return deleted

        return answer(_registration(await services.acts.carry_through(carry_out)))

    return blueprint


def _registering(who: Principal, registered: Registered) -> NewAuditRow:
    before, after = registered.before, registered.diagnosis
    was = None if before is None else _rights(before)
    named = after.diagnosis_id
    return NewAuditRow(who.sub or "", "diagnosis.register", named, was, _rights(after), diagnosis_id=named)


def _deleting(who: Principal, deleted: Diagnosis) -> NewAuditRow:
    named = deleted.diagnosis_id
    return NewAuditRow(who.sub or "", "diagnosis.delete", named, before=_rights(deleted), diagnosis_id=named)


def _lost_the_right(services: Services, diagnosis: Diagnosis) -> Callable[[Subscriber], bool]:
    """Picks the connections that may not follow `diagnosis` as it is registered now."""
    anonymous_allowed = services.settings.allow_anonymous

    def lost(subscriber: Subscriber) -> bool:
        who = subscriber.principal
        assert isinstance(who, Principal), "connections are admitted by web.following.sockets"
        return not rights.may_subscribe(who, diagnosis, anonymous_allowed=anonymous_allowed)

    return lost


def _registration(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "diagnosis_id": diagnosis_id_as_json(diagnosis.diagnosis_id),
        "owner": diagnosis.owner,
        "viewers": list(diagnosis.viewers),
        "epoch": diagnosis.epoch,
        "created_at": wire.timestamp(diagnosis.created_at),
    }


def _rights(diagnosis: Diagnosis) -> str:
    """Who may follow it, as an audit row tells it."""
    return wire.encode({"owner": diagnosis.owner, "viewers": list(diagnosis.viewers)}).decode()
