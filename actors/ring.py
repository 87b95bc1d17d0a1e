"""The newest events of one diagnosis, each as its text that everybody gets, by number. Pure: no Trio, no store.

A ring is filled by its actor alone, in number order; everybody else reads it from a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from storage.records import OUTBOX_EVENTS_MAX, Epoch, Seq, Window


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole: numbers a reader can no longer get."""

    first: Seq
    last: Seq
    purged: bool
    """True: the last number was purged by an operator; False: it was evicted by the cap."""

    @property
    def count(self) -> int:
        return self.last - self.first + 1


class Ring:
    """At most `OUTBOX_EVENTS_MAX` rendered events: `floor < seq <= head`."""

    __slots__ = ("_passed", "_texts", "epoch", "floor", "head", "purged", "text_bytes")

    def __init__(self, window: Window) -> None:
        """Start empty at the floor of `window`; its events follow through `append`."""
        self.epoch: Epoch = window.epoch
        self.floor: Seq = window.floor
        self.head: Seq = window.floor
        self.purged: Seq = window.purged
        self._passed: Seq = window.floor
        """The highest number that is known to be given, and of which the ring may have nothing."""
        self._texts: list[bytes] = []
        """Those of `floor + 1` to `head`."""
        self.text_bytes = 0
        """What they take together."""

    def append(self, seq: Seq, text: bytes) -> None:
        """Add the next event; at the cap the oldest goes.

        Raises:
            ValueError: `seq` is not `head + 1`.
        """
        if seq != self.head + 1:
            raise ValueError(f"event {seq} cannot follow {self.head}")
        self._texts.append(text)
        self.text_bytes += len(text)
        self.head = seq
        if len(self._texts) > OUTBOX_EVENTS_MAX:
            self._let_go(1)
            self.floor = Seq(self.floor + 1)

    def _let_go(self, count: int) -> None:
        """Drop the oldest events."""
        self.text_bytes -= sum(map(len, self._texts[:count]))
        del self._texts[:count]

    def passed(self, seq: Seq) -> None:
        """This number was given; its event, and others below it, are read once somebody wants them."""
        self._passed = max(self._passed, seq)

    @property
    def newest(self) -> Seq:
        """The highest number that is known to be given."""
        return max(self.head, self._passed)

    def raise_floor(self, window: Window) -> None:
        """Let go of what `window` no longer retains (a purge, events that were too old, or lost in the store)."""
        self.purged = max(self.purged, window.purged)
        if window.floor > self.floor:
            self._let_go(window.floor - self.floor)
            self.floor = window.floor
            self.head = max(self.head, self.floor)

    def gap_after(self, position: Seq) -> Gap | None:
        """The hole between `position` and the oldest retained event, `None` if there is none."""
        if position >= self.floor:
            return None
        return Gap(Seq(position + 1), self.floor, purged=self.floor == self.purged)

    def texts_after(self, position: Seq, limit: int) -> Iterator[tuple[Seq, bytes]]:
        """The retained events above `position`, lowest first, at most `limit`.

        Ownership: read it out before the next checkpoint; the ring moves on.
        """
        begin = max(position - self.floor, 0)
        texts = self._texts[begin : begin + limit]
        return enumerate(texts, start=Seq(self.floor + begin + 1))  # type: ignore[return-value]  # numbers are Seq

    @property
    def window(self) -> Window:
        """What the ring holds, as a value."""
        return Window(self.epoch, self.head, self.floor, self.purged)

    @property
    def stored(self) -> Window:
        """What is stored, as far as is known: newer than what the ring holds where numbers have passed it."""
        newest = self.newest
        return Window(self.epoch, newest, max(self.floor, Seq(newest - OUTBOX_EVENTS_MAX)), self.purged)

    def __len__(self) -> int:
        return self.head - self.floor
