"""Acknowledgements on their way to the store: a number moved in memory now, a row soon.

Acks are not messages: ten thousand of them after one broadcast must not fill a mailbox. They are kept
here per known subscriber (the highest wins) and stored together, within a second (`actors.batching`).
A lost ack costs a repeat, never a loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from actors.batching import BATCH_MAX, Batching
from actors.roster import Known, Roster, Subscriber, Whose
from storage.belief import Moment
from storage.records import AcknowledgedBy, CursorMove, Epoch, Seq
from storage.store import CursorStore

SEEN_WITHIN_SECONDS: Final = 0.1
"""Subscribers that are seen within so long share the time of that. Reason: it is one number then in place of thousands,
and is looked at after weeks."""


class CursorKeeper:
    """Stores moved cursors. One per server."""

    def __init__(
        self, store: CursorStore, outrun: Callable[[Known, Seq], None], tell: Callable[[Sequence[CursorMove]], None]
    ) -> None:
        """Nothing is stored before `run`.

        Args:
            outrun: called with a subscriber whose stored cursor is higher than it is here, and with that cursor: the
                subscriber has acknowledged elsewhere.
            tell: called with cursors that are stored now.
        """
        self.tell = tell
        self._store = store
        self._outrun = outrun
        self._turns = itertools.count(1)
        self._seen_at = -math.inf
        """When the subscribers were seen that share the time of that."""
        self._dirty: dict[Known, None] = {}
        self._in_flight: dict[Known, dict[Subscriber, None]] = {}
        """Being stored, and the connections to tell once they are."""
        self._waiting: dict[Known, dict[Subscriber, None]] = {}
        """Connections to tell once a cursor is stored that is not in flight yet."""
        self._held: set[Known] = set()
        """Not to be stored now, even if they move."""
        self._batching = Batching("cursors", self._next_batch, self._store_batch)

    def acknowledge(self, subscriber: Subscriber, seq: Seq, by: AcknowledgedBy, *, answer: bool = False) -> bool:
        """Move the cursor of an attached subscriber up to `seq`; False if that is above its position, or it peeks.

        Args:
            by: what acknowledged.
            answer: tell the connection (`Transport.acknowledged`) once the cursor is stored, and store it at once;
                what is stored already costs no commit.
        """
        known, roster = subscriber.known, subscriber.roster
        if seq > subscriber.position or subscriber.gone or known is None or roster is None or roster.ring is None:
            return False
        now = self._store.moment()
        self.saw(known, now)
        self._advance(roster, known, roster.ring.epoch, seq, now, by)
        if answer and seq <= known.stored:
            subscriber.transport.acknowledged(known.stored)
        elif answer:
            self._waiting.setdefault(known, {})[subscriber] = None
            self.mark(known, hurry=True)
        return True

    def settle(self, subscriber: Subscriber, by: AcknowledgedBy) -> None:
        """Move the cursor of a connection that has left up to its position: its client has received all of it.

        A subscriber that was forgotten meanwhile stays so. The ring may have left memory meanwhile: the numbers are of
        the epoch of the cursor, as all subscribers are loaded anew where another one begins.
        """
        known, roster = subscriber.known, subscriber.roster
        if known is None or roster is None or not roster.knows(known):
            return
        now = self._store.moment()
        self.saw(known, now)
        self._advance(roster, known, known.epoch, subscriber.position, now, by)

    def _advance(self, roster: Roster, known: Known, epoch: Epoch, seq: Seq, now: Moment, by: AcknowledgedBy) -> None:
        if seq > known.seq_in(epoch):
            roster.advance(known, epoch, seq)
            known.acknowledged(now.wall, by)
            self.mark(known)

    def mark(self, known: Known, *, hurry: bool = False) -> None:
        """Have the cursor of `known` stored soon, or as soon as possible."""
        self._dirty[known] = None
        self._batching.mark(hurry=hurry)

    def left(self, known: Known, subscriber: Subscriber) -> None:
        """A connection of `known` has ended: store where it got to, and when it was seen, at once."""
        if (waiting := self._waiting.get(known)) is not None:
            waiting.pop(subscriber, None)
        self.seen(known, hurry=True)

    def seen(self, known: Known, *, hurry: bool = False) -> None:
        """`known` is connected, or was until now: have that stored."""
        self.saw(known, self._store.moment())
        self.mark(known, hurry=hurry)

    def saw(self, known: Known, now: Moment) -> None:
        """Note that `known` is seen now; whether that is stored is the caller's business."""
        if abs(now.reckoned - self._seen_at) > SEEN_WITHIN_SECONDS:
            self._seen_at = now.reckoned
        known.seen_at = self._seen_at
        if known.id.device is not None:  # one without a name is never forgotten for another's sake
            known.seen_turn = next(self._turns)

    def discard(self, known: Known) -> None:
        """Do not store this one any more: its subscriber is forgotten."""
        for table in (self._dirty, self._in_flight, self._waiting):
            table.pop(known, None)
        self._batching.look_again()

    @contextmanager
    def holding(self, some: Iterable[Known]) -> Iterator[None]:
        """Keep these cursors from the store meanwhile: stored late, a cursor would make its subscriber known again."""
        held = set(some) - self._held
        self._held |= held
        try:
            yield
        finally:
            self._held -= held
            self._batching.mark()

    def discard_where(self, whose: Whose) -> None:
        """Do not store some subscribers any more; what has reached the store already stays there."""
        for known in [one for one in (*self._dirty, *self._in_flight) if whose.names(one.id)]:
            self.discard(known)

    def is_dirty(self, diagnosis_id: str) -> bool:
        """Whether a cursor of this diagnosis is not stored yet."""
        return any(one.diagnosis_id == diagnosis_id for one in (*self._dirty, *self._in_flight))

    @property
    def depth(self) -> int:
        """Cursors not stored yet."""
        return len(self._dirty) + len(self._in_flight)

    async def flush(self, diagnosis_id: str | None = None) -> None:
        """Wait until every cursor (of this diagnosis) moved so far is stored."""
        await self._batching.flush(lambda: bool(self.depth) if diagnosis_id is None else self.is_dirty(diagnosis_id))

    async def run(self) -> None:
        """Store cursors until cancelled.

        Cancellation: what was not stored is lost, which costs a repeat; `flush` first.
        """
        await self._batching.run()

    def _next_batch(self) -> Sequence[Known]:
        return list(itertools.islice((known for known in self._dirty if known not in self._held), BATCH_MAX))

    async def _store_batch(self, batch: Sequence[Known]) -> None:
        moves = []
        for known in batch:
            del self._dirty[known]
            # Taken now: an acknowledgement that comes while this one is stored waits for its own round.
            self._in_flight[known] = self._waiting.pop(known, {})
            moves.append(
                CursorMove(
                    known.diagnosis_id,
                    known.id,
                    known.epoch,
                    known.seq,
                    known.seen_at,
                    known.acknowledged_by,
                    known.acknowledged_at,
                )
            )
        try:
            stored = await self._store.move_cursors(moves)
            self.tell([move for move, seq in zip(moves, stored, strict=True) if seq == move.seq])
            for move, known, seq in zip(moves, batch, stored, strict=True):
                if seq is not None and known.epoch == move.epoch:
                    known.stored = max(known.stored, seq)
                    if seq > known.seq:
                        self._outrun(known, seq)
                self._answer(self._in_flight.pop(known, {}), seq)
        finally:
            self._take_back()

    def _take_back(self) -> None:
        """The cursors still in flight were not stored: mark them again."""
        for known, waiting in self._in_flight.items():
            if waiting:
                self._waiting[known] = waiting | self._waiting.get(known, {})
            self.mark(known)
        self._in_flight.clear()

    def _answer(self, waiting: dict[Subscriber, None], seq: Seq | None) -> None:
        for subscriber in waiting:
            if seq is not None and not subscriber.gone:
                subscriber.transport.acknowledged(seq)
