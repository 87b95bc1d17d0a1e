"""The store of another process, as a `storage.store.Store`: what a worker asks, over one stream of frames.

Everything goes over one stream in order: what is handed over, what is answered, and what the store tells. So a change
that this process has heard of was heard of before everything it hands over afterwards.

While the store's process is gone, what is asked waits, `AWAY_SECONDS_MAX` at most. What was under way when it went is
asked again if that does no harm: reads, and appends whose events all have idempotency keys. The outcome of anything
else is unknown (`Failed`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import trio

from storage import changes, checks, records
from storage.belief import Kept, Moment
from storage.changes import Change, Hears
from storage.clock import Clock, Timekeeper
from storage.damage import Damage
from storage.disk.unix_paths import short_path
from storage.errors import Busy, Failed, StorageError
from storage.known import KnownDiagnoses
from storage.news import LOOK
from storage.pending import Pending
from storage.remote import calls
from storage.remote.bus import RemoteBus
from storage.remote.calls import Frame, State
from storage.remote.frames import RECEIVE_BYTES, Frames, framed
from storage.remote.outgoing import Outgoing
from storage.store import Committed, PendingAppend, Store

AWAY_SECONDS_MAX: Final = 10.0
"""What is asked waits so long for a store whose process is gone. Beyond: refused."""

CONNECT_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Pauses between attempts to reach the store; the last is repeated."""

SILENT_SECONDS: Final = 2.0
"""The store says how it is several times a second. Beyond: it counts as away."""

REQUESTS_MAX: Final = 8192
"""Requests that may be unanswered. Beyond: refused at once (`Busy`)."""

logger = logging.getLogger("avicenna.storage")

Answer = TypeVar("Answer")
P = ParamSpec("P")

Connect = Callable[[], Awaitable[trio.abc.Stream]]
"""Makes a stream to the store; `OSError`: nobody listens there now."""


class _Request:
    """Something that was asked, and how its answer is taken."""

    __slots__ = ("data", "is_append", "is_repeatable", "is_sent", "refuse", "take")

    def __init__(
        self,
        data: bytes,
        take: Callable[[Frame], None],
        refuse: Callable[[StorageError], None],
        *,
        is_append: bool = False,
        is_repeatable: bool,
    ) -> None:
        """A request with this content.

        Raises:
            FrameTooLong: no frame can carry it.
        """
        self.data = framed(data)
        self.is_append = is_append
        self.take = take
        self.refuse = refuse
        self.is_repeatable = is_repeatable
        self.is_sent = False


class Link:
    """The stream to the store, made anew whenever it ends; what is asked and what is told goes through it."""

    def __init__(self, connect: Connect, node: str, clock: Clock, told: Callable[[Frame], None]) -> None:
        """A link to the store that `connect` leads to.

        Args:
            told: called with each frame that answers nothing. Must not wait.
        """
        self.node = node
        self.away_since: float | None = clock.monotonic()
        """Since when the store is not there, on the monotonic clock."""
        self.heard_at = clock.monotonic()
        """When something came from it for the last time."""
        self.greeting: Callable[[], Sequence[bytes]] = tuple
        """What is said first on each new stream."""
        self._make = connect
        self._clock = clock
        self._told = told
        self._requests: dict[int, _Request] = {}
        """Unanswered, the oldest first."""
        self._last_number = 0
        self.out: Outgoing | None = None
        """Of the stream that there is now; `None`: there is none."""

    def next_number(self) -> int:
        """The number of a new request."""
        self._last_number += 1
        return self._last_number

    def ask(self, number: int, request: _Request) -> None:
        """Send a request, now or once the store is there.

        Raises:
            Busy: too much is unanswered, or the store is not there for long.
        """
        if len(self._requests) >= REQUESTS_MAX:
            raise Busy(f"{REQUESTS_MAX} operations wait for the store already")
        if self._is_gone:
            raise Busy("the store is not there")
        self._requests[number] = request
        if self.away_since is None:
            self._send(request)

    @property
    def has_stream(self) -> bool:
        """Whether what is said gets there now."""
        return self.out is not None

    def say(self, data: bytes) -> None:
        """Send something that is not answered; lost if the store is not there."""
        if self.out is not None:
            self.out.say(data)

    def resume(self, *, is_judged_anew: bool) -> None:
        """The store is there, and has said how it is: what waits for it is sent.

        Args:
            is_judged_anew: rights have changed meanwhile: appends that were judged before are refused instead.
        """
        for number, request in list(self._requests.items()):
            if request.is_append and is_judged_anew:
                del self._requests[number]
                request.refuse(_unanswered(request, "rights have changed while the store was not there"))
            else:
                self._send(request)
        self.away_since = None

    def _send(self, request: _Request) -> None:
        assert self.out is not None, "the store is there"
        request.is_sent = True
        self.out.send(request.data)

    def give_up(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._requests.pop(number, None)

    @property
    def waiting_seconds(self) -> float:
        """For how long the store has said nothing while something is asked of it; 0: it has, or nothing is."""
        since = self.silent_since
        return 0.0 if since is None or not self._requests else self._clock.monotonic() - since

    @property
    def silent_since(self) -> float | None:
        """Since when the store is not there, or says nothing, on the monotonic clock; `None`: it does."""
        if self.away_since is not None:
            return self.away_since
        return self.heard_at if self._clock.monotonic() - self.heard_at > SILENT_SECONDS else None

    async def run(self) -> None:
        """Keep the stream up; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refuse_what_waits_long)
            while True:
                stream = await self._connect()
                try:
                    async with trio.open_nursery() as stream_nursery:
                        out = self._begin()
                        stream_nursery.start_soon(self._write, out, stream, stream_nursery.cancel_scope)
                        stream_nursery.start_soon(self._read, stream, stream_nursery.cancel_scope)
                finally:
                    self._end()
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)

    @property
    def _is_gone(self) -> bool:
        return self.away_since is not None and self._clock.monotonic() - self.away_since > AWAY_SECONDS_MAX

    async def _connect(self) -> trio.abc.Stream:
        attempt = 0
        while True:
            try:
                return await self._make()
            except OSError:
                await trio.sleep(CONNECT_SECONDS[min(attempt, len(CONNECT_SECONDS) - 1)])
                attempt += 1

    def _begin(self) -> Outgoing:
        self.out = out = Outgoing()
        for one in (calls.encoded(0, "hello", self.node), *self.greeting()):
            out.say(one)
        return out

    def _end(self) -> None:
        if self.away_since is None:
            self.away_since = self._clock.monotonic()
        self.out = None
        for number, request in list(self._requests.items()):
            if request.is_sent and not request.is_repeatable:
                del self._requests[number]
                request.refuse(Failed("the store has ended meanwhile"))

    async def _refuse_what_waits_long(self) -> None:
        while True:
            if self._is_gone:
                requests, self._requests = self._requests, {}
                for request in requests.values():
                    request.refuse(_unanswered(request, "the store is not there"))
            await trio.sleep(0.1)

    async def _write(self, out: Outgoing, stream: trio.abc.Stream, end: trio.CancelScope) -> None:
        try:
            await out.write(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            end.cancel()

    async def _read(self, stream: trio.abc.Stream, end: trio.CancelScope) -> None:
        frames = Frames()
        try:
            while data := await stream.receive_some(RECEIVE_BYTES):
                self.heard_at = self._clock.monotonic()
                for content in frames.taken(data):
                    self._take(calls.decoded(content))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        end.cancel()

    def _take(self, frame: Frame) -> None:
        if not frame.number:
            self._told(frame)
        elif (request := self._requests.pop(frame.number, None)) is not None:
            if frame.what == "error":
                request.refuse(calls.error(frame.content))
            else:
                request.take(frame)


def _unanswered(request: _Request, why: str) -> StorageError:
    """What became of a request that is not waited for any longer: unknown, if the store may have it."""
    return Failed(why) if request.is_sent else Busy(why)


class _Heard:
    """What the store has told last. Copies of a `RemoteStore` share it."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.time: Timekeeper | None = None
        self.is_new = True
        """The stream has just begun: the state is still to come."""
        self.judging: object | None = None
        """Which reading of rights is under way, since they changed while the store was not there; `None`: none is."""
        self.tell_commit: Committed | None = None


class RemoteStore:
    """A `storage.store.Store`; see there for what each method does."""

    shared = True

    def __init__(self, connect: Connect, node: str, clock: Clock, nursery: trio.Nursery) -> None:
        """The store that `connect` leads to, asked under the name `node`.

        Args:
            nursery: in which what others ask is answered.
        """
        self._link = Link(connect, node, clock, self._take)
        self._link.greeting = self._greeting
        self.bus = RemoteBus(self._link, nursery)
        self._clock = clock
        self._nursery = nursery
        self._heard = _Heard()
        self.is_there = trio.Event()
        """Set once the store was reached for the first time."""
        self.broke = trio.Event()
        """Never set: the store's process begins again, and this one waits for it."""
        self._known = KnownDiagnoses()
        self._hears: Hears | None = None
        self._settled: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._tell_damage: Callable[[str], None] = lambda _: None
        self._followed: dict[str, int] = {}
        self._patience_seconds = inf

    async def run(self) -> None:
        """Keep in touch with the store; until cancelled."""
        await self._link.run()

    def patient(self, seconds: float) -> RemoteStore:
        other = copy.copy(self)
        other._patience_seconds = seconds
        return other

    # What the store tells

    def tell(self, hears: Hears, settled: Callable[[], Awaitable[None]] | None = None) -> None:
        assert self._hears is None, "a store tells one listener"
        self._hears = hears
        if settled is not None:
            self._settled = settled

    def _greeting(self) -> Sequence[bytes]:
        self._heard.is_new = True
        return [*(calls.encoded(0, calls.FOLLOW, one) for one in self._followed), *self.bus.greeting()]

    def _take(self, frame: Frame) -> None:
        match frame.what:
            case "state":
                self._take_state(calls.state_of(frame.content))
            case "changed":
                self._changed(calls.change_of(frame.content))
            case "grew":
                diagnosis_id, news = calls.news_of(frame.content)
                if self._hears is not None and diagnosis_id in self._followed and self._heard.judging is None:
                    self._hears.grew(diagnosis_id, news)
            case _:
                self.bus.take(frame)

    def _take_state(self, state: State) -> None:
        before = self._heard.state
        self._heard.state = state
        self.bus.nodes = state.nodes
        if self._heard.time is None:
            self._heard.time = Timekeeper(self._clock, Kept(state.reckoned, held=False))
        if self._heard.is_new:
            self._heard.is_new = False
            self._known.have_all_changed()
            self.is_there.set()
            if before is not None and self._hears is not None:
                self._hears.missed()
                if state.have_rights_changed:
                    self._heard.judging = judging = object()
                    self._nursery.start_soon(self._judge, judging)
                else:
                    self._look(self._hears)
            self._link.resume(is_judged_anew=state.have_rights_changed)
            self._confirm(state.last_change)
        for diagnosis_id in state.damaged:
            if before is None or diagnosis_id not in before.damaged:
                self._tell_damage(diagnosis_id)

    async def _judge(self, judging: object) -> None:
        """Have nobody publish or be given anything until rights are judged by what the store holds now."""
        await self._settled()
        if self._heard.judging is judging:
            self._heard.judging = None
            assert self._hears is not None, "it was told what it missed"
            self._look(self._hears)

    def _look(self, hears: Hears) -> None:
        for diagnosis_id in list(self._followed):
            hears.grew(diagnosis_id, LOOK)

    def _changed(self, change: Change) -> None:
        match change:
            case changes.DiagnosisRegistered(diagnosis=diagnosis):
                self._known.has_changed(diagnosis.diagnosis_id)
                self._known.remember(diagnosis)
            case changes.DiagnosisDeleted(diagnosis=diagnosis):
                self._known.has_changed(diagnosis.diagnosis_id)
            case changes.SubjectErased():
                self._known.have_all_changed()
            case changes.EpochsRenewed(diagnosis_id=diagnosis_id):
                if diagnosis_id is None:
                    self._known.have_all_changed()
                else:
                    self._known.has_changed(diagnosis_id)
        if self._hears is not None:
            self._hears.changed(change)
        self._confirm(change.number)

    def _confirm(self, number: int) -> None:
        """Tell the store, once all that follows from changes told so far is done."""
        out = self._link.out
        if out is not None:
            self._nursery.start_soon(self._confirm_once_settled, out, number)

    async def _confirm_once_settled(self, out: Outgoing, number: int) -> None:
        await self._settled()
        if self._link.out is out:  # another stream leads to another process, which counts anew
            out.say(calls.encoded(0, calls.CONFIRM, number))

    # What it says of itself

    @property
    def _now(self) -> State:
        assert self._heard.state is not None, "a store is used once it was reached"
        return self._heard.state

    def moment(self) -> Moment:
        assert self._heard.time is not None, "a store is used once it was reached"
        moment = self._heard.time.moment()
        reckoned = max(moment.reckoned, self._now.reckoned)
        return Moment(moment.wall, reckoned, -inf if self._now.held_since is not None else moment.judged)

    @property
    def clock_held_since(self) -> float | None:
        assert self._heard.time is not None, "a store is used once it was reached"
        return self._now.held_since if self._now.held_since is not None else self._heard.time.held_since

    @property
    def damaged(self) -> Mapping[str, Damage]:
        return self._now.damaged

    @property
    def is_check_pending(self) -> bool:
        return self._now.is_check_pending

    def on_damage(self, tell: Callable[[str], None]) -> None:
        self._tell_damage = tell

    def statistics(self) -> records.StoreStatistics:
        link = self._link
        waiting_seconds = max(self._now.statistics.waiting_seconds, link.waiting_seconds)
        return replace(self._now.statistics, waiting_seconds=waiting_seconds, away_since=link.silent_since)

    # Events

    def follow(self, diagnosis_id: str) -> Callable[[], None]:
        followed = self._followed
        followed[diagnosis_id] = followed.get(diagnosis_id, 0) + 1
        if followed[diagnosis_id] == 1:
            self._link.say(calls.encoded(0, calls.FOLLOW, diagnosis_id))

        def unfollow() -> None:
            followed[diagnosis_id] -= 1
            if not followed[diagnosis_id]:
                del followed[diagnosis_id]
                self._link.say(calls.encoded(0, calls.UNFOLLOW, diagnosis_id))

        return unfollow

    def on_commit(self, tell: Committed) -> None:
        self._heard.tell_commit = tell

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[records.NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        checks.check_text(diagnosis_id)
        if self._heard.judging is not None:
            raise Busy("rights are read anew")
        refusals = checks.refusals_of(events)
        if refusals:
            events = [event for event, refusal in zip(events, refusals, strict=True) if refusal is None]
        pending = PendingAppend()
        since = self._clock.monotonic()

        def settle(outcomes: Sequence[records.Appended | StorageError], error: StorageError | None = None) -> None:
            if spans and self._heard.tell_commit is not None:
                self._heard.tell_commit([spans], since, None if error is None else type(error).__name__)
            pending.answer(checks.with_refusals(outcomes, refusals), trio.current_time())

        number = self._link.next_number()
        request = _Request(
            calls.append_asked(number, diagnosis_id, events),
            lambda frame: settle(calls.outcomes_of(frame.content)),
            lambda error: settle([error] * len(events), error),
            is_append=True,
            is_repeatable=all(event.key is not None for event in events),
        )
        self._link.ask(number, request)
        return pending

    async def read_after(
        self, diagnosis_id: str, seq: records.Seq, limit: int = 100, bytes_max: int | None = None
    ) -> records.Slice:
        return await self._ask(Store.read_after, diagnosis_id, seq, limit, bytes_max)

    async def purge(self, diagnosis_id: str, act: records.Act | None = None) -> records.Purged:
        return await self._ask(Store.purge, diagnosis_id, act)

    # Diagnoses

    async def register(
        self, diagnosis_id: str, owner: str, viewers: Sequence[str], act: records.Act | None = None
    ) -> records.Registered:
        return await self._ask(Store.register, diagnosis_id, owner, tuple(viewers), act)

    def known(self, diagnosis_id: str) -> records.Diagnosis | None:
        return None if self._heard.is_new else self._known.get(diagnosis_id)

    async def get(self, diagnosis_id: str) -> records.Diagnosis:
        return self.known(diagnosis_id) or await self.look_up(diagnosis_id)

    async def look_up(self, diagnosis_id: str) -> records.Diagnosis:
        with self._known.looking_up(diagnosis_id) as look:
            found: records.Diagnosis = await self._ask(Store.look_up, diagnosis_id)
            if look.is_current:
                self._known.remember(found)
            return found

    async def diagnoses(
        self, *, owner: str | None = None, after: str = "", limit: int = 100, bytes_max: int | None = None
    ) -> Sequence[records.Diagnosis]:
        return await self._ask(Store.diagnoses, owner=owner, after=after, limit=limit, bytes_max=bytes_max)

    async def outboxes(
        self, *, owner: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[records.Outbox]:
        return await self._ask(Store.outboxes, owner=owner, after=after, limit=limit)

    async def delete(self, diagnosis_id: str, act: records.Act | None = None) -> records.Diagnosis:
        return await self._ask(Store.delete, diagnosis_id, act)

    # Cursors

    async def move_cursors(self, moves: Sequence[records.CursorMove]) -> Sequence[records.Seq | None]:
        given = tuple(moves)
        checks.check_moves(given)
        return await self._ask_checked(Store.move_cursors, given)

    async def cursors(
        self, diagnosis_id: str, *, after: records.SubscriberId | None = None, limit: int | None = None
    ) -> Sequence[records.Cursor]:
        return await self._ask(Store.cursors, diagnosis_id, after=after, limit=limit)

    async def cursor(self, diagnosis_id: str, subscriber: records.SubscriberId) -> records.Cursor | None:
        return await self._ask(Store.cursor, diagnosis_id, subscriber)

    async def furthest_behind(self, diagnosis_ids: Sequence[str], limit: int) -> Sequence[Sequence[records.Cursor]]:
        return await self._ask(Store.furthest_behind, tuple(diagnosis_ids), limit)

    async def forget(
        self, diagnosis_id: str, subscribers: Sequence[records.SubscriberId], act: records.Act | None = None
    ) -> int:
        return await self._ask(Store.forget, diagnosis_id, tuple(subscribers), act)

    # Revocations

    async def revoke(
        self,
        *,
        sub: str | None = None,
        token_id: str | None = None,
        leeway_seconds: float = 0.0,
        act: records.Act | None = None,
    ) -> records.RevocationMade:
        return await self._ask(Store.revoke, sub=sub, token_id=token_id, leeway_seconds=leeway_seconds, act=act)

    async def revocations(self, *, after: int = 0, limit: int = 100) -> Sequence[records.Revocation]:
        return await self._ask(Store.revocations, after=after, limit=limit)

    async def lift_revocation(self, number: int, act: records.Act | None = None) -> records.Revocation:
        return await self._ask(Store.lift_revocation, number, act)

    async def expire_revocations(self, seconds: float) -> Sequence[records.Revocation]:
        return await self._ask(Store.expire_revocations, seconds)

    # Trails

    async def record(self, row: records.NewAuditRow) -> None:
        await self._ask(Store.record, row)

    async def audit(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        wanted: records.TrailFilter = records.EVERY_ROW,
        bytes_max: int | None = None,
    ) -> Sequence[records.AuditRow]:
        return await self._ask(Store.audit, before=before, limit=limit, wanted=wanted, bytes_max=bytes_max)

    async def record_accesses(self, rows: Sequence[records.NewAccessRow]) -> None:
        await self._ask(Store.record_accesses, tuple(rows))

    async def accesses(
        self, *, before: int | None = None, limit: int = 100, wanted: records.TrailFilter = records.EVERY_ROW
    ) -> Sequence[records.AccessRow]:
        return await self._ask(Store.accesses, before=before, limit=limit, wanted=wanted)

    # Upkeep

    async def look_through(self) -> None:
        await self._ask(Store.look_through)

    async def drop_damaged(self, diagnosis_id: str, act: records.Act | None = None) -> records.Dropped:
        return await self._ask(Store.drop_damaged, diagnosis_id, act)

    async def evict(self, seconds: float, *, after: str = "", diagnoses: int = 64) -> records.Evicted:
        return await self._ask(Store.evict, seconds, after=after, diagnoses=diagnoses)

    async def expire(
        self, *, audit_seconds: float | None = None, accesses_seconds: float | None = None, limit: int = 256
    ) -> int:
        return await self._ask(
            Store.expire, audit_seconds=audit_seconds, accesses_seconds=accesses_seconds, limit=limit
        )

    async def idempotency_keys(self) -> records.IdempotencyKeys:
        return await self._ask(Store.idempotency_keys)

    async def forget_unseen(
        self, seconds: float, *, spared: Collection[str] = (), after: str = "", diagnoses: int = 64
    ) -> records.ForgottenUnseen:
        return await self._ask(Store.forget_unseen, seconds, spared=tuple(spared), after=after, diagnoses=diagnoses)

    async def erase(self, erasure: records.Erasure, act: records.Act | None = None) -> records.Erased:
        return await self._ask(Store.erase, erasure, act)

    async def backup(self, path: Path) -> records.Backup:
        return await self._ask(Store.backup, path)

    async def check(self, scratch: Path | None = None) -> Sequence[str]:
        return await self._ask(Store.check, scratch)

    async def barrier(self) -> None:
        await self._ask(Store.barrier)

    async def _ask(
        self, method: Callable[Concatenate[Store, P], Coroutine[Any, Any, Answer]], *args: P.args, **kwargs: P.kwargs
    ) -> Answer:
        """Ask a method, and wait for its answer.

        Raises:
            Unstorable, Busy, Failed, and what the method raises.
        """
        checks.check(args, tuple(kwargs.values()))
        return await self._ask_checked(method, *args, **kwargs)

    async def _ask_checked(
        self, method: Callable[Concatenate[Store, P], Coroutine[Any, Any, Answer]], *args: P.args, **kwargs: P.kwargs
    ) -> Answer:
        """As `_ask`, with what can be stored."""
        await trio.lowlevel.checkpoint_if_cancelled()
        pending: Pending[Answer] = Pending()
        number, name = self._link.next_number(), method.__name__
        request = _Request(
            calls.asked(number, name, args, kwargs),
            lambda frame: pending.answer(calls.answer(name, frame.content)),
            pending.refuse,
            is_repeatable=name in calls.READS,
        )
        self._link.ask(number, request)
        patience = inf if name in calls.LONG - {"erase"} else self._patience_seconds
        try:
            with trio.move_on_after(patience):
                return await pending.wait()
        except trio.Cancelled:
            if name in calls.LONG:
                self._link.say(calls.encoded(0, calls.CANCEL, number))
            if name not in calls.CHANGES:
                self._link.give_up(number)
            raise
        raise Failed(f"the store has not answered for {patience:g} s")


@asynccontextmanager
async def open_remote(path: Path | Connect, *, node: str, clock: Clock) -> AsyncIterator[RemoteStore]:
    """The store that listens at `path`, once it is reached.

    Args:
        path: of a Unix socket; or what makes a stream.
        node: names this process; another name after each start.
    """
    async with trio.open_nursery() as nursery:
        store = RemoteStore(_connect_to(path) if isinstance(path, Path) else path, node, clock, nursery)
        nursery.start_soon(store.run)
        await store.is_there.wait()
        try:
            yield store
        finally:
            nursery.cancel_scope.cancel()


def _connect_to(path: Path) -> Connect:
    async def connect() -> trio.abc.Stream:
        with short_path(path) as name:
            return await trio.open_unix_socket(name)

    return connect
