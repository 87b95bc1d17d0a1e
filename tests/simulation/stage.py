"""The stage of a history: the server, which dies and starts again, and all that is known of it."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from hashlib import sha256
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from actors.slot import ActorLimits
from storage.disk.database_files import wal_of
from storage.records import Event
from storage.sqlite.copies import restore
from tests.simulation.clients import Follower, Subscriber
from tests.simulation.history import History
from tests.simulation.process import Crashes, Process, WallClock
from tests.simulation.senders import Sender
from tests.simulation.tokens import Token
from tests.simulation.truth import Truth, Violation
from web.contract.wire import render_event

KEYS: Final = ("key-a", "key-b")
"""Files of keys. One signs the tokens that are issued; the other one's tokens are taken, too, until it is exchanged."""

VICTIM, OTHER, QUIET = "1", "2", "quiet"
"""Actors of the first two crash; nothing is ever done to the third."""

REGISTERED: Final = {VICTIM: ("amira", ("bo", "cy")), OTHER: ("bo", ("amira", "cy")), QUIET: ("dora", ())}
FOLLOWERS: Final = ("amira", "bo", "cy", "cy")
DEVICES: Final = (None, "phone", "phone", "tablet")

ANSWER_SECONDS_MAX: Final = 40.0
"""A request that takes longer while the disk answers and the network flows is stuck."""

CLOSE_SECONDS: Final = 1.5
"""A server that ends waits longer for the answer to a Close."""

PASSIVATE_SECONDS: Final = 3.0
QUARANTINE_SECONDS: Final = 6.0

INTENSITY_MAX: Final = ActorLimits().restart_intensity_max
INTENSITY_SECONDS: Final = ActorLimits().restart_intensity_seconds

KEPT_SECONDS: Final = 20.0
"""Age at which events are dropped, where they are: shorter than an operator may choose, as idle time costs."""

HISTORY_SECONDS_MAX: Final = 3000.0
"""A history that lasts longer is stuck."""

KEY_CHARACTERS: Final = 32
TOKEN_SECONDS: Final = 20 * 86400
DIRECTORY: Final = Path("/dev/shm")

LEEWAY_SECONDS: Final = 11.0
"""A token counts as issued before a revocation for so long after it."""


class Stage:
    """The server of a history, and what is known by everybody who talks to it."""

    def __init__(self, history: History, directory: Path) -> None:
        self.history, self.directory = history, directory
        self.lots = Random(history.seed)
        self.clock, self.truth, self.crashes = WallClock(), Truth(), Crashes()
        self.crashes.met = self.happens
        self.seen: Counter[str] = Counter()
        """What has happened, how often: a history in which nothing rare happens shows nothing."""
        self.trace: list[str] = []
        self.steps = 0
        self.keys: dict[str, bytes] = {}
        """By the name of its file."""
        self.signing = KEYS[0]
        """Signs the tokens that are issued."""
        self._keys_made = count(1)
        self.withdrawn: set[bytes] = set()
        """Keys that every server has read to be gone."""
        self.copies: list[Path] = []
        """Those that were made of the database."""
        self.restoring: Path | None = None
        """What is put in the place of the database once the server has ended in order."""
        self._ids, self._links, self._numbers, self._processes = count(1), count(1), count(1), count(1)
        self.process: Process
        self.nursery: trio.Nursery
        self.run = 0
        self.boot = 1
        self.followers: list[Follower] = []
        self.senders: list[Sender] = []
        self.subscribers: dict[tuple[str, str, str | None], Subscriber] = defaultdict(Subscriber)
        self.in_flight: Counter[str] = Counter()
        """Publishes under way, by diagnosis."""
        self.era: Counter[str] = Counter()
        """How often all rights of somebody were taken away."""
        self._tokens: dict[str, Token] = {}
        """Whoever asks or follows uses this one."""
        self.made: dict[str, list[Token]] = defaultdict(list)
        """All that somebody ever had."""
        self.confirmed: dict[str, tuple[float, float]] = {}
        """When a revocation was asked for that was answered, and how far the clock was ahead."""
        self.revoked_at: dict[str, float] = {}
        self.life: Counter[str] = Counter()
        self.done: set[str] = set()
        """Kinds of acts that were begun: what may end a connection."""
        self.disconnected: set[str] = set()
        """Whose connections an operator has ended, or may have ended."""
        self.erased: set[str] = set()
        """Who was erased, and has not been named since."""
        self.named: Counter[str] = Counter()
        """How often somebody was named, by the beginning or the end of a request that does."""
        self.quarantined: set[str] = set()
        self.crashed_at: dict[str, list[float]] = defaultdict(list)
        """When the actor of a diagnosis has crashed since it was quarantined, or the server began."""
        self.let_go_at: dict[str, float] = defaultdict(lambda: -inf)
        """When an operator had it leave memory, or the diagnosis began anew."""
        self.acts_asked: Counter[str] = Counter()
        self.acts_done: Counter[str] = Counter()
        """Acts that were answered, by what their rows call them."""
        self.troubled_until = 0.0
        """Until then the disk, or what it has left behind, may refuse."""
        self.stop_restarting = False
        self.was_killed = False
        """A process has died, and has left open what it had."""
        self.has_lost = False
        """Registrations may be gone, as power has failed under `durability = normal`."""

    async def _end_with_history(self) -> None:
        """Kill the server when the history ends early: its own end would wait for a disk that may hang."""
        try:
            await trio.sleep(HISTORY_SECONDS_MAX)
            raise Violation(f"the history does not end within {HISTORY_SECONDS_MAX:g} s")
        finally:
            self.stop_restarting = True
            for process in self.processes:
                process.kill(power_fails=False)

    @property
    def processes(self) -> list[Process]:
        """The servers that there are."""
        return [self.process]

    def note(self, line: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{trio.current_time():.6f} {line}")

    def happens(self, what: str) -> None:
        """Count something rare."""
        self.seen[what] += 1
        self.note(f"* {what}")

    @property
    def digest(self) -> str:
        """A name of the trace."""
        return sha256("\n".join(self.trace).encode()).hexdigest()

    def _hear_log(self, line: str) -> None:
        self.note(f"log: {line}")
        if not line.startswith("diagnosis "):
            return
        diagnosis_id = line.split()[1].rstrip(":")
        if " crashed: " in line:
            self._crashed(diagnosis_id)
        elif "quarantined for" in line:
            self.quarantined.add(diagnosis_id)
            self.happens("quarantine")
            if len(self._lately(diagnosis_id, INTENSITY_SECONDS)) <= INTENSITY_MAX and len(self.processes) == 1:
                self.breaks(f"{diagnosis_id} is quarantined after the crashes at {self.crashed_at[diagnosis_id]}")
            self.crashed_at[diagnosis_id].clear()

    def _crashed(self, diagnosis_id: str) -> None:
        self.crashed_at[diagnosis_id].append(trio.current_time())
        # An actor that has left memory meanwhile is forgiven.
        lately = self._lately(diagnosis_id, PASSIVATE_SECONDS)
        if len(lately) > INTENSITY_MAX + 1 and self.let_go_at[diagnosis_id] < lately[0] and len(self.processes) == 1:
            self.breaks(f"{diagnosis_id} has crashed at {lately}, and is not quarantined")

    def _lately(self, diagnosis_id: str, seconds: float) -> list[float]:
        return [at for at in self.crashed_at[diagnosis_id] if at > trio.current_time() - seconds]

    def breaks(self, what: str) -> None:
        """A promise was broken, which is noticed where nothing may be raised."""
        self.nursery.start_soon(self._break_off, Violation(what))

    # The server

    def _begin_process(self, before: Process | None) -> None:
        data = self.directory / f"run-{next(self._processes)}"
        if before is None:
            data.mkdir(mode=0o700)
            for name in KEYS if not self.keys else ():
                self._make_key(name)
        elif before.was_killed:
            before.disk.put_into(data)
        else:
            data = before.data
        settings: dict[str, Any] = {
            "durability": self.history.durability,
            "access_trail": self.history.has_access_trail,
            "passivate_after_seconds": PASSIVATE_SECONDS,
            "quarantine_seconds": QUARANTINE_SECONDS,
            "local_key": False,
            "token_keys": tuple(f"HS256:{self.directory / name}" for name in KEYS),
        }
        self.run += 1
        self.process = self._made_process(data, settings, before)
        self.process.number = self.run
        self.process.disk.met = self.happens
        self.process.died = self._process_died
        self.process.happens = self.happens
        self.crashed_at.clear()
        self.note(f"process {self.run} begins")
        self.nursery.start_soon(self.process.run)

    def _make_key(self, name: str) -> None:
        """Have another key in this file: the tokens of the former one are void once a server has read that."""
        self.keys[name] = f"{name} {next(self._keys_made)}".ljust(KEY_CHARACTERS, ".").encode()
        (self.directory / name).write_bytes(self.keys[name])
        (self.directory / name).chmod(0o600)

    def _made_process(self, data: Path, settings: dict[str, Any], before: Process | None) -> Process:
        """A server on this directory, in the place of another one."""
        return Process(data, self.clock, Random(self.lots.getrandbits(32)), self._ids, **self._terms(settings))

    def _terms(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {
            "crashes": self.crashes,
            "render": self._render,
            "settings": settings,
            "boot": f"boot-{self.boot}",
            "events_kept_days": KEPT_SECONDS / 86400 if self.history.drops_old_events else None,
        }

    def _render(self, diagnosis_id: str, event: Event) -> bytes:
        self.crashes.maybe("render", diagnosis_id)
        return render_event(diagnosis_id, event)

    def _process_died(self, process: Process) -> None:
        self.note(f"process {process.number} dies")
        self.was_killed = True
        if process.disk.has_lost:
            self._is_undone()
        for one in self._everybody():
            if one.process == process.number:
                try:
                    one.link.lose_server(hears_rest=self.lots.random() < 0.5)
                except Violation as violation:
                    # Not from here: the disk may have called, and who waits for it would wait for ever.
                    self.nursery.start_soon(self._break_off, violation)

    def _everybody(self) -> list[Follower | Sender]:
        return [*self.followers, *self.senders]

    def _is_undone(self) -> None:
        """What was answered may be undone: who was revoked, who was erased, what was registered or deleted."""
        self.has_lost = True
        self.truth.barred.clear()
        self.truth.ended.clear()
        for update in self.truth.published.values():
            update.is_denied = False
        self.erased.clear()
        self.confirmed.clear()
        for one in self._everybody():
            one.is_barred = False

    async def _break_off(self, violation: Violation) -> None:
        raise violation

    def _restore(self, process: Process) -> None:
        """Put a copy in the place of the database of a server that has ended in order, if an operator wants that."""
        copy, self.restoring = self.restoring, None
        if copy is None or process.was_killed or process.error is not None:
            return
        restore(process.disk.path, copy)
        self.happens("restore")
        self._is_undone()
        self._ends(*self.truth.heads)

    def _ends(self, *epochs: str) -> None:
        """These epochs are over, and whoever asks from now on is not told of them."""
        self.truth.ended.update(dict.fromkeys(epochs, next(self._links)))

    def _take_receipts(self, process: Process) -> None:
        """Whoever has answered in time that it goes, when a server ended in order, has acknowledged all that it got."""
        if process.error is not None or process.was_killed or process.disk.had_trouble_since(0):
            return
        for one in self.followers:
            in_time = one.link.has_sent_all and one.link.all_sent_at < process.drained_at + CLOSE_SECONDS
            if one.process == process.number and one.answers_close and in_time and not one.asked_to_end:
                self.happens("a close is a receipt")
                self._judge_receipt(one, process)

    def _judge_receipt(self, one: Follower, process: Process) -> None:
        """Its cursor is stored where it was when the server said goodbye."""
        if one.is_forgotten or one.subscriber.is_unsure:
            return
        stored = self._stored_cursor(one, process)
        if stored is not None and stored[0] == one.epoch and stored[1] < one.seq:
            raise Violation(
                f"connection {one.number} of {one.sub} {one.device} to {one.diagnosis_id} has answered a Close behind "
                f"{one.seq}, and its cursor is {stored[1]}"
            )

    def _stored_cursor(self, one: Follower, process: Process) -> tuple[str, int] | None:
        """Epoch and number, as a server that has ended in order has left them."""
        copy = self.directory / "looked-at"
        for file, place in ((process.disk.path, copy), (wal_of(process.disk.path), wal_of(copy))):
            place.unlink(missing_ok=True)
            if file.exists():
                shutil.copy(file, place)
        with closing(sqlite3.connect(copy)) as database:
            found = database.execute(
                "SELECT cursor.epoch, seq FROM cursor JOIN diagnosis USING (dx)"
                " WHERE public_id = ? AND sub = ? AND device = ? AND deleted_at IS NULL",
                (one.diagnosis_id, one.sub, one.device or ""),
            ).fetchone()
        return None if found is None else (found[0], found[1])

    async def _keep_running(self) -> None:
        """Start the server again whenever it has ended."""
        while True:
            process = self.process
            await process.ended.wait()
            self.note(f"process {self.run} has ended: {type(process.error).__name__}")
            self._take_receipts(process)
            if self.stop_restarting:
                return
            broke = process.disk.broke
            if process.error is not None and not process.was_killed and not broke:
                raise Violation(f"the server ended by itself: {process.error!r}") from process.error
            await trio.sleep(self.lots.choice((0.01, 0.5, 3.0)))
            self.troubled_until = max(self.troubled_until, trio.current_time() + 1)
            self._restore(process)
            self._begin_process(process)
            with trio.move_on_after(30) as waiting:
                await self.process.begun.wait()
            if waiting.cancelled_caught and self.process.disk.answers:
                raise Violation("the server does not start")
