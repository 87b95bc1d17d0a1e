"""Appends: each diagnosis has a lane, whose requests go one after another; what waits meanwhile goes with the next.

What a lane stores is one message, or several all or none: the records of idempotency keys, each expected to be new, and
then the events, of which the first names the entry that it follows and the id of the append. So the engine itself
judges whether somebody else was first, and nothing can be stored twice. Where no answer comes, the newest entries are
looked through for the id, and if it is not there, the append is sent again.

A lane that knows its newest entry and needs nothing else goes together with others (`combining.py`). Any other, and one
of a request that was not stored, has a task that finds out what is needed, and goes alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
import trio

from storage import checks
from storage.errors import Busy, Failed, KeyReused, KeysExhausted, NoSuchDiagnosis, OutboxDamaged, StorageError
from storage.jetstream.combining import REQUEST_BYTES_MAX, Combining
from storage.jetstream.engine import CONFLICTS, PATIENCE_SECONDS, TOO_LATE, Engine
from storage.jetstream.entries import ATTEMPT, ENDED, Entry, appended, attempt_id, begun, registration_of, text_of
from storage.jetstream.entries import HEADER as ENTRY
from storage.jetstream.layout import KEY_TTL_SECONDS
from storage.nats.errors import JetStreamError, NatsError, Unanswered
from storage.nats.jetstream import BATCH_MESSAGES_MAX, DUPLICATE_IN_BATCH, EXPECTED_LAST, MESSAGE_ID, ROLLUP, TTL, Found
from storage.nats.wire import Outgoing
from storage.pending import Pending
from storage.records import IDEMPOTENCY_KEY_SECONDS, Appended, Epoch, IdempotencyKeys, NewEvent, Seq, Window
from storage.store import Committed, PendingAppend

REQUEST_EVENTS_MAX: Final = 64
"""Events of one request, but for a single append of more. Reason: others of the lane wait for it."""

BATCH_EVENTS_MAX: Final = BATCH_MESSAGES_MAX // 2
"""Events of one batch. Reason: each may have a key, which is a message, too. Beyond: they go in several."""

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bodies of one batch. Reason: they wait in memory to be written. Beyond: they go in several."""

EVENTS_WAITING_MAX: Final = 10_000
"""Events of all lanes that wait. Beyond: `Busy`."""

CONFLICT_SECONDS_MAX: Final = 0.01
"""Before an append is planned again that came second; drawn by lot."""

ALONE_SECONDS: Final = 1.0
"""How long a lane goes alone after an append that came second, or was not answered. Reason: it may happen again, and
whoever goes with it is sent twice."""

COUNT_SECONDS: Final = 1.0
"""How old the count of stored keys may be once there is no room for more."""


class KeyRecord(msgspec.Struct, frozen=True):
    """An idempotency key as it is stored."""

    digest: bytes
    seq: int
    at: float
    expires_at: float
    registration: str


class _Stored(NamedTuple):
    """What lies under a key."""

    record: KeyRecord | None
    pos: int


_NO_KEY: Final = _Stored(None, 0)


class _Handed(NamedTuple):
    """An append that was handed over."""

    events: Sequence[NewEvent]
    spans: Sequence[object]
    first: Pending[Any] | None
    """An act on the diagnosis that was handed over before."""
    pending: PendingAppend
    deadline: float
    """Until when it is tried."""


class _Lane:
    """The appends of one diagnosis."""

    __slots__ = ("act", "alone_until", "handed", "head", "is_running")

    def __init__(self) -> None:
        self.handed: deque[_Handed] = deque()
        self.head: Entry | None = None
        """The newest entry, if it is known."""
        self.act: Pending[Any] | None = None
        """The last act on the diagnosis that was handed over."""
        self.is_running = False
        """Something of it is under way, or about to be."""
        self.alone_until = 0.0


class _Plan(NamedTuple):
    """What an append is to store."""

    messages: Sequence[Outgoing]
    events: int
    """How many of the messages are events."""
    outcomes: Sequence[Appended | StorageError]
    head: Entry
    """The newest entry afterwards, whose position is not known yet."""
    new_keys: int


class _Tried:
    """What was sent of one append, and what came of it."""

    __slots__ = ("attempts", "error", "id", "unsure")

    def __init__(self, append_id: str) -> None:
        self.id = append_id
        self.attempts = 0
        self.error: NatsError | None = None
        """Why the last attempt has not stored it."""
        self.unsure: dict[str, _Plan] = {}
        """What was sent without an answer, by the name of the attempt."""


class _Request(NamedTuple):
    """What a lane stores at once."""

    diagnosis_id: str
    lane: _Lane
    taken: Sequence[_Handed]
    events: Sequence[NewEvent]
    deadline: float
    began: float


class _Part(NamedTuple):
    """A request that goes together with others."""

    request: _Request
    tried: _Tried
    plan: _Plan
    size: int

    @property
    def messages(self) -> Sequence[Outgoing]:
        return self.plan.messages

    @property
    def events(self) -> int:
        return self.plan.events


class Appending:
    """The lanes of this process."""

    def __init__(self, engine: Engine, nursery: trio.Nursery, keys_max: int) -> None:
        """Lanes whose tasks run in this nursery."""
        self._engine = engine
        self._lanes_nursery = nursery
        self._lanes: dict[str, _Lane] = {}
        self._combining = Combining[_Part](
            engine, nursery, planned=self._planned, stored=self._went, not_stored=self._did_not_go
        )
        self._keys_max = keys_max
        self._keys = 0
        self._keys_counted_at: float | None = None
        self.waiting = 0
        """Events that wait, or are under way."""
        self.waiting_peak = 0
        self.waiting_max = EVENTS_WAITING_MAX
        self.events = 0
        self.told: Committed | None = None

    def hand_over(self, diagnosis_id: str, events: Sequence[NewEvent], spans: Sequence[object] = ()) -> PendingAppend:
        """As `EventStore.append_nowait`."""
        if self.waiting + len(events) > EVENTS_WAITING_MAX:
            raise Busy(f"{self.waiting} events wait for the engine")
        self.waiting += len(events)
        self.waiting_peak = max(self.waiting_peak, self.waiting)
        lane = self._lane(diagnosis_id)
        deadline = trio.current_time() + PATIENCE_SECONDS
        pending: PendingAppend = Pending()
        handed = _Handed(tuple(events), spans, lane.act, pending, deadline)
        lane.handed.append(handed)
        if not lane.is_running:
            lane.is_running = True
            self._combining.add(diagnosis_id)
        return pending

    def act_comes(self, diagnosis_id: str, act: Pending[Any]) -> Sequence[Pending[Any]]:
        """An act on a diagnosis is handed over: what it has to wait for. What is appended from now on waits for it."""
        lane = self._lane(diagnosis_id)
        first = [lane.handed[-1].pending] if lane.handed else []
        lane.act = act
        return first

    @property
    def requests(self) -> int:
        """How many were stored so far."""
        return self._combining.requests

    @property
    def batch_peak(self) -> int:
        """The most events of one request."""
        return self._combining.events_peak

    @property
    def pending(self) -> Sequence[Pending[Any]]:
        """The last append of each lane."""
        return [lane.handed[-1].pending for lane in self._lanes.values() if lane.handed]

    def forget(self, diagnosis_id: str) -> None:
        """The newest entry of a log is not what was known."""
        if (lane := self._lanes.get(diagnosis_id)) is not None:
            lane.head = None
            if not lane.is_running and (lane.act is None or lane.act.is_there):
                del self._lanes[diagnosis_id]

    def heard(self, diagnosis_id: str, entry: Entry) -> None:
        """Another process has written this entry."""
        lane = self._lanes.get(diagnosis_id)
        self._engine.knows(diagnosis_id, entry)
        if lane is not None and lane.head is not None and lane.head.pos < entry.pos:
            lane.head = entry._replace(body=b"")

    def _lane(self, diagnosis_id: str) -> _Lane:
        return self._lanes.setdefault(diagnosis_id, _Lane())

    # Together with others

    def _planned(self, diagnosis_id: str) -> _Part | None:
        """What a lane stores, if it can go with others; else it goes by itself from now on."""
        lane = self._lanes[diagnosis_id]
        part = self._part(diagnosis_id, lane)
        if part is None:
            self._lanes_nursery.start_soon(self._run, diagnosis_id, lane)
        return part

    def _part(self, diagnosis_id: str, lane: _Lane) -> _Part | None:
        head, request = lane.head, self._request(diagnosis_id, lane)
        if head is None or request is None or not self._is_plain(diagnosis_id, lane, head):
            return None
        events = request.events
        size = sum(len(event.body) for event in events)
        if len(events) > REQUEST_EVENTS_MAX or size > REQUEST_BYTES_MAX or checks.refusals_of(events):
            return None
        keys = {event.key for event in events if event.key is not None}
        if keys and (self._keys_counted_at is None or self._keys + len(keys) > self._keys_max):
            return None
        tried = _Tried(self._engine.new_id())
        tried.attempts = 1
        plan = self._plan(diagnosis_id, head, events, {}, tried.id, tried.attempts)
        return _Part(request, tried, plan, size) if plan.messages else None

    def _is_plain(self, diagnosis_id: str, lane: _Lane, head: Entry) -> bool:
        """Whether nothing is to be found out or waited for before a lane stores something."""
        engine, first = self._engine, lane.handed[0].first
        diagnosis = engine.known.diagnosis(diagnosis_id)
        return (
            diagnosis is not None
            and _is_of(head, diagnosis.epoch)
            and head.pos >= engine.seen(diagnosis_id)
            and (first is None or first.is_there)
            and diagnosis_id not in engine.damage.all
            and lane.alone_until <= trio.current_time()
            and not self._combining.is_apart
        )

    def _went(self, part: _Part, pos: int) -> None:
        """A part is stored; its last message is there."""
        self._is_stored(part.request.diagnosis_id, part.request.lane, part.plan, pos)
        self._settle(part.request, part.plan.outcomes)

    def _did_not_go(self, part: _Part, error: NatsError | None) -> None:
        """A part is not stored, or perhaps not: the lane goes on by itself."""
        tried, request = part.tried, part.request
        tried.error = error
        if isinstance(error, Unanswered):
            tried.unsure[attempt_id(tried.id, tried.attempts)] = part.plan
        self._lanes_nursery.start_soon(self._finish, request, tried)

    # By itself

    async def _run(self, diagnosis_id: str, lane: _Lane) -> None:
        """Store what waits in a lane, as much as goes at once."""
        while lane.handed:
            first = lane.handed[0].first
            if first is not None and not first.is_there:
                await first.done.wait()
            request = self._request(diagnosis_id, lane)
            if request is not None:
                await self._finish(request)
                return
            handed = lane.handed.popleft()
            self.waiting -= len(handed.events)
            handed.pending.answer([Busy("the engine is away")] * len(handed.events), trio.current_time())
        lane.is_running = False

    def _request(self, diagnosis_id: str, lane: _Lane) -> _Request | None:
        """What waits in a lane, as much as goes at once; `None`: it is too late to begin with the first of it."""
        # Whoever comes late in an outage has not the whole of it to wait.
        left_seconds = PATIENCE_SECONDS - (self._engine.away_seconds or 0.0)
        now, taken = trio.current_time(), [lane.handed[0]]
        deadline = min(taken[0].deadline, now + left_seconds)
        if deadline - now < PATIENCE_SECONDS * TOO_LATE:
            return None
        count = len(taken[0].events)
        for handed in islice(lane.handed, 1, None):
            count += len(handed.events)
            if count > REQUEST_EVENTS_MAX or handed.first is not taken[0].first:
                break
            taken.append(handed)
        events = [event for handed in taken for event in handed.events]
        return _Request(diagnosis_id, lane, taken, events, deadline, self._engine.time.monotonic())

    async def _finish(self, request: _Request, tried: _Tried | None = None) -> None:
        """Store what a lane stores at once, alone.

        Args:
            tried: what was sent of it; it is in one piece.
        """
        outcomes, error = list[Appended | StorageError](), None
        for piece in _pieces(request.events):
            try:
                outcomes += await self._append(request, piece, tried or _Tried(self._engine.new_id()))
            except StorageError as failure:
                outcomes += [failure] * len(piece)
                error = type(failure).__name__
        self._settle(request, outcomes, error)

    def _settle(self, request: _Request, outcomes: Sequence[Appended | StorageError], error: str | None = None) -> None:
        # No checkpoint until all are answered: a barrier looks at what has not been.
        lane, taken = request.lane, request.taken
        self.waiting -= len(request.events)
        self.events += len(request.events)
        if self.told is not None:
            spans = [handed.spans for handed in taken if handed.spans]
            if spans:
                self.told(spans, request.began, error)
        at, now = 0, trio.current_time()
        for handed in taken:
            lane.handed.popleft()
            handed.pending.answer(outcomes[at : at + len(handed.events)], now)
            at += len(handed.events)
        self._go_on(request.diagnosis_id, lane)

    def _go_on(self, diagnosis_id: str, lane: _Lane) -> None:
        """Nothing of a lane is under way."""
        lane.is_running = bool(lane.handed)
        if lane.is_running:
            self._combining.add(diagnosis_id)

    async def _append(
        self, request: _Request, events: Sequence[NewEvent], tried: _Tried
    ) -> Sequence[Appended | StorageError]:
        """Store events, or say of each why not.

        Raises:
            Busy: the engine was away until the deadline; nothing is stored.
            Failed: it has not said until then what became of them, or refuses.
        """
        outcomes: Sequence[Appended | StorageError] | None = None
        with trio.move_on_at(request.deadline):
            outcomes = await self._try(request.diagnosis_id, request.lane, events, tried)
        if outcomes is not None:
            return outcomes
        request.lane.head = None
        if tried.unsure:
            raise Failed("the engine has not said what became of the events")
        raise Busy("the engine is away")

    async def _try(
        self, diagnosis_id: str, lane: _Lane, events: Sequence[NewEvent], tried: _Tried
    ) -> Sequence[Appended | StorageError]:
        """The same, until cancelled; `tried.unsure` then holds what may be stored."""
        engine, unsure = self._engine, tried.unsure
        refusals = checks.refusals_of(events)
        if refusals:
            events = [event for event, refusal in zip(events, refusals, strict=True) if refusal is None]
        keys: Mapping[str, _Stored] = {}
        while True:
            error, tried.error = tried.error, None
            if error is not None and engine.is_passing(error):
                await engine.wait_a_little()
            elif error is not None:
                if not isinstance(error, Unanswered) and not _is_conflict(error):
                    raise Failed(f"the engine refuses: {error}") from error
                lane.head = None
                lane.alone_until = trio.current_time() + ALONE_SECONDS
                if unsure:
                    mine = await engine.patiently(partial(self._found, diagnosis_id, unsure))
                    if mine is not None:
                        return checks.with_refusals(unsure[mine.message_id].outcomes, refusals)
                keys = await self._stored_keys(diagnosis_id, events)
                await trio.sleep(CONFLICT_SECONDS_MAX * engine.jitter())
            diagnosis = engine.known.diagnosis(diagnosis_id)
            if diagnosis is None:
                return checks.with_refusals([NoSuchDiagnosis(diagnosis_id)] * len(events), refusals)
            if (damage := engine.damage.all.get(diagnosis_id)) is not None:
                return checks.with_refusals([OutboxDamaged(diagnosis_id, damage) for _ in events], refusals)
            sent: str | None = None
            try:
                if lane.head is None or lane.head.pos < engine.seen(diagnosis_id):
                    lane.head = await engine.head(diagnosis_id)
                if not _is_of(lane.head, diagnosis.epoch):
                    # The first event of a registration; or the registration known here is a former one.
                    await engine.catch_up()
                    current = engine.known.diagnosis(diagnosis_id)
                    is_first = current is not None and current.epoch == diagnosis.epoch != lane.head.registration
                    if not is_first or lane.head.kind != ENDED:
                        lane.head = None
                        await trio.sleep(CONFLICT_SECONDS_MAX * engine.jitter())
                        continue
                keys = await self._with_room(diagnosis_id, keys, events)
                tried.attempts += 1
                head = begun(lane.head, diagnosis.epoch)
                plan = self._plan(diagnosis_id, head, events, keys, tried.id, tried.attempts)
                if not plan.messages:
                    return checks.with_refusals(plan.outcomes, refusals)
                sent = attempt_id(tried.id, tried.attempts)
                unsure[sent] = plan
                stored = await self._combining.store(plan.messages, plan.events)
                if not stored.is_duplicate:
                    self._is_stored(diagnosis_id, lane, plan, stored.pos)
                    return checks.with_refusals(plan.outcomes, refusals)
                tried.error = Unanswered("an attempt before was stored")
            except NatsError as failure:
                if sent is not None and not isinstance(failure, Unanswered):
                    del unsure[sent]
                tried.error = failure

    def _is_stored(self, diagnosis_id: str, lane: _Lane, plan: _Plan, pos: int) -> None:
        lane.head = plan.head._replace(pos=pos, body=b"")
        self._keys += plan.new_keys
        self._engine.wrote(diagnosis_id, pos)
        self._engine.knows(diagnosis_id, lane.head)

    def _plan(
        self,
        diagnosis_id: str,
        head: Entry,
        events: Sequence[NewEvent],
        keys: Mapping[str, _Stored],
        this: str,
        attempt: int,
    ) -> _Plan:
        engine, now = self._engine, self._engine.time.moment()
        records, entries = list[Outgoing](), list[Outgoing]()
        outcomes = list[Appended | StorageError]()
        made: dict[str, KeyRecord] = {}
        after, new_keys = head, 0
        epoch, subject = Epoch(head.registration), engine.layout.log(diagnosis_id)
        registration = registration_of(epoch)
        for event in events:
            key = event.key
            if key is not None:
                stored = keys.get(key, _NO_KEY)
                record = made.get(key) or stored.record
                if record is not None and record.registration == registration and record.expires_at > now.judged:
                    outcomes.append(_outcome_of(record, event, epoch))
                    continue
                if stored.pos == 0 and self._keys + new_keys >= self._keys_max:
                    outcomes.append(KeysExhausted(f"{self._keys_max} idempotency keys are stored already"))
                    continue
            after = appended(after, event.kind, event.body, now.wall, engine.node)
            headers = {ENTRY: text_of(after)}
            if not entries:
                headers |= {EXPECTED_LAST: str(head.pos), MESSAGE_ID: this, ATTEMPT: str(attempt)}
            entries.append(Outgoing(subject, event.body, headers))
            outcomes.append(Appended(Seq(after.seq), now.wall, epoch, replayed=False))
            if key is not None:
                expires_at = now.reckoned + IDEMPOTENCY_KEY_SECONDS
                made[key] = KeyRecord(event.digest, after.seq, now.wall, expires_at, registration)
                new_keys += stored.pos == 0
                headers = {EXPECTED_LAST: str(stored.pos), ROLLUP: "sub", TTL: f"{KEY_TTL_SECONDS}s"}
                records.append(Outgoing(engine.layout.key(diagnosis_id, key), msgspec.json.encode(made[key]), headers))
        return _Plan([*records, *entries], len(entries), outcomes, after, new_keys)

    async def _found(self, diagnosis_id: str, sent: Collection[str]) -> Entry | None:
        """The first entry of an append with one of these ids, if it is stored. To be called patiently."""
        head = await self._engine.head(diagnosis_id)
        self._engine.saw(diagnosis_id, head.pos)
        entries, _ = await self._engine.entries(diagnosis_id)
        return next((one for one in entries if one is not None and one.message_id in sent), None)

    async def _stored_keys(self, diagnosis_id: str, events: Sequence[NewEvent]) -> Mapping[str, _Stored]:
        wanted = dict.fromkeys(one.key for one in events if one.key is not None)
        found = await self._engine.together([partial(self._key, diagnosis_id, key) for key in wanted])
        return dict(zip(wanted, found, strict=True))

    async def _key(self, diagnosis_id: str, key: str) -> _Stored:
        found = await self._engine.last(self._engine.layout.main, self._engine.layout.key(diagnosis_id, key))
        return _NO_KEY if found is None else _Stored(record_of(found.data), found.pos)

    async def _with_room(
        self, diagnosis_id: str, keys: Mapping[str, _Stored], events: Sequence[NewEvent]
    ) -> Mapping[str, _Stored]:
        """What is known of these keys: where there may be no room for new ones, which of them are stored."""
        new = len({one.key for one in events if one.key is not None and one.key not in keys})
        if not new:
            return keys
        if self._keys_counted_at is None:
            await self.count()
        if self._keys + new <= self._keys_max:
            return keys
        if self._keys_counted_at is None or self._keys_counted_at + COUNT_SECONDS < trio.current_time():
            await self.count()
        return await self._stored_keys(diagnosis_id, events)

    async def expire(self, judged: float, limit: int) -> int:
        """Drop expired keys, the first ones; how many."""
        engine, layout = self._engine, self._engine.layout
        asked = {"seq": 1, "next_by_subj": layout.all_keys, "batch": limit}
        found = await engine.patiently(partial(engine.jetstream.direct, layout.main, asked))
        records = [(one, record_of(one.data)) for one in found]
        expired = [one for one, record in records if record is None or record.expires_at <= judged]
        dropped = 0  # a replica may still have what was dropped before
        for one in expired:
            dropped += await engine.patiently(
                partial(engine.jetstream.purge, layout.main, one.subject, before=one.pos + 1)
            )
        self._keys = max(0, self._keys - dropped)
        return dropped

    async def keys_above(self, windows: Mapping[str, Window]) -> Sequence[str]:
        """Keys of events beyond the newest number of their diagnosis, in words. To be called patiently."""
        layout, problems = self._engine.layout, Counter[str]()
        found: Sequence[Found] = ()
        while page := await self._engine.page(layout.main, layout.all_keys, found[-1].pos + 1 if found else 1):
            found = page
            for one in page:
                diagnosis_id, record = one.subject.split(".")[2], record_of(one.data)
                window = windows.get(diagnosis_id)
                if window is not None and record is not None and record.seq > window.head:
                    problems[diagnosis_id] += record.registration == registration_of(window.epoch)
        return [
            f"diagnosis {one}: {count} idempotency keys name events that were never numbered"
            for one, count in problems.items()
            if count
        ]

    async def count(self) -> IdempotencyKeys:
        """As `StoreUpkeep.idempotency_keys`. To be called patiently."""
        oldest, count = await self._engine.jetstream.first(self._engine.layout.main, self._engine.layout.all_keys)
        self._keys, self._keys_counted_at = count, trio.current_time()
        record = None if oldest is None else record_of(oldest.data)
        if record is None:
            return IdempotencyKeys(count, self._keys_max, None)
        made_at = record.expires_at - IDEMPOTENCY_KEY_SECONDS
        return IdempotencyKeys(count, self._keys_max, max(0.0, self._engine.time.moment().reckoned - made_at))


def _pieces(events: Sequence[NewEvent]) -> Iterator[Sequence[NewEvent]]:
    """The events in pieces that one batch can hold."""
    begin = size = 0
    for at, event in enumerate(events):
        size += len(event.body)
        if at - begin >= BATCH_EVENTS_MAX or (size > BATCH_BYTES_MAX and at > begin):
            yield events[begin:at]
            begin, size = at, len(event.body)
    if events:
        yield events[begin:]


def record_of(data: bytes) -> KeyRecord | None:
    """What is stored under a key; `None`: nothing that can be read."""
    try:
        return msgspec.json.decode(data, type=KeyRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _outcome_of(record: KeyRecord, event: NewEvent, epoch: Epoch) -> Appended | StorageError:
    if record.digest == event.digest:
        return Appended(Seq(record.seq), record.at, epoch, replayed=True)
    return KeyReused("the key belongs to another event")


def _is_of(head: Entry, epoch: str) -> bool:
    """Whether the log that ends so is of this registration, and goes on."""
    return head.registration == epoch and head.kind != ENDED


def _is_conflict(error: NatsError) -> bool:
    return isinstance(error, JetStreamError) and error.err_code in CONFLICTS | {DUPLICATE_IN_BATCH}
