"""Updates that a service does not wait for: a bounded queue, sent in batches in the background.

What is in a queue is in memory: it is gone with the process.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup

from avicenna_live.broadcaster import AsyncBroadcaster, Broadcaster
from avicenna_live.errors import BroadcastError, NoAnswer, QueueFull
from avicenna_live.publishing import LINES_MAX, Receipt
from avicenna_live.updates import Update, checked

SIZE: Final = 1000
CLOSE_SECONDS: Final = 10.0

OnFailure = Callable[[Update, BroadcastError], object]
"""Called with each update that was not published. It may keep the update, and put it in again later."""

NOT_SENT: Final = BroadcastError(0, "", "this could not be sent; the log says why")

logger = logging.getLogger("avicenna_live.queue")


class _Waiting:
    """The updates of a queue, in order; those being sent count."""

    def __init__(self, size: int, on_failure: OnFailure | None) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        self.size = size
        self._on_failure = on_failure
        self._updates: deque[Update] = deque()
        self._sending: list[Update] = []
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._updates) + len(self._sending)

    def put(self, update: Update) -> None:
        checked(update)
        if self.is_closed:
            raise ValueError("the queue is closed")
        if len(self) >= self.size:
            raise QueueFull(f"the queue holds {self.size} updates, as many as it may")
        self._updates.append(update)

    def take(self) -> list[Update]:
        """The next ones to send."""
        self._sending = [self._updates.popleft() for _ in range(min(LINES_MAX, len(self._updates)))]
        return self._sending

    def sent(self, outcomes: Sequence[Receipt | BroadcastError]) -> None:
        """Say which of those that were taken were not published; of none, if they were given up meanwhile."""
        updates, self._sending = self._sending, []
        if updates:
            self._report(updates, outcomes)

    def give_up(self) -> None:
        """Report what is left when there is no time any more."""
        self._report(self._sending, [NoAnswer()] * len(self._sending))
        self._report(self._updates, [BroadcastError(0, "", "the queue was closed first")] * len(self._updates))
        self._sending = []
        self._updates.clear()

    def _report(self, updates: Collection[Update], outcomes: Sequence[Receipt | BroadcastError]) -> None:
        failed = [(update, one) for update, one in zip(updates, outcomes, strict=True) if not isinstance(one, Receipt)]
        if self._on_failure is not None:
            for update, error in failed:
                try:
                    self._on_failure(update, error)
                except Exception:  # whatever the app's function raises, the others are still to be told and sent
                    logger.exception("on_failure has failed")
        elif failed:
            kinds = ", ".join(sorted({type(error).__name__ for _, error in failed}))
            logger.warning("%d of %d updates were not published: %s", len(failed), len(updates), kinds)


class BroadcastQueue:
    """Sends updates from a thread of its own; whoever puts one in waits for nothing.

    ```python
    with BroadcastQueue(broadcaster) as queue:
        queue.put_nowait(feedback_update(42, feedback_id=7, rating=5))
    ```
    """

    def __init__(self, broadcaster: Broadcaster, *, size: int = SIZE, on_failure: OnFailure | None = None) -> None:
        """Begin.

        Args:
            broadcaster: sends; its `patience_seconds` is for how long a batch is tried.
            size: updates it may hold.
            on_failure: `None`: their number is logged.
        """
        self._broadcaster = broadcaster
        self._waiting = _Waiting(size, on_failure)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="avicenna-live-queue", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Updates that were not answered yet."""
        with self._changed:
            return len(self._waiting)

    def put_nowait(self, update: Update) -> None:
        """Take an update.

        Raises:
            QueueFull: it was not taken.
            ValueError: the queue is closed.
            RuntimeError: the process has forked, and this thread stayed in the parent.
        """
        if not self._waiting.is_closed and not self._thread.is_alive():
            raise RuntimeError("the thread of a queue does not survive a fork: make one in each process")
        with self._changed:
            self._waiting.put(update)
            self._changed.notify_all()

    def flush(self, timeout_seconds: float = math.inf) -> bool:
        """Wait until nothing is left; False: there is something after so many seconds."""
        with self._changed:
            timeout = None if timeout_seconds == math.inf else timeout_seconds
            return self._changed.wait_for(lambda: not len(self._waiting), timeout)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> bool:
        """Send what is left and end; False: not all of it was sent within so many seconds, `on_failure` was told."""
        ends_at = time.monotonic() + timeout_seconds
        with self._changed:
            self._waiting.is_closed = True
            self._changed.notify_all()
        is_empty = self.flush(timeout_seconds)
        if not is_empty:
            with self._changed:
                self._waiting.give_up()
                self._changed.notify_all()
        self._thread.join(max(0.0, ends_at - time.monotonic()))
        return is_empty

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) or self._waiting.is_closed)
                updates = self._waiting.take()
            if not updates:
                return
            outcomes = self._sent(updates)
            with self._changed:
                self._waiting.sent(outcomes)
                self._changed.notify_all()

    def _sent(self, updates: list[Update]) -> Sequence[Receipt | BroadcastError]:
        try:
            return self._broadcaster.batch(updates)
        except Exception:  # the token function of the app, say: the next batch may fare better
            logger.exception("%d updates could not be sent", len(updates))
            return [NOT_SENT] * len(updates)


class AsyncBroadcastQueue:
    """A `BroadcastQueue` on asyncio or Trio: it sends while its `async with` lasts."""

    def __init__(self, broadcaster: AsyncBroadcaster, *, size: int = SIZE, on_failure: OnFailure | None = None) -> None:
        """Prepare; see `BroadcastQueue`."""
        self._broadcaster = broadcaster
        self._waiting = _Waiting(size, on_failure)
        self._tasks: TaskGroup
        self._sending = anyio.CancelScope(shield=True)
        self._changed = anyio.Event()

    def __len__(self) -> int:
        """Updates that were not answered yet."""
        return len(self._waiting)

    def put_nowait(self, update: Update) -> None:
        """Take an update. Raises `QueueFull`: it was not taken."""
        self._waiting.put(update)
        self._wake()

    async def flush(self) -> None:
        """Wait until nothing is left."""
        while len(self._waiting):
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        """Begin to send."""
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what is left for 10 s at most; `on_failure` is told of the rest."""
        self._waiting.is_closed = True
        self._wake()
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self.flush()
        self._waiting.give_up()
        self._sending.cancel()
        # No task is left to wait for. The group is not told what the app raised: it would wrap it in a group.
        await self._tasks.__aexit__(None, None, None)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _run(self) -> None:
        # Whatever cancels the app: what it has put in is sent, until `__aexit__` gives up.
        with self._sending:
            while True:
                while not len(self._waiting):
                    await self._changed.wait()
                updates = self._waiting.take()
                self._waiting.sent(await self._sent(updates))
                self._wake()

    async def _sent(self, updates: list[Update]) -> Sequence[Receipt | BroadcastError]:
        try:
            return await self._broadcaster.batch(updates)
        except Exception:  # as of a `BroadcastQueue`
            logger.exception("%d updates could not be sent", len(updates))
            return [NOT_SENT] * len(updates)
