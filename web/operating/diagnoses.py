"""`/diagnoses`: the registry of diagnoses, their owners and viewers (PROTOCOL section 8)."""

from __future__ import annotations

from actors.acts import Acts
from storage.records import Diagnosis, Registered
from storage.store import DiagnosisStore
from web.contract import wire
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.paging import PAGE_BYTES_MAX, page_of
from web.contract.records import diagnosis_id_as_json, diagnosis_id_of
from web.http.bodies import read_json_body, whole_request
from web.identity import rights
from web.identity.access import Access, require
from web.operating.audit_rows import act
from web.operating.consequences import Consequences


def diagnoses(access: Access, acts: Acts, consequences: Consequences, store: DiagnosisStore) -> Handlers:
    """The operations of the registry of diagnoses."""

    async def list_diagnoses(asked: Request) -> Answer:
        page = page_of(asked.query)
        owner = None if rights.may_register(asked.who) else asked.who.sub
        found = await store.diagnoses(owner=owner, after=page.after, limit=page.limit + 1, bytes_max=PAGE_BYTES_MAX)
        return answer(page.of(found, _registration, lambda one: one.diagnosis_id))

    async def register(asked: Request) -> Answer:
        who = asked.who
        require(who, rights.REGISTER)
        checked_id = diagnosis_id_of(asked.parameters["diagnosis_id"])
        wanted = wire.decode_registration(await read_json_body(asked))
        viewers = tuple(dict.fromkeys(wanted.viewers))

        async def carry_out() -> Registered:
            access.judge_token(who)
            registered = await acts.store.register(checked_id, wanted.owner, viewers, act(who, "diagnosis.register"))
            await consequences.settled()
            return registered

        registered = await acts.carry_through(carry_out)
        return answer(_registration(registered.diagnosis), 201 if registered.created else 200)

    async def show(asked: Request) -> Answer:
        checked_id = diagnosis_id_of(asked.parameters["diagnosis_id"])
        return answer(_registration(await access.diagnosis_for(asked.who, checked_id, rights.may_see_registration)))

    async def delete(asked: Request) -> Answer:
        who = asked.who
        require(who, rights.REGISTER)
        checked_id = diagnosis_id_of(asked.parameters["diagnosis_id"])
        await whole_request(asked)

        async def carry_out() -> Diagnosis:
            access.judge_token(who)
            deleted = await acts.store.delete(checked_id, act(who, "diagnosis.delete"))
            await consequences.settled()
            return deleted

        return answer(_registration(await acts.carry_through(carry_out)))

    return {"listDiagnoses": list_diagnoses, "putDiagnosis": register, "getDiagnosis": show, "deleteDiagnosis": delete}


def _registration(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "diagnosis_id": diagnosis_id_as_json(diagnosis.diagnosis_id),
        "owner": diagnosis.owner,
        "viewers": list(diagnosis.viewers),
        "epoch": diagnosis.epoch,
        "created_at": wire.timestamp(diagnosis.created_at),
    }
