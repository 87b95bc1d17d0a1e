"""`POST /ws/broadcast`: many updates in one request, one a line, each with a result of its own (PROTOCOL section 7).

All lines are put into the mailboxes of their actors before the first answer is awaited, so that they share commits.
Where a mailbox is full, only this request waits: its lines keep their order, and other publishers are not held up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

import trio
from quart import Blueprint, Response, request

from actors.errors import ActorError, MailboxFull
from actors.messages import Publish, Receipt
from storage.errors import NoSuchDiagnosis, StorageError
from web import wire
from web.access import authenticate, authorized_diagnosis, check_may_broadcast_something, count_event
from web.acts import Unanswered
from web.bodies import (
    BODY_BYTES_MAX,
    BULK_BYTES_MAX,
    BULK_PATH,
    COST_BYTES,
    NDJSON_MEDIA_TYPE,
    answer_lines,
    declared_length,
    read_body,
    require_media_type,
)
from web.body_room import Allowance
from web.broadcasts import authorized_target, shown_receipt
from web.errors import Asked, Problem, problem_of
from web.judging import absent, judge_of, refusal_of_sender, say_not_accepted
from web.records import diagnosis_id_of
from web.rights import may_broadcast
from web.services import Services
from web.tokens import Principal

LINES_MAX: Final = 1000
"""Lines of one request. Beyond: 413, nothing is stored."""

LINE_BYTES_MAX: Final = BODY_BYTES_MAX
"""Longest line, as long as the body of a single broadcast. Beyond: 413 for that line."""

BODIES_BYTES_MAX: Final = 16 * BULK_BYTES_MAX
"""Bodies of all bulk requests in hand. Reason: each is held whole. Beyond: 429."""

PAUSE_SECONDS_MAX: Final = 30.0
"""Time one request waits for room in mailboxes, in all. Beyond: 429 for each line that finds none."""

PAUSE_STEP_SECONDS: Final = 0.01
"""Between two looks at a full mailbox."""

LATE_SECONDS: Final = 0.001
"""Wait for each further result once the disk has not answered in time: only results that are there are taken."""


@dataclass(frozen=True, slots=True)
class Told:
    """A line whose event is in the mailbox of its actor."""

    diagnosis_id: str
    receipt: Callable[[], Awaitable[Receipt]]


def bulk(services: Services) -> Blueprint:
    """The bulk route."""
    blueprint = Blueprint("bulk", __name__)
    allowance = Allowance(BODIES_BYTES_MAX)

    @blueprint.post(BULK_PATH)
    async def broadcast() -> Response:
        who = authenticate(services)
        if "Idempotency-Key" in request.headers:
            raise Problem("invalid_field", "Idempotency-Key is for one event: give each line its own idempotency_key")
        require_media_type(NDJSON_MEDIA_TYPE)
        if declared_length():
            await check_may_broadcast_something(services, who)
        with allowance.room_of(who.sub) as room:
            body = await read_body(BULK_BYTES_MAX, room.take)
            return answer_lines(await _publish(services, who, body))

    return blueprint


def lines_of(body: bytes) -> Iterator[bytes]:
    """The lines of a body, one at a time. A last line may end without a newline; an empty line is a line.

    Raises:
        Problem: 413, there are too many; before the first.
    """
    count = body.count(b"\n") + (not body.endswith(b"\n") and bool(body))
    if count > LINES_MAX:
        raise Problem("too_large", f"a request must have at most {LINES_MAX} lines; nothing was stored")
    begin = 0
    for _ in range(count):
        end = body.find(b"\n", begin)
        yield body[begin : None if end < 0 else end]
        begin = end + 1


async def _publish(services: Services, who: Principal, body: bytes) -> list[dict[str, object]]:
    """The result of every line, in order.

    Cancellation: what is in a mailbox is still stored; a repeat with the same keys finds out.
    """
    patience = Patience(PAUSE_SECONDS_MAX)
    told = [await _tell(services, who, line, patience) for line in lines_of(body)]
    results = await _results(services, who, told)
    if (refused := next((one for one in results if isinstance(one, Problem) and one.status == 401), None)) is not None:
        say_not_accepted(refused.detail)
    return [{"line": number, **_shown(one)} for number, one in enumerate(results, start=1)]


async def _tell(services: Services, who: Principal, line: bytes, patience: Patience) -> Told | Problem:
    try:
        count_event(services, who)
        if len(line) > LINE_BYTES_MAX:
            raise Problem("too_large", f"a line must be at most {LINE_BYTES_MAX} bytes")
        # The actor judges again, in the moment of the act.
        target = await authorized_target(services, who, line, "the line")
        await services.decoding_turns.take(who.sub, len(line) + COST_BYTES)
        with services.decoding_turns.at_work():
            update = wire.decode_line(line)
            diagnosis_id = diagnosis_id_of(update.diagnosis_id)
            event = wire.new_event(update, update.idempotency_key)
        if diagnosis_id != target:
            await authorized_diagnosis(services, who, diagnosis_id, may_broadcast)
        publish = Publish(event, judge_of(services, who, may_broadcast))
        while (refused := refusal_of_sender(services, who)) is None:
            try:
                return Told(diagnosis_id, services.registry.tell(diagnosis_id, publish))
            except MailboxFull:
                if not await patience.paused():
                    raise
        return refused
    except (Problem, ActorError, StorageError) as error:
        return _as_problem(error)


class Patience:
    """How long one request may still wait for room in mailboxes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def paused(self) -> bool:
        """Wait a moment; False at once if the time is used up."""
        if self._seconds <= 0:
            return False
        self._seconds -= PAUSE_STEP_SECONDS
        await trio.sleep(PAUSE_STEP_SECONDS)
        return True


async def _results(
    services: Services, who: Principal, told: Sequence[Told | Problem]
) -> list[tuple[str, Receipt] | Problem]:
    """The result of every line; once the disk has not answered in time, no further one is waited for."""
    results: list[tuple[str, Receipt] | Problem] = []
    seconds = inf
    for one in told:
        try:
            with trio.move_on_after(seconds) as patience:
                results.append(await _result(services, who, one))
            if patience.cancelled_caught:
                raise Unanswered("the disk does not answer")
        except Unanswered as unanswered:
            seconds = LATE_SECONDS
            results.append(_as_problem(unanswered))
    return results


async def _result(services: Services, who: Principal, told: Told | Problem) -> tuple[str, Receipt] | Problem:
    if isinstance(told, Problem):
        return told
    try:
        with services.acts.patience():
            return told.diagnosis_id, await told.receipt()
    except Unanswered:
        raise
    except NoSuchDiagnosis:
        return absent(services, who)
    except (Problem, ActorError, StorageError) as error:
        return _as_problem(error)


def _shown(result: tuple[str, Receipt] | Problem) -> dict[str, object]:
    if isinstance(result, Problem):
        return wire.problem_object(result)
    return {"status": 200, **shown_receipt(*result)}


def _as_problem(error: Problem | ActorError | StorageError) -> Problem:
    """The problem of one line, to be kept until the answer; other lines of the request have results of their own."""
    problem = error if isinstance(error, Problem) else problem_of(error, Asked.TO_PUBLISH)
    if problem is None:
        return Problem("internal_error", "this line failed unexpectedly")
    # Made anew: the raised one holds its traceback, which holds the line and the record decoded from it.
    return Problem(problem.code, problem.detail)
