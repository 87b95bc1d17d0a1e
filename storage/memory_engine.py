"""What the handles of an engine in memory share: the state, and how one hears of what another has written.

An engine with one handle is a store like SQLite. With several it behaves as a replicated one does: a live copy of each
entry goes to the handles that follow the log, and a read may be old. How badly it behaves is for a test to say
(`Faults`). Deterministic, without threads: what is late or drawn by lot comes from Trio's clock and a seed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Final, NamedTuple

import trio

from storage import records
from storage.audit_rows import BARE_ROWS, AuditRows
from storage.changes import Change, EpochsRenewed, Hears, Told
from storage.clock import Clock
from storage.damage import Damage, checksum, judge
from storage.news import LOOK, News

PAST_ENTRIES_MAX: Final = 32
"""Entries by which a read can be old, at most."""

LOOK_SECONDS: Final = 60.0
"""Between two looks at whether a handle has missed something."""


@dataclass(slots=True)
class Faults:
    """What goes wrong between the handles of an engine; may be changed at any time."""

    live_lost: float = 0.0
    """The share of live copies that never arrive, 0 to 1."""
    live_late_seconds: float = 0.0
    """A live copy takes so long at most. Above 0 `MemoryEngine.run` must run."""
    reads_old: int = 0
    """A read of a log is old by so many entries at most."""
    random: Random = field(default_factory=lambda: Random(0))  # noqa: S311 - a test repeats what it draws


class Entry(NamedTuple):
    """The log of a diagnosis as one entry, an event or a mark, has left it."""

    position: int
    """Grows with each entry of the engine."""
    window: records.Window
    events: tuple[records.Event, ...]


@dataclass(slots=True)
class Stream:
    """Everything of one diagnosis."""

    diagnosis: records.Diagnosis
    events: list[records.Event] = field(default_factory=list)
    head: int = 0
    floor: int = 0
    purged: int = 0
    keys: dict[str, tuple[bytes, records.Seq, float, float]] = field(default_factory=dict)
    """Digest, number and time of the event each key made, and when the key expires."""
    cursors: dict[records.SubscriberId, records.Cursor] = field(default_factory=dict)
    changed: frozenset[int] = frozenset()
    """Numbers of events that are not what was stored."""
    is_suspect: bool = False
    """A test has changed the stored events, as a failing disk does."""
    past: deque[Entry] = field(default_factory=lambda: deque(maxlen=PAST_ENTRIES_MAX))
    """The newest entries of the log, the last one last. Kept only where handles share the engine."""

    def judge(self) -> Damage | None:
        """What is wrong with the outbox."""
        if not self.is_suspect:
            return None
        entries = []
        for event in self.events:
            kind, crc = event.kind.encode(), checksum(event.seq, event.at, event.kind.encode(), event.body)
            crc ^= event.seq in self.changed
            entries.append((event.seq % records.OUTBOX_EVENTS_MAX, event.seq, event.at, kind, event.body, crc))
        told = max((seq for _, seq, _, _ in self.keys.values()), default=0)
        return judge((self.head, self.floor, self.purged), entries, told)

    def entry(self, position: int) -> Entry:
        """The log as it is now."""
        return Entry(position, self.window, tuple(self.events))

    @property
    def window(self) -> records.Window:
        return records.Window(
            self.diagnosis.epoch, records.Seq(self.head), records.Seq(self.floor), records.Seq(self.purged)
        )


class Handle:
    """What an engine knows of one of its users: what it follows, what it has seen, and whether it is reached."""

    def __init__(self, node: str, clock: Clock) -> None:
        self.node = node
        self.away_since: float | None = None
        """Since when nothing of the engine reaches it, on the monotonic clock."""
        self._clock = clock
        self._hears: Hears | None = None
        self._changes: list[Change] = []
        """Committed while it was away."""
        self._followed: Counter[str] = Counter()
        self._missed: dict[str, Entry] = {}
        """Followed logs of which a live copy was lost, and the last that was."""
        self._seen: dict[str, int] = {}
        """The position of the newest entry of each diagnosis that it knows of: no read is older."""

    def tell(self, hears: Hears) -> None:
        """Have this object told of changes and of what others write."""
        assert self._hears is None, "a store tells one listener"
        self._hears = hears

    def changed(self, change: Change) -> None:
        """An act was committed."""
        if self.away_since is not None:
            self._changes.append(change)
        elif self._hears is not None:
            self._hears.changed(change)

    def follow(self, diagnosis_id: str, newest: Entry | None) -> Callable[[], None]:
        """Tell it of what others write to this log, until the function returned is called.

        Args:
            newest: the newest entry there is, of which nobody will tell; `None`: there is none.
        """
        self._followed[diagnosis_id] += 1
        if newest is not None:
            self.saw(diagnosis_id, newest)

        def unfollow() -> None:
            self._followed[diagnosis_id] -= 1
            if not self._followed[diagnosis_id]:
                del self._followed[diagnosis_id]
                self._missed.pop(diagnosis_id, None)

        return unfollow

    def follows(self, diagnosis_id: str) -> bool:
        """Whether it is to be told of this log."""
        return diagnosis_id in self._followed

    def has_seen(self, diagnosis_id: str, entry: Entry) -> bool:
        """Whether it knows of this entry, or of a newer one."""
        return self._seen.get(diagnosis_id, 0) >= entry.position

    def saw(self, diagnosis_id: str, entry: Entry) -> None:
        """It knows of this entry from now on."""
        self._seen[diagnosis_id] = max(entry.position, self._seen.get(diagnosis_id, 0))

    def hear(self, diagnosis_id: str, entry: Entry, news: News) -> None:
        """A live copy arrives."""
        if self.away_since is not None:
            self.miss(diagnosis_id, entry)
        elif self.follows(diagnosis_id) and self._hears is not None:
            self.saw(diagnosis_id, entry)
            self._hears.grew(diagnosis_id, news)

    def miss(self, diagnosis_id: str, entry: Entry) -> None:
        """A live copy is lost."""
        if self.follows(diagnosis_id):
            self._missed[diagnosis_id] = entry

    def go_away(self) -> None:
        """Reach it no more."""
        if self.away_since is None:
            self.away_since = self._clock.monotonic()

    def come_back(self) -> None:
        """Reach it again, and tell it what it has missed."""
        self.away_since = None
        changes, self._changes = self._changes, []
        for change in changes:
            self.changed(change)
        self.look()

    def look(self) -> None:
        """Tell it of the logs of which something was lost."""
        if self.away_since is not None or self._hears is None:
            return
        missed, self._missed = self._missed, {}
        for diagnosis_id, entry in missed.items():
            self.saw(diagnosis_id, entry)
            self._hears.grew(diagnosis_id, LOOK)


class MemoryEngine:
    """The state of a store in memory, and of all its handles."""

    def __init__(
        self,
        *,
        clock: Clock,
        new_epoch: Callable[[], str],
        keys_max: int = records.IDEMPOTENCY_KEYS_MAX,
        rows: AuditRows = BARE_ROWS,
        shared: bool = False,
        faults: Faults | None = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """An empty engine.

        Args:
            rows: makes the audit rows of acts.
            shared: it has several handles.
            faults: what goes wrong between them; `None`: nothing.
            look_seconds: between two looks at what they have missed.
        """
        self.clock = clock
        self.new_epoch = new_epoch
        self.keys_max = keys_max
        self.rows = rows
        self.shared = shared
        self.faults = faults or Faults()
        self.streams: dict[str, Stream] = {}
        self.audit: list[records.AuditRow] = []
        self.revocations: dict[int, records.Revocation] = {}
        self.revocations_made = 0
        self.accesses: list[records.AccessRow] = []
        self.audit_rows_made = self.access_rows_made = 0
        self.told = Told()
        self.told.begin(self._changed)
        self._handles: dict[str, Handle] = {}
        self._entries_made = 0
        self._late: deque[tuple[float, Handle, str, Entry, News]] = deque()
        """Live copies under way, and when they arrive; the first arrives first."""
        self._late_came = trio.Event()
        self._look_seconds = look_seconds

    def join(self, node: str) -> Handle:
        """A handle for this node, in the place of an earlier one."""
        handle = self._handles[node] = Handle(node, self.clock)
        assert self.shared or len(self._handles) == 1, "only a shared engine has several handles"
        return handle

    def leave(self, handle: Handle) -> None:
        """This handle is dead: nobody is told anything by it any more."""
        handle.go_away()
        if self._handles.get(handle.node) is handle:
            del self._handles[handle.node]

    def go_away(self) -> None:
        """Answer nobody, and tell nobody anything, until `come_back`."""
        for handle in self._handles.values():
            handle.go_away()

    def come_back(self) -> None:
        """Answer again; whoever has missed something meanwhile is told so."""
        for handle in self._handles.values():
            handle.come_back()

    def _changed(self, change: Change) -> None:
        for handle in list(self._handles.values()):
            handle.changed(change)

    def renew_epochs(self) -> None:
        """Begin the numbering of every diagnosis anew while handles listen, as whoever has restored the engine does."""
        for stream in self.streams.values():
            stream.diagnosis = replace(stream.diagnosis, epoch=records.Epoch(self.new_epoch()))
        self.told.add(EpochsRenewed(self.told.next, None))
        for diagnosis_id in self.streams:
            self.wrote(None, diagnosis_id)

    def wrote(self, by: Handle | None, diagnosis_id: str, event: records.Event | None = None) -> None:
        """The log of a diagnosis has one more entry.

        Args:
            by: who wrote it; `None`: none of the handles.
            event: what was appended; `None`: a mark.
        """
        if not self.shared:
            return
        stream = self.streams[diagnosis_id]
        self._entries_made += 1
        entry = stream.entry(self._entries_made)
        stream.past.append(entry)
        if by is not None:
            by.saw(diagnosis_id, entry)
        self._tell_others(by, diagnosis_id, entry, News(stream.window, () if event is None else (event,)))

    def ended(self, by: Handle, diagnosis_id: str, stream: Stream) -> None:
        """A diagnosis was deleted: whoever follows it is to look."""
        if self.shared:
            self._tell_others(by, diagnosis_id, stream.past[-1], LOOK)

    def _tell_others(self, by: Handle | None, diagnosis_id: str, entry: Entry, news: News) -> None:
        faults = self.faults
        for handle in [one for one in self._handles.values() if one is not by and one.follows(diagnosis_id)]:
            if faults.live_lost and faults.random.random() < faults.live_lost:
                handle.miss(diagnosis_id, entry)
            elif faults.live_late_seconds:
                arrives_at = trio.current_time() + faults.random.uniform(0, faults.live_late_seconds)
                if self._late:  # the order is kept
                    arrives_at = max(arrives_at, self._late[-1][0])
                self._late.append((arrives_at, handle, diagnosis_id, entry, news))
                self._late_came.set()
            else:
                handle.hear(diagnosis_id, entry, news)

    def read(self, by: Handle, stream: Stream, seq: records.Seq) -> Entry:
        """The log as this handle finds it: never older than what it has seen, or than `seq`."""
        if not self.shared:
            return stream.entry(0)
        diagnosis_id, allowed = stream.diagnosis.diagnosis_id, [stream.past[-1]]
        for older in reversed(list(stream.past)[-1 - self.faults.reads_old : -1]):
            if by.has_seen(diagnosis_id, allowed[-1]) or older.window.head < seq:
                break
            allowed.append(older)
        found = self.faults.random.choice(allowed)
        by.saw(diagnosis_id, found)
        return found

    async def run(self) -> None:
        """Have late copies arrive, and tell handles that they have missed something; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver_late)
            nursery.start_soon(self._look_for_missed)

    async def _deliver_late(self) -> None:
        while True:
            self._late_came = trio.Event()
            while self._late and self._late[0][0] <= trio.current_time():
                _, handle, diagnosis_id, entry, news = self._late.popleft()
                handle.hear(diagnosis_id, entry, news)
            with trio.move_on_at(self._late[0][0] if self._late else inf):
                await self._late_came.wait()

    async def _look_for_missed(self) -> None:
        while True:
            await trio.sleep(self._look_seconds)
            for handle in list(self._handles.values()):
                handle.look()
