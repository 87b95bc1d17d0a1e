"""What the registries of several processes tell and ask each other (`storage.bus`), and how it is written as bytes.

Nothing here must arrive: a right that is taken away is an act, of which the store tells. A note of an unknown kind is
passed over, since two versions run side by side while a deploy rolls.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
import trio

from actors.roster import Subscriber, Whose
from actors.upkeep import describe
from actors.which import OfUser
from storage import records
from storage.bus import Bus
from storage.clock import Clock
from storage.records import AcknowledgedBy, CursorMove, Epoch, Seq, SubscriberId

ASK_SECONDS_MAX: Final = 5.0
"""Longest wait for the answers of others. Reason: an operator waits. Beyond: without those that are missing."""

COUNTS_SECONDS: Final = 1.0
"""Between two tellings of how many follow. Reason: a crowd comes and goes one by one."""

QUESTIONS: Final = "questions"
"""The topic of everything that is asked."""

CURSORS: Final = "cursors"
"""The topic of cursors of all diagnoses. Reason: they are stored together, and few notes cost less than many."""

logger = logging.getLogger("avicenna.actors")


class Attached(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A connection of a named device was attached."""

    diagnosis_id: str
    sub: str | None
    device: str
    claim: int
    """Higher than that of any connection its process had heard of: the highest stays."""


class Counts(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How many follow a diagnosis at one process."""

    diagnosis_id: str
    connections: int
    online: int
    """Known subscribers with a connection."""
    claim: int = 0
    """The highest claim its process has made or heard of: whoever connects from now on claims more."""


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A cursor, as its process has just stored it."""

    diagnosis_id: str
    sub: str | None
    device: str | None
    epoch: str
    seq: int
    seen_at: float
    acknowledged_at: float | None
    acknowledged_by: AcknowledgedBy | None


class WhoFollows(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A process has loaded this diagnosis, and knows of nobody elsewhere yet."""

    diagnosis_id: str


class Restart(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Begin a new incarnation, if the diagnosis is in memory."""

    diagnosis_id: str


class Stop(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Passivate the actor, if the diagnosis is in memory."""

    diagnosis_id: str


class Count(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How many connections of a user, or of one device of it, are attached?"""

    diagnosis_id: str
    sub: str | None
    device: str | None


class CountEverywhere(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How many connections of a user are attached, of all diagnoses?"""

    sub: str | None


class Disconnect(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """End them; how many there were."""

    diagnosis_id: str
    sub: str | None
    device: str | None
    forget: bool
    """Their subscribers are forgotten, too."""


class Written(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Which of these subscribers have a connection, and was it given this number?"""

    diagnosis_id: str
    seq: int
    names: list[tuple[str | None, str | None]]


class Online(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Which of these subscribers of these diagnoses have a connection?"""

    names: list[tuple[str, list[tuple[str | None, str | None]]]]


class Connections(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How many connections are attached, by diagnosis?"""


class Actors(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How are the actors of these diagnoses, where they are in memory?"""

    diagnosis_ids: list[str]


class ActorAt(msgspec.Struct, frozen=True, array_like=True):
    """One actor, as one process has it."""

    state: str
    """An `ActorState`; another version may have more of them."""
    incarnation: int
    connections: int
    mailbox_depth: int
    mailbox_limit: int
    restarts: int
    crashed_at: float | None
    """When it crashed last, on the wall clock; `None`: it has not."""
    crash: str | None
    """As `Crash.error`."""


class Nodes(NamedTuple):
    """How many processes were asked, this one included, and how many have answered."""

    known: int
    answered: int


Told = Attached | Counts | WhoFollows
Question = Restart | Stop | Count | CountEverywhere | Disconnect | Written | Online | Connections | Actors

_told = msgspec.msgpack.Decoder(Told)
_cursors = msgspec.msgpack.Decoder(list[Cursor])
_asked = msgspec.msgpack.Decoder(Question)
_numbers = msgspec.msgpack.Decoder(int)
_written = msgspec.msgpack.Decoder(list[bool | None])
_online = msgspec.msgpack.Decoder(list[list[bool]])
_connections = msgspec.msgpack.Decoder(dict[str, int])
_actors = msgspec.msgpack.Decoder(list[ActorAt | None])
_encode = msgspec.msgpack.encode


class Here(Protocol):
    """What a process does when others ask for it."""

    @property
    def connections(self) -> Mapping[str, int]:
        """Attached connections of every diagnosis that has any."""

    def actor_here(self, diagnosis_id: str) -> ActorAt | None:
        """The actor of a diagnosis; `None`: it is not in memory."""

    def count_where(self, diagnosis_id: str, which: OfUser) -> int:
        """How many connections of one diagnosis are meant."""

    def count_everywhere(self, which: Whose) -> int:
        """How many connections are meant, of all diagnoses."""

    def followers(self, diagnosis_id: str) -> tuple[int, int]:
        """Attached connections of one diagnosis, and known subscribers with a connection."""

    def follow_elsewhere(self, diagnosis_id: str, connections: int, online: int) -> None:
        """So many follow the diagnosis at other processes."""

    def was_given(self, diagnosis_id: str, subscriber_id: SubscriberId, seq: Seq) -> bool | None:
        """Whether a connection of this subscriber was given this number; `None`: it has no connection."""

    def take_over(self, diagnosis_id: str, stored: records.Cursor) -> None:
        """Another process has stored this cursor."""

    def replace(self, diagnosis_id: str, subscriber_id: SubscriberId, is_older: Callable[[Subscriber], bool]) -> None:
        """A named device has connected elsewhere: end its older connections."""

    async def restart_here(self, diagnosis_id: str) -> None:
        """Begin a new incarnation, if the diagnosis is in memory."""

    async def stop_here(self, diagnosis_id: str) -> None:
        """Passivate the actor now."""

    async def disconnect_here(self, diagnosis_id: str, which: OfUser, *, forget: bool) -> int:
        """End connections, and perhaps forget their subscribers; how many connections there were."""


class Peers:
    """The other processes, as the registry of this one sees them."""

    def __init__(self, bus: Bus, here: Here, clock: Clock) -> None:
        """Answer for `here` from now on."""
        self._bus = bus
        self._here = here
        self._clock = clock
        self._last_claim = 0
        self._claims: dict[Subscriber, int] = {}
        """Of attached connections of named devices; one without a claim is older than any with one."""
        self._elsewhere: dict[str, dict[str, Counts]] = {}
        """How many follow each diagnosis in memory at other processes, by their names."""
        self._changed: dict[str, None] = {}
        """Diagnoses whose followers here have changed since others were told."""
        self._stirred = trio.Event()
        self._listening: set[str] = set()
        """Diagnoses that are listened to: those in memory."""
        self._stop_cursors: Callable[[], None] = lambda: None
        bus.answer(QUESTIONS, self._answer)

    def listen(self, diagnosis_id: str) -> Callable[[], None]:
        """Hear who connects to this diagnosis elsewhere, until the function returned is called."""
        topic = _topic_of(diagnosis_id)
        stop = self._bus.subscribe(topic, self._heard)
        if self._bus.others():
            self._bus.publish(topic, _encode(WhoFollows(diagnosis_id)))
        if not self._listening:
            self._stop_cursors = self._bus.subscribe(CURSORS, self._heard_cursors)
        self._listening.add(diagnosis_id)

        def stop_all() -> None:
            stop()
            self._listening.discard(diagnosis_id)
            if not self._listening:
                self._stop_cursors()

        return stop_all

    def forget(self, diagnosis_id: str) -> None:
        """The diagnosis has left memory."""
        self._elsewhere.pop(diagnosis_id, None)

    def _heard(self, node: str, data: bytes) -> None:
        try:
            note = _told.decode(data)
        except msgspec.DecodeError:
            return
        match note:
            case Attached():
                self._take_over(node, note)
            case Counts(diagnosis_id):
                self._last_claim = max(self._last_claim, note.claim)
                self._elsewhere.setdefault(diagnosis_id, {})[node] = note
                self._sum_up(diagnosis_id)
                self._stirred.set()  # to notice if that process is gone
            case WhoFollows(diagnosis_id):
                if self._here.followers(diagnosis_id) != (0, 0):
                    self._tell_counts(diagnosis_id)

    # How far they are

    def stored(self, moves: Sequence[CursorMove]) -> None:
        """These cursors are stored: others who have their diagnoses in memory count with them."""
        if moves and self._bus.others():
            cursors = [
                Cursor(
                    one.diagnosis_id,
                    one.subscriber.sub,
                    one.subscriber.device,
                    one.epoch,
                    one.seq,
                    one.seen_at,
                    one.acknowledged_at,
                    one.acknowledged_by,
                )
                for one in moves
            ]
            self._bus.publish(CURSORS, _encode(cursors))

    def _heard_cursors(self, node: str, data: bytes) -> None:
        try:
            cursors = _cursors.decode(data)
        except msgspec.DecodeError:
            return
        for one in cursors:
            if one.diagnosis_id not in self._listening:
                continue
            stored = records.Cursor(
                SubscriberId(one.sub, one.device),
                Epoch(one.epoch),
                Seq(one.seq),
                one.seen_at,
                one.acknowledged_at,
                one.acknowledged_by,
            )
            self._here.take_over(one.diagnosis_id, stored)

    # How many follow

    async def tell_counts(self) -> None:
        """Tell others how many follow here, soon after that has changed; until cancelled."""
        while True:
            await self._stirred.wait()
            await trio.sleep(COUNTS_SECONDS)
            self._stirred = trio.Event()
            changed, self._changed = self._changed, {}
            for diagnosis_id in changed:
                self._tell_counts(diagnosis_id)
            self._leave_out_the_dead()
            if self._elsewhere:
                self._stirred.set()

    def _tell_counts(self, diagnosis_id: str) -> None:
        counts = Counts(diagnosis_id, *self._here.followers(diagnosis_id), self._last_claim)
        self._bus.publish(_topic_of(diagnosis_id), _encode(counts))

    def _leave_out_the_dead(self) -> None:
        """Processes that are not there any more have no followers."""
        alive = set(self._bus.others())
        for diagnosis_id, counts in list(self._elsewhere.items()):
            for node in [one for one, told in counts.items() if one not in alive or not told.connections]:
                del counts[node]
            self._sum_up(diagnosis_id)
            if not counts:
                del self._elsewhere[diagnosis_id]

    def _sum_up(self, diagnosis_id: str) -> None:
        counts = self._elsewhere[diagnosis_id].values()
        sums = sum(one.connections for one in counts), sum(one.online for one in counts)
        self._here.follow_elsewhere(diagnosis_id, *sums)

    # Who comes and goes here

    def attached(self, diagnosis_id: str, subscriber: Subscriber) -> None:
        """A connection was attached: others are told, at once if it is one of a named device."""
        if not self._bus.others():
            return
        self._have_changed(diagnosis_id)
        device = subscriber.id.device
        if device is None or subscriber.known is None:
            return
        # The time, so that a process that has just started is not behind; and never the same twice.
        self._last_claim = max(self._last_claim + 1, int(self._clock.wall() * 1000))
        self._claims[subscriber] = self._last_claim
        note = Attached(diagnosis_id, subscriber.id.sub, device, self._last_claim)
        self._bus.publish(_topic_of(diagnosis_id), _encode(note))

    def left(self, diagnosis_id: str, subscriber: Subscriber) -> None:
        """A connection has left."""
        self._claims.pop(subscriber, None)
        if self._bus.others():
            self._have_changed(diagnosis_id)

    def _have_changed(self, diagnosis_id: str) -> None:
        self._changed[diagnosis_id] = None
        self._stirred.set()

    def _take_over(self, node: str, note: Attached) -> None:
        self._last_claim = max(self._last_claim, note.claim)
        # Both may have connected before either heard of the other: then the name of the process decides.
        theirs = (note.claim, node)

        def is_older(subscriber: Subscriber) -> bool:
            return (self._claims.get(subscriber, 0), self._bus.node) < theirs

        self._here.replace(note.diagnosis_id, SubscriberId(note.sub, note.device), is_older)

    # Questions

    async def restart(self, diagnosis_id: str) -> None:
        """Have the others begin new incarnations where they have the diagnosis in memory."""
        await self._ask(Restart(diagnosis_id))

    async def stop(self, diagnosis_id: str) -> None:
        """Have the others passivate the actor."""
        await self._ask(Stop(diagnosis_id))

    async def count(self, diagnosis_id: str, which: OfUser) -> int:
        """How many connections are attached elsewhere."""
        return _sum(await self._ask(Count(diagnosis_id, which.sub, which.device)))

    async def count_everywhere(self, which: OfUser) -> int:
        """How many connections of a user are attached elsewhere, of all diagnoses."""
        return _sum(await self._ask(CountEverywhere(which.sub)))

    async def disconnect(self, diagnosis_id: str, which: OfUser, *, forget: bool) -> int:
        """Have the others end connections, and perhaps forget their subscribers; how many connections there were."""
        return _sum(await self._ask(Disconnect(diagnosis_id, which.sub, which.device, forget)))

    async def written(
        self, diagnosis_id: str, seq: Seq, subscribers: Sequence[SubscriberId]
    ) -> dict[SubscriberId, bool]:
        """Which subscribers have a connection elsewhere, and whether one of theirs was given this number."""
        found: dict[SubscriberId, bool] = {}
        asked = Written(diagnosis_id, seq, [(one.sub, one.device) for one in subscribers])
        for answer in (await self._ask(asked)).values():
            for one, is_written in zip(subscribers, _written.decode(answer), strict=True):
                if is_written is not None:
                    found[one] = found.get(one, False) or is_written
        return found

    async def online(self, names: Sequence[tuple[str, Sequence[SubscriberId]]]) -> set[tuple[str, SubscriberId]]:
        """Which subscribers of which diagnoses have a connection elsewhere."""
        found: set[tuple[str, SubscriberId]] = set()
        asked = Online([(diagnosis_id, [(one.sub, one.device) for one in some]) for diagnosis_id, some in names])
        for answer in (await self._ask(asked)).values():
            for (diagnosis_id, some), are_online in zip(names, _online.decode(answer), strict=True):
                found |= {(diagnosis_id, one) for one, is_online in zip(some, are_online, strict=True) if is_online}
        return found

    async def connected(self, diagnosis_id: str, some: Sequence[SubscriberId]) -> set[SubscriberId]:
        """Which of these subscribers of one diagnosis have a connection elsewhere."""
        return {one for _, one in await self.online([(diagnosis_id, some)])}

    async def connections(self) -> tuple[Counter[str], Nodes]:
        """Attached connections elsewhere, by diagnosis, and who has said so."""
        total, known = Counter[str](), self.known
        answers = await self._ask(Connections())
        for answer in answers.values():
            total.update(_connections.decode(answer))
        return total, Nodes(known, 1 + len(answers))

    @property
    def node(self) -> str:
        """The name of this process."""
        return self._bus.node

    @property
    def known(self) -> int:
        """How many processes there are, this one included."""
        return 1 + len(self._bus.others())

    async def actors(self, diagnosis_ids: Sequence[str]) -> dict[str, dict[str, ActorAt]]:
        """The actors of these diagnoses that are in memory elsewhere, by diagnosis and process."""
        found: dict[str, dict[str, ActorAt]] = {one: {} for one in diagnosis_ids}
        for node, answer in sorted((await self._ask(Actors(list(diagnosis_ids)))).items()):
            for diagnosis_id, actor in zip(diagnosis_ids, _actors.decode(answer), strict=True):
                if actor is not None:
                    found[diagnosis_id][node] = actor
        return found

    async def _ask(self, question: Question) -> dict[str, bytes]:
        """What the others answer, by their names; whoever does not answer is left out."""
        if not self._bus.others():
            return {}
        answers = await self._bus.ask(QUESTIONS, _encode(question), ASK_SECONDS_MAX)
        return {node: answer for node, answer in answers.items() if answer}

    async def _answer(self, node: str, data: bytes) -> bytes:
        """The answer to a question; empty: none."""
        try:
            return _encode(await self._do(_asked.decode(data)))
        except Exception as error:  # noqa: BLE001 - the boundary of a question: whoever asked does without an answer
            logger.error("a question of another process was not answered: %s", describe(error))
            return b""

    async def _do(self, question: Question) -> object:
        here = self._here
        match question:
            case Restart(diagnosis_id):
                await here.restart_here(diagnosis_id)
                return None
            case Stop(diagnosis_id):
                await here.stop_here(diagnosis_id)
                return None
            case Count(diagnosis_id, sub, device):
                return here.count_where(diagnosis_id, OfUser(sub, device))
            case CountEverywhere(sub):
                return here.count_everywhere(OfUser(sub))
            case Disconnect(diagnosis_id, sub, device, forget):
                return await here.disconnect_here(diagnosis_id, OfUser(sub, device), forget=forget)
            case Written(diagnosis_id, seq, names):
                return [here.was_given(diagnosis_id, SubscriberId(*name), Seq(seq)) for name in names]
            case Online(names):
                return [
                    [here.was_given(diagnosis_id, SubscriberId(*one), Seq(0)) is not None for one in some]
                    for diagnosis_id, some in names
                ]
            case Connections():
                return here.connections
            case Actors(diagnosis_ids):
                return [here.actor_here(one) for one in diagnosis_ids]


def _topic_of(diagnosis_id: str) -> str:
    return f"diagnosis.{diagnosis_id}"


def _sum(answers: Mapping[str, bytes]) -> int:
    return sum(map(_numbers.decode, answers.values()))
