"""How an update gets to the server: requests, answers, and when to try again. Pure.

What is to be done is a generator of effects; `broadcaster.py` carries them out, with or without an event loop. Only
what may be repeated is repeated, with the same key, so no try makes a second event (PROTOCOL section 7).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from avicenna_live.closing import Backoff, header_seconds
from avicenna_live.errors import (
    BroadcastError,
    Forbidden,
    InvalidField,
    KeyReused,
    NoAnswer,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from avicenna_live.updates import Update, checked

LINES_MAX: Final = 1000
BULK_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one bulk request (PROTOCOL section 7)."""

PASSING: Final = frozenset({429, 500, 502, 503, 504})
"""Statuses after which the same may be tried again."""

BACKOFF: Final = Backoff(0.25, 15.0)

_ERRORS: Final[Mapping[int, type[BroadcastError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: KeyReused,
    413: TooLarge,
    422: InvalidField,
    429: RateLimited,
    500: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


@dataclass(frozen=True, slots=True)
class Subscribers:
    """Who follows the diagnosis."""

    online: int
    known: int
    at_risk: int
    """Known ones that are more than 80 events behind: beyond 100 they miss some."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server's word that an update is on disk (PROTOCOL section 7)."""

    diagnosis_id: int | str
    seq: int
    """From 1, one more for each event of this diagnosis and epoch."""
    epoch: str
    clients_notified: int
    """Connections attached when the event committed; 0 for a replay."""
    subscribers: Subscribers
    replayed: bool
    """It was there already: an earlier try, or an earlier call with the same key, had stored it."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; the reply is an `Answer`, or a `NoAnswer`."""

    path: str
    content_type: str
    content: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so long."""

    seconds: float


class Renew:
    """Ask for a new token; the reply says whether there may be one."""


T = TypeVar("T")
Steps = Generator[Send | Sleep | Renew, Any, T]


class Patience:
    """For how long and how often something is tried."""

    def __init__(self, seconds: float, now: Callable[[], float], random: Callable[[], float]) -> None:
        """Try for so many seconds.

        Args:
            now: a monotonic clock.
            random: from 0 up to 1.
        """
        self._now = now
        self._random = random
        self._ends_at = now() + seconds
        self._failures = 0

    @property
    def left_seconds(self) -> float:
        """How long it may still be tried."""
        return max(0.0, self._ends_at - self._now())

    def wait(self, wished: float | None) -> float | None:
        """The wait before the next try, `None`: there is none.

        Args:
            wished: what the server asks for.
        """
        seconds = BACKOFF.seconds(self._failures, self._random())
        seconds = seconds if wished is None else wished + seconds
        self._failures += 1
        return seconds if self._now() + seconds < self._ends_at else None


def publish(update: Update, patience: Patience) -> Steps[Receipt]:
    """Publish one update. Raises `BroadcastError`, and `TypeError` for what is no update."""
    checked(update)
    request = Send(
        f"/ws/broadcast-{update.kind}-update",
        "application/json",
        update.body.encode(),
        {"Idempotency-Key": update.idempotency_key},
    )
    answer = yield from _answered(request, patience)
    return receipt_from(_object(answer.content))


def publish_all(updates: Sequence[Update], patience: Patience) -> Steps[list[Receipt | BroadcastError]]:
    """Publish many; the outcome of each, in their order.

    A line that fails in passing is sent again, after those that did not. Raises `TypeError` for what is no update.
    """
    for update in updates:
        checked(update)
    outcomes: list[Receipt | BroadcastError] = [NoAnswer()] * len(updates)
    waiting = list(range(len(updates)))
    while waiting:
        left: list[int] = []
        for chunk in _chunks(updates, waiting):
            content = b"".join(line_of(updates[at]) for at in chunk)
            request = Send("/ws/broadcast", "application/x-ndjson", content, {})
            try:
                answer = yield from _answered(request, patience)
                found = [_outcome(line) for line in answer.content.splitlines()]
                if len(found) != len(chunk):
                    raise BroadcastError(answer.status, "", "the answer has another number of lines than the request")
            except BroadcastError as error:
                found = [error] * len(chunk)
            for at, outcome in zip(chunk, found, strict=True):
                outcomes[at] = outcome
                if isinstance(outcome, BroadcastError) and outcome.status in PASSING:
                    left.append(at)
        if left and (seconds := patience.wait(None)) is not None:
            yield Sleep(seconds)
        else:
            break
        waiting = left
    return outcomes


def _answered(request: Send, patience: Patience) -> Steps[Answer]:
    """The good answer to a request, tried again while that may help. Raises `BroadcastError`."""
    may_renew = True
    was_sent = False
    while True:
        answer: Answer | NoAnswer = yield request
        if isinstance(answer, NoAnswer):
            was_sent |= answer.was_sent
            error: BroadcastError | None = NoAnswer(was_sent, url=answer.url)
        else:
            error = error_of(answer)
        if error is None:
            assert isinstance(answer, Answer)
            return answer
        if error.status == 401 and may_renew:
            may_renew = False
            if (yield Renew()):
                continue
        wished = None if isinstance(answer, NoAnswer) else header_seconds(answer.headers.get("retry-after"))
        seconds = patience.wait(wished) if isinstance(error, NoAnswer) or error.status in PASSING else None
        if seconds is None:
            raise error
        yield Sleep(seconds)


def error_of(answer: Answer) -> BroadcastError | None:
    """What an answer refuses with (RFC 9457); `None`: it does not."""
    if answer.status == 200:
        return None
    return error_from(answer.status, _object(answer.content), answer.headers.get("x-request-id"))


def error_from(status: int, problem: Mapping[str, Any], request_id: str | None = None) -> BroadcastError:
    """What a problem document says."""
    code, detail = problem.get("code"), problem.get("detail")
    return _ERRORS.get(status, BroadcastError)(
        status,
        code if isinstance(code, str) else "",
        detail if isinstance(detail, str) else "no avicenna-live server has answered",
        request_id,
    )


def _outcome(line: bytes) -> Receipt | BroadcastError:
    """The outcome of one line of a bulk request."""
    found = _object(line)
    status = found.get("status")
    if status == 200:
        try:
            return receipt_from(found)
        except BroadcastError as error:
            return error
    return error_from(status if isinstance(status, int) else 0, found)


def receipt_from(found: Mapping[str, Any]) -> Receipt:
    """The receipt that an answer holds. Raises `BroadcastError`."""
    try:
        subscribers = Subscribers(**{name: found["subscribers"][name] for name in ("online", "known", "at_risk")})
        return Receipt(
            diagnosis_id=found["diagnosis_id"],
            seq=found["seq"],
            epoch=found["epoch"],
            clients_notified=found["clients_notified"],
            subscribers=subscribers,
            replayed=found["replayed"],
        )
    except (LookupError, TypeError):
        raise BroadcastError(200, "", "no avicenna-live server has answered") from None


def _object(content: bytes) -> Mapping[str, Any]:
    """The JSON object of an answer; empty, if it is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def line_of(update: Update) -> bytes:
    """An update as a line of a bulk request."""
    added = {"type": f"{update.kind}_update", "idempotency_key": update.idempotency_key}
    # Between the values of an `Update` that an app has made itself there may be newlines; within one, JSON has none.
    body = update.body.replace("\r", " ").replace("\n", " ").strip()
    return f"{json.dumps(added)[:-1]},{body[1:]}\n".encode()


def _chunks(updates: Sequence[Update], waiting: Sequence[int]) -> Iterator[list[int]]:
    """Indexes of updates that fit into one request, in order."""
    chunk: list[int] = []
    size = 0
    for at in waiting:
        line_bytes = len(line_of(updates[at]))
        if chunk and (len(chunk) == LINES_MAX or size + line_bytes > BULK_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(at)
        size += line_bytes
    if chunk:
        yield chunk
