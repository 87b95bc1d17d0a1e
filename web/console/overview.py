"""What consoles show of all diagnoses and of the server, looked at once a second for all of them, while somebody looks.

An actor in memory is looked at there, and at other processes that have it in memory (`web.console.elsewhere`). Of one
that rests, the outbox comes from the store, which is read through in the background: at first, when the number of
diagnoses has changed, and now and then. So a disk that does not answer keeps nobody from seeing the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Final

import msgspec
import trio

from actors.registry import Registry
from actors.statistics import Glance, together
from actors.turns import Share
from storage.clock import Clock
from storage.errors import StorageError
from storage.records import Seq, Window
from storage.store import Store
from web.console.elsewhere import Elsewhere, spend_glance
from web.console.rows import Facts, Rows
from web.contract import wire

TURN_SECONDS: Final = 1.0
"""Between two looks."""

READ_SECONDS: Final = 30.0
"""Between two readings of all outboxes. Reason: of a diagnosis that rests, only what lapses changes."""

READ_AGAIN_SECONDS: Final = 2.0
"""Shortest time between two readings, while diagnoses are registered and deleted."""

FIRST_READING_SECONDS: Final = 1.0
"""Longest time that the first look waits for the first reading. Beyond: what rests is shown later."""

READ_AT_ONCE: Final = 250
"""Outboxes read from the store at once. Reason: commits wait for it, some milliseconds."""

PART_ROWS: Final = 400
"""Rows of one message, some 40 KB."""

COLUMNS: Final = (
    "diagnosis_id",
    "state",
    "subscribers",
    "retained",
    "head",
    "unacknowledged",
    "lag",
    "mailbox",
    "incarnation",
    "restarts",
    "crashed_at",
    "crash",
    "damage",
)
"""What a row says, in this order (PROTOCOL section 8)."""

Figures = Mapping[str, object]

logger = logging.getLogger("avicenna.web")


class Overview:
    """The rows of all diagnoses, and the figures of the server. One per server."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        figures: Callable[[], Awaitable[Figures]],
        elsewhere: Elsewhere,
    ) -> None:
        """Nobody looks yet.

        Args:
            store: gives up on a disk that does not answer.
            figures: those of the server, by name; looks at no diagnosis and at no connection.
            elsewhere: what other processes have in memory.
        """
        self._store = store
        self._registry = registry
        self._clock = clock
        self._figures = figures
        self._elsewhere = elsewhere
        self._lookers: dict[Callable[[], None], None] = {}
        """Called after each turn."""
        self._wanted = trio.Event()
        self._looking: trio.CancelScope | None = None
        self.turn = 0
        """The last turn that is complete. Numbers go on after a pause."""
        self._begin()

    def _begin(self) -> None:
        self._elsewhere.forget()
        self._rows = Rows(self.turn)
        self._outboxes: dict[str, tuple[Window, Seq | None]] = {}
        """Of every diagnosis that is known: what it retains, and its lowest cursor."""
        self._were_in_memory: set[str] = set()
        self._to_look_at: set[str] = set()
        """Diagnoses that rest, and of which the store told something new."""
        self._read_at = -inf
        self._was_read = trio.Event()
        self._now: Figures = {}
        self._step: Sequence[bytes] = ()
        """What whoever was given the turn before is due: made once for all."""

    @contextmanager
    def looked_at(self, tell: Callable[[], None]) -> Iterator[None]:
        """Have it kept up to date meanwhile, and `tell` called after each turn."""
        self._lookers[tell] = None
        self._wanted.set()
        try:
            yield
        finally:
            del self._lookers[tell]
            if not self._lookers and self._looking is not None:
                self._looking.cancel()

    @property
    def is_ready(self) -> bool:
        """Whether a turn is complete since somebody looks."""
        return bool(self._now)

    async def run(self) -> None:
        """Look once a second while somebody wants it; until cancelled."""
        while True:
            self._begin()
            if not self._lookers:
                self._wanted = trio.Event()
            await self._wanted.wait()
            async with trio.open_nursery() as looking_nursery:
                self._looking = looking_nursery.cancel_scope
                looking_nursery.start_soon(self._keep_reading)
                with trio.move_on_after(FIRST_READING_SECONDS):
                    await self._was_read.wait()
                while True:
                    began_at = trio.current_time()
                    await self._look()
                    await trio.sleep_until(began_at + TURN_SECONDS)

    # What is due

    def since(self, given: int | None) -> Iterator[bytes]:
        """The frames that somebody is due who was given a turn; `None`: nothing yet. Each is made when it is asked for.

        The last one ends the turn that was complete when the first was made.
        """
        if self._step and given == self.turn - 1:
            yield from self._step
            return
        turn, is_new = self.turn, given is None or not self._rows.knows(given)
        if given is None or is_new:
            given = -1
            yield self._frame("snapshot", {"columns": COLUMNS, "diagnoses": len(self._rows)})
        rows, gone = self._rows.since(given)
        yield from self._rows_frames(rows, () if is_new else gone)
        yield self._frame("turn", {"turn": turn, "node": self._now})

    def _rows_frames(self, rows: Sequence[bytes], gone: Sequence[str]) -> Iterator[bytes]:
        for first in range(0, max(len(rows), len(gone)), PART_ROWS):
            part = [msgspec.Raw(one) for one in rows[first : first + PART_ROWS]]
            yield self._frame("rows", {"rows": part, "gone": gone[first : first + PART_ROWS]})

    def _frame(self, kind: str, data: object) -> bytes:
        return wire.frame(kind, None, self._clock.wall(), data)

    # Looking

    async def _look(self) -> None:
        registry, turn, share = self._registry, self.turn + 1, Share()
        changed_elsewhere = await self._elsewhere.renew()
        in_memory = registry.in_memory
        looked_at, self._to_look_at = self._to_look_at, set()
        left = self._were_in_memory.difference(in_memory)
        self._were_in_memory = set(in_memory)
        for name in (*in_memory, *left, *((looked_at | changed_elsewhere) - self._were_in_memory - left)):
            glance = together([registry.glance_at(name), *self._elsewhere.glances_at(name)])
            facts = self._facts(name, glance)
            if facts is not None and self._rows.differs(name, facts):
                self._rows.put(name, facts, wire.encode(facts), turn)
            await spend_glance(share, glance)
        now = await self._figures()
        # No checkpoint until all are told: what is shared is what follows the turn before.
        before, self._now = self._now, now
        changed = {name: value for name, value in self._now.items() if before.get(name) != value}
        self._step = ()
        if self._rows.knows(self.turn):
            rows, gone = self._rows.since(self.turn)
            last = self._frame("turn", {"turn": turn, "node": changed})
            self._step = (*self._rows_frames(rows, gone), last)
        self.turn = turn
        for tell in list(self._lookers):
            tell()

    def _facts(self, name: str, glance: Glance) -> Facts | None:
        """The row of a diagnosis; `None`: it is not known to be registered."""
        if glance.window is not None:
            self._outboxes[name] = glance.window, glance.lowest
        found = self._outboxes.get(name)
        if found is None:
            return None
        (window, lowest), crash = found, glance.last_crash
        damage = self._store.damaged.get(name)
        return (
            name,
            glance.state if damage is None else "quarantined",
            glance.connections,
            window.head - window.floor,
            window.head,
            max(0, window.head - max(window.floor, lowest or 0)),
            0 if lowest is None else max(0, window.head - lowest),
            glance.mailbox_depth,
            glance.incarnation,
            glance.restarts,
            None if crash is None else wire.timestamp(crash.at),
            None if crash is None else crash.error,
            None if damage is None else damage.what,
        )

    # What the store has

    async def _keep_reading(self) -> None:
        while True:
            waited = trio.current_time() - self._read_at
            has_changed = self._store.statistics().diagnoses != len(self._outboxes)
            if waited >= (READ_AGAIN_SECONDS if has_changed else READ_SECONDS):
                try:
                    await self._read()
                except StorageError as refusal:
                    logger.warning("the console shows what was read before: %s", refusal)
                self._read_at = trio.current_time()
                self._was_read.set()
            await trio.sleep(TURN_SECONDS)

    async def _read(self) -> None:
        """Read all outboxes, and take what is known of those that rest."""
        found: set[str] = set()
        last = ""
        while True:
            page = await self._store.outboxes(after=last, limit=READ_AT_ONCE)
            for one in page:
                last = one.diagnosis_id
                found.add(last)
                if not self._is_in_memory(last) and self._outboxes.get(last) != (one.window, one.lowest_cursor):
                    self._outboxes[last] = one.window, one.lowest_cursor
                    self._to_look_at.add(last)
            if len(page) < READ_AT_ONCE:
                break
        # One that is loaded may have been registered meanwhile.
        for name in [one for one in self._outboxes if one not in found and not self._is_in_memory(one)]:
            del self._outboxes[name]
            self._rows.drop(name, self.turn + 1)

    def _is_in_memory(self, name: str) -> bool:
        """Whether what a diagnosis retains is known from memory, here or elsewhere."""
        if self._registry.glance_at(name).window is not None:
            return True
        return any(one.window is not None for one in self._elsewhere.glances_at(name))
