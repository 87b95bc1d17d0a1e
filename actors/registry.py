"""The door of this room: find the actor of a diagnosis by id, waking it if need be, and talk to it.

One registry per server. Callers keep ids, never a mailbox. Only `restart` and `stop` hold a cell across an await, to
wait for it to change.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import trio

from actors import turns
from actors.budget import RingBudget
from actors.cursors import CursorKeeper
from actors.diagnosis import Render
from actors.errors import ActorError, Draining, MailboxFull, Quarantined
from actors.intensity import Intensity
from actors.mailbox import Mailbox, MailboxStatistics
from actors.messages import Asks, Envelope, Evict, ForgetUnseen, Inspect, Message
from actors.ring import Ring
from actors.roster import Roster, Watcher
from actors.subscriber import Ending, Subscriber
from actors.supervisor import ActorState, Cell, Crash, History, Limits, Supervisor, Wish, keep_up
from actors.trail import AccessTrail
from storage.clock import Clock
from storage.damage import Damage
from storage.errors import NoSuchDiagnosis, StorageError
from storage.records import AcknowledgedBy, Seq, SubscriberId, Window
from storage.store import Store

Answer = TypeVar("Answer")

LAG_SHOWN: Final = 10
"""Subscribers shown with their lag."""

RINGS_LOOK_SECONDS: Final = 1.0
"""Between two looks at what all rings take. Reason: an actor that had work could not let its ring leave at the
first."""

HISTORIES_MAX: Final = 100_000
"""Resting diagnoses whose history is remembered. Beyond: the one that has rested longest begins anew."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind one known subscriber is."""

    subscriber: SubscriberId
    online: bool
    cursor: Seq
    events: int
    """Events between its cursor and the head."""


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """One actor as its supervisor sees it."""

    diagnosis_id: str
    state: ActorState
    incarnation: int
    connections: int
    mailbox: MailboxStatistics
    restarts: int
    last_crash: Crash | None
    window: Window | None
    """What its ring holds; `None`: not loaded."""
    lag: tuple[Lag, ...] | None
    """The subscribers furthest behind, at most `LAG_SHOWN`; `None`: not loaded."""
    damage: Damage | None
    """What is wrong with its outbox, which is not loaded then; `None`: no damage is known."""


class Registry(Watcher):
    """All diagnosis actors of this server, by diagnosis id."""

    def __init__(
        self,
        store: Store,
        actors_nursery: trio.Nursery,
        *,
        render: Render,
        clock: Clock,
        jitter: Callable[[], float],
        limits: Limits,
        trail: AccessTrail | None = None,
    ) -> None:
        """A registry without actors.

        Args:
            trail: is told of every connection that comes and goes; `None`: nobody is.
        """
        self._trail = trail
        self._store = store
        store.on_damage(self.damaged)
        self._actors_nursery = actors_nursery
        self._clock = clock
        self._jitter = jitter
        self._limits = limits
        self._keeper = CursorKeeper(store)
        self._budget = RingBudget(limits.ring_bytes_max, self._let_go)
        self._supervisor = Supervisor(
            store, self._keeper, self._budget, render=render, clock=clock, jitter=jitter, limits=limits
        )
        self._cells: dict[str, Cell] = {}
        self._histories: dict[str, History] = {}
        self._draining = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store acknowledged cursors until cancelled; actors run in the nursery given at the start."""
        task_status.started()
        await keep_up("cursor keeper", self._keeper.run, self._clock, self._jitter)

    async def keep_rings_small(self) -> None:
        """Have actors that nobody follows leave memory while all rings take more than they may; until cancelled."""
        while True:
            await self._budget.make_room()
            await trio.sleep(RINGS_LOOK_SECONDS)

    def _let_go(self, roster: Roster) -> bool:
        cell = self._cells.get(roster.diagnosis_id)
        return cell is not None and cell.roster is roster and cell.let_go_of_ring()

    # Talking to actors

    async def ask(self, diagnosis_id: str, message: Asks[Answer]) -> Answer:
        """Put a message into the actor's mailbox and wait for its answer.

        Raises:
            MailboxFull, Draining: certainly not done.
            Quarantined: the actor rests.
            Crashed: the actor crashed twice over it; whether it was done is unknown.
            StorageError: the store refused; see there.
            Exception: what the message's `judge` answered; certainly not done.

        Cancellation: stops waiting; a message that is in the mailbox is still carried out.
        """
        return await self.tell(diagnosis_id, message)()

    def tell(self, diagnosis_id: str, message: Asks[Answer]) -> Callable[[], Awaitable[Answer]]:
        """Put a message into the actor's mailbox now; what is returned waits for the answer. Raises as `ask`."""
        if self._draining:
            raise Draining("the server is stopping")
        cell = self._cell(diagnosis_id)
        if cell.state is ActorState.QUARANTINED:
            raise Quarantined(max(0.0, cell.quarantined_until - self._clock.monotonic()))
        envelope = Envelope(cast(Message, message))
        cell.mailbox.tell_nowait(envelope)
        self._budget.used(cell.roster)
        self._wake(cell)
        return cast("Callable[[], Awaitable[Answer]]", envelope.reply.wait)

    def acknowledge(self, subscriber: Subscriber, seq: Seq, by: AcknowledgedBy, *, answer: bool = False) -> bool:
        """Move the cursor of an attached subscriber; see `CursorKeeper.acknowledge`."""
        return self._keeper.acknowledge(subscriber, seq, by, answer=answer)

    def settle(self, subscriber: Subscriber, by: AcknowledgedBy) -> None:
        """Move the cursor of a connection that has left up to its position; see `CursorKeeper.settle`."""
        self._keeper.settle(subscriber, by)

    async def end_where(self, diagnosis_id: str, which: Callable[[Subscriber], bool], ending: Ending) -> int:
        """End the connections of one diagnosis that `which` picks, and leave others their turn; how many.

        A connection that is attached meanwhile is not ended: first take away the right to be admitted.
        """
        cell = self._cells.get(diagnosis_id)
        return 0 if cell is None else await turns.end_where(cell.roster, which, ending)

    def count_where(self, diagnosis_id: str, which: Callable[[Subscriber], bool]) -> int:
        """How many connections of one diagnosis `which` picks."""
        cell = self._cells.get(diagnosis_id)
        return 0 if cell is None else cell.roster.count_where(which)

    def count_everywhere(self, which: Callable[[Subscriber], bool]) -> int:
        """How many connections of all diagnoses `which` picks."""
        return sum(cell.roster.count_where(which) for cell in self._cells.values())

    async def end_everywhere(self, which: Callable[[Subscriber], bool], ending: Ending) -> int:
        """As `end_where`, of all diagnoses."""
        ended, share = 0, turns.Share()
        for cell in list(self._cells.values()):
            ended += await turns.end_where(cell.roster, which, ending, share)
            await share.spend(turns.LOOKED_AT_ONCE_MAX)
        return ended

    def is_connected(self, diagnosis_id: str, subscriber: SubscriberId) -> bool:
        """Whether this subscriber has an attached connection."""
        cell = self._cells.get(diagnosis_id)
        known = None if cell is None or cell.roster.known is None else cell.roster.known.get(subscriber)
        return known is not None and bool(known.connections)

    def rest_seconds(self, diagnosis_id: str) -> float:
        """How long a quarantined diagnosis still rests; 0: it does not. A damaged one rests until it is repaired."""
        if diagnosis_id in self._store.damaged:
            return self._limits.quarantine_seconds
        cell = self._cells.get(diagnosis_id)
        return 0.0 if cell is None else max(0.0, cell.quarantined_until - self._clock.monotonic())

    async def end_all(self) -> None:
        """The server stops: say goodbye to every connection."""
        await self.end_everywhere(lambda _: True, Ending.STOPPING)

    def evicted(self, diagnosis_id: str, window: Window) -> None:
        """The store has dropped old events: have the actor let go of them, if it is in memory.

        An actor that is just reading its outbox may have read them already: it lets go of them afterwards.
        """
        cell = self._cells.get(diagnosis_id)
        if cell is None:
            return
        try:
            self.tell(diagnosis_id, Evict(window))
        except MailboxFull:
            cell.ask_for(Wish.RESTART)
        except ActorError:
            pass  # it will read its outbox again before anybody reads it

    def damaged(self, diagnosis_id: str) -> None:
        """An outbox was found damaged: have its actor, if it is in memory, read it anew, which ends it."""
        cell = self._cells.get(diagnosis_id)
        if cell is not None:
            cell.ask_for(Wish.RESTART)
            if not self._draining:  # else everybody has been told goodbye
                self._wake(cell)

    async def forget_unseen(self) -> frozenset[str]:
        """Have every actor in memory forget subscribers that were unseen for too long; returns the diagnoses in memory.

        A connected subscriber is stored as seen now. An actor that loads later forgets by itself.
        """
        cells = list(self._cells.values())
        for cell in cells:
            if self._cells.get(cell.diagnosis_id) is cell and cell.roster.known is not None:
                # One that refuses is asked again tomorrow, or forgets when it loads again.
                with contextlib.suppress(ActorError):
                    self.tell(cell.diagnosis_id, ForgetUnseen())
            await trio.lowlevel.checkpoint()
        return frozenset(cell.diagnosis_id for cell in cells)

    # Operators

    async def disconnect_user(self, sub: str) -> int:
        """End every connection of a user, and store their rows of the access trail; how many there were."""
        ended = await self.end_everywhere(lambda subscriber: subscriber.id.sub == sub, Ending.DISCONNECTED)
        if self._trail is not None:
            await self._trail.flush()
        return ended

    def erase_user(self, sub: str, stand_in: str) -> int:
        """Forget a user in every actor and in all that waits to be stored; how many connections had to be ended.

        Have them ended before, by `disconnect_user`: here nobody else gets a turn.
        To be called in the same stretch, without a checkpoint, as the store is asked to erase it: what has reached the
        store by then is erased there, and nothing of before reaches it later.
        """
        ended = 0
        for cell in list(self._cells.values()):
            ended += cell.roster.end_where(lambda subscriber: subscriber.id.sub == sub, Ending.DISCONNECTED)
            cell.roster.forget_user(sub)
        self._keeper.discard_user(sub)
        if self._trail is not None:
            self._trail.rename(sub, stand_in)
        return ended

    async def restart(self, diagnosis_id: str) -> None:
        """Begin a new incarnation (sockets stay open), or wake a resting actor; releases a quarantine.

        Raises:
            NoSuchDiagnosis: it was deleted meanwhile.
        """
        cell = self._cell(diagnosis_id)
        history, before = cell.history, cell.history.incarnation
        cell.ask_for(Wish.RESTART)
        while history.incarnation == before:
            if cell.wish is Wish.RETIRE:
                raise NoSuchDiagnosis(diagnosis_id)
            # Never one that has left memory meanwhile: there would be two actors of one diagnosis.
            cell = self._cell(diagnosis_id)
            self._wake(cell)
            await cell.changed.wait()

    async def stop(self, diagnosis_id: str) -> None:
        """Passivate the actor now. Sockets stay open; the next message wakes it."""
        cell = self._cells.get(diagnosis_id)
        if cell is None or cell.state is ActorState.PASSIVE:
            return
        cell.ask_for(Wish.STOP)
        while cell.wish is Wish.STOP:
            await cell.changed.wait()

    async def retire(self, diagnosis_id: str) -> None:
        """The diagnosis was deleted: end its connections, answer what waits, and forget its actor."""
        cell = self._cells.pop(diagnosis_id, None)
        if cell is None:
            return
        self._remember(cell)
        self._budget.forget(cell.roster)
        cell.ask_for(Wish.RETIRE)
        await turns.end_where(cell.roster, lambda _: True, Ending.DELETED)

    async def drain(self) -> None:
        """Take nothing new, finish what is in the mailboxes, store all cursors.

        Cancellation: what is not finished is dropped; its publishers are told.
        """
        answers = [self.tell(one.diagnosis_id, Inspect()) for one in list(self._cells.values()) if one.has_work]
        self._draining = True
        for answer in answers:
            # A refusal is an answer too: its publishers were told the same.
            with contextlib.suppress(ActorError, StorageError):
                await answer()
        await self._keeper.flush()
        if self._trail is not None:
            await self._trail.flush()

    # Looking

    @property
    def connections(self) -> dict[str, int]:
        """Attached connections of every diagnosis that has any."""
        return {one.diagnosis_id: len(one.roster.subscribers) for one in self._cells.values() if one.roster.subscribers}

    def unacknowledged(self, diagnosis_id: str) -> int | None:
        """Retained events that some known subscriber has not acknowledged; `None`: the outbox is not in memory."""
        cell = self._cells.get(diagnosis_id)
        if cell is None or cell.roster.ring is None or cell.roster.known is None:
            return None
        return cell.roster.unacknowledged()

    @property
    def ring_bytes(self) -> int:
        """What events take in memory, of all diagnoses."""
        return self._budget.bytes

    def window(self, diagnosis_id: str) -> Window | None:
        """What a diagnosis retains, if its outbox is in memory; wakes nobody."""
        cell = self._cells.get(diagnosis_id)
        return None if cell is None or cell.roster.ring is None else cell.roster.ring.window

    @property
    def loaded(self) -> list[str]:
        """Diagnoses whose outbox is in memory."""
        return [one.diagnosis_id for one in self._cells.values() if one.roster.ring is not None]

    @property
    def ring_bytes_max(self) -> int:
        """What events may take in memory."""
        return self._budget.bytes_max

    @property
    def escalated(self) -> bool:
        """Whether so many diagnoses were quarantined lately that this server should get no new work."""
        return self._supervisor.escalated

    @property
    def actors(self) -> int:
        """Actors in memory."""
        return len(self._cells)

    def statistics_of(self, diagnosis_id: str) -> ActorStatistics:
        """One actor; of one that is not in memory, what it would be. Wakes nobody."""
        cell = self._cells.get(diagnosis_id) or self._new_cell(diagnosis_id)
        ring = cell.roster.ring
        damage = self._store.damaged.get(diagnosis_id)
        return ActorStatistics(
            cell.diagnosis_id,
            cell.state if damage is None else ActorState.QUARANTINED,
            cell.history.incarnation,
            len(cell.roster.subscribers),
            cell.mailbox.statistics(),
            cell.history.restarts,
            cell.history.last_crash,
            window=None if ring is None else ring.window,
            lag=None if ring is None or cell.roster.known is None else _lag(cell.roster, ring),
            damage=damage,
        )

    # Cells

    def _cell(self, diagnosis_id: str) -> Cell:
        cell = self._cells.get(diagnosis_id)
        if cell is None:
            cell = self._cells[diagnosis_id] = self._new_cell(diagnosis_id)
        return cell

    # For rosters

    def joined(self, roster: Roster, subscriber: Subscriber) -> None:
        self._budget.count(roster)
        if self._trail is not None:
            self._trail.note("connect", roster.diagnosis_id, subscriber)

    def left(self, roster: Roster, subscriber: Subscriber) -> None:
        if subscriber.known is not None:
            self._keeper.left(subscriber.known)
        if self._trail is not None:
            self._trail.note("disconnect", roster.diagnosis_id, subscriber)

    def deserted(self, roster: Roster) -> None:
        cell = self._cells.get(roster.diagnosis_id)
        if cell is None or cell.roster is not roster:
            return
        self._budget.count(roster)
        if cell.state is ActorState.RUNNING:
            # Now it begins to count for how long nobody needs it.
            with contextlib.suppress(MailboxFull, Draining):
                cell.mailbox.tell_nowait(Envelope(Inspect()))
        else:
            self._drop_if_idle(cell)

    def _new_cell(self, diagnosis_id: str) -> Cell:
        limits = self._limits
        return Cell(
            diagnosis_id,
            Mailbox(limits.mailbox_publishes_max),
            Roster(diagnosis_id, self),
            Intensity(limits.restart_intensity_max, limits.restart_intensity_seconds),
            self._histories.get(diagnosis_id) or History(),
        )

    def _wake(self, cell: Cell) -> None:
        if cell.state is not ActorState.PASSIVE:
            return
        cell.become(ActorState.RUNNING)
        # An empty context: the actor must not keep alive the context of the request that happened to wake it.
        start = self._actors_nursery.start_soon
        contextvars.Context().run(lambda: start(self._supervisor.supervise, cell, self._rested, name=cell.diagnosis_id))

    def _rested(self, cell: Cell) -> None:
        cell.become(ActorState.PASSIVE)
        if self._cells.get(cell.diagnosis_id) is not cell:
            self._budget.forget(cell.roster)  # it may have been counted since it was retired
        if cell.has_work:
            self._wake(cell)
        else:
            self._drop_if_idle(cell)

    def _drop_if_idle(self, cell: Cell) -> None:
        idle = cell.state is ActorState.PASSIVE and not cell.has_work and not cell.roster.subscribers
        if idle and self._cells.get(cell.diagnosis_id) is cell:
            del self._cells[cell.diagnosis_id]
            self._budget.forget(cell.roster)
            self._remember(cell)

    def _remember(self, cell: Cell) -> None:
        self._histories.pop(cell.diagnosis_id, None)
        self._histories[cell.diagnosis_id] = cell.history
        if len(self._histories) > HISTORIES_MAX:
            del self._histories[next(iter(self._histories))]


def _lag(roster: Roster, ring: Ring) -> tuple[Lag, ...]:
    behind = [(one, one.seq_in(ring.epoch)) for one in roster.lagging(LAG_SHOWN)]
    return tuple(Lag(one.id, bool(one.connections), cursor, ring.head - cursor) for one, cursor in behind)
