"""`POST /ws/broadcast`: many updates in one request, one a line, each with a result of its own (PROTOCOL section 7).

The body is read whole. Then all lines are decoded and put into the mailboxes of their actors, those of a diagnosis
together, and the answer begins: a result leaves once those before it have left and its event is committed. Where a
mailbox is full, only the lines for it wait: they keep their order, and nobody else is held up.

What is in a mailbox is stored, whether or not its client reads the results. A client that reads slowly holds up its own
results only. What is held for it are `PART_BYTES` and the receipts that are still to be shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

import trio

from actors.acts import Unanswered
from actors.errors import ActorError, MailboxFull
from actors.messages import Publish, Receipt
from actors.registry import Registry
from actors.turns import Share
from storage.errors import Failed, NoSuchDiagnosis, StorageError
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
from web.publishing.broadcasts import Publisher

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

SHARE_BYTES: Final = 256 * 1024
"""Lines of about so many bytes are handed over to their actors together. Reason: their first commit need not wait for
the last line to be decoded."""

HANDED_AT_ONCE_MAX: Final = 64
"""Lines put into mailboxes between two checkpoints."""

PART_BYTES: Final = 16 * 1024
"""Results of about so many bytes are sent together. Reason: rendering so many leaves others their turn."""


class Told(NamedTuple):
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

    Once the store has not answered whether somebody may, it is not asked again: each line would wait for it anew.

    Cancellation: what is in a mailbox is still stored; a repeat with the same keys finds out.
    """
    delivery = Delivery(registry, partial(publisher.access.refusal_of_sender, who))
    unanswered: Problem | None = None
    for line in lines_of(body):
        try:
            if unanswered is None:
                delivery.add(len(line), *await _read(publisher, who, line))
            else:
                delivery.refuse(unanswered)
        except Failed as error:
            unanswered = as_problem(error)
            delivery.refuse(unanswered)
        except (Problem, StorageError) as error:
            delivery.refuse(as_problem(error))
        if delivery.is_full:
            await delivery.hand_over()
    await delivery.hand_over()
    return deque(delivery.told)


async def _read(publisher: Publisher, who: Principal, line: bytes) -> tuple[str, Publish]:
    publisher.access.count_event(who)
    if len(line) > LINE_BYTES_MAX:
        raise Problem("too_large", f"a line must be at most {LINE_BYTES_MAX} bytes")
    return await publisher.decoded(who, line, "the line", _decoded)


class Delivery:
    """The lines of one request on their way to their actors, a share of them at a time.

    The lines of a diagnosis are put into its mailbox together, so that its actor stores and sends them together.
    """

    def __init__(self, registry: Registry, refusal_of_sender: Callable[[], Problem | None]) -> None:
        """Nothing is taken yet.

        Args:
            refusal_of_sender: asked after each wait for room. Otherwise the actor asks, with the message's judge.
        """
        self._registry = registry
        self._refusal_of_sender = refusal_of_sender
        self._pauses = PauseBudget(PAUSE_SECONDS_MAX)
        self._turn = Share()
        self._waiting: dict[str, deque[tuple[int, Publish]]] = {}
        """What is to be handed over, by diagnosis; each with its place among all lines."""
        self._waiting_bytes = 0
        self._told: list[Told | Problem | None] = []
        """What became of each line so far; `None`: it is to be handed over."""

    def add(self, length: int, diagnosis_id: str, publish: Publish) -> None:
        """Take the next line, of so many bytes."""
        self._waiting.setdefault(diagnosis_id, deque()).append((len(self._told), publish))
        self._waiting_bytes += length
        self._told.append(None)

    def refuse(self, problem: Problem) -> None:
        """Take note that the next line is for no actor."""
        self._told.append(problem)

    @property
    def is_full(self) -> bool:
        """Whether it is time to hand over."""
        return self._waiting_bytes >= SHARE_BYTES

    @property
    def told(self) -> Iterator[Told | Problem]:
        """What became of each line, once all are handed over."""
        for one in self._told:
            assert one is not None, "it is handed over"
            yield one

    async def hand_over(self) -> None:
        """Put what was taken into the mailboxes of its actors. Where one is full, its lines alone wait."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        while waiting:
            full: Problem | None = None
            for diagnosis_id, lines in list(waiting.items()):
                try:
                    while lines:
                        place, publish = lines[0]
                        self._told[place] = self._put(diagnosis_id, publish)
                        lines.popleft()
                        await self._turn.spend(HANDED_AT_ONCE_MAX)
                    del waiting[diagnosis_id]
                except MailboxFull as error:
                    full = as_problem(error)
            if not waiting:
                return
            refused = self._refusal_of_sender() if await self._pauses.paused() else full
            if refused is not None:
                for place, _ in chain.from_iterable(waiting.values()):
                    self._told[place] = as_problem(refused)
                return

    def _put(self, diagnosis_id: str, publish: Publish) -> Told | Problem:
        """Put one line into the mailbox of its actor; or why it is for none. Raises `MailboxFull`."""
        try:
            return Told(diagnosis_id, self._registry.put(diagnosis_id, publish))
        except MailboxFull:
            raise
        except ActorError as error:
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
        part += _shown(number, result) + b"\n"
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


def _shown(number: int, result: tuple[str, Receipt] | Problem) -> bytes:
    if isinstance(result, Problem):
        return wire.refused_line(number, result)
    return wire.result_line(number, *result)


def as_problem(error: Problem | ActorError | StorageError) -> Problem:
    """The problem of one line, to be kept until the answer; other lines of the request have results of their own."""
    problem = error if isinstance(error, Problem) else problem_of(error, Asked.TO_PUBLISH)
    if problem is None:
        return Problem("internal_error", "this line failed unexpectedly")
    # Made anew: the raised one holds its traceback, which holds the line and the record decoded from it.
    return Problem(problem.code, problem.detail)
