"""The diagnosis actor: one loop, one message at a time, owner of the ring and of who reads it.

Commit, then fan out, then answer: nothing is sent and no publisher is told before the event is on disk. What another
process stores is heard of (`Heard`), or read when a number shows that it is missing.
An unexpected exception ends this incarnation; what it had in hand is in `InHand`, and the next one,
started by the supervisor, finishes it. Expected refusals of the store are answered.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final, assert_never

import trio

from actors import turns
from actors.budget import SMALL_OUTBOX_BYTES_MAX, RingBudget
from actors.cursors import CursorKeeper
from actors.errors import DevicesExhausted
from actors.following import Following
from actors.mailbox import InHand, Mailbox
from actors.messages import (
    Admission,
    Delivery,
    DeliveryState,
    Envelope,
    Evict,
    Forget,
    ForgetUnseen,
    Forgotten,
    Heard,
    Inspect,
    Judge,
    Judged,
    Publish,
    Purge,
    Receipt,
    Subscribe,
    Trace,
)
from actors.resume import Plan, plan
from actors.ring import Ring
from actors.roster import Known, Roster, Subscriber
from actors.tracing import Tracing
from actors.transport import Burst, Ending
from actors.which import EVERYBODY
from storage.belief import Moment
from storage.errors import Busy, Failed, NoSuchDiagnosis, StorageError
from storage.news import LOOK, News, merged
from storage.records import (
    OUTBOX_EVENTS_MAX,
    AcknowledgedBy,
    Appended,
    Cursor,
    CursorMove,
    Epoch,
    Event,
    NewEvent,
    Seq,
    SubscriberId,
    Window,
)
from storage.store import Store

BATCH_EVENTS_MAX: Final = 64
"""Publishes stored in one append. Reason: their receipts leave together. Beyond: the next append."""

BATCH_SUBSCRIBERS_MAX: Final = 64
"""Subscribers whose starts are stored in one operation. Reason: a publisher behind them waits. Beyond: the next one."""

PAGE_CURSORS: Final = 2000
"""Cursors read from the store at once. Reason: some milliseconds, in which nothing is committed."""

TRACED_AT_ONCE_MAX: Final = 5000
"""Known subscribers looked at between two checkpoints."""

FANOUT_CHUNK: Final = 256
"""Subscribers served between two checkpoints. Reason: other actors and sockets get their turn."""

LOOK_SECONDS_MIN: Final = 0.01
"""Wait before what was heard of, and could not be read yet, is read again. Each further wait is twice as long."""

LOOK_SECONDS_MAX: Final = 0.5
"""The longest of these waits."""

LOOKS_MAX: Final = 7
"""So often a registration that news is of is looked for again, while another one is found. Beyond: the news was old."""

FLUSH_SECONDS_MAX: Final = 2.0
"""Longest wait for moved cursors to be stored. Reason: a publisher waits meanwhile. Beyond: not available (`Busy`)."""

assert BATCH_EVENTS_MAX <= OUTBOX_EVENTS_MAX, "a batch must fit the ring, or events would be evicted unsent"

Render = Callable[[str, Event], bytes]
"""Turns a diagnosis id and one of its events into the text everybody gets, whatever carries it."""

ConnectedElsewhere = Callable[[str, Sequence[SubscriberId]], Awaitable[Collection[SubscriberId]]]
"""Finds out which of these subscribers of a diagnosis have a connection at other processes."""


@dataclass(frozen=True, slots=True)
class Start:
    """A connection that begins where its subscriber's cursor is not stored yet."""

    envelope: Envelope
    subscriber: Subscriber
    plan: Plan
    at: Moment

    def move(self, diagnosis_id: str, epoch: Epoch) -> CursorMove:
        """The cursor to store."""
        by: AcknowledgedBy | None = "app" if self.plan.acknowledges else None
        acknowledged_at = None if by is None else self.at.wall
        cursor, seen_at = self.plan.cursor, self.at.reckoned
        return CursorMove(diagnosis_id, self.subscriber.id, epoch, cursor, seen_at, by, acknowledged_at)


class DiagnosisActor:
    """One incarnation of the actor of one diagnosis."""

    __slots__ = (
        "_budget",
        "_connected_elsewhere",
        "_diagnosis_id",
        "_following",
        "_in_hand",
        "_keeper",
        "_look_at",
        "_looks",
        "_mailbox",
        "_missing",
        "_passivate_after_seconds",
        "_published",
        "_render",
        "_roster",
        "_stops",
        "_store",
        "_tracing",
    )

    def __init__(
        self,
        diagnosis_id: str,
        mailbox: Mailbox,
        roster: Roster,
        in_hand: InHand,
        following: Following,
        *,
        store: Store,
        keeper: CursorKeeper,
        budget: RingBudget,
        render: Render,
        connected_elsewhere: ConnectedElsewhere,
        passivate_after_seconds: float,
        stops: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        """An incarnation that begins with `run`.

        Args:
            passivate_after_seconds: without subscribers and mail for so long, it passivates.
            stops: it passivates as soon as no mail waits, whoever follows.
            tracing: is told of publishes; `None`: nobody is.
        """
        self._diagnosis_id = diagnosis_id
        self._mailbox = mailbox
        self._roster = roster
        self._in_hand = in_hand
        self._following = following
        self._store = store
        self._keeper = keeper
        self._budget = budget
        self._render = render
        self._connected_elsewhere = connected_elsewhere
        self._passivate_after_seconds = passivate_after_seconds
        self._stops = stops
        self._tracing = tracing
        self._published = 0
        """Publishes in the last batch."""
        self._missing: News | None = None
        """What was heard of and could not be read yet; `None` (usual): nothing."""
        self._looks = 0
        """How often it was looked for."""
        self._look_at = inf
        """When it is looked for again, on Trio's clock."""

    async def run(self) -> None:
        """Work until there is nothing to do for long enough (passivation).

        After it has returned, the caller must take the actor off the registry before its next
        checkpoint: a message that comes later must find a new one.

        Raises:
            NoSuchDiagnosis, OutboxDamaged, Busy, Failed: the outbox could not be loaded; nothing was started.
            Exception: a crash.

        Cancellation: between two steps; what was in hand stays in `InHand`.
        """
        settled = await self._settle_appends()
        try:
            await self._load()
        except StorageError:
            self._answer_publishes(settled, 0)
            raise
        self._answer_publishes(settled, len(self._roster.subscribers))
        await turns.wake_all(self._roster)
        while True:
            while self._in_hand.retries:
                envelope = self._in_hand.retries.pop(0)
                self._in_hand.holding.append(envelope)
                await self._handle(envelope)
            if (next_one := await self._next()) is None:
                return
            await self._handle(next_one)
            del next_one  # otherwise it stays in memory until the next message comes
            await self._budget.look_at(self._roster)

    async def _settle_appends(self) -> list[tuple[Envelope, Appended | StorageError]]:
        """Learn what became of the appends a former incarnation had in the store; hand the rest to `retries`."""
        holding = self._in_hand.holding
        for envelope in [one for one in holding if one.pending is None]:
            holding.remove(envelope)
            self._in_hand.retries.append(envelope)
        return [(envelope, await envelope.outcome()) for envelope in list(holding)]

    async def _load(self) -> None:
        """Read cursors and ring from the store. Whoever follows another epoch is told that its numbers are gone."""
        if self._roster.subscribers or self._mailbox.begins_with(Subscribe):
            self._following.begin()  # before the ring is read, so that nothing is missed
        known, is_old = self._roster.known, self._roster.known is not None
        if known is None:
            known = await self._load_known()
        async with self._ring_as_stored() as ring:
            if self._roster.ring is not None and self._roster.ring.epoch != ring.epoch:
                ending = Ending.RENEWED if self._roster.is_renewed else Ending.DELETED
                self._roster.is_renewed = False
                await turns.end_where(self._roster, EVERYBODY, ending)
                self._roster.know_nobody()
                known, is_old = await self._load_known(), False
            await self._budget.make_room_for(self._roster, ring.text_bytes)
            self._roster.begin(ring, known)
            self._budget.count(self._roster)
        if is_old and self._store.shared:
            await self._load_what_others_know()
        if unseen := self._roster.unseen(self._store.moment().judged):
            # On a full disk the actor starts all the same: the next incarnation can forget them.
            with contextlib.suppress(Busy, Failed):
                await self._drop_known(unseen)

    @contextlib.asynccontextmanager
    async def _ring_as_stored(self) -> AsyncIterator[Ring]:
        """The ring, read from the store; it is to be counted in the budget before the block ends."""
        async with self._budget.loading:
            ring, is_whole = await self._read_ring(SMALL_OUTBOX_BYTES_MAX)
            if is_whole:
                yield ring
                return
            del ring
        async with self._budget.loading_large:
            ring, _ = await self._read_ring(None)
            yield ring

    async def _read_ring(self, bytes_max: int | None) -> tuple[Ring, bool]:
        """The ring up to so many bytes, and whether that is all of it."""
        found = await self._store.read_after(self._diagnosis_id, Seq(0), OUTBOX_EVENTS_MAX, bytes_max)
        ring = Ring(found.window)
        for event in found.events:
            ring.append(event.seq, self._render(self._diagnosis_id, event))
        return ring, ring.head == found.window.head

    async def _load_known(self) -> dict[SubscriberId, Known]:
        """All known subscribers, read page by page: a commit, and so everybody, waits for one page at most."""
        await self._flush_cursors()
        known: dict[SubscriberId, Known] = {}
        after: SubscriberId | None = None
        while True:
            page = await self._store.cursors(self._diagnosis_id, after=after, limit=PAGE_CURSORS)
            for cursor in page:
                known[cursor.subscriber] = Known(self._diagnosis_id, cursor)
            if len(page) < PAGE_CURSORS:
                return known
            after = page[-1].subscriber

    async def _load_what_others_know(self) -> None:
        """Know whoever is known to the store now, and where it is: others admit, move and forget subscribers, too."""
        erasures = None
        while erasures != self._roster.erasures:
            erasures = self._roster.erasures
            stored = await self._load_known()
        for one in stored.values():
            self._roster.take_over(one)
        self._forget_known(
            [one.id for one in self._everyone_known.values() if not one.connections and one.id not in stored]
        )

    async def _flush_cursors(self) -> None:
        """Wait until cursors that an earlier incarnation moved are stored, so that reading finds them.

        Raises:
            Busy: the disk does not take them.
        """
        with trio.move_on_after(FLUSH_SECONDS_MAX) as patience:
            await self._keeper.flush(self._diagnosis_id)
        if patience.cancelled_caught:
            raise Busy("cursors wait for the disk")

    async def _next(self) -> Envelope | None:
        """The next message, now in hand; `None`: passivate."""
        while True:
            if self._stops and not self._mailbox:
                return None
            if self._missing is not None and self._look_at <= trio.current_time():
                self._look_at = inf
                return self._take_in_hand(Envelope(Heard(self._missing)))
            # With mail it has something to do. With subscribers it stays, and whoever leaves last sends a message
            # (`Registry`). Neither needs a timer.
            if self._mailbox or (self._roster.subscribers and self._missing is None):
                return self._take_in_hand(await self._mailbox.receive())
            with trio.move_on_at(min(self._look_at, trio.current_time() + self._passivate_after_seconds)):
                return self._take_in_hand(await self._mailbox.receive())
            if self._missing is not None:
                continue
            # No checkpoint until the caller has taken this actor off the registry: it must be as idle as it looks now.
            if not self._mailbox and not self._roster.subscribers and not self._keeper.is_dirty(self._diagnosis_id):
                return None

    def _take_in_hand(self, envelope: Envelope) -> Envelope:
        self._in_hand.holding.append(envelope)
        return envelope

    async def _handle(self, envelope: Envelope) -> None:
        match envelope.message:
            case Publish():
                await self._publish(await self._crowd(envelope))
            case Subscribe():
                await self._subscribe(self._batch(envelope, Subscribe, BATCH_SUBSCRIBERS_MAX))
            case Inspect():
                await self._inspect(envelope)
            case Trace():
                await self._trace(envelope, envelope.message)
            case Purge():
                await self._purge(envelope, envelope.message)
            case Evict():
                await self._evict(envelope.message.window)
                self._answer(envelope, self._ring.window)
            case Forget():
                await self._forget(envelope, envelope.message)
            case ForgetUnseen():
                await self._forget_unseen(envelope)
            case Heard():
                await self._hear(envelope.message.news)
                self._following.heard(is_wanted=bool(self._roster.subscribers) or self._missing is not None)
                self._answer(envelope, None)
            case _:
                assert_never(envelope.message)

    async def _judged(self, batch: Sequence[Envelope]) -> list[Envelope]:
        """The messages whose senders still have the right to what they ask for; the others are refused.

        No checkpoint since they were judged: what they allow is to be handed over to the store before the next one.
        """
        try:
            while (registered := self._store.known(self._diagnosis_id)) is None:
                await self._store.get(self._diagnosis_id)
        except NoSuchDiagnosis:
            registered = None
        except StorageError as refusal:
            for envelope in batch:
                self._refuse(envelope, refusal)
            return []
        allowed = []
        allowing: Judge | None = None
        for envelope in batch:
            assert isinstance(envelope.message, Judged), "nobody needs a right to the others"
            judge = envelope.message.judge
            if judge is allowing or (refused := judge(registered)) is None:
                allowing = judge
                allowed.append(envelope)
            else:
                self._refuse(envelope, refused)
        return allowed

    def _batch(self, first: Envelope, kind: type[Publish | Subscribe], most: int) -> list[Envelope]:
        """`first` and those of its kind right behind it; a retry stays alone, so that it can only crash itself."""
        more = [] if first.crashes else self._mailbox.receive_batch(kind, most - 1)
        self._in_hand.holding += more
        return [first, *more]

    # Publishing

    async def _crowd(self, first: Envelope) -> list[Envelope]:
        """The next batch of publishes.

        Behind a batch of several its publishers get a turn first: those who are answered and publish again at once are
        in this batch, and not in one of their own. A commit costs as much as several events.
        """
        if self._published > 1:
            await trio.lowlevel.checkpoint()
        batch = self._batch(first, Publish, BATCH_EVENTS_MAX)
        self._published = len(batch)
        return batch

    async def _publish(self, received: Sequence[Envelope]) -> None:
        # No checkpoint until the store has them: what is judged here is true of the append.
        if not (batch := await self._judged(received)):
            return
        events = [_event_in(envelope) for envelope in batch]
        try:
            spans = () if self._tracing is None else _taken(self._tracing, self._diagnosis_id, batch)
            pending = self._store.append_nowait(self._diagnosis_id, events, spans)
        except Busy as refusal:
            for envelope in batch:
                self._refuse(envelope, refusal)
            return
        for index, envelope in enumerate(batch):
            envelope.pending, envelope.pending_index = pending, index
        outcomes = await pending.wait()
        connections = len(self._roster.subscribers) + self._roster.elsewhere
        try:
            is_same = await self._take_in_own(events, outcomes, pending.settled_at)
        except StorageError:
            # The ring lacks something, which its followers will get later. These events are stored all the same.
            self._answer_publishes(zip(batch, outcomes, strict=True), 0)
            raise
        if self._tracing is not None:
            self._tracing.sent_out(self._diagnosis_id, spans, pending.settled_at, connections if is_same else 0)
        self._answer_publishes(zip(batch, outcomes, strict=True), connections if is_same else 0)

    async def _take_in_own(
        self, events: Sequence[NewEvent], outcomes: Sequence[Appended | StorageError], committed_at: float
    ) -> bool:
        """Take events that were appended here into the ring; False: as `_extend_ring`."""
        stored: list[Event] = []
        pushed_out: list[int] = []
        counts, floor = self._roster.totals, self._ring.floor
        newest = Seq(0)
        for event, outcome in zip(events, outcomes, strict=True):
            if isinstance(outcome, Appended):
                if not outcome.replayed:
                    counts.events += 1
                    counts.event_bytes += len(event.body)
                    if (oldest := outcome.seq - OUTBOX_EVENTS_MAX) > floor:
                        pushed_out.append(oldest)
                if outcome.epoch != self._ring.epoch:
                    await self._load()
                    return False
                stored.append(Event(outcome.seq, outcome.at, event.kind, event.body))
                newest = max(newest, outcome.seq)
        if pushed_out:
            self._roster.count_evicted(pushed_out)
        if not self._following.is_on:  # nobody reads the ring
            self._ring.passed(newest)
            return True
        return not stored or await self._extend_ring(self._with_what_waits(stored), newest, committed_at)

    def _with_what_waits(self, stored: Sequence[Event]) -> Sequence[Event]:
        """Own events, and those of others that wait in the mailbox: none of these is read from the store."""
        news, ring = self._mailbox.waiting_news, self._ring
        if stored[0].seq == ring.head + 1 == stored[-1].seq or news is None or news.window is None:
            return stored
        return sorted((*news.events, *stored)) if news.window.epoch == ring.epoch else stored

    # The ring

    async def _extend_ring(self, events: Iterable[Event], head: Seq | None, committed_at: float | None = None) -> bool:
        """Take events into the ring, with what lies between them, and send all of it out. The only way into the ring.

        Args:
            events: stored ones, the lowest first; those that do not follow the ring are read from the store.
            head: a number that was given; `None`: the store is asked which that is.
            committed_at: when these events were committed, on Trio's clock; `None`: it is not known.

        Returns:
            False: the ring is now that of another registration, and whoever followed the former one has been told.
        """
        ring, before, floor = self._ring, self._ring.head, self._ring.floor
        for event in events:
            if event.seq == ring.head + 1:
                ring.append(event.seq, self._render(self._diagnosis_id, event))
        if (head is None or head > ring.head) and not await self._catch_up():
            return False
        if ring.head > before:
            await self._fan_out(before, committed_at)
        elif ring.floor > floor:
            await turns.wake_all(self._roster)
        return True

    async def _catch_up(self) -> bool:
        """Read from the store what the ring lacks: another writer's events lie between its numbers and ours.

        Returns:
            As `_extend_ring`.
        """
        ring = self._ring
        found = await self._store.read_after(self._diagnosis_id, ring.head, OUTBOX_EVENTS_MAX)
        if found.window.epoch != ring.epoch:
            await self._load()
            return False
        ring.raise_floor(found.window)
        for event in found.events:
            ring.append(event.seq, self._render(self._diagnosis_id, event))
        return True

    async def _hear(self, news: News) -> None:
        """Take in what another process has stored, or look for it: at once, and later again if it is not found yet."""
        ring, window = self._ring, news.window
        is_known = window is not None and window.epoch == ring.epoch and (news.is_whole or bool(news.events))
        if window is not None and is_known and _reached(ring.head, news.events) >= window.head:
            await self._extend_ring(news.events, window.head)
            await self._evict(window)
            return
        self._missing = merged(self._missing or news, replace(news, events=(), is_whole=False))
        if self._look_at == inf:
            await self._look()

    async def _look(self) -> None:
        """Bring the ring to where another process has brought the log. What is read may still be too old for that."""
        assert self._missing is not None, "it is looked for what is missing"
        window, found = self._missing.window, False
        try:
            await self._extend_ring((), None)
            if window is not None:
                await self._evict(window)
            found = window is None or self._has_reached(window)
        except (Busy, Failed):
            pass  # not now
        # Late news of a registration that is gone look like those of one that is not seen yet. In doubt the store will
        # tell of the change.
        if found or (window is not None and window.epoch != self._ring.epoch and self._looks >= LOOKS_MAX):
            self._missing, self._looks, self._look_at = None, 0, inf
            return
        self._look_at = trio.current_time() + min(LOOK_SECONDS_MIN * 2**self._looks, LOOK_SECONDS_MAX)
        self._looks += 1

    def _has_reached(self, window: Window) -> bool:
        """Whether the ring is as new as this."""
        return self._ring.epoch == window.epoch and self._ring.head >= window.head

    async def _fan_out(self, before: Seq, committed_at: float | None) -> None:
        """Give everyone the events above `before`, in chunks."""
        numbered = tuple(self._ring.texts_after(before, OUTBOX_EVENTS_MAX))
        if not numbered:  # they were dropped for their age between their commit and a look at the store
            await turns.wake_all(self._roster)
            return
        burst = Burst(numbered[0][0], numbered[-1][0], tuple(text for _, text in numbered))
        began_at = trio.current_time()
        subscribers, not_written = list(self._roster.subscribers), 0
        for begin in range(0, len(subscribers), FANOUT_CHUNK):
            if begin:
                await trio.lowlevel.checkpoint()
            for subscriber in subscribers[begin : begin + FANOUT_CHUNK]:
                if subscriber.gone or subscriber.transport.feed(burst):
                    not_written += 1
        self._count_fan_out(burst, len(subscribers) - not_written, began_at, committed_at)

    def _count_fan_out(self, burst: Burst, written: int, began_at: float, committed_at: float | None) -> None:
        """Count what was written to so many connections: here, as counting each of them would cost each of them."""
        counts, now = self._roster.totals, trio.current_time()
        counts.deliveries += written * len(burst.texts)
        counts.delivered_bytes += written * sum(map(len, burst.texts))
        counts.fan_out.observe(now - began_at)
        if committed_at is not None:
            counts.commit_to_last_write.observe(now - committed_at)

    def _answer_publishes(self, settled: Iterable[tuple[Envelope, Appended | StorageError]], connections: int) -> None:
        """Tell each publisher what became of its event; `connections` were attached when it committed."""
        online, known, at_risk = self._roster.counts()
        for envelope, outcome in settled:
            if isinstance(outcome, StorageError):
                self._refuse(envelope, outcome)
                continue
            notified = 0 if outcome.replayed else connections
            receipt = Receipt(outcome.seq, outcome.epoch, notified, online, known, at_risk, outcome.replayed)
            self._answer(envelope, receipt)

    # Subscribing

    async def _look_elsewhere(self, batch: Sequence[Envelope]) -> None:
        """Learn where these subscribers got to at other processes, and bring the ring to what they have seen there."""
        ring, seen = self._ring, self._ring.head
        for envelope in batch:
            assert isinstance(envelope.message, Subscribe), "a batch holds one kind"
            subscriber_id, wanted = envelope.message.subscriber.id, envelope.message.wanted
            if not envelope.message.peeks:
                erasures = self._roster.erasures
                cursor = await self._store.cursor(self._diagnosis_id, subscriber_id)
                if erasures != self._roster.erasures:
                    pass  # it may be of a user who was erased meanwhile
                elif cursor is not None:
                    self._roster.take_over(Known(self._diagnosis_id, cursor))
                    seen = max(seen, cursor.seq)
                elif (known := self._everyone_known.get(subscriber_id)) is not None and not known.connections:
                    self._forget_known([subscriber_id])
            seen = max(seen, wanted.after or Seq(0))
            if wanted.epoch is not None and wanted.epoch != ring.epoch:
                seen = max(seen, Seq(ring.head + 1))  # there may be another registration than the one the ring is of
        if (await self._store.get(self._diagnosis_id)).epoch != ring.epoch:
            seen = max(seen, Seq(ring.head + 1))
        if seen > ring.head:
            await self._look_up_to(seen)

    async def _subscribe(self, batch: Sequence[Envelope]) -> None:
        """Attach connections, in order. The start of each is stored as its cursor first: it is known from then on."""
        if self._following.begin():
            await self._hear(LOOK)
        if self._store.shared:
            # While the store is away, whoever is known here goes on with what is known here.
            with contextlib.suppress(Busy, Failed):
                await self._look_elsewhere(batch)
        waiting = batch
        while waiting:
            # Judged before anything reaches store or roster: without the right no cursor moves and no connection ends.
            starts, waiting = self._begin(await self._judged(waiting))
            if starts:
                waiting = [*await self._store_starts(starts), *waiting]
            elif waiting and not await self._makes_room_for(waiting[0]):
                waiting = waiting[1:]

    def _begin(self, judged: Sequence[Envelope]) -> tuple[list[Start], Sequence[Envelope]]:
        """Attach those whose start need not be stored.

        Returns:
            The starts to store, and the messages behind them that must wait for it; no starts: the first of those
            messages waits for room among the devices of its user.
        """
        starts: dict[SubscriberId, Start] = {}
        coming: Counter[str | None] = Counter()
        for index, envelope in enumerate(judged):
            assert isinstance(envelope.message, Subscribe), "a batch holds one kind"
            subscriber_id = envelope.message.subscriber.id
            if subscriber_id in starts and not envelope.message.peeks:
                return list(starts.values()), judged[index:]
            start = self._start_of(envelope, envelope.message)
            if start is None:
                continue
            if subscriber_id not in self._everyone_known:
                if not self._roster.has_room_for(subscriber_id, coming[subscriber_id.sub]):
                    return list(starts.values()), judged[index:]
                coming[subscriber_id.sub] += subscriber_id.device is not None
            starts[subscriber_id] = start
        return list(starts.values()), ()

    def _start_of(self, envelope: Envelope, message: Subscribe) -> Start | None:
        """Where a connection begins, if that is to be stored; `None`: it is attached already."""
        subscriber, ring = message.subscriber, self._ring
        self._roster.detach(subscriber)  # the former incarnation may have attached it before it crashed
        known = None if message.peeks else self._everyone_known.get(subscriber.id)
        decided = plan(ring.window, message.wanted, None if known is None else (known.epoch, known.seq))
        if message.peeks:
            self._attach(envelope, subscriber, None, decided)
            return None
        if known is not None and known.epoch == ring.epoch and decided.cursor <= known.seq:
            self._keeper.seen(known)
            self._attach(envelope, subscriber, known, decided)
            return None
        return Start(envelope, subscriber, decided, self._store.moment())

    async def _makes_room_for(self, envelope: Envelope) -> bool:
        """Forget one device of a newcomer's user; False: none can go, and the newcomer was refused."""
        assert isinstance(envelope.message, Subscribe), "it is one that waits for room"
        newcomer, elsewhere = envelope.message.subscriber.id, None
        try:
            if self._store.shared:
                await self._load_what_others_know()
                if self._roster.has_room_for(newcomer, 0):
                    return True
                devices = [one.id for one in self._roster.devices_of(newcomer.sub)]
                elsewhere = await self._connected_elsewhere(self._diagnosis_id, devices)
            await self._drop_known([self._roster.device_to_forget(newcomer, elsewhere)])
        except (StorageError, DevicesExhausted) as refusal:
            self._refuse(envelope, refusal)
            return False
        return True

    async def _store_starts(self, starts: Sequence[Start]) -> Sequence[Envelope]:
        """Make subscribers known from where they begin, or move known ones there, and attach their connections.

        Returns:
            Those that must be looked at again: a user was erased meanwhile, and with it what was stored before, and
            perhaps the right to follow; or another epoch began.
        """
        epoch, erasures = self._ring.epoch, self._roster.erasures
        moves = [start.move(self._diagnosis_id, epoch) for start in starts]
        try:
            stored = await self._store.move_cursors(moves)
        except StorageError as refusal:
            for start in starts:
                self._refuse(start.envelope, refusal)
            return ()
        if erasures != self._roster.erasures:
            return [start.envelope for start in starts]
        self._keeper.tell([move for move, seq in zip(moves, stored, strict=True) if seq == move.seq])
        void = []
        for start, move, seq in zip(starts, moves, stored, strict=True):
            if seq is None:
                void.append(start.envelope)
            else:
                self._attach(start.envelope, start.subscriber, self._learn(move, seq, start.at), start.plan)
        return await self._in_another_epoch(void) if void else ()

    async def _in_another_epoch(self, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:
        """Those that can begin in the epoch that the store has by now; theirs was none of its any more."""
        epoch = self._ring.epoch
        try:
            await self._look_up_to(Seq(self._ring.head + 1))
            if self._ring.epoch == epoch:
                raise Busy("the epoch is another one by now, and cannot be read yet")
        except StorageError as refusal:
            for envelope in envelopes:
                self._refuse(envelope, refusal)
            return ()
        return envelopes

    async def _look_up_to(self, seq: Seq) -> None:
        """Bring the ring to where the store has this number, or to another epoch."""
        await self._store.read_after(self._diagnosis_id, seq, 0)  # nothing older is read from now on
        await self._extend_ring((), seq)

    def _learn(self, move: CursorMove, stored: Seq, at: Moment) -> Known:
        """The subscriber whose cursor was stored, and that was seen at this time."""
        known = self._everyone_known.get(move.subscriber)
        if known is None:
            first = Cursor(
                move.subscriber, move.epoch, stored, move.seen_at, move.acknowledged_at, move.acknowledged_by
            )
            known = self._roster.learn(Known(self._diagnosis_id, first))
        else:
            if known.epoch != move.epoch or stored > known.seq:
                known.acknowledged(move.acknowledged_at, move.acknowledged_by)
            self._roster.advance(known, move.epoch, max(known.seq_in(move.epoch), stored))
            known.stored = max(known.stored, stored)
        self._keeper.saw(known, at)
        return known

    def _attach(self, envelope: Envelope, subscriber: Subscriber, known: Known | None, decided: Plan) -> None:
        if not subscriber.gone:
            self._roster.attach(subscriber, known, decided.position)
            self._roster.totals.resumes[decided.resume] += 1
        window = self._ring.window
        if decided.position > window.head:  # it got further elsewhere than what can be read here now
            window = replace(window, head=decided.position)
        self._answer(envelope, Admission(window, decided))

    async def _drop_known(self, subscribers: Sequence[SubscriberId]) -> int:
        """Forget known subscribers, here and in the store; how many there were."""
        self._forget_known(subscribers)
        return await self._store.forget(self._diagnosis_id, subscribers)

    def _forget_known(self, subscribers: Sequence[SubscriberId]) -> None:
        for subscriber_id in subscribers:
            if (known := self._roster.forget(subscriber_id)) is not None:
                self._keeper.discard(known)

    # Operators

    async def _purge(self, envelope: Envelope, message: Purge) -> None:
        # No checkpoint until the store has it.
        if not await self._judged([envelope]):
            return
        try:
            with _carried_out():
                purged = await self._store.purge(self._diagnosis_id, message.act)
                is_same = purged.after.epoch == self._ring.epoch
                if is_same:
                    self._ring.raise_floor(purged.after)
                    await turns.wake_all(self._roster)
        except StorageError as refusal:
            self._refuse(envelope, refusal)
            return
        self._answer(envelope, self._ring.window if is_same else purged.after)
        if not is_same:
            await self._load()

    async def _forget(self, envelope: Envelope, message: Forget) -> None:
        """Nobody is disconnected before the row that says so is stored."""

        if self._store.shared:
            try:
                await self._load_what_others_know()
            except StorageError as refusal:
                self._refuse(envelope, refusal)
                return
        # No checkpoint until the store has it.
        if not await self._judged([envelope]):
            return
        meant = [one for one in self._everyone_known.values() if message.which.names(one.id)]
        named = [one.id for one in meant]
        connections = self._roster.count_where(message.which) + message.elsewhere
        act = None if message.act is None else message.act.adding(connections=connections)
        try:
            with _carried_out(), self._keeper.holding(meant):
                cursors = await self._store.forget(self._diagnosis_id, named, act)
                ended = await turns.end_where(self._roster, message.which, Ending.DISCONNECTED)
                self._forget_known(named)
        except StorageError as refusal:
            self._refuse(envelope, refusal)
            return
        self._answer(envelope, Forgotten(ended, cursors))

    async def _evict(self, window: Window) -> None:
        # A diagnosis of this name may have been deleted and registered again since its events were dropped. A purge of
        # this actor's own is known to it.
        ring = self._ring
        if window.epoch == ring.epoch and (window.floor > ring.floor or window.purged > ring.purged):
            ring.raise_floor(window)
            await turns.wake_all(self._roster)

    async def _forget_unseen(self, envelope: Envelope) -> None:
        for known in self._everyone_known.values():
            if known.connections:
                self._keeper.seen(known)
        try:
            if self._store.shared:
                await self._load_what_others_know()
            unseen = self._roster.unseen(self._store.moment().judged)
            dropped = await self._drop_known(unseen) if unseen else 0
        except StorageError as refusal:
            self._refuse(envelope, refusal)
            return
        self._answer(envelope, dropped)

    async def _inspect(self, envelope: Envelope) -> None:
        try:
            await self._read_what_was_not_told()
        except (Busy, Failed) as refusal:
            self._refuse(envelope, refusal)
            return
        self._answer(envelope, self._ring.window)

    async def _read_what_was_not_told(self) -> None:
        """Bring the ring up to date, if others may have written of which nobody has told."""
        if not self._following.is_on:
            await self._extend_ring((), None)

    async def _trace(self, envelope: Envelope, message: Trace) -> None:
        try:
            await self._read_what_was_not_told()
            if self._store.shared:
                await self._load_what_others_know()
        except StorageError as refusal:
            self._refuse(envelope, refusal)
            return
        self._answer(envelope, await self._deliveries(message))

    async def _deliveries(self, message: Trace) -> tuple[Delivery, ...]:
        everyone = list(self._everyone_known.values())
        first: list[Known] = []
        for begin in range(0, len(everyone), TRACED_AT_ONCE_MAX):
            some = everyone[begin : begin + TRACED_AT_ONCE_MAX]
            later = (one for one in some if message.after is None or one.id.order > message.after.order)
            first = heapq.nsmallest(message.limit, (*first, *later), key=lambda one: one.id.order)
            await trio.lowlevel.checkpoint()
        epoch = self._ring.epoch
        return tuple(
            Delivery(
                one.id,
                bool(one.connections),
                one.seq_in(epoch),
                self._state_of(message.seq, one),
                *one.acknowledgement_in(epoch),
            )
            for one in first
        )

    def _state_of(self, seq: Seq, known: Known) -> DeliveryState:
        if known.seq_in(self._ring.epoch) >= seq:
            return DeliveryState.ACKNOWLEDGED
        if any(connection.position >= seq for connection in known.connections):
            return DeliveryState.WRITTEN
        return DeliveryState.PENDING if seq > self._ring.floor else DeliveryState.LOST

    # Small

    @property
    def _ring(self) -> Ring:
        assert self._roster.ring is not None, "loaded before the first message"
        return self._roster.ring

    @property
    def _everyone_known(self) -> dict[SubscriberId, Known]:
        assert self._roster.known is not None, "loaded before the first message"
        return self._roster.known

    def _answer(self, envelope: Envelope, answer: object) -> None:
        self._in_hand.holding.remove(envelope)
        envelope.reply.answer(answer)

    def _refuse(self, envelope: Envelope, refusal: Exception) -> None:
        self._in_hand.holding.remove(envelope)
        envelope.reply.refuse(refusal)


def _carried_out() -> trio.CancelScope:
    """Shield an operator's act that the store has begun: interrupted here, it would be done and recorded once more.

    Without a deadline: the store ends every operation, and one that it has taken cannot be called back.
    """
    return trio.CancelScope(shield=True)


def _taken(tracing: Tracing, diagnosis_id: str, batch: Sequence[Envelope]) -> Sequence[object]:
    return tracing.taken(diagnosis_id, [(envelope.span, envelope.came_at) for envelope in batch])


def _reached(head: Seq, events: Sequence[Event]) -> Seq:
    """How far a ring with this head comes with these events."""
    for event in events:
        if event.seq == head + 1:
            head = event.seq
    return head


def _event_in(envelope: Envelope) -> NewEvent:
    assert isinstance(envelope.message, Publish), "a batch holds publishes only"
    return envelope.message.event
