"""The door of this room: find the actor of a diagnosis by id, waking it if need be, and talk to it.

One registry per server. Callers keep ids, never a mailbox. Only `restart` and `stop` hold a slot across an await, to
wait for it to change.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import inf
from typing import Any, Final, TypeVar

import trio

from actors import turns
from actors.access_trail import AccessTrail
from actors.budget import RingBudget
from actors.counts import ActorsStatistics, Counts, statistics_of_all
from actors.cursors import CursorKeeper
from actors.diagnosis import Render
from actors.errors import ActorError, Draining, MailboxFull, Quarantined
from actors.following import Following
from actors.intensity import Intensity
from actors.mailbox import Mailbox
from actors.messages import Asks, Delivery, Envelope, Evict, Forget, ForgetUnseen, Inspect
from actors.peers import ActorAt, Nodes, Peers
from actors.roster import Known, Roster, Subscriber, Watcher, Which, Whose
from actors.slot import ActorLimits, ActorState, History, Interruption, Slot
from actors.statistics import ActorStatistics, Glance, glance_at, glance_at_resting, statistics_of, window_at
from actors.supervisor import Supervisor
from actors.tracing import Tracing
from actors.transport import Ending
from actors.upkeep import restart_on_crash
from actors.which import EVERYBODY, OfUser
from storage.bus import Bus, NoBus
from storage.clock import Clock
from storage.errors import NoSuchDiagnosis, StorageError
from storage.news import News
from storage.pending import Pending
from storage.records import AcknowledgedBy, Cursor, Diagnosis, Seq, SubscriberId, Window
from storage.store import Store

Answer = TypeVar("Answer")

ECHO_SECONDS: Final = 2.0
"""For so long after an erasure no cursor is taken over from other processes. Reason: it may be the erased user's."""

RINGS_LOOK_SECONDS: Final = 1.0
"""Between two looks at what all rings take. Reason: an actor that had work could not let its ring leave at the
first."""

HISTORIES_MAX: Final = 100_000
"""Resting diagnoses whose history is remembered. Beyond: the one that has rested longest begins anew."""


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
        limits: ActorLimits,
        trail: AccessTrail | None = None,
        bus: Bus | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """A registry without actors.

        Args:
            bus: the way to the registries of other processes; `None`: there are none.
            tracing: is told of publishes; `None`: nobody is.
            trail: is told of every connection that comes and goes; `None`: nobody is.
        """
        self._trail = trail
        self._store = store
        store.on_damage(self.damaged)
        self._actors_nursery = actors_nursery
        self._clock = clock
        self._jitter = jitter
        self._limits = limits
        self._peers = Peers(NoBus() if bus is None else bus, self, clock)
        self._keeper = CursorKeeper(store, self._outrun, self._peers.stored)
        self._budget = RingBudget(limits.ring_bytes_max, self._let_go)
        self._counts = Counts()
        self._supervisor = Supervisor(
            store,
            self._keeper,
            self._budget,
            render=render,
            connected_elsewhere=self._peers.connected,
            clock=clock,
            jitter=jitter,
            limits=limits,
            counts=self._counts,
            tracing=tracing,
        )
        self._slots: dict[str, Slot] = {}
        self._histories: dict[str, History] = {}
        self._draining = False
        self._erased_at = -inf
        self._tracing = tracing

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store acknowledged cursors until cancelled; actors run in the nursery given at the start."""
        task_status.started()
        await restart_on_crash("cursor keeper", self._keeper.run, self._clock, self._jitter)

    async def keep_rings_small(self) -> None:
        """Have actors that nobody follows leave memory while all rings take more than they may; until cancelled."""
        while True:
            await self._budget.make_room()
            await trio.sleep(RINGS_LOOK_SECONDS)

    def _let_go(self, roster: Roster) -> bool:
        slot = self._slots.get(roster.diagnosis_id)
        return slot is not None and slot.roster is roster and slot.let_go_of_ring()

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
        return self.put(diagnosis_id, message).wait

    def put(self, diagnosis_id: str, message: Asks[Answer]) -> Pending[Answer]:
        """Put a message into the actor's mailbox now; where its answer will be. Raises as `ask`."""
        if self._draining:
            raise Draining("the server is stopping")
        slot = self._slot(diagnosis_id)
        if slot.state is ActorState.QUARANTINED:
            raise Quarantined(max(0.0, slot.quarantined_until - self._clock.monotonic()))
        asked: Any = message  # as a `Message`; `cast` is a call
        envelope = Envelope(asked)
        if self._tracing is not None:
            envelope.span = self._tracing.sender()
        slot.mailbox.tell_nowait(envelope)
        self._budget.used(slot.roster)
        self._wake(slot)
        return envelope.reply

    def acknowledge(self, subscriber: Subscriber, seq: Seq, by: AcknowledgedBy, *, answer: bool = False) -> bool:
        """Move the cursor of an attached subscriber; see `CursorKeeper.acknowledge`."""
        return self._keeper.acknowledge(subscriber, seq, by, answer=answer)

    def settle(self, subscriber: Subscriber, by: AcknowledgedBy) -> None:
        """Move the cursor of a connection that has left up to its position; see `CursorKeeper.settle`."""
        self._keeper.settle(subscriber, by)

    async def end_where(self, diagnosis_id: str, which: Which, ending: Ending) -> int:
        """End the connections of one diagnosis that `which` picks, and leave others their turn; how many.

        A connection that is attached meanwhile is not ended: first take away the right to be admitted.
        """
        slot = self._slots.get(diagnosis_id)
        return 0 if slot is None else await turns.end_where(slot.roster, which, ending)

    def count_where(self, diagnosis_id: str, which: Which) -> int:
        """How many connections of one diagnosis `which` picks."""
        slot = self._slots.get(diagnosis_id)
        return 0 if slot is None else slot.roster.count_where(which)

    def count_everywhere(self, which: Which) -> int:
        """How many connections of all diagnoses `which` picks."""
        return sum(slot.roster.count_where(which) for slot in self._slots.values())

    async def end_everywhere(self, which: Which, ending: Ending) -> int:
        """As `end_where`, of all diagnoses."""
        ended, share = 0, turns.Share()
        for slot in list(self._slots.values()):
            ended += await turns.end_where(slot.roster, which, ending, share)
            await share.spend(turns.LOOKED_AT_ONCE_MAX)
        return ended

    def is_connected(self, diagnosis_id: str, subscriber: SubscriberId) -> bool:
        """Whether this subscriber has an attached connection."""
        slot = self._slots.get(diagnosis_id)
        known = None if slot is None or slot.roster.known is None else slot.roster.known.get(subscriber)
        return known is not None and bool(known.connections)

    def rest_seconds(self, diagnosis_id: str) -> float:
        """How long a quarantined diagnosis still rests; 0: it does not. A damaged one rests until it is repaired."""
        if diagnosis_id in self._store.damaged:
            return self._limits.quarantine_seconds
        slot = self._slots.get(diagnosis_id)
        return 0.0 if slot is None else max(0.0, slot.quarantined_until - self._clock.monotonic())

    async def end_all(self) -> None:
        """The server stops: say goodbye to every connection."""
        await self.end_everywhere(EVERYBODY, Ending.STOPPING)

    def evicted(self, diagnosis_id: str, window: Window) -> None:
        """The store has dropped events, old or purged ones: have the actor let go of them, if it is in memory.

        An actor that is just reading its outbox may have read them already: it lets go of them afterwards.
        """
        slot = self._slots.get(diagnosis_id)
        if slot is None:
            return
        try:
            self.tell(diagnosis_id, Evict(window))
        except MailboxFull:
            slot.interrupt(Interruption.BEHIND)
        except ActorError:
            pass  # it will read its outbox again before anybody reads it

    def renewed(self, diagnosis_id: str | None) -> Callable[[], Awaitable[object]]:
        """The numbering of a diagnosis (`None`: of all) began anew; what is returned ends its connections.

        Their clients come back, and learn of the new epoch. An actor in memory reads its outbox anew.
        """
        slots = [slot for slot in self._slots.values() if diagnosis_id in (None, slot.diagnosis_id)]
        for slot in slots:
            slot.roster.is_renewed = True
            if slot.state is not ActorState.QUARANTINED:  # else it reads its outbox when it has rested
                slot.interrupt(Interruption.RENEWED)
                if not self._draining:
                    self._wake(slot)

        async def end() -> None:
            share = turns.Share()
            for slot in slots:
                await turns.end_where(slot.roster, EVERYBODY, Ending.RENEWED, share)

        return end

    def grew(self, diagnosis_id: str, news: News) -> None:
        """Another process has stored something in the log of a diagnosis in memory: have its actor take it in."""
        slot = self._slots.get(diagnosis_id)
        # After a quarantine the outbox is read again. During a drain everybody is told goodbye.
        if slot is None or slot.state is ActorState.QUARANTINED or self._draining:
            return
        slot.mailbox.hear_nowait(news)
        self._wake(slot)

    def damaged(self, diagnosis_id: str) -> None:
        """An outbox was found damaged: have its actor, if it is in memory, read it anew, which ends it."""
        slot = self._slots.get(diagnosis_id)
        if slot is not None:
            slot.interrupt(Interruption.DAMAGED)
            if not self._draining:  # else everybody has been told goodbye
                self._wake(slot)

    async def forget_unseen(self) -> frozenset[str]:
        """Have every actor in memory forget subscribers that were unseen for too long; returns the diagnoses in memory.

        A connected subscriber is stored as seen now. An actor that loads later forgets by itself.
        """
        slots = list(self._slots.values())
        for slot in slots:
            if self._slots.get(slot.diagnosis_id) is slot and slot.roster.known is not None:
                # One that refuses is asked again tomorrow, or forgets when it loads again.
                with contextlib.suppress(ActorError):
                    self.tell(slot.diagnosis_id, ForgetUnseen())
            await trio.lowlevel.checkpoint()
        return frozenset(slot.diagnosis_id for slot in slots)

    # Operators

    async def let_go_of(self, whose: Whose, stand_in: str) -> None:
        """A user was erased: end its connections, have their rows of the access trail stored, and forget the user.

        Others get their turn in between. `erase` makes sure of what has come meanwhile.
        """
        await self.end_everywhere(whose, Ending.DISCONNECTED)
        if self._trail is not None:
            await self._trail.flush()
        share = turns.Share()
        for slot in list(self._slots.values()):
            slot.roster.erase(whose)
            await share.spend(max(1, turns.LOOKED_AT_ONCE_MAX // (1 + len(slot.roster.known or ()))))
        self.forget_what_waits(whose, stand_in)

    def erase(self, whose: Whose, stand_in: str) -> int:
        """Forget a user in every actor and in all that waits to be stored; how many connections had to be ended.

        Have the user let go of before: here nobody else gets a turn.
        To be called in the same stretch, without a checkpoint, as the store is asked to erase it: what has reached the
        store by then is erased there, and nothing of before reaches it later.
        """
        ended = sum(slot.roster.erase(whose) for slot in list(self._slots.values()))
        self.forget_what_waits(whose, stand_in)
        return ended

    def forget_what_waits(self, whose: Whose, stand_in: str) -> None:
        """Forget a user in all that waits to be stored."""
        self._erased_at = trio.current_time()
        self._keeper.discard_where(whose)
        if self._trail is not None:
            self._trail.rename(whose, stand_in)

    async def restart(self, diagnosis_id: str) -> None:
        """Begin a new incarnation (sockets stay open), or wake a resting actor; releases a quarantine.

        Also at other processes, where the diagnosis is in memory.

        Raises:
            NoSuchDiagnosis: it was deleted meanwhile.
        """
        await self._restart(diagnosis_id)
        await self._peers.restart(diagnosis_id)

    async def restart_here(self, diagnosis_id: str) -> None:
        """As `restart`, but only here, and only if the diagnosis is in memory."""
        if diagnosis_id in self._slots:
            with contextlib.suppress(NoSuchDiagnosis):
                await self._restart(diagnosis_id)

    async def _restart(self, diagnosis_id: str) -> None:
        slot = self._slot(diagnosis_id)
        history, before = slot.history, slot.history.incarnation
        slot.interrupt(Interruption.RESTART)
        while history.incarnation == before:
            if slot.interruption is Interruption.RETIRE:
                raise NoSuchDiagnosis(diagnosis_id)
            # Never one that has left memory meanwhile: there would be two actors of one diagnosis.
            slot = self._slot(diagnosis_id)
            self._wake(slot)
            await slot.change()

    async def stop(self, diagnosis_id: str) -> None:
        """Passivate the actor now, everywhere. Sockets stay open; the next message wakes it."""
        await self.stop_here(diagnosis_id)
        await self._peers.stop(diagnosis_id)

    async def stop_here(self, diagnosis_id: str) -> None:
        """As `stop`, but only here."""
        slot = self._slots.get(diagnosis_id)
        if slot is None or slot.state is ActorState.PASSIVE:
            return
        slot.interrupt(Interruption.STOP)
        while slot.interruption is Interruption.STOP:
            await slot.change()

    async def tell_peers(self) -> None:
        """Tell other processes how many follow here, soon after that has changed; until cancelled."""
        await self._peers.tell_counts()

    def followers(self, diagnosis_id: str) -> tuple[int, int]:
        """Attached connections of one diagnosis here, and known subscribers with a connection."""
        slot = self._slots.get(diagnosis_id)
        return (0, 0) if slot is None else (len(slot.roster.subscribers), slot.roster.online)

    def follow_elsewhere(self, diagnosis_id: str, connections: int, online: int) -> None:
        """So many follow the diagnosis at other processes."""
        slot = self._slots.get(diagnosis_id)
        if slot is not None:
            slot.roster.elsewhere, slot.roster.online_elsewhere = connections, online

    def was_given(self, diagnosis_id: str, subscriber_id: SubscriberId, seq: Seq) -> bool | None:
        """Whether a connection of this subscriber was given this number; `None`: it has no connection here."""
        slot = self._slots.get(diagnosis_id)
        known = None if slot is None or slot.roster.known is None else slot.roster.known.get(subscriber_id)
        if known is None or not known.connections:
            return None
        return any(one.position >= seq for one in known.connections)

    async def with_elsewhere(self, diagnosis_id: str, seq: Seq, found: Sequence[Delivery]) -> Sequence[Delivery]:
        """What became of an event for these subscribers, with what other processes know of their connections."""
        written = await self._peers.written(diagnosis_id, seq, [one.subscriber for one in found])
        return [one.with_connection(written.get(one.subscriber)) for one in found] if written else found

    async def online_elsewhere(
        self, names: Sequence[tuple[str, Sequence[SubscriberId]]]
    ) -> set[tuple[str, SubscriberId]]:
        """Which subscribers of which diagnoses have a connection at other processes."""
        return await self._peers.online(names)

    async def count_elsewhere(self, diagnosis_id: str, which: OfUser) -> int:
        """How many connections of one diagnosis are attached at other processes."""
        return await self._peers.count(diagnosis_id, which)

    async def count_everywhere_elsewhere(self, which: OfUser) -> int:
        """How many connections of all diagnoses are attached at other processes."""
        return await self._peers.count_everywhere(which)

    async def disconnect_elsewhere(self, diagnosis_id: str, which: OfUser, *, forget: bool) -> int:
        """Have other processes end connections, and perhaps forget their subscribers; how many connections."""
        return await self._peers.disconnect(diagnosis_id, which, forget=forget)

    async def disconnect_here(self, diagnosis_id: str, which: OfUser, *, forget: bool) -> int:
        """End connections; how many. What was stored of their subscribers is forgotten as well, if that is wanted.

        The act is another process's, which has stored its row.
        """
        if forget and diagnosis_id in self._slots:
            return (await self.ask(diagnosis_id, Forget(which, None, _already_judged))).connections
        return await self.end_where(diagnosis_id, which, Ending.DISCONNECTED)

    def replace(self, diagnosis_id: str, subscriber_id: SubscriberId, is_older: Callable[[Subscriber], bool]) -> None:
        """A named device has connected at another process: end its older connections here."""
        slot = self._slots.get(diagnosis_id)
        known = None if slot is None or slot.roster.known is None else slot.roster.known.get(subscriber_id)
        if slot is not None and known is not None:
            for one in filter(is_older, known.connections):
                slot.roster.end(one, Ending.REPLACED)

    def retire(self, diagnosis_id: str) -> Callable[[], Awaitable[object]] | None:
        """The diagnosis was deleted: answer what waits, and forget its actor; what is returned ends its connections.

        `None`: it has none. From now on the id stands for another diagnosis, if for any.
        """
        slot = self._slots.pop(diagnosis_id, None)
        if slot is None:
            return None
        self._stop_listening(slot)
        self._remember(slot)
        self._budget.forget(slot.roster)
        slot.interrupt(Interruption.RETIRE)
        return partial(turns.end_where, slot.roster, EVERYBODY, Ending.DELETED)

    async def drain(self) -> None:
        """Take nothing new, finish what is in the mailboxes, store all cursors.

        Cancellation: what is not finished is dropped; its publishers are told.
        """
        answers = [self.tell(one.diagnosis_id, Inspect()) for one in list(self._slots.values()) if one.has_work]
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
        return {one.diagnosis_id: len(one.roster.subscribers) for one in self._slots.values() if one.roster.subscribers}

    async def connections_everywhere(self) -> tuple[dict[str, int], Nodes]:
        """As `connections`, with those at other processes, as far as these have answered."""
        elsewhere, nodes = await self._peers.connections()
        return (dict(elsewhere + Counter(self.connections)) if elsewhere else self.connections), nodes

    @property
    def node(self) -> str:
        """The name of this process among them."""
        return self._peers.node

    @property
    def nodes_known(self) -> int:
        """How many processes there are, this one included."""
        return self._peers.known

    async def actors_elsewhere(self, diagnosis_ids: Sequence[str]) -> dict[str, dict[str, ActorAt]]:
        """The actors of these diagnoses that are in memory at other processes, by diagnosis and process."""
        return await self._peers.actors(diagnosis_ids)

    def actor_here(self, diagnosis_id: str) -> ActorAt | None:
        """The actor of a diagnosis here; `None`: it is not in memory."""
        return self.actor_at(diagnosis_id) if diagnosis_id in self._slots else None

    def actor_at(self, diagnosis_id: str) -> ActorAt:
        """As `actor_here`; of one that is not in memory, what it would be."""
        slot = self._slots.get(diagnosis_id) or self._new_slot(diagnosis_id)
        mailbox, history = slot.mailbox.statistics(), slot.history
        return ActorAt(
            ActorState.QUARANTINED if diagnosis_id in self._store.damaged else slot.state,
            history.incarnation,
            len(slot.roster.subscribers),
            mailbox.depth,
            mailbox.limit,
            history.restarts,
            None if history.last_crash is None else history.last_crash.at,
            None if history.last_crash is None else history.last_crash.error,
        )

    def unacknowledged(self, diagnosis_id: str) -> int | None:
        """Retained events that some known subscriber has not acknowledged; `None`: the outbox is not in memory."""
        slot = self._slots.get(diagnosis_id)
        if slot is None or slot.roster.ring is None or slot.roster.known is None:
            return None
        return slot.roster.unacknowledged()

    def window(self, diagnosis_id: str) -> Window | None:
        """What a diagnosis retains, if its actor runs, has read it, and is told of what others store; wakes nobody."""
        slot = self._slots.get(diagnosis_id)
        return window_at(slot) if slot is not None and slot.following.is_on else None

    @property
    def loaded(self) -> list[str]:
        """Diagnoses whose outbox is in memory."""
        return [one.diagnosis_id for one in self._slots.values() if one.roster.ring is not None]

    @property
    def escalated(self) -> bool:
        """Whether so many diagnoses were quarantined lately that this server should get no new work."""
        return self._supervisor.escalated

    def statistics(self) -> ActorsStatistics:
        """All actors together; looks at none of them."""
        budget = self._budget
        return statistics_of_all(
            self._counts, actors=len(self._slots), ring_bytes=budget.bytes, ring_bytes_max=budget.bytes_max
        )

    def statistics_of(self, diagnosis_id: str) -> ActorStatistics:
        """One actor; of one that is not in memory, what it would be. Wakes nobody."""
        slot = self._slots.get(diagnosis_id) or self._new_slot(diagnosis_id)
        return statistics_of(slot, self._store.damaged.get(diagnosis_id))

    @property
    def in_memory(self) -> list[str]:
        """Diagnoses whose actor is in memory, loaded or not."""
        return list(self._slots)

    def glance_at(self, diagnosis_id: str) -> Glance:
        """One actor in one line; wakes nobody. What damage there may be is not looked at."""
        slot = self._slots.get(diagnosis_id)
        if slot is None:
            return glance_at_resting(self._histories.get(diagnosis_id) or History())
        return glance_at(slot)

    # Slots

    def _slot(self, diagnosis_id: str) -> Slot:
        slot = self._slots.get(diagnosis_id)
        if slot is None:
            slot = self._slots[diagnosis_id] = self._new_slot(diagnosis_id)
            slot.stop_peers = self._peers.listen(diagnosis_id)
        return slot

    # For rosters

    def joined(self, roster: Roster, subscriber: Subscriber) -> None:
        if len(roster.subscribers) == 1:
            self._budget.count(roster)  # nobody followed it
        self._peers.attached(roster.diagnosis_id, subscriber)
        if self._trail is not None:
            self._trail.note("connect", roster.diagnosis_id, subscriber)

    def left(self, roster: Roster, subscriber: Subscriber) -> None:
        if subscriber.known is not None:
            self._keeper.left(subscriber.known, subscriber)
        self._peers.left(roster.diagnosis_id, subscriber)
        if self._trail is not None:
            self._trail.note("disconnect", roster.diagnosis_id, subscriber)

    def deserted(self, roster: Roster) -> None:
        slot = self._slots.get(roster.diagnosis_id)
        if slot is None or slot.roster is not roster:
            return
        self._budget.count(roster)
        if slot.state is ActorState.RUNNING:
            # Now it begins to count for how long nobody needs it.
            with contextlib.suppress(MailboxFull, Draining):
                slot.mailbox.tell_nowait(Envelope(Inspect()))
        else:
            self._drop_if_idle(slot)

    def _stop_listening(self, slot: Slot) -> None:
        slot.stop_listening()
        self._peers.forget(slot.diagnosis_id)

    def _outrun(self, known: Known, seq: Seq) -> None:
        """A subscriber has acknowledged up to `seq` at another process."""
        slot = self._slots.get(known.diagnosis_id)
        if slot is not None and slot.roster.knows(known):
            slot.roster.advance(known, known.epoch, seq)

    def take_over(self, diagnosis_id: str, stored: Cursor) -> None:
        """A subscriber was admitted, seen or moved at another process: it counts here, too."""
        slot = self._slots.get(diagnosis_id)
        if slot is None or slot.roster.known is None or slot.roster.ring is None:
            return
        if stored.epoch == slot.roster.ring.epoch and trio.current_time() >= self._erased_at + ECHO_SECONDS:
            slot.roster.take_over(Known(diagnosis_id, stored))

    def _new_slot(self, diagnosis_id: str) -> Slot:
        limits = self._limits
        return Slot(
            diagnosis_id,
            Mailbox(limits.mailbox_publishes_max, self._counts),
            Roster(diagnosis_id, self, self._counts),
            Intensity(limits.restart_intensity_max, limits.restart_intensity_seconds),
            self._histories.get(diagnosis_id) or History(),
            Following(self._store, diagnosis_id),
        )

    def _wake(self, slot: Slot) -> None:
        if slot.state is not ActorState.PASSIVE:
            return
        slot.become(ActorState.RUNNING)
        # An empty context: the actor must not keep alive the context of the request that happened to wake it.
        start = self._actors_nursery.start_soon
        contextvars.Context().run(lambda: start(self._supervisor.supervise, slot, self._rested, name=slot.diagnosis_id))

    def _rested(self, slot: Slot) -> None:
        slot.become(ActorState.PASSIVE)
        if self._slots.get(slot.diagnosis_id) is not slot:
            self._budget.forget(slot.roster)  # it may have been counted since it was retired
        if slot.has_work:
            self._wake(slot)
        else:
            self._drop_if_idle(slot)

    def _drop_if_idle(self, slot: Slot) -> None:
        idle = slot.state is ActorState.PASSIVE and not slot.has_work and not slot.roster.subscribers
        if idle and self._slots.get(slot.diagnosis_id) is slot:
            del self._slots[slot.diagnosis_id]
            self._stop_listening(slot)
            self._budget.forget(slot.roster)
            self._remember(slot)

    def _remember(self, slot: Slot) -> None:
        self._histories.pop(slot.diagnosis_id, None)
        self._histories[slot.diagnosis_id] = slot.history
        if len(self._histories) > HISTORIES_MAX:
            del self._histories[next(iter(self._histories))]


def _already_judged(diagnosis: Diagnosis | None) -> None:
    """Judges what another process was asked for, which has judged it."""
