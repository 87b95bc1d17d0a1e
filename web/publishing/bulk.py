"""`POST /ws/broadcast`: many updates in one request, one a line, each with a result of its own (PROTOCOL section 7).

The body is read whole. Then all lines are put into the mailboxes of their actors, so that they share commits, and the
answer begins: a result leaves once those before it have left and its event is committed. Where a mailbox is full, only
this request waits: its lines keep their order, and other publishers are not held up.

What is in a mailbox is stored, whether or not its client reads the results. A client that reads slowly holds up its own
results only. What is held for it are `PART_BYTES` and the receipts that are still to be shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from actors.acts import Unanswered
from actors.errors import ActorError, MailboxFull
from actors.messages import Receipt
from actors.registry import Registry
from storage.errors import NoSuchDiagnosis, StorageError
from storage.pending import Pending
from web.contract import wire
from web.contract.errors import Asked, Problem, problem_of
from web.contract.exchange import Answer, Handlers, Request, answer_lines
from web.contract.log_fields import current_request
from web.contract.operations import NDJSON
from web.contract.principals import Principal
from web.contract.records import Line
from web.http.bodies import BODY_BYTES_MAX, BULK_BYTES_MAX, declared_length, read_body, require_media_type
from web.publishing.body_room import Allowance
from web.publishing.broadcasts import Publisher, shown_receipt

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

PART_BYTES: Final = 16 * 1024
"""Results of about so many bytes are sent together. Reason: rendering so many leaves others their turn."""


@dataclass(frozen=True, slots=True)
class Told:
    """A line whose event is in the mailbox of its actor."""

    diagnosis_id: str
    receipt: Pending[Receipt]


def bulk(publisher: Publisher, registry: Registry) -> Handlers:
    """The operation that publishes many updates."""
    allowance = Allowance(BODIES_BYTES_MAX)

    async def broadcast(asked: Request) -> Answer:
        who = asked.who
        if "Idempotency-Key" in asked.headers:
            raise Problem("invalid_field", "Idempotency-Key is for one event: give each line its own idempotency_key")
        require_media_type(asked, NDJSON)
        if declared_length(asked):
            await publisher.access.check_may_broadcast_something(who)
        with allowance.room_of(who.sub) as room:
            told = await _publish(publisher, registry, who, await read_body(asked, BULK_BYTES_MAX, room.take))
        return answer_lines(_results(publisher, asked, told))

    return {"broadcastMany": broadcast}


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


async def _publish(publisher: Publisher, registry: Registry, who: Principal, body: bytes) -> deque[Told | Problem]:
    """Every line, in order, in the mailbox of its actor, or why it is in none.

    Cancellation: what is in a mailbox is still stored; a repeat with the same keys finds out.
    """
    pauses = PauseBudget(PAUSE_SECONDS_MAX)
    return deque([await _tell(publisher, registry, who, line, pauses) for line in lines_of(body)])


async def _tell(
    publisher: Publisher, registry: Registry, who: Principal, line: bytes, pauses: PauseBudget
) -> Told | Problem:
    try:
        publisher.access.count_event(who)
        if len(line) > LINE_BYTES_MAX:
            raise Problem("too_large", f"a line must be at most {LINE_BYTES_MAX} bytes")
        diagnosis_id, publish = await publisher.decoded(who, line, "the line", _decoded)
        while (refused := publisher.access.refusal_of_sender(who)) is None:
            try:
                return Told(diagnosis_id, registry.put(diagnosis_id, publish))
            except MailboxFull:
                if not await pauses.paused():
                    raise
        return refused
    except (Problem, ActorError, StorageError) as error:
        return as_problem(error)


def _decoded(line: bytes) -> tuple[Line, str | None]:
    update = wire.decode_line(line)
    return update, update.idempotency_key


class PauseBudget:
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


async def _results(publisher: Publisher, asked: Request, told: deque[Told | Problem]) -> AsyncIterator[bytes]:
    """The results of all lines, in order, each a JSON text and a newline; in parts, as commits return.

    Once the disk has not answered in time, no further one is waited for.
    """
    part = bytearray()
    number, is_late, is_refused = 0, False, False
    while told:
        one = told.popleft()
        if isinstance(one, Told) and not one.receipt.is_there and not is_late:
            if part:
                yield bytes(part)
                part.clear()
            is_late = not await _arrives(publisher, one.receipt)
        number += 1
        result = _result(publisher, asked.who, one)
        if isinstance(result, Problem) and result.status == 401 and not is_refused:
            is_refused = True
            _say_refused(publisher, asked, result)
        part += wire.encode({"line": number, **_shown(result)}) + b"\n"
        if len(part) >= PART_BYTES:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)


async def _arrives(publisher: Publisher, receipt: Pending[Receipt]) -> bool:
    """Wait until a receipt is there; False if the disk does not answer in time."""
    try:
        with publisher.acts.patience():
            await receipt.done.wait()
    except Unanswered:
        return False
    return True


def _say_refused(publisher: Publisher, asked: Request, refused: Problem) -> None:
    """Tell the operator, once for all lines, as of this request: it was answered before its results were."""
    outside = current_request.set(asked.id)
    publisher.access.refused_tokens.say(refused)
    current_request.reset(outside)


def _result(publisher: Publisher, who: Principal, told: Told | Problem) -> tuple[str, Receipt] | Problem:
    if isinstance(told, Problem):
        return told
    if not told.receipt.is_there:
        return as_problem(Unanswered("the disk does not answer"))
    try:
        return told.diagnosis_id, told.receipt.result()
    except NoSuchDiagnosis:
        return publisher.access.absent(who)
    except (Problem, ActorError, StorageError) as error:
        return as_problem(error)


def _shown(result: tuple[str, Receipt] | Problem) -> dict[str, object]:
    if isinstance(result, Problem):
        return wire.problem_object(result)
    return {"status": 200, **shown_receipt(*result)}


def as_problem(error: Problem | ActorError | StorageError) -> Problem:
    """The problem of one line, to be kept until the answer; other lines of the request have results of their own."""
    problem = error if isinstance(error, Problem) else problem_of(error, Asked.TO_PUBLISH)
    if problem is None:
        return Problem("internal_error", "this line failed unexpectedly")
    # Made anew: the raised one holds its traceback, which holds the line and the record decoded from it.
    return Problem(problem.code, problem.detail)
