"""What all parts of a replicated store share: how the engine is asked, what is known of it, and how acts are caught up.

A read goes to any replica, which may lag. So each log has a position that this process has seen, written or heard of
(`seen`), and a read that is older is repeated. Nothing that the leader says is older than what was acknowledged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec
import trio

from storage.audit_rows import AuditRows
from storage.changes import Told
from storage.clock import Timekeeper
from storage.damage import FoundDamage
from storage.errors import Busy, Failed, StoreBroken
from storage.jetstream import acts
from storage.jetstream.acts import ActSaid, Known
from storage.jetstream.entries import ATTEMPT, NOTHING, Entry, Log, attempt_id, entry_of, log_of
from storage.jetstream.layout import Layout, version_and_generation
from storage.nats.errors import Away, JetStreamError, NatsError, NoResponders, Unanswered
from storage.nats.jetstream import MESSAGE_ID, WRONG_LAST, WRONG_LAST_IN_BATCH, Found, JetStream
from storage.records import OUTBOX_EVENTS_MAX

PATIENCE_SECONDS: Final = 10.0
"""How long an operation waits for the engine. Reason: an election takes half of it. Beyond: `Busy` or `Failed`."""

TOO_LATE: Final = 0.2
"""The share of the patience that must be left to begin. Reason: an answer may take 2 s of the 10. Beyond: `Busy`, as
nothing was sent."""

AWAY_SECONDS: Final = 3.0
"""Without an answer of the leader for so long the engine is away. Reason: it is asked each second."""

AGAIN_SECONDS: Final = 0.05
"""Between two attempts while the engine does not answer, on the average."""

BEHIND_SECONDS_MAX: Final = 20.0
"""So long may the leader have less than was seen. Reason: a former leader does not know at once that it is none.
Beyond: the store is broken."""

REMEDY: Final = "if it was restored, run avicenna-live cluster renew"

LAG_SECONDS: Final = 0.002
"""Before a read that was older than it may be is repeated; doubled each time."""

LAGGING_READS_MAX: Final = 8
"""Reads that may be too old. Beyond: the replica is left for another, and the read begins anew."""

READS_AT_ONCE_MAX: Final = 16
"""Reads of one operation that are under way together. Reason: more would take the engine from others."""

PAGE_MESSAGES: Final = 1000
"""Read from a stream at once."""

ACTS_MISSED_MAX: Final = 10_000
"""Acts of others that are applied one by one. Beyond: everything is read anew, as after a start."""

CONFLICTS: Final = frozenset({WRONG_LAST, WRONG_LAST_IN_BATCH})
"""Somebody else was first."""

NOT_NOW: Final = frozenset({10006, 10008, 10009, 10023, 10047, 10077, 10167, 10176, 10210})
"""Errors of an engine without a leader, or without room for a moment, or whose leader has changed in the midst of a
batch. Certainly nothing is stored."""

Answer = TypeVar("Answer")


class WentBack(Unanswered):
    """Who answers has less than was seen before: it is the leader no more, or the engine has lost something."""


class Unreadable(Failed):
    """The newest entry of a log makes no sense: nobody knows which number was given last."""

    def __init__(self, diagnosis_id: str, pos: int) -> None:
        super().__init__(f"the newest entry of diagnosis {diagnosis_id} cannot be read")
        self.pos = pos
        """Where it is."""


class Engine:
    """One process's view of an installation."""

    def __init__(
        self,
        jetstream: JetStream,
        layout: Layout,
        time: Timekeeper,
        *,
        node: str,
        rows: AuditRows,
        new_epoch: Callable[[], str],
        new_id: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        """Nothing is known yet (`load`)."""
        self.jetstream = jetstream
        self.connection = jetstream.connection
        self.layout = layout
        self.time = time
        self.node = node
        self.rows = rows
        self.new_epoch = new_epoch
        self.new_id = new_id
        self.jitter = jitter
        self.known = Known()
        self.told = Told()
        self.damage = FoundDamage()
        self.broke = trio.Event()
        self.broken: str | None = None
        """Why the store can be used no more, in words."""
        self.missed: Callable[[], None] = lambda: None
        """Called after everything was read anew. Must not raise or wait."""
        self.applied: Callable[[ActSaid], None] = lambda act: None
        """Called with each act that was applied. Must not raise or wait."""
        self.answered_at = trio.current_time()
        """When the leader has last answered."""
        self._lately: OrderedDict[str, int] = OrderedDict()
        """The position of acts that were applied lately, by id."""
        self._seen: dict[str, int] = {}
        self._written: dict[str, int] = {}
        self._begins: dict[str, int] = {}
        """The position before which a log has no entries any more, as this process has dropped them."""
        self._numbers: dict[str, tuple[str, int]] = {}
        """The registration and the number of the newest entry of a log that this process knows of."""
        self._behind_since: dict[str, float] = {}
        """Since when the leader has fewer entries of a log than were seen."""
        self._catching_up = trio.Lock()
        self._looks_begun = 0
        """How often the engine was asked for newer acts."""
        self._look_done = 0
        """Which of these was answered last."""

    def breaks(self, reason: str) -> None:
        """The store can be used no more."""
        if not self.broke.is_set():
            self.broken = reason
            self.broke.set()

    # Asking

    @property
    def away_seconds(self) -> float | None:
        """For how long the engine has been away; `None`: it is there."""
        now, since = trio.current_time(), self.connection.away_since
        if since is None and now - self.answered_at > AWAY_SECONDS:
            since = self.answered_at
        return None if since is None else now - since

    def see_that_it_is_there(self) -> None:
        """Refuse at once what others would wait behind, and what can do without.

        Raises:
            Busy: the engine has been away for longer than `AWAY_SECONDS`.
        """
        if not self.is_there:
            raise Busy("the engine is away")

    @property
    def is_there(self) -> bool:
        """The engine has not been away for longer than `AWAY_SECONDS`."""
        return (self.away_seconds or 0.0) <= AWAY_SECONDS

    def is_passing(self, error: NatsError) -> bool:
        """Whether what was asked can succeed a little later; certainly nothing was stored then."""
        if isinstance(error, JetStreamError):
            return error.code >= 500 or error.err_code in NOT_NOW
        return isinstance(error, (Away, NoResponders))

    async def wait_a_little(self) -> None:
        """Until another attempt is worth it."""
        if self.connection.up.is_set():
            await trio.sleep(AGAIN_SECONDS * (0.5 + self.jitter()))
        else:
            with trio.move_on_after(1):
                await self.connection.up.wait()

    async def patiently(self, read: Callable[[], Awaitable[Answer]]) -> Answer:
        """What a read finds, which is repeated until the engine answers.

        Raises:
            Failed: it does not, for `PATIENCE_SECONDS`, or refuses.
        """
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                try:
                    return await read()
                except Unanswered:
                    pass
                except NatsError as error:
                    if not self.is_passing(error):
                        raise Failed(f"the engine refuses: {error}") from error
                await self.wait_a_little()
        raise Failed(f"the engine has not answered for {PATIENCE_SECONDS:g} s")

    async def last(self, stream: str, subject: str) -> Found | None:
        """The last message of a subject, from the leader."""
        found = await self.jetstream.last(stream, subject)
        self.answered_at = trio.current_time()
        return found

    async def together(self, reads: Sequence[Callable[[], Awaitable[Answer]]]) -> Sequence[Answer]:
        """What several reads find, some of them under way at once, each patiently."""
        answers: dict[int, Answer] = {}
        todo = iter(enumerate(reads))

        async def some() -> None:
            for number, read in todo:
                answers[number] = await self.patiently(read)

        errors: list[BaseException] = []
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(READS_AT_ONCE_MAX, len(reads))):
                    nursery.start_soon(some)
        except* Failed as group:
            errors.extend(group.exceptions)
        if errors:
            raise Failed("the engine does not answer") from errors[0]
        return [answers[number] for number in range(len(reads))]

    # Logs

    def saw(self, diagnosis_id: str, pos: int) -> None:
        """No read of this log may be older than this position from now on."""
        if pos > self._seen.get(diagnosis_id, 0):
            self._seen[diagnosis_id] = pos

    def seen(self, diagnosis_id: str) -> int:
        """The newest position of a log that this process knows of."""
        return self._seen.get(diagnosis_id, 0)

    def dropped(self, diagnosis_id: str, before: int) -> None:
        """This process has dropped the entries of a log before this position."""
        self._begins[diagnosis_id] = max(before, self.begin(diagnosis_id))

    def begin(self, diagnosis_id: str) -> int:
        """From which position on a log is read: a replica may still have what was dropped."""
        return self._begins.get(diagnosis_id, 1)

    def wrote(self, diagnosis_id: str, pos: int) -> None:
        """This process has written this log up to this position."""
        self.saw(diagnosis_id, pos)
        self._written[diagnosis_id] = max(pos, self.written(diagnosis_id))

    def written(self, diagnosis_id: str) -> int:
        """The newest position of a log that this process has written."""
        return self._written.get(diagnosis_id, 0)

    def knows(self, diagnosis_id: str, entry: Entry) -> None:
        """This entry is in a log."""
        registration, seq = self._numbers.get(diagnosis_id, ("", 0))
        if registration != entry.registration or seq < entry.seq:
            self._numbers[diagnosis_id] = entry.registration, entry.seq

    def number(self, diagnosis_id: str, epoch: str) -> int:
        """A number that was given to a log in this epoch, the highest one known here; 0: none."""
        registration, seq = self._numbers.get(diagnosis_id, ("", 0))
        return seq if registration == epoch else 0

    async def head(self, diagnosis_id: str) -> Entry:
        """The newest entry of a log, from the leader. To be called patiently."""
        seen = self.seen(diagnosis_id)
        found = await self.last(self.layout.main, self.layout.log(diagnosis_id))
        if (0 if found is None else found.pos) < seen:
            self._is_behind(diagnosis_id)
            raise WentBack(f"the log of {diagnosis_id} has fewer entries than before")
        self._behind_since.pop(diagnosis_id, None)
        if found is None:
            return NOTHING
        entry = self._entry(found)
        if entry is None:
            raise Unreadable(diagnosis_id, found.pos)
        self.knows(diagnosis_id, entry)
        return entry._replace(body=b"")

    def _entry(self, found: Found) -> Entry | None:
        append_id = found.headers.get(MESSAGE_ID)
        attempt = "" if append_id is None else attempt_id(append_id, int(found.headers.get(ATTEMPT, "0")))
        return entry_of(found.pos, found.headers, found.data, attempt, self.known.generation)

    def _is_behind(self, diagnosis_id: str) -> None:
        now = trio.current_time()
        if now - self._behind_since.setdefault(diagnosis_id, now) > BEHIND_SECONDS_MAX:
            self.breaks(f"the engine has lost events of diagnosis {diagnosis_id} that it had acknowledged: {REMEDY}")

    async def entries(self, diagnosis_id: str) -> tuple[Sequence[Entry | None], Sequence[int]]:
        """The entries of a log, and the position of each; not older than what is known. To be called patiently."""
        begin, subject = self.begin(diagnosis_id), self.layout.log(diagnosis_id)
        asked = {"seq": begin, "next_by_subj": subject, "batch": 2 * OUTBOX_EVENTS_MAX}
        for attempt in range(LAGGING_READS_MAX):
            found = await self.jetstream.direct(self.layout.main, asked)
            if (found[-1].pos if found else 0) >= self.seen(diagnosis_id):
                poses = [one.pos for one in found]
                self.saw(diagnosis_id, poses[-1] if poses else 0)
                entries = [self._entry(one) for one in found]
                if entries and entries[-1] is not None:
                    self.knows(diagnosis_id, entries[-1])
                return entries, poses
            await trio.sleep(LAG_SECONDS * 2.0**attempt)
        raise Unanswered("every replica asked lags behind")

    async def log(self, diagnosis_id: str, epoch: str) -> Log:
        """A log as it is now. To be called patiently.

        What was read is judged again if it looks damaged: the oldest entries may have gone while it was read.
        """
        log = log_of(epoch, *await self.entries(diagnosis_id))
        for _ in range(2):
            if log.damage is None:
                return log
            again = log_of(epoch, *await self.entries(diagnosis_id))
            if again.damage == log.damage:
                return again
            log = again
        return log

    # Acts

    async def load(self) -> None:
        """Read what acts have made up to now, and forget what was known before.

        A replica may lag while it is read: so the acts of the last moments are applied on top, by their positions.
        """
        known = Known()
        newest = await self.last(self.layout.main, self.layout.number)
        last = 0 if newest is None else int(newest.data)
        installation = await self.last(self.layout.main, self.layout.version)
        if installation is not None:
            known.generation = version_and_generation(installation.data)[1]
        for subject in (self.layout.all_registrations, self.layout.all_revocations):
            for found in await self.all_of(self.layout.main, subject):
                if found.data:
                    known.take(_read(acts.made_of, found), found.pos)
        for number in range(max(1, last - PAGE_MESSAGES + 1), last + 1):
            act = await self._act(number)
            if act is not None:
                said, pos = act
                for at, made in enumerate(said.made, start=pos - len(said.made)):
                    known.take(made, at)
        known.applied, known.number_pos = last, 0 if newest is None else newest.pos
        self.known = known

    async def page(self, stream: str, subject: str, begin: int) -> Sequence[Found]:
        """The next messages of a subject from this position on, from any replica; fewer than a page: no more."""
        return await self.jetstream.direct(stream, {"seq": begin, "next_by_subj": subject, "batch": PAGE_MESSAGES})

    async def all_of(self, stream: str, subject: str) -> Sequence[Found]:
        """All messages of a subject, in the order of their positions, from any replica. To be called patiently."""
        found: list[Found] = []
        while True:
            page = await self.page(stream, subject, found[-1].pos + 1 if found else 1)
            found += page
            if len(page) < PAGE_MESSAGES:
                return found

    async def be_current(self) -> None:
        """Apply what others have committed before this call; those who ask at the same time ask the engine once."""
        begun = self._looks_begun
        async with self._catching_up:
            if self._look_done <= begun:
                await self._catch_up()

    async def catch_up(self) -> None:
        """Apply the acts that others have committed."""
        async with self._catching_up:
            await self._catch_up()

    async def _catch_up(self) -> None:
        self._looks_begun += 1
        applied = self.known.applied
        newest = await self.last(self.layout.main, self.layout.number)
        last = 0 if newest is None else int(newest.data)
        if last < applied:
            raise WentBack(f"there are {last} acts, where {applied} were applied")
        await self._apply_up_to(last)
        self._look_done = self._looks_begun

    async def _apply_up_to(self, last: int) -> None:
        if last - self.known.applied > ACTS_MISSED_MAX:
            await self._load_anew()
            return
        while self.known.applied < last:
            number = self.known.applied + 1
            act = await self._act(number)
            if act is None or act[0].is_stripped:
                await self._load_anew()
                return
            self.apply(number, *act)

    async def _load_anew(self) -> None:
        await self.load()
        self.missed()

    async def _act(self, number: int) -> tuple[ActSaid, int] | None:
        for subject in (self.layout.act(number), self.layout.rewritten(number)):
            found = await self.last(self.layout.main, subject)
            if found is not None:
                return _read(acts.decoded, found), found.pos
        return None

    def applied_at(self, act_id: str) -> int | None:
        """The position of an act that was applied lately; `None`: it was not."""
        return self._lately.get(act_id)

    def apply(self, number: int, act: ActSaid, pos: int) -> None:
        """An act was committed: know it, and tell of it, unless that was done already."""
        # No checkpoint here: what is told is what is known in that moment.
        if number != self.known.applied + 1:
            return
        change = self.known.apply(number, act, pos, self.told.next)
        self._lately[act.id] = pos
        if len(self._lately) > PAGE_MESSAGES:
            self._lately.popitem(last=False)
        self.applied(act)
        if change is not None:
            self.told.add(change)


def _read(decode: Callable[[bytes], Answer], found: Found) -> Answer:
    """What a message says.

    Raises:
        StoreBroken: it is not what this version writes.
    """
    try:
        return decode(found.data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreBroken(f"{found.subject} at {found.pos} is not what this version writes") from error
