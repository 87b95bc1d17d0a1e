"""The replicated store: `storage.store.Store` over streams that several processes share.

What this process hands over is carried out in order for each diagnosis: appends in its lane (`appending.py`), acts in
the order of all acts (`acting.py`), and each waits for what was handed over before it. What others do is heard of
(`following.py`). Nothing that must not be lost is kept in this process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import trio

from storage import checks, records
from storage.belief import Moment
from storage.changes import Hears, digest_of
from storage.damage import TellsDamage
from storage.errors import Failed, NoSuchDiagnosis, NoSuchRevocation, NotDamaged, NotSupported, OutboxDamaged
from storage.jetstream import acts
from storage.jetstream.acting import Acting, Plan, Planning, replacing
from storage.jetstream.acts import ActSaid, Deleted, Lifted, Registered, Revoked
from storage.jetstream.appending import Appending
from storage.jetstream.cursors import Cursors
from storage.jetstream.engine import CONFLICTS, Engine, Unreadable
from storage.jetstream.entries import (
    ENDED,
    NOTHING,
    PURGED,
    TRIMMED,
    Entry,
    Log,
    begun,
    entry_of,
    epoch_of,
    marked,
    text_of,
)
from storage.jetstream.entries import HEADER as ENTRY
from storage.jetstream.following import Following
from storage.jetstream.layout import installation
from storage.jetstream.trails import Trails
from storage.nats.errors import JetStreamError, Unanswered
from storage.nats.jetstream import EXPECTED_LAST, ROLLUP, TTL
from storage.nats.wire import Outgoing
from storage.pages import within
from storage.pending import Pending
from storage.records import Act, Seq
from storage.store import Committed, PendingAppend

LIFTED_SECONDS = 3600
"""How long a lifted revocation is still found as lifted."""

VIEWED_AT_ONCE = 100
"""Registrations that one act of an erasure changes. Reason: an act repeats them, and is one message."""

RENEWED = "epochs.renew"
"""What the audit trail calls it."""

REPLICA_LOOK_SECONDS = 0.5
"""Between two looks at whether all servers that hold a stream are up to date."""

REPLICA_LOOKS_MAX = 20
"""So often is looked. Reason: one that was started again catches up, and under load each is a little behind at any
moment. Beyond: told as a problem."""

PROBLEMS_MAX = 100
"""Problems that a check names. Beyond: it ends."""

Answer = TypeVar("Answer")


class JetStreamStore(TellsDamage):
    """A `storage.store.Store`; see there for what each method does."""

    shared = True

    def __init__(self, engine: Engine, nursery: trio.Nursery, keys_max: int) -> None:
        """A store over an engine that has been loaded; its tasks run in this nursery, once `begin` was called."""
        self.engine = self._engine = engine
        self._damage = engine.damage
        self._store_nursery = nursery
        self._appending = Appending(engine, nursery, keys_max)
        self._acting = Acting(engine)
        self._cursors = Cursors(engine, self._head)
        self._trails = Trails(engine)
        self._following = Following(engine, self._appending.heard)
        self._none_before: dict[str, tuple[str, float]] = {}
        """Of logs: the epoch, and a time before which no retained event was stored: nothing is read until then."""
        self._evicted_at = -inf
        """What the wall clock said at the last eviction."""
        self._waiting: dict[Pending[Any], None] = {}
        """Acts and other changes that have no outcome yet."""
        self.broke = engine.broke
        engine.applied = self._was_applied

    async def begin(self) -> None:
        """Begin to work."""
        await self._engine.patiently(self._trails.load)
        self._store_nursery.start_soon(self._acting.run)
        self._store_nursery.start_soon(self._following.run)

    # Time, and who hears

    def moment(self) -> Moment:
        return self._engine.time.moment()

    @property
    def clock_held_since(self) -> float | None:
        self._engine.time.moment()
        return self._engine.time.held_since

    def tell(self, hears: Hears, settled: Callable[[], Awaitable[None]] | None = None) -> None:
        self._engine.told.begin(hears.changed)
        self._engine.missed = hears.missed
        self._following.tell(hears)

    def follow(self, diagnosis_id: str) -> Callable[[], None]:
        return self._following.follow(diagnosis_id)

    def on_commit(self, tell: Committed) -> None:
        self._appending.told = tell

    def patient(self, seconds: float) -> JetStreamStore:
        return self

    async def barrier(self) -> None:
        for pending in [*self._appending.pending, *self._waiting]:
            await pending.done.wait()
        await trio.lowlevel.checkpoint()

    def _was_applied(self, act: ActSaid) -> None:
        """An act was applied, whoever asked for it."""
        for made in act.made:
            match made:
                case Registered(diagnosis=diagnosis):
                    self._damage_may_be_gone(diagnosis.diagnosis_id)
                case Deleted(diagnosis_id=diagnosis_id):
                    self._none_before.pop(diagnosis_id, None)
                    self._appending.forget(diagnosis_id)
                    self._damage.is_repaired(diagnosis_id)
        if isinstance(act.also, acts.Purged):
            self._appending.forget(act.also.diagnosis_id)
            self._damage.is_repaired(act.also.diagnosis_id)
        elif isinstance(act.also, acts.Evicted):
            for diagnosis_id, window in act.also.windows.items():
                self._damage.evicted(diagnosis_id, window.floor)
                self._appending.forget(diagnosis_id)  # it may end with a mark now
        elif isinstance(act.also, acts.Erased):
            self._trails.names_are_gone()

    def _damage_may_be_gone(self, diagnosis_id: str) -> None:
        if diagnosis_id in self._damage.all:
            self._damage.is_repaired(diagnosis_id)

    # Handing over

    async def _act(
        self,
        plan: Planning,
        act: Act | None = None,
        *,
        after: Callable[[], Awaitable[None]] | None = None,
        diagnosis_id: str | None = None,
    ) -> Any:
        """The answer of an act, which is handed over before the first checkpoint."""
        await trio.lowlevel.checkpoint_if_cancelled()
        pending = self._handed_over(plan, act, after=after, diagnosis_id=diagnosis_id)
        return await pending.wait()

    def _handed_over(
        self,
        plan: Planning,
        act: Act | None,
        *,
        after: Callable[[], Awaitable[None]] | None = None,
        diagnosis_id: str | None = None,
    ) -> Pending[Any]:
        first: list[Pending[Any]] = []
        pending = self._acting.hand_over(plan, act, after=after, first=first)
        if diagnosis_id is not None:
            first.extend(self._appending.act_comes(diagnosis_id, pending))
        self._waiting[pending] = None
        self._store_nursery.start_soon(self._until_done, pending)
        return pending

    async def _until_done(self, pending: Pending[Any]) -> None:
        await pending.done.wait()
        del self._waiting[pending]

    def _diagnosis(self, diagnosis_id: str) -> records.Diagnosis:
        found = self._engine.known.diagnosis(diagnosis_id)
        if found is None:
            raise NoSuchDiagnosis(diagnosis_id)
        return found

    async def _head(self, diagnosis_id: str, wanted: int) -> int:
        """A number of a registered diagnosis that is not below the wanted one, or its newest, from the leader."""
        diagnosis = self._engine.known.diagnosis(diagnosis_id)
        if diagnosis is None:
            return 0
        if (known := self._engine.number(diagnosis_id, diagnosis.epoch)) >= wanted:
            return known
        head = await self._engine.head(diagnosis_id)
        return begun(head, diagnosis.epoch).seq

    # Diagnoses

    async def register(
        self, diagnosis_id: str, owner: str, viewers: Sequence[str], act: Act | None = None
    ) -> records.Registered:
        given = tuple(viewers)
        checks.check(diagnosis_id, owner, given)
        subject, registration = self._engine.layout.registration(diagnosis_id), self._engine.new_epoch()

        async def plan(number: int) -> Plan:
            known = self._engine.known
            before = known.diagnosis(diagnosis_id)
            if before is None:
                epoch = records.Epoch(epoch_of(registration, known.generation))
                new = records.Diagnosis(diagnosis_id, owner, given, epoch, self.moment().wall)
            else:
                new = replace(before, owner=owner, viewers=given)
            answer = records.Registered(new, created=before is None, before=before)
            made = acts.registered(new)
            return Plan(answer, [replacing(subject, acts.encoded(made), known.pos_of(diagnosis_id))], [made])

        answer: records.Registered = await self._act(plan, act, diagnosis_id=diagnosis_id)
        return answer

    async def get(self, diagnosis_id: str) -> records.Diagnosis:
        await trio.lowlevel.checkpoint()
        return self._diagnosis(diagnosis_id)

    def known(self, diagnosis_id: str) -> records.Diagnosis | None:
        return self._engine.known.diagnosis(diagnosis_id)

    async def look_up(self, diagnosis_id: str) -> records.Diagnosis:
        """As acts of all processes have left it: who was registered elsewhere a moment ago is not refused here."""
        if self._engine.is_there:
            await self._engine.patiently(self._engine.be_current)
        return await self.get(diagnosis_id)

    async def diagnoses(
        self, *, owner: str | None = None, after: str = "", limit: int = 100, bytes_max: int | None = None
    ) -> Sequence[records.Diagnosis]:
        await trio.lowlevel.checkpoint()
        return list(within(self._page(owner, after, limit), bytes_max))

    def _page(self, owner: str | None, after: str, limit: int) -> Sequence[records.Diagnosis]:
        return [one for _, one in zip(range(limit), self._engine.known.page(owner, after), strict=False)]

    async def outboxes(
        self, *, owner: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[records.Outbox]:
        await trio.lowlevel.checkpoint()
        page = self._page(owner, after, limit)
        windows = await self._engine.together([partial(self._window, one) for one in page])
        lowest = await self._engine.together([partial(self._lowest, one) for one in page])
        return [
            records.Outbox(one.diagnosis_id, window, cursor)
            for one, window, cursor in zip(page, windows, lowest, strict=True)
        ]

    async def _window(self, diagnosis: records.Diagnosis) -> records.Window:
        """What a diagnosis retains, by its newest entry and the number of the first. To be called patiently."""
        layout, known = self._engine.layout, self._engine.known
        newest = await self._engine.head(diagnosis.diagnosis_id)
        if newest.pos and (newest.registration != diagnosis.epoch or newest.kind == ENDED):
            await self._engine.catch_up()  # perhaps the registration known here is a former one
            current = self._engine.known.diagnosis(diagnosis.diagnosis_id)
            if current is not None and current.epoch != diagnosis.epoch:
                return await self._window(current)
        head = begun(newest, diagnosis.epoch)
        subject, begin = layout.log(diagnosis.diagnosis_id), self._engine.begin(diagnosis.diagnosis_id)
        first, _ = await self._engine.jetstream.first(layout.main, subject, begin)
        if first is None and newest.pos:
            raise Unanswered("the replica asked lags behind")
        oldest = None if first is None else entry_of(first.pos, first.headers, b"", generation=known.generation)
        floor = head.floor
        if oldest is not None and oldest.registration == diagnosis.epoch:
            floor = max(floor, oldest.seq - oldest.is_event)
        return replace(head.window, epoch=diagnosis.epoch, floor=Seq(min(floor, head.seq)))

    async def _lowest(self, diagnosis: records.Diagnosis) -> Seq | None:
        cursors = await self._cursors.of(diagnosis.diagnosis_id)
        return min((one.seq if one.epoch == diagnosis.epoch else Seq(0) for one in cursors), default=None)

    async def delete(self, diagnosis_id: str, act: Act | None = None) -> records.Diagnosis:
        checks.check(diagnosis_id)

        async def plan(number: int) -> Plan:
            known, layout = self._engine.known, self._engine.layout
            diagnosis = self._diagnosis(diagnosis_id)
            try:
                head = await self._engine.head(diagnosis_id)
            except Unreadable as unreadable:
                head = NOTHING._replace(pos=unreadable.pos)
            end = self._mark(diagnosis_id, head.pos, marked(begun(head, diagnosis.epoch), ENDED, self._engine.node))
            made = Deleted(diagnosis_id)
            gone = replacing(layout.registration(diagnosis_id), acts.encoded(made), known.pos_of(diagnosis_id))
            return Plan(diagnosis, [end, gone], [made], stored=self._sees(diagnosis_id, before=2))

        async def after() -> None:
            layout = self._engine.layout
            await self._engine.patiently(partial(self._engine.jetstream.purge, layout.main, layout.keys(diagnosis_id)))
            await self._engine.patiently(partial(self._cursors.drop_all, diagnosis_id))
            await self._engine.patiently(self._appending.count)

        answer: records.Diagnosis = await self._act(plan, act, after=after, diagnosis_id=diagnosis_id)
        return answer

    def _mark(self, diagnosis_id: str, pos: int, mark: Entry) -> Outgoing:
        headers = {ENTRY: text_of(mark), EXPECTED_LAST: str(pos), ROLLUP: "sub"}
        return Outgoing(self._engine.layout.log(diagnosis_id), b"", headers)

    def _sees(self, diagnosis_id: str, before: int) -> Callable[[int], None]:
        """Have no read be older than a mark that lies so many positions before its act."""

        def stored(pos: int) -> None:
            self._engine.wrote(diagnosis_id, pos - before)
            self._appending.forget(diagnosis_id)

        return stored

    # Events

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[records.NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        checks.check_text(diagnosis_id)
        return self._appending.hand_over(diagnosis_id, events, spans)

    async def read_after(
        self, diagnosis_id: str, seq: Seq, limit: int = 100, bytes_max: int | None = None
    ) -> records.Slice:
        await trio.lowlevel.checkpoint()
        diagnosis = self._diagnosis(diagnosis_id)
        if not limit:
            window = await self._engine.patiently(partial(self._window, diagnosis))
            self._diagnosis(diagnosis_id)
            return records.Slice(window, ())
        log = await self._engine.patiently(partial(self._log, diagnosis_id, seq))
        self._judge(diagnosis_id, log)
        found = [one.event for one in log.events if one.seq > seq]
        return records.Slice(log.window, tuple(within(found[:limit], bytes_max)))

    async def _log(self, diagnosis_id: str, seq: int) -> Log:
        """A log in which this number was given, if it was. To be called patiently."""
        engine = self._engine
        while True:
            epoch = self._diagnosis(diagnosis_id).epoch
            log = await engine.log(diagnosis_id, epoch)
            if log.pos and not log.is_of_newest:  # perhaps the registration known here is a former one
                await engine.catch_up()
                if self._diagnosis(diagnosis_id).epoch != epoch:
                    continue
            if log.window.head < seq:  # perhaps the replica lags
                head = await engine.head(diagnosis_id)
                if head.pos > log.pos:
                    engine.saw(diagnosis_id, head.pos)
                    continue
            return log

    def _judge(self, diagnosis_id: str, log: Log) -> None:
        damage = self._damage.all.get(diagnosis_id) or log.damage
        if damage is not None:
            self._damage.add(diagnosis_id, damage)
            raise OutboxDamaged(diagnosis_id, damage)

    async def purge(self, diagnosis_id: str, act: Act | None = None) -> records.Purged:
        checks.check(diagnosis_id)

        async def plan(number: int) -> Plan:
            diagnosis = self._diagnosis(diagnosis_id)
            before = await self._window(diagnosis)
            diagnosis = self._diagnosis(diagnosis_id)
            found = await self._engine.head(diagnosis_id)
            mark = marked(begun(found, diagnosis.epoch), PURGED, self._engine.node, is_purge=True)
            after = replace(before, floor=Seq(mark.seq), purged=Seq(mark.seq))
            return Plan(
                records.Purged(before, after),
                [self._mark(diagnosis_id, found.pos, mark)],
                also=acts.Purged(diagnosis_id, after),
                stored=self._sees(diagnosis_id, before=1),
            )

        answer: records.Purged = await self._act(plan, act, diagnosis_id=diagnosis_id)
        return answer

    # Cursors

    async def move_cursors(self, moves: Sequence[records.CursorMove]) -> Sequence[Seq | None]:
        checks.check_moves(moves)
        await trio.lowlevel.checkpoint()
        self._engine.see_that_it_is_there()
        return await self._cursors.move(moves)

    async def cursors(
        self, diagnosis_id: str, *, after: records.SubscriberId | None = None, limit: int | None = None
    ) -> Sequence[records.Cursor]:
        await trio.lowlevel.checkpoint()
        self._diagnosis(diagnosis_id)
        found = await self._engine.patiently(partial(self._cursors.of, diagnosis_id))
        return [one for one in found if after is None or one.subscriber.order > after.order][:limit]

    async def cursor(self, diagnosis_id: str, subscriber: records.SubscriberId) -> records.Cursor | None:
        await trio.lowlevel.checkpoint()
        self._diagnosis(diagnosis_id)
        self._engine.see_that_it_is_there()
        return await self._engine.patiently(partial(self._cursors.one, diagnosis_id, subscriber))

    async def furthest_behind(self, diagnosis_ids: Sequence[str], limit: int) -> Sequence[Sequence[records.Cursor]]:
        await trio.lowlevel.checkpoint()
        return await self._engine.together([partial(self._furthest_behind, one, limit) for one in diagnosis_ids])

    async def _furthest_behind(self, diagnosis_id: str, limit: int) -> Sequence[records.Cursor]:
        diagnosis = self._engine.known.diagnosis(diagnosis_id)
        if diagnosis is None:
            return []
        epoch, found = diagnosis.epoch, await self._cursors.of(diagnosis_id)
        return sorted(found, key=lambda one: (one.seq if one.epoch == epoch else 0, one.subscriber.order))[:limit]

    async def forget(
        self, diagnosis_id: str, subscribers: Sequence[records.SubscriberId], act: Act | None = None
    ) -> int:
        checks.check(diagnosis_id, tuple(subscribers))
        found: list[records.SubscriberId] = []

        async def plan(number: int) -> Plan:
            self._diagnosis(diagnosis_id)
            found[:] = {one.subscriber for one in await self._cursors.of(diagnosis_id)} & set(subscribers)
            return Plan(len(found), is_nothing=not found and act is None)

        async def after() -> None:
            await self._engine.patiently(partial(self._cursors.drop, diagnosis_id, found))

        answer: int = await self._act(plan, act, after=after, diagnosis_id=diagnosis_id)
        return answer

    # Revocations

    async def revoke(
        self,
        *,
        sub: str | None = None,
        token_id: str | None = None,
        leeway_seconds: float = 0.0,
        act: Act | None = None,
    ) -> records.RevocationMade:
        checks.check(sub, token_id)
        subject = self._engine.layout.revocation(sub, token_id)

        async def plan(number: int) -> Plan:
            before, pos = self._engine.known.revocation_of(sub, token_id)
            now = self.moment()
            new = records.Revocation(number, sub, token_id, now.wall, now.reckoned + leeway_seconds)
            if before is None:  # a lifted one is gone after a while
                last = await self._engine.last(self._engine.layout.main, subject)
                pos = 0 if last is None else last.pos
            made = Revoked(new)
            return Plan(records.RevocationMade(new, before), [replacing(subject, acts.encoded(made), pos)], [made])

        answer: records.RevocationMade = await self._act(plan, act)
        return answer

    async def revocations(self, *, after: int = 0, limit: int = 100) -> Sequence[records.Revocation]:
        await trio.lowlevel.checkpoint()
        return self._engine.known.revocations(after)[:limit]

    async def lift_revocation(self, number: int, act: Act | None = None) -> records.Revocation:
        async def plan(_: int) -> Plan:
            found = self._engine.known.revocation(number)
            if found is None:
                raise NoSuchRevocation(str(number))
            message, made = self._lifted(found)
            return Plan(found, [message], [made])

        answer: records.Revocation = await self._act(plan, act)
        return answer

    def _lifted(self, one: records.Revocation) -> tuple[Outgoing, Lifted]:
        _, pos = self._engine.known.revocation_of(one.sub, one.token_id)
        message = replacing(self._engine.layout.revocation(one.sub, one.token_id), b"", pos)
        headers = {**(message.headers or {}), TTL: f"{LIFTED_SECONDS}s"}
        return message._replace(headers=headers), Lifted(one.number, one.sub, one.token_id)

    async def expire_revocations(self, seconds: float) -> Sequence[records.Revocation]:
        async def plan(_: int) -> Plan:
            until = self.moment().judged - seconds
            expired = [one for one in self._engine.known.revocations() if one.covers_until <= until][:VIEWED_AT_ONCE]
            lifted = [self._lifted(one) for one in expired]
            return Plan(expired, [one for one, _ in lifted], [made for _, made in lifted], is_nothing=not expired)

        answer: Sequence[records.Revocation] = await self._act(plan)
        return answer

    # Trails

    async def record(self, row: records.NewAuditRow) -> None:
        checks.check(row)

        async def plan(_: int) -> Plan:
            return Plan(None, row=row)

        await self._act(plan)

    async def audit(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        wanted: records.TrailFilter = records.EVERY_ROW,
        bytes_max: int | None = None,
    ) -> Sequence[records.AuditRow]:
        await trio.lowlevel.checkpoint()
        await self._engine.patiently(self._engine.catch_up)
        return list(within(await self._trails.audit(before, wanted, limit), bytes_max))

    async def record_accesses(self, rows: Sequence[records.NewAccessRow]) -> None:
        checks.check(tuple(rows))
        await trio.lowlevel.checkpoint()
        await self._trails.record(rows)

    async def accesses(
        self, *, before: int | None = None, limit: int = 100, wanted: records.TrailFilter = records.EVERY_ROW
    ) -> Sequence[records.AccessRow]:
        await trio.lowlevel.checkpoint()
        return await self._trails.accesses(before, wanted, limit)

    # Upkeep

    async def look_through(self) -> None:
        """Nothing is pending: the engine says itself whether what it holds is whole."""
        await trio.lowlevel.checkpoint()

    async def drop_damaged(self, diagnosis_id: str, act: Act | None = None) -> records.Dropped:
        checks.check(diagnosis_id)
        dropping: list[int] = []

        async def plan(number: int) -> Plan:
            diagnosis = self._diagnosis(diagnosis_id)
            log = await self._engine.log(diagnosis_id, diagnosis.epoch)
            if (damage := log.damage) is None:
                raise NotDamaged(f"diagnosis {diagnosis_id} is not damaged")
            if not damage.is_head_trusted:
                raise NotSupported("its head cannot be trusted: delete the diagnosis, and register it again")
            left = [one for one in log.events if damage.floor < one.seq <= damage.head]
            answer = records.Dropped(
                diagnosis_id, damage.what, len(log.events) - len(left), damage.window(diagnosis.epoch), is_renewed=False
            )
            if left:
                dropping[:] = [left[0].pos]
                return Plan(answer)
            head = await self._engine.head(diagnosis_id)
            mark = marked(begun(head, diagnosis.epoch), TRIMMED, self._engine.node)
            return Plan(answer, [self._mark(diagnosis_id, head.pos, mark)], stored=self._sees(diagnosis_id, before=1))

        async def after() -> None:
            for pos in dropping:
                await self._engine.patiently(partial(self._purge_before, diagnosis_id, pos))

        try:
            answer: records.Dropped = await self._act(plan, act, after=after, diagnosis_id=diagnosis_id)
        except NotDamaged:  # perhaps it was dropped before, and this was not told
            await self._tell_evicted({diagnosis_id: (await self.read_after(diagnosis_id, Seq(0), 0)).window})
            raise
        await self._tell_evicted({diagnosis_id: answer.after})
        return answer

    async def _tell_evicted(self, windows: dict[str, records.Window]) -> None:
        """Have all processes know what is left of some logs: who has found one damaged reads it anew."""

        async def plan(_: int) -> Plan:
            return Plan(None, also=acts.Evicted(windows))

        await self._act(plan)

    async def _purge_before(self, diagnosis_id: str, pos: int) -> int:
        layout = self._engine.layout
        dropped = await self._engine.jetstream.purge(layout.main, layout.log(diagnosis_id), before=pos)
        self._engine.dropped(diagnosis_id, pos)
        return dropped

    async def evict(self, seconds: float, *, after: str = "", diagnoses: int = 64) -> records.Evicted:
        await trio.lowlevel.checkpoint_if_cancelled()
        now, page = self.moment(), self._page(None, after, diagnoses)
        if now.wall < self._evicted_at:  # it was set back: what comes from now on is older than it seems
            self._none_before.clear()
        self._evicted_at, before = now.wall, now.judged - seconds
        found = await self._engine.together([partial(self._evict, one, before) for one in page])
        windows = {one.diagnosis_id: window for one, window in zip(page, found, strict=True) if window is not None}
        if windows:
            await self._tell_evicted(windows)
        return records.Evicted(windows, page[-1].diagnosis_id if len(page) == diagnoses else None)

    async def _evict(self, diagnosis: records.Diagnosis, before: float) -> records.Window | None:
        """Drop the events that are older; what is left, `None`: there was none. To be called patiently."""
        diagnosis_id = diagnosis.diagnosis_id
        epoch, none_before = self._none_before.get(diagnosis_id, ("", 0.0))
        if epoch == diagnosis.epoch and before <= none_before:
            return None
        log = await self._engine.log(diagnosis_id, diagnosis.epoch)
        old = [one for one in log.events if one.at < before]
        if not old:
            ats = [one.at for one in log.events]
            self._none_before[diagnosis_id] = diagnosis.epoch, min([*ats, self._evicted_at])
        if not old or (log.damage is not None and old[-1].seq <= log.damage.floor):
            return None
        newest = old[-1]
        if newest.seq < log.window.head:
            await self._purge_before(diagnosis_id, newest.pos + 1)
        else:
            mark = marked(begun(newest, diagnosis.epoch), TRIMMED, self._engine.node)
            try:
                stored = await self._engine.jetstream.store([self._mark(diagnosis_id, log.pos, mark)])
            except JetStreamError as error:
                if error.err_code not in CONFLICTS:
                    raise
                return None  # something newer has come: the next round finds it so
            self._engine.wrote(diagnosis_id, stored.pos)
            self._appending.forget(diagnosis_id)
        return replace(log.window, floor=Seq(newest.seq))

    async def expire(
        self, *, audit_seconds: float | None = None, accesses_seconds: float | None = None, limit: int = 256
    ) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        judged = self.moment().judged
        dropped = await self._appending.expire(judged, limit)
        if audit_seconds is not None:
            dropped += await self._trails.expire_acts(judged - audit_seconds, limit)
        if accesses_seconds is not None:
            dropped += await self._trails.expire_accesses(judged - accesses_seconds, limit)
        return dropped

    async def idempotency_keys(self) -> records.IdempotencyKeys:
        await trio.lowlevel.checkpoint()
        return await self._engine.patiently(self._appending.count)

    async def forget_unseen(
        self, seconds: float, *, spared: Collection[str] = (), after: str = "", diagnoses: int = 64
    ) -> records.ForgottenUnseen:
        await trio.lowlevel.checkpoint_if_cancelled()
        before, page = self.moment().judged - seconds, self._page(None, after, diagnoses)
        dropped = 0
        for one in page:
            if one.diagnosis_id not in spared:
                found = await self._engine.patiently(partial(self._cursors.of, one.diagnosis_id))
                unseen = [cursor.subscriber for cursor in found if cursor.seen_at <= before]
                dropped += await self._engine.patiently(partial(self._cursors.drop, one.diagnosis_id, unseen))
        return records.ForgottenUnseen(dropped, page[-1].diagnosis_id if len(page) == diagnoses else None)

    async def erase(self, erasure: records.Erasure, act: Act | None = None) -> records.Erased:
        await trio.lowlevel.checkpoint_if_cancelled()
        sub, engine = erasure.sub, self._engine
        cursors = await engine.patiently(partial(self._cursors.drop_by, sub))
        access_rows = await self._trails.erase_names(sub)
        viewers = 0
        while (step := await self._act(self._viewed_no_more(sub))) > 0:
            viewers += step
        audit_rows = await self._trails.rewrite(erasure)

        async def plan(_: int) -> Plan:
            owned = [one.diagnosis_id for one in engine.known.page(sub, "")]
            named = tuple(owned[: records.OWNED_NAMED_MAX])
            erased = records.Erased(cursors, viewers, audit_rows, access_rows, named, len(owned))
            also = acts.Erased(digest_of(sub), erasure.stand_in)
            return Plan(erased, also=also, is_nothing=act is None)

        async def after() -> None:  # what was written meanwhile
            await engine.patiently(partial(self._cursors.drop_by, sub))
            await self._trails.erase_names(sub)

        answer: records.Erased = await self._act(plan, act, after=after)
        return answer

    def _viewed_no_more(self, sub: str) -> Planning:
        """Have some diagnoses not be viewed by a person any more; how many."""

        async def plan(_: int) -> Plan:
            known, layout = self._engine.known, self._engine.layout
            viewed = [one for one in known.page(None, "") if sub in one.viewers][:VIEWED_AT_ONCE]
            left = [replace(one, viewers=tuple(viewer for viewer in one.viewers if viewer != sub)) for one in viewed]
            made = [acts.registered(one) for one in left]
            messages = [
                replacing(
                    layout.registration(one.diagnosis.diagnosis_id),
                    acts.encoded(one),
                    known.pos_of(one.diagnosis.diagnosis_id),
                )
                for one in made
            ]
            return Plan(len(viewed), messages, made, is_silent=True, is_nothing=not viewed)

        return plan

    async def renew(self, by: str, why: str) -> str:
        """Have all epochs be others, as what clients know of numbers may not be true; the name of the new generation.

        Args:
            by: who does it, for the audit trail.
            why: the reason, for the same.
        """
        layout, generation = self._engine.layout, self._engine.new_id()

        async def plan(_: int) -> Plan:
            stored = await self._engine.last(layout.main, layout.version)
            message = replacing(layout.version, installation(generation), 0 if stored is None else stored.pos)
            row = records.NewAuditRow(by, RENEWED, "", after=why)
            return Plan(generation, [message], also=acts.Renewed(generation), row=row)

        answer: str = await self._act(plan)
        return answer

    async def backup(self, path: Path) -> records.Backup:
        raise NotSupported("the engine is copied by its own tool while it runs: nats account backup DIR")

    async def check(self, scratch: Path | None = None) -> Sequence[str]:
        problems: list[str] = []
        for _ in range(REPLICA_LOOKS_MAX):
            problems = [*await self._problems_of_streams()]
            if not problems:
                break
            await trio.sleep(REPLICA_LOOK_SECONDS)
        windows: dict[str, records.Window] = {}
        for diagnosis in list(self._engine.known.page(None, "")):
            try:
                windows[diagnosis.diagnosis_id] = (await self.read_after(diagnosis.diagnosis_id, Seq(0))).window
            except NoSuchDiagnosis:
                continue
            except (OutboxDamaged, Failed) as error:
                problems.append(str(error))
                if len(problems) == PROBLEMS_MAX:
                    return problems
        problems += await self._trails.problems()
        problems += await self._engine.patiently(partial(self._cursors.above, windows))
        problems += await self._engine.patiently(partial(self._appending.keys_above, windows))
        return problems[:PROBLEMS_MAX]

    async def _problems_of_streams(self) -> Sequence[str]:
        """Servers that hold a stream and are behind or gone, in words."""
        problems = []
        for name in (self._engine.layout.main, self._engine.layout.cursors, self._engine.layout.accesses):
            info = await self._engine.patiently(partial(self._engine.jetstream.api, f"STREAM.INFO.{name}"))
            for one in info.get("cluster", {}).get("replicas") or ():
                if one.get("offline") or not one.get("current"):
                    what = "does not answer" if one.get("offline") else f"is {one.get('lag', 0)} operations behind"
                    problems.append(f"stream {name}: the server {one['name']} {what}")
        return problems

    def statistics(self) -> records.StoreStatistics:
        appending, engine = self._appending, self._engine
        away = engine.away_seconds
        return records.StoreStatistics(
            appending.waiting + len(self._waiting),
            appending.waiting_peak,
            appending.waiting_max,
            appending.requests,
            appending.events,
            appending.batch_peak,
            broken=engine.broken,
            diagnoses=len(engine.known),
            away_since=None if away is None else engine.time.monotonic() - away,
        )
