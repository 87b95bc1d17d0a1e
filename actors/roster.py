"""Who follows one diagnosis: attached connections and known subscribers. Outlives incarnations of its actor.

A subscriber is a number: the web room makes a `Subscriber`, the diagnosis actor attaches it to the roster, and from
then on it reads the ring from its position. There is no queue. Nothing here waits, so every method is atomic. The
actor attaches; anybody may detach. What is done to thousands of connections goes through `actors.turns`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Protocol

from actors.counts import Counts
from actors.errors import DevicesExhausted
from actors.reading import Due, RenderedEvent, take
from actors.ring import Ring
from actors.transport import Ending, Transport
from storage.records import AcknowledgedBy, Cursor, Epoch, Seq, SubscriberId

DEVICES_MAX: Final = 100
"""Named devices of one user (or of all anonymous ones) per diagnosis. Beyond: the longest-unseen is forgotten."""

UNSEEN_SECONDS_MAX: Final = 30 * 24 * 3600
"""After so long unseen a subscriber is forgotten (PROTOCOL section 2): when its diagnosis loads, or at a daily look."""

AT_RISK_LAG: Final = 80
"""A known subscriber more than so many events behind will lose some soon (PROTOCOL section 7)."""


class Subscriber:
    """One connection of one subscriber.

    Ownership: whoever made it detaches it (`detach`), however the connection ends; attaching is the actor's.
    """

    __slots__ = (
        "_live_due",
        "_skipped",
        "gone",
        "id",
        "known",
        "position",
        "principal",
        "released",
        "roster",
        "transport",
    )

    def __init__(self, subscriber_id: SubscriberId, principal: object, transport: Transport) -> None:
        """A connection that is not attached yet.

        Args:
            subscriber_id: whose cursor it shares; of a connection that peeks: who it is, and no more.
            principal: who authenticated; opaque here, and exchanged when a newer token is shown.
            transport: carries frames to the client.
        """
        self.id = subscriber_id
        self.principal = principal
        self.transport = transport
        self.position = Seq(0)
        """The last number given to the transport; outlives incarnations of the actor."""
        self.roster: Roster | None = None
        self.known: Known | None = None
        """Whose cursor it moves; `None`: it is not attached, or peeks."""
        self.gone = False
        """Detached for good: an actor that finds it in its mailbox leaves it alone."""
        self.released: Callable[[], None] | None = None
        """Called once, when it is detached for good: gives back what was taken for it."""
        self._live_due: Seq | None = None
        self._skipped = 0
        """Numbers up to the position that were never given to the transport: before it began, and in gaps."""

    def begin(self, roster: Roster, known: Known | None, position: Seq, head: Seq) -> None:
        """Take a place in `roster`: everything above `position` is due, `live` at `head`. Called by `Roster.attach`."""
        self.roster, self.known = roster, known
        if known is not None:
            self.id = known.id  # an equal one: one of them is enough
        self.position = position
        self._skipped = position
        self._live_due = head

    @property
    def is_live(self) -> bool:
        """Whether `live` has been taken."""
        return self.roster is not None and self._live_due is None

    @property
    def is_caught_up(self) -> bool:
        """Whether `live` and everything in the ring has been taken."""
        ring = None if self.roster is None else self.roster.ring
        return ring is not None and self._live_due is None and self.position == ring.head

    @property
    def events_sent(self) -> int:
        """Events given to the transport."""
        return self.position - self._skipped

    def take(self, events_max: int) -> list[Due]:
        """What is due next, in wire order, and move the position past it; empty: in step with the ring.

        Args:
            events_max: most events to take at once.
        """
        ring = None if self.roster is None else self.roster.ring
        if ring is None:
            return []
        due, self.position, lost, self._live_due = take(ring, self.position, self._live_due, events_max)
        self._skipped += lost
        if due:
            assert self.roster is not None, "it has a ring"
            self.roster.count_taken(due, lost)
        return due

    def detach(self) -> None:
        """Leave the roster, if still in it. Idempotent."""
        self.gone = True
        if self.roster is not None:
            self.roster.detach(self)
        released, self.released = self.released, None
        if released is not None:
            released()


class Known:
    """A known subscriber: its cursor as this process has it, stored or about to be."""

    __slots__ = (
        "_connections",
        "acknowledged_at",
        "acknowledged_by",
        "diagnosis_id",
        "epoch",
        "id",
        "seen_at",
        "seen_turn",
        "seq",
        "stored",
    )

    def __init__(self, diagnosis_id: str, cursor: Cursor) -> None:
        self.diagnosis_id = diagnosis_id
        self.id = cursor.subscriber
        self.epoch: Epoch = cursor.epoch
        self.seq: Seq = cursor.seq
        self.stored: Seq = cursor.seq
        """The highest number of this epoch that is certainly in the store."""
        self.seen_at = cursor.seen_at
        self.seen_turn = 0
        """Grows with every sight of a named device, whatever the clocks say; 0: not seen since its cursor was loaded,
        or it has no name."""
        self.acknowledged_at = cursor.acknowledged_at
        self.acknowledged_by: AcknowledgedBy | None = cursor.acknowledged_by
        self._connections: Subscriber | tuple[Subscriber, ...] = ()
        """Almost always it is one, which then needs no tuple."""

    @property
    def connections(self) -> tuple[Subscriber, ...]:
        """Attached connections, oldest first."""
        found = self._connections
        return (found,) if isinstance(found, Subscriber) else found

    def joined(self, subscriber: Subscriber) -> None:
        """A connection was attached."""
        self._connections = (*self.connections, subscriber) if self._connections else subscriber

    def left(self, subscriber: Subscriber) -> None:
        """A connection is not attached any more."""
        found = self.connections
        if subscriber in found:
            at = found.index(subscriber)
            rest = found[:at] + found[at + 1 :]
            self._connections = rest[0] if len(rest) == 1 else rest

    def acknowledgement_in(self, epoch: Epoch) -> tuple[float | None, AcknowledgedBy | None]:
        """When its cursor in `epoch` last moved, and what moved it."""
        return (self.acknowledged_at, self.acknowledged_by) if self.epoch == epoch else (None, None)

    def acknowledged(self, at: float | None, by: AcknowledgedBy | None) -> None:
        """Its cursor was moved; `None` both: it only begins there."""
        self.acknowledged_at, self.acknowledged_by = at, by

    def seq_in(self, epoch: Epoch) -> Seq:
        """Its cursor in `epoch`: 0 if it belongs to another one."""
        return self.seq if self.epoch == epoch else Seq(0)


class Which(Protocol):
    """Some connections: a frozen value that tells whether one is among them. See `actors.which`."""

    def picks(self, subscriber: Subscriber) -> bool:
        """Whether this connection is meant."""


class Whose(Which, Protocol):
    """Some subscribers, told by their names alone, so that those who are not connected can be meant, too."""

    def names(self, subscriber_id: SubscriberId) -> bool:
        """Whether this subscriber is meant."""


class Watcher:
    """Is told who comes and goes; here, nobody is."""

    def joined(self, roster: Roster, subscriber: Subscriber) -> None:
        """A connection was attached."""

    def left(self, roster: Roster, subscriber: Subscriber) -> None:
        """A connection has left, for whatever reason."""

    def deserted(self, roster: Roster) -> None:
        """The last connection has left."""


class Roster:
    """The subscribers of one diagnosis, and the ring they read."""

    __slots__ = (
        "_at_risk",
        "_devices",
        "_highest",
        "_left_out",
        "_lowest",
        "_online",
        "_safe_until",
        "_watcher",
        "diagnosis_id",
        "elsewhere",
        "erasures",
        "is_renewed",
        "known",
        "online_elsewhere",
        "ring",
        "subscribers",
        "totals",
    )

    def __init__(self, diagnosis_id: str, watcher: Watcher, counts: Counts) -> None:
        """Nobody follows.

        Args:
            counts: of all rosters of this registry.
        """
        self.diagnosis_id = diagnosis_id
        self.totals = counts
        self._watcher = watcher
        self.elsewhere = 0
        """Connections at other processes, as far as they have told."""
        self.online_elsewhere = 0
        """Known subscribers with a connection there."""
        self.ring: Ring | None = None
        """The newest incarnation's ring; stays readable while the actor restarts or rests."""
        self.is_renewed = False
        """The epoch of the ring is void, and the diagnosis is registered as before."""
        self.subscribers: dict[Subscriber, None] = {}
        """Attached connections, oldest first."""
        self.known: dict[SubscriberId, Known] | None = None
        """All known subscribers; `None` until an incarnation has loaded them. Only methods of this class add and
        remove subscribers; the cursor keeper and the actor change the `Known` of each."""
        self._devices: Counter[str | None] = Counter()
        """Known named devices of each user (`None`: of all anonymous ones)."""
        self.erasures = 0
        """How often a user was forgotten here."""
        self._left_out: tuple[Whose, ...] = ()
        """Who was forgotten while the known subscribers were being loaded."""
        self._online = 0
        """Known subscribers with a connection."""
        self._at_risk: int | None = None
        """How many were at risk when they were last counted; `None`: that may have changed."""
        self._lowest: Seq | None = None
        """The lowest cursor of a known subscriber when it was last looked for; `None`: that may have changed."""
        self._highest: Seq | None = None
        """The highest one, likewise."""
        self._safe_until = Seq(0)
        """Until the head passes this number, `_at_risk` holds."""

    def begin(self, ring: Ring, known: dict[SubscriberId, Known]) -> None:
        """A new incarnation has loaded its ring."""
        # Cursors that were read before an erasure still name the erased user. Nobody was admitted meanwhile.
        if self._left_out:
            left_out = self._left_out
            known = {one: cursor for one, cursor in known.items() if not any(whose.names(one) for whose in left_out)}
            self._left_out = ()
        if known is not self.known:
            self._devices = Counter(one.sub for one in known if one.device is not None)
        self.ring, self.known = ring, known
        self._at_risk = self._lowest = self._highest = None

    def know_nobody(self) -> None:
        """The subscribers of another registration are about to be loaded. Nobody is connected."""
        self.known = None
        self._at_risk = self._lowest = self._highest = None

    def learn(self, known: Known) -> Known:
        """Know a subscriber from now on; the one that is known by this name already comes first."""
        assert self.known is not None, "nobody becomes known before the others are loaded"
        self._at_risk = self._lowest = self._highest = None
        if known.id not in self.known and known.id.device is not None:
            self._devices[known.id.sub] += 1
        return self.known.setdefault(known.id, known)

    def take_over(self, stored: Known) -> None:
        """Know a subscriber as the store has it, where that is news: it was admitted, seen or moved elsewhere."""
        known = None if self.known is None else self.known.get(stored.id)
        if known is None:
            self.learn(stored)
            return
        known.seen_at = max(known.seen_at, stored.seen_at)
        is_current = self.ring is not None and stored.epoch == self.ring.epoch
        if stored.seq > known.seq if stored.epoch == known.epoch else is_current:
            self.advance(known, stored.epoch, stored.seq)
            known.stored = stored.seq
            known.acknowledged(stored.acknowledged_at, stored.acknowledged_by)

    def knows(self, known: Known) -> bool:
        """Whether this subscriber is still known, and was not forgotten and then known anew."""
        return self.known is not None and self.known.get(known.id) is known

    def forget(self, subscriber_id: SubscriberId) -> Known | None:
        """Forget a known subscriber that has no connection; `None`: it was not known."""
        assert self.known is not None, "nobody is forgotten before the others are loaded"
        self._at_risk = self._lowest = self._highest = None
        known = self.known.pop(subscriber_id, None)
        if known is not None and subscriber_id.device is not None:
            self._devices[subscriber_id.sub] -= 1
            if not self._devices[subscriber_id.sub]:
                del self._devices[subscriber_id.sub]
        return known

    def erase(self, whose: Whose) -> int:
        """End the connections of somebody who is erased, and forget all that is known of this user.

        Also while the known subscribers are being loaded.

        Returns:
            How many connections were ended.
        """
        ended = self.end_where(whose, Ending.DISCONNECTED)
        self.erasures += 1
        if self.known is None:
            self._left_out += (whose,)
            return ended
        for subscriber_id in [one for one in self.known if whose.names(one)]:
            self.forget(subscriber_id)
        return ended

    def advance(self, known: Known, epoch: Epoch, seq: Seq) -> None:
        """Move the cursor of a known subscriber."""
        if self._at_risk and self._is_at_risk(known):
            self._at_risk = None
        if self._lowest is not None and (self.ring is None or known.seq_in(self.ring.epoch) == self._lowest):
            self._lowest = None
        if known.epoch != epoch:
            known.stored = Seq(0)
        known.epoch, known.seq = epoch, seq
        if self._highest is not None and seq > self._highest:
            self._highest = seq if self.ring is not None and epoch == self.ring.epoch else None

    def attach(self, subscriber: Subscriber, known: Known | None, position: Seq) -> None:
        """Let a connection follow from `position`; a named subscriber's older connection is replaced.

        Args:
            known: the subscriber it belongs to; `None`: it peeks.
        """
        assert self.ring is not None, "nobody is attached before the ring is loaded"
        if known is not None:
            self._connect(known, subscriber)
        self.subscribers[subscriber] = None
        self.totals.connections += 1
        subscriber.begin(self, known, position, max(position, self.ring.head))
        self._watcher.joined(self, subscriber)

    def _connect(self, known: Known, subscriber: Subscriber) -> None:
        if subscriber.id.device is not None:
            for older in known.connections:
                self.end(older, Ending.REPLACED)
        if not known.connections:
            self._online += 1
        known.joined(subscriber)

    def detach(self, subscriber: Subscriber) -> None:
        """Forget a connection. Idempotent."""
        if subscriber not in self.subscribers:
            return
        del self.subscribers[subscriber]
        self.totals.connections -= 1
        if subscriber.known is not None:
            self._disconnect(subscriber.known, subscriber)
        self._watcher.left(self, subscriber)
        if not self.subscribers:
            self._watcher.deserted(self)

    def _disconnect(self, known: Known, subscriber: Subscriber) -> None:
        known.left(subscriber)
        if not known.connections:
            self._online -= 1

    def end(self, subscriber: Subscriber, ending: Ending) -> None:
        """Detach a connection for good and have its transport say why."""
        if subscriber.gone:
            return
        subscriber.detach()
        subscriber.transport.end(ending)

    def end_where(self, which: Which, ending: Ending) -> int:
        """End every attached connection that `which` picks; how many."""
        picked = [subscriber for subscriber in self.subscribers if which.picks(subscriber)]
        for subscriber in picked:
            self.end(subscriber, ending)
        return len(picked)

    def count_where(self, which: Which) -> int:
        """How many attached connections `which` picks."""
        return sum(1 for subscriber in self.subscribers if which.picks(subscriber))

    @property
    def online(self) -> int:
        """Known subscribers with a connection here."""
        return self._online

    def counts(self) -> tuple[int, int, int]:
        """Known subscribers: how many are online, how many there are, how many are at risk."""
        return self._online + self.online_elsewhere, len(self.known or ()), self._count_at_risk()

    def _count_at_risk(self) -> int:
        # Asked for with every event: the known subscribers, who may be thousands, are counted only now and then.
        if self.ring is None or self.known is None:
            return 0
        if self._at_risk is None or self.ring.newest > self._safe_until:
            safe = [one.seq_in(self.ring.epoch) for one in self.known.values() if not self._is_at_risk(one)]
            self._at_risk = len(self.known) - len(safe)
            self._safe_until = Seq(min(safe, default=self.ring.newest) + AT_RISK_LAG)
        return self._at_risk

    def _is_at_risk(self, known: Known) -> bool:
        return self.ring is not None and self.ring.newest - known.seq_in(self.ring.epoch) > AT_RISK_LAG

    def unacknowledged(self) -> int:
        """Retained events that some known subscriber has not acknowledged; all of them while nobody is known."""
        if self.ring is None:
            return 0
        stored, lowest = self.ring.stored, self.lowest()
        lowest = stored.floor if lowest is None else lowest
        # A cursor moved by another process can be ahead of what is known here.
        return max(0, stored.head - max(lowest, stored.floor))

    def lowest(self) -> Seq | None:
        """The lowest cursor of a known subscriber in the epoch of the ring; `None`: nobody is known, or no ring."""
        if self._lowest is None and self.known and self.ring is not None:
            self._lowest = min(one.seq_in(self.ring.epoch) for one in self.known.values())
        return self._lowest

    def count_taken(self, due: list[Due], lost: int) -> None:
        """Count what a connection has taken.

        Args:
            lost: numbers in the gap among it, if there is one.
        """
        texts = [one.text for one in due if isinstance(one, RenderedEvent)]
        self.totals.deliveries += len(texts)
        self.totals.delivered_bytes += sum(map(len, texts))
        if lost:
            self.totals.gaps += 1
            self.totals.gap_events += lost

    def count_evicted(self, seqs: Sequence[int]) -> None:
        """Count events that leave the outbox for newer ones, which were published here: each is counted once."""
        if self.ring is None:
            return
        if self._highest is None:
            epoch = self.ring.epoch
            self._highest = max((one.seq_in(epoch) for one in (self.known or {}).values()), default=Seq(0))
        self.totals.evicted += len(seqs)
        self.totals.evicted_unacknowledged += sum(seq > self._highest for seq in seqs)

    def lagging(self, most: int) -> list[Known]:
        """The known subscribers that are furthest behind, at most `most`."""
        if self.ring is None or self.known is None:
            return []
        epoch = self.ring.epoch
        return heapq.nsmallest(most, self.known.values(), key=lambda one: one.seq_in(epoch))

    def unseen(self, judged: float) -> list[SubscriberId]:
        """Known subscribers that are not connected and were last seen too long ago, if it is now `judged`."""
        known = self.known or {}
        before = judged - UNSEEN_SECONDS_MAX
        return [one.id for one in known.values() if not one.connections and one.seen_at <= before]

    def has_room_for(self, newcomer: SubscriberId, coming: int) -> bool:
        """Whether `newcomer` fits beside the known devices of its user, and `coming` more that are about to be
        known."""
        return newcomer.device is None or self._devices[newcomer.sub] + coming < DEVICES_MAX

    def device_to_forget(
        self, newcomer: SubscriberId, elsewhere: Collection[SubscriberId] | None = None
    ) -> SubscriberId:
        """The device that must go so that `newcomer` can become known, for whom there is no room.

        Args:
            elsewhere: those that are connected at other processes; `None`: there are no others.

        Raises:
            DevicesExhausted: all of this user's devices are connected.
        """
        away = [one for one in self.devices_of(newcomer.sub) if not one.connections and one.id not in (elsewhere or ())]
        if not away:
            raise DevicesExhausted(f"at most {DEVICES_MAX} devices of one user can follow a diagnosis")
        if elsewhere is not None:
            return min(away, key=lambda one: (one.seen_at, one.seen_turn)).id
        # The order decides, not the age: for devices that this process saw itself no clock is needed.
        return min(away, key=lambda one: (one.seen_turn, one.seen_at)).id

    def devices_of(self, sub: str | None) -> Iterator[Known]:
        """The named devices of a user that are known."""
        for one in (self.known or {}).values():
            if one.id.sub == sub and one.id.device is not None:
                yield one
