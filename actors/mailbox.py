"""The mailbox of one diagnosis actor, and what was taken out of it and is not answered yet. Both outlive incarnations.

The limit counts publishes; other messages have an allowance of their own, so that a flood of events
never keeps a subscriber or an operator out. News of what others write take one place, however many there are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import trio

from actors.counts import Counts
from actors.errors import Draining, MailboxFull
from actors.messages import Envelope, Heard, Publish, Subscribe
from storage.news import News, merged

CONTROLS_MAX: Final = 20_000
"""Messages other than publishes that may wait. Reason: everybody reconnects at once. Beyond: refused."""


@dataclass(frozen=True, slots=True)
class MailboxStatistics:
    """How full a mailbox is; counts publishes."""

    depth: int
    peak: int
    limit: int


class Mailbox:
    """First in, first out; one reader."""

    __slots__ = (
        "_closed",
        "_controls",
        "_counts",
        "_news",
        "_peak",
        "_publishes",
        "_publishes_max",
        "_reader",
        "_waiting",
    )

    def __init__(self, publishes_max: int, counts: Counts) -> None:
        """Nothing waits.

        Args:
            counts: what waits here is counted there, too.
        """
        self._publishes_max = publishes_max
        self._counts = counts
        self._waiting: deque[Envelope] | None = None
        """In order; `None`: nothing. Reason: every actor has a mailbox, and an empty deque takes 760 bytes, the channel
        of a library 1,900."""
        self._reader: trio.lowlevel.Task | None = None
        """Waits for a message."""
        self._publishes = self._peak = self._controls = 0
        self._closed = False
        self._news: Envelope | None = None
        """The one message with news that waits."""

    def tell_nowait(self, envelope: Envelope) -> None:
        """Put a message in.

        Raises:
            MailboxFull: as many publishes (or other messages) as may wait do so already.
            Draining: it is closed.
        """
        if self._closed:
            raise Draining("the server is stopping")
        if isinstance(envelope.message, Publish):
            if self._publishes >= self._publishes_max:
                raise MailboxFull(f"{self._publishes_max} publishes wait already")
            self._publishes += 1
            self._counts.mailbox_depth += 1
            envelope.came_at = trio.current_time()
            if self._publishes > self._peak:
                self._peak = self._publishes
                self._counts.mailbox_peak = max(self._counts.mailbox_peak, self._peak)
        else:
            if self._controls - (self._news is not None) >= CONTROLS_MAX:
                raise MailboxFull(f"{CONTROLS_MAX} messages wait already")
            self._controls += 1
        self._put(envelope)

    def hear_nowait(self, news: News) -> None:
        """Put news in, or add them to those that wait. Once it is closed they are dropped: nobody will read them."""
        if self._closed:
            return
        if self._news is not None:
            assert isinstance(self._news.message, Heard), "put in here"
            self._news.message = Heard(merged(self._news.message.news, news))
            return
        self._news = Envelope(Heard(news))
        self._controls += 1
        self._put(self._news)

    async def receive(self) -> Envelope:
        """The next message. A checkpoint, whether or not one waits.

        Cancellation: no message is lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if (envelope := self._next_nowait(trio.current_time())) is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return envelope
        while (envelope := self._next_nowait(trio.current_time())) is None:
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
        return envelope

    @property
    def waiting_news(self) -> News | None:
        """The news that wait; `None`: there are none."""
        waiting = None if self._news is None else self._news.message
        return waiting.news if isinstance(waiting, Heard) else None

    def begins_with(self, kind: type[Publish | Subscribe]) -> bool:
        """Whether the next message is of this kind."""
        return self._waiting is not None and isinstance(self._waiting[0].message, kind)

    def receive_batch(self, kind: type[Publish | Subscribe], most: int) -> list[Envelope]:
        """The next messages that are here and are of this kind."""
        batch: list[Envelope] = []
        now = trio.current_time()
        while len(batch) < most and self._waiting is not None and isinstance(self._waiting[0].message, kind):
            envelope = self._next_nowait(now)
            assert envelope is not None, "looked at just before"
            batch.append(envelope)
        return batch

    def close(self) -> None:
        """Take nothing new: nobody will read it any more."""
        self._closed = True

    def drain_nowait(self) -> list[Envelope]:
        """Take out everything."""
        drained = []
        now = trio.current_time()
        while (envelope := self._next_nowait(now)) is not None:
            drained.append(envelope)
        return drained

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._publishes or self._controls)

    @property
    def depth(self) -> int:
        """Publishes that wait."""
        return self._publishes

    def statistics(self) -> MailboxStatistics:
        """How full it is."""
        return MailboxStatistics(self._publishes, self._peak, self._publishes_max)

    def _put(self, envelope: Envelope) -> None:
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(envelope)
        if self._reader is not None:
            reader, self._reader = self._reader, None
            trio.lowlevel.reschedule(reader)

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _next_nowait(self, now: float) -> Envelope | None:
        if self._waiting is None:
            return None
        envelope = self._waiting.popleft()
        if not self._waiting:
            self._waiting = None
        return self._taken(envelope, now)

    def _taken(self, envelope: Envelope, now: float) -> Envelope:
        if isinstance(envelope.message, Publish):
            self._publishes -= 1
            self._counts.mailbox_depth -= 1
            self._counts.mailbox_wait.observe(now - envelope.came_at)
        else:
            self._controls -= 1
            if envelope is self._news:
                self._news = None
        return envelope


@dataclass(slots=True)
class InHand:
    """What an incarnation is working on. Outlives it, so that the next one can finish."""

    holding: list[Envelope] = field(default_factory=list)
    """Messages taken from the mailbox and not answered yet."""
    retries: list[Envelope] = field(default_factory=list)
    """Messages that were in hand at a crash and never reached the store. They are done again, one by one, before the
    mailbox."""
