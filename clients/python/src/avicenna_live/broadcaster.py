"""`Broadcaster` and `AsyncBroadcaster`: publish updates over HTTP, one or many, each exactly once.

Both carry out the same steps (`publishing.py`): one blocks, the other awaits, on Trio or asyncio.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import anyio
import httpx

from avicenna_live.credentials import checked
from avicenna_live.errors import BroadcastError, NoAnswer
from avicenna_live.follower import checked_url, new_shell
from avicenna_live.publishing import Answer, Patience, Receipt, Renew, Send, Sleep, Steps, publish, publish_all
from avicenna_live.shell import settled
from avicenna_live.streams import PublishStream
from avicenna_live.updates import Update, effectiveness_update, feedback_update, recommendation_update

URL_VARIABLE: Final = "AVICENNA_URL"
TOKEN_VARIABLE: Final = "AVICENNA_TOKEN"  # noqa: S105 - a name
TOKEN_FILE_VARIABLE: Final = "AVICENNA_TOKEN_FILE"  # noqa: S105 - a name
"""The file is read again for each new token: whoever rotates it restarts nothing."""

TIMEOUT_SECONDS: Final = 10.0
PATIENCE_SECONDS: Final = 60.0

NOTHING_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""What httpx raises where there was no connection to send on."""

T = TypeVar("T")
R = TypeVar("R")
SyncToken = str | Callable[[], str]
AsyncToken = str | Callable[[], str | Awaitable[str]]


class _Broadcasting(Generic[R]):
    """What both have: where to, as whom, for how long, and the three calls; `R` is what a call returns."""

    def __init__(
        self, url: str | None, token: AsyncToken | None, timeout_seconds: float, patience_seconds: float
    ) -> None:
        if not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be above 0, not {timeout_seconds}")
        if not patience_seconds >= 0:
            raise ValueError(f"patience_seconds must be 0 or more, not {patience_seconds}")
        if url is None and not os.environ.get(URL_VARIABLE):
            raise ValueError(f"give the url of the server, or set {URL_VARIABLE}")
        self.url = checked_url(os.environ[URL_VARIABLE] if url is None else url)
        self._token = _from_environment() if token is None else token
        if isinstance(self._token, str):
            checked(self._token)
        self._patience_seconds = patience_seconds
        self._timeout = httpx.Timeout(timeout_seconds)
        self._in_use: str | None = None
        """The token of the requests, `None`: none was needed yet."""

    def broadcast(self, update: Update) -> R:
        """Publish an update that was made before. Raises `BroadcastError`."""
        raise NotImplementedError

    def broadcast_recommendation_update(
        self,
        diagnosis_id: int | str,
        old_data: Mapping[str, Any] | None,
        new_data: Mapping[str, Any],
        reason: str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> R:
        """The recommendations of a diagnosis have changed; see `recommendation_update`."""
        return self.broadcast(
            recommendation_update(diagnosis_id, old_data, new_data, reason, idempotency_key=idempotency_key)
        )

    def broadcast_effectiveness_update(
        self,
        diagnosis_id: int | str,
        recommendation_id: int | str,
        new_effectiveness: float | None = None,
        confidence: float | None = None,
        sample_size: int | None = None,
        *,
        effectiveness: float | None = None,
        old_effectiveness: float | None = None,
        herb: str | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        """The measured effectiveness of a recommendation has changed; see `effectiveness_update`."""
        return self.broadcast(
            effectiveness_update(
                diagnosis_id,
                recommendation_id,
                new_effectiveness,
                confidence,
                sample_size,
                effectiveness=effectiveness,
                old_effectiveness=old_effectiveness,
                herb=herb,
                idempotency_key=idempotency_key,
            )
        )

    def broadcast_feedback_update(
        self,
        diagnosis_id: int | str,
        feedback_id: int | str,
        rating: int,
        effectiveness: float | None = None,
        *,
        recommendation_id: int | str | None = None,
        comment: str | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        """Feedback has arrived; see `feedback_update`."""
        return self.broadcast(
            feedback_update(
                diagnosis_id,
                feedback_id,
                rating,
                effectiveness,
                recommendation_id=recommendation_id,
                comment=comment,
                idempotency_key=idempotency_key,
            )
        )

    def _patience(self, seconds: float | None = None) -> Patience:
        return Patience(self._patience_seconds if seconds is None else seconds, time.monotonic, random.random)

    def _headers(self, request: Send) -> dict[str, str]:
        return {
            **request.headers,
            "Content-Type": request.content_type,
            "Accept": "application/json",
            "Authorization": f"Bearer {self._in_use}",
        }


def _from_environment() -> SyncToken:
    """The token that the environment names. Raises `ValueError`."""
    if path := os.environ.get(TOKEN_FILE_VARIABLE):
        return lambda: Path(path).read_text(encoding="ascii").strip()
    if token := os.environ.get(TOKEN_VARIABLE):
        return token
    raise ValueError(f"give a token, or set {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}")


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, dict(response.headers), response.content)


class Broadcaster(_Broadcasting[Receipt]):
    """Publishes updates, and waits until each is on disk. Threads may share one.

    ```python
    with Broadcaster("https://live.example.org", token=token) as broadcaster:
        broadcaster.broadcast_feedback_update(42, feedback_id=7, rating=5)
    ```

    A call that fails in passing (no answer, 429, 5xx) is tried again with the same idempotency key, so it never makes
    two events. Every call raises `BroadcastError`, by its kind, if it was refused or `patience_seconds` are over.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: SyncToken | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare; the first call connects.

        Args:
            url: of the server, `http://HOST[:PORT]` or `https://HOST[:PORT]`; `None`: `AVICENNA_URL`.
            token: a text, or a function that returns one and is asked again when one was refused; `None`:
                `AVICENNA_TOKEN`, or the content of the file that `AVICENNA_TOKEN_FILE` names.
            timeout_seconds: longest wait for a connection, and for each part of an answer.
            patience_seconds: how long a call goes on trying.
            transport: of httpx, in place of its own.

        Raises:
            ValueError: one of them is missing or wrong.
        """
        super().__init__(url, token, timeout_seconds, patience_seconds)
        self._http = httpx.Client(
            base_url=self.url, timeout=self._timeout, transport=transport, trust_env=False, follow_redirects=False
        )

    def broadcast(self, update: Update) -> Receipt:
        """Publish an update that was made before. Raises `BroadcastError`."""
        return self._carry_out(publish(update, self._patience()))

    def batch(
        self, updates: Iterable[Update], *, patience_seconds: float | None = None
    ) -> list[Receipt | BroadcastError]:
        """Publish many with few requests.

        Args:
            patience_seconds: how long this call goes on trying; 0: it tries once; `None`: as the others.

        Returns:
            For each update, in order, its receipt, or why there is none. One that fails in passing is sent again behind
            those that did not: whoever needs an order within a diagnosis broadcasts one after the other.
        """
        return self._carry_out(publish_all(list(updates), self._patience(patience_seconds)))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _carry_out(self, steps: Steps[T]) -> T:
        reply: object = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Send():
                    reply = self._sent(step)
                case Sleep():
                    time.sleep(step.seconds)
                case Renew():
                    reply = self._renewed()

    def _sent(self, request: Send) -> Answer | NoAnswer:
        if self._in_use is None:
            self._renewed()
        try:
            return _answer(self._http.post(request.path, content=request.content, headers=self._headers(request)))
        except httpx.RequestError as error:
            return NoAnswer(was_sent=not isinstance(error, NOTHING_SENT), url=self.url)

    def _renewed(self) -> bool:
        """Take a token; whether it may be another one than before."""
        self._in_use = checked(self._token() if callable(self._token) else self._token)
        return callable(self._token)


class AsyncBroadcaster(_Broadcasting[Awaitable[Receipt]]):
    """A `Broadcaster` whose calls are awaited, on asyncio or Trio. The token's function may be async."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: AsyncToken | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; see `Broadcaster`."""
        super().__init__(url, token, timeout_seconds, patience_seconds)
        self._http = httpx.AsyncClient(
            base_url=self.url, timeout=self._timeout, transport=transport, trust_env=False, follow_redirects=False
        )

    def broadcast(self, update: Update) -> Awaitable[Receipt]:
        """Publish an update that was made before. Raises `BroadcastError`."""
        return self._carry_out(publish(update, self._patience()))

    async def batch(
        self, updates: Iterable[Update], *, patience_seconds: float | None = None
    ) -> list[Receipt | BroadcastError]:
        """Publish many with few requests; see `Broadcaster.batch`."""
        return await self._carry_out(publish_all(list(updates), self._patience(patience_seconds)))

    def stream(self) -> PublishStream:
        """Publish many over one WebSocket, where each update waits for its own receipt and none for another's.

        ```python
        async with broadcaster.stream() as stream:
            receipt = await stream.publish(feedback_update(42, feedback_id=7, rating=5))
        ```

        After a cut, what was not answered is sent again with the same idempotency key. It connects on its own: the
        `transport` of this broadcaster is for its requests.
        """
        renewable = callable(self._token)
        return PublishStream(self.url, self._fresh_token, self._patience, new_shell, random.random, renewable=renewable)

    async def _fresh_token(self) -> str:
        await self._renewed()
        assert self._in_use is not None, "it was just taken"
        return self._in_use

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    async def _carry_out(self, steps: Steps[T]) -> T:
        reply: object = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Send():
                    reply = await self._sent(step)
                case Sleep():
                    await anyio.sleep(step.seconds)
                case Renew():
                    reply = await self._renewed()

    async def _sent(self, request: Send) -> Answer | NoAnswer:
        if self._in_use is None:
            await self._renewed()
        try:
            return _answer(await self._http.post(request.path, content=request.content, headers=self._headers(request)))
        except httpx.RequestError as error:
            return NoAnswer(was_sent=not isinstance(error, NOTHING_SENT), url=self.url)

    async def _renewed(self) -> bool:
        """Take a token; whether it may be another one than before."""
        self._in_use = checked(await settled(self._token()) if callable(self._token) else self._token)
        return callable(self._token)
