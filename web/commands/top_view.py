"""What `top` draws, and what its keys do. Pure: a snapshot and a size go in, lines come out.

Nothing here knows where a snapshot comes from (`web.commands.top_feed`), or how lines get onto a terminal
(`web.commands.top_screen`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from web.commands.tables import STATES, cells_of, cut
from web.commands.text import duration, printable, size

Part = tuple[str, str]
"""A text, and its look: a key of `look.SGR`, or empty."""

Line = list[Part]

ID_MIN: Final = 8
TROUBLE_MIN: Final = 16
"""Narrowest that the last column is shown. On a narrower terminal it is left out."""

SEARCH_MAX: Final = 64

HEAD_LINES: Final = 5
FOOT_LINES: Final = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One diagnosis and its actor."""

    diagnosis_id: int | str
    state: str
    connections: int
    queued: int
    """Retained events that some known subscriber has not acknowledged."""
    lag: int
    """Events that the slowest subscriber is behind."""
    mailbox: int
    """Messages that wait."""
    head: int
    events_per_second: float
    crashes: int
    trouble: str
    """What is damaged, or the last crash; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is known at one moment."""

    url: str
    status: Mapping[str, Any]
    rows: Sequence[Row]
    rows_at: float | None
    """Since when all actors have been read, on the monotonic clock, in seconds; `None`: not all of them yet."""
    failure: str = ""
    """Why the last reading failed; empty: it did not."""


class Feed(Protocol):
    """Where snapshots come from."""

    def latest(self) -> Snapshot:
        """The newest one; the same object until there is a newer one."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that rows can be sorted by."""

    title: str
    width: int
    """Columns of the terminal. 0: what is left."""
    key: Callable[[Row], object]
    text: Callable[[Row], str]
    falls: bool = True
    """The largest come first."""


def short(number: float) -> str:
    """A number in at most six characters."""
    if number < 100_000:
        return f"{number:d}" if isinstance(number, int) else f"{number:.1f}"
    for unit in ("k", "M", "G", "T"):
        number /= 1000
        if number < 1000:
            return f"{number:.1f}{unit}" if number < 100 else f"{number:.0f}{unit}"
    return f"{number / 1000:.1f}P"


def _by_id(row: Row) -> object:
    return (isinstance(row.diagnosis_id, str), row.diagnosis_id)


_URGENCY: Final = {"quarantined": 3, "restarting": 2, "running": 1}

COLUMNS: Final = (
    Column("DIAGNOSIS", 0, _by_id, lambda row: printable(str(row.diagnosis_id)), falls=False),
    Column("STATE", 11, lambda row: _URGENCY.get(row.state, 0), lambda row: row.state),
    Column("CONN", 6, lambda row: row.connections, lambda row: short(row.connections)),
    Column("QUEUED", 6, lambda row: row.queued, lambda row: short(row.queued)),
    Column("LAG", 5, lambda row: row.lag, lambda row: short(row.lag)),
    Column("MAIL", 5, lambda row: row.mailbox, lambda row: short(row.mailbox)),
    Column("EV/S", 6, lambda row: row.events_per_second, lambda row: short(row.events_per_second)),
    Column("HEAD", 6, lambda row: row.head, lambda row: short(row.head)),
    Column("CRASH", 5, lambda row: row.crashes, lambda row: short(row.crashes)),
)

SORTED_FIRST: Final = 2
"""The column that rows are sorted by at first: the connections."""


@dataclass(slots=True)
class View:
    """What the person at the keyboard has chosen."""

    sort: int = SORTED_FIRST
    """Index of a column."""
    turned: bool = False
    """The order is the reverse of the column's own."""
    search: str = ""
    """Part of the ids that are shown."""
    typing: bool = False
    """Keys go into the search."""
    first: int = 0
    """Index of the first row on the screen."""
    _of: tuple[object, ...] = field(default=(), repr=False)
    _rows: Sequence[Row] = field(default=(), repr=False)

    def rows(self, snapshot: Snapshot) -> Sequence[Row]:
        """The rows of a snapshot that are wanted, in order; worked out once for each snapshot and choice."""
        of = (snapshot, self.sort, self.turned, self.search)
        if len(self._of) != len(of) or self._of[0] is not snapshot or self._of[1:] != of[1:]:
            column, wanted = COLUMNS[self.sort], self.search.lower()
            rows = [one for one in snapshot.rows if wanted in str(one.diagnosis_id).lower()]
            rows.sort(key=_by_id)  # type: ignore[arg-type] # the same kind of key for all
            if column.key is not _by_id:
                rows.sort(key=column.key, reverse=column.falls)  # type: ignore[arg-type]
            self._of, self._rows = of, rows[::-1] if self.turned else rows
        return self._rows

    def pressed(self, key: str, page: int) -> bool:
        """Obey a key; False: it ends `top`.

        Args:
            key: a character, or `up`, `down`, `page up`, `page down`, `home`, `end`, `backspace`, `enter`, `escape`.
            page: rows on the screen.
        """
        if self.typing:
            self._typed(key)
            return True
        match key:
            case "q" | "Q":
                return False
            case "s" | ">":
                self.sort, self.turned, self.first = (self.sort + 1) % len(COLUMNS), False, 0
            case "S" | "<":
                self.sort, self.turned, self.first = (self.sort - 1) % len(COLUMNS), False, 0
            case "r":
                self.turned, self.first = not self.turned, 0
            case "/":
                self.typing, self.search, self.first = True, "", 0
            case "escape":
                self.search, self.first = "", 0
            case "down" | "j":
                self.first += 1
            case "up" | "k":
                self.first -= 1
            case "page down" | " ":
                self.first += page
            case "page up":
                self.first -= page
            case "home" | "g":
                self.first = 0
            case "end" | "G":
                self.first = len(self._rows)
        return True

    def _typed(self, key: str) -> None:
        self.first = 0
        match key:
            case "enter":
                self.typing = False
            case "escape":
                self.typing, self.search = False, ""
            case "backspace":
                self.search = self.search[:-1]
            case _ if len(key) == 1 and key.isprintable() and len(self.search) < SEARCH_MAX:
                self.search += key

    def lines(self, snapshot: Snapshot, *, width: int, height: int, now: float) -> list[Line]:
        """The screen: at most `height` lines, each of at most `width` columns.

        Args:
            now: on the clock of `Snapshot.rows_at`.
        """
        rows = self.rows(snapshot)
        room = rows_of_screen(height)
        self.first = max(0, min(self.first, len(rows) - room))
        shown = rows[self.first : self.first + room]
        widths, trouble = _widths(width, shown)
        lines = [
            *_summary(snapshot, now),
            self._message(snapshot),
            self._head(widths, trouble, width),
            *(_row_line(row, widths, trouble) for row in shown),
        ]
        lines += [[] for _ in range(room - len(shown))]
        lines.append(self._foot(len(rows), len(snapshot.rows), room, width))
        return [_fitted(line, width) for line in lines][:height]

    def _message(self, snapshot: Snapshot) -> Line:
        if self.typing:
            return [("search: ", "bold"), (printable(self.search), ""), (" ", "inverse")]
        if snapshot.failure:
            return [(printable(snapshot.failure), "red")]
        return [("search: ", "bold"), (printable(self.search), "")] if self.search else []

    def _head(self, widths: Sequence[int], trouble: int, width: int) -> Line:
        titles = [column.title for column in COLUMNS]
        titles[self.sort] += "^" if COLUMNS[self.sort].falls is self.turned else "v"
        cells = [
            _aligned(text, one, left=number < 2) for number, (text, one) in enumerate(zip(titles, widths, strict=True))
        ]
        line = " ".join((*cells, _aligned("TROUBLE", trouble, left=True)) if trouble else cells)
        return [(line + " " * (width - cells_of(line)), "inverse")]

    def _foot(self, count: int, total: int, room: int, width: int) -> Line:
        keys = "enter: done  escape: all" if self.typing else "q quit  s sort  r reverse  / search  arrows, PgUp, PgDn"
        last = min(count, self.first + room)
        where = f"{self.first + 1 if count else 0}-{last} of {count}" + ("" if count == total else f" ({total})")
        return [(keys, "dim"), (" " * max(1, width - len(keys) - len(where)), ""), (where, "")]


def rows_of_screen(height: int) -> int:
    """Rows that a screen of this height has room for."""
    return max(0, height - HEAD_LINES - FOOT_LINES)


def _widths(width: int, shown: Sequence[Row]) -> tuple[list[int], int]:
    """How wide each column is, and the last one, which says what is wrong (0: there is no room for it)."""
    # An arrow stands behind the title of the column that rows are sorted by.
    fixed = [max(column.width, len(column.title) + 1) for column in COLUMNS[1:]]
    left = width - sum(fixed) - len(fixed)
    wanted = max([len(COLUMNS[0].title) + 1, *(cells_of(COLUMNS[0].text(row)) for row in shown)])
    longest = max((cells_of(printable(row.trouble)) for row in shown), default=0)
    own = max(ID_MIN, min(wanted, left))
    trouble = left - own - 1
    return [own, *fixed], (trouble if longest and trouble >= TROUBLE_MIN else 0)


def _row_line(row: Row, widths: Sequence[int], trouble: int) -> Line:
    line: Line = []
    for number, (column, width) in enumerate(zip(COLUMNS, widths, strict=True)):
        name = STATES.get(row.state, "") if column.title == "STATE" else ""
        line.append((_aligned(column.text(row), width, left=number < 2), name))
        line.append((" ", ""))
    if trouble:
        line.append((cut(printable(row.trouble), trouble), "red"))
    return line


def _aligned(text: str, width: int, *, left: bool) -> str:
    text = cut(text, width)
    space = " " * (width - cells_of(text))
    return text + space if left else space + text


def _fitted(line: Line, width: int) -> Line:
    """The beginning of a line that a terminal of this width shows."""
    fitted: Line = []
    for text, name in line:
        if (room := width - sum(cells_of(one) for one, _ in fitted)) <= 0:
            break
        fitted.append((cut(text, room), name))
    return fitted


def _summary(snapshot: Snapshot, now: float) -> list[Line]:
    status = snapshot.status
    node = status.get("node", {})
    states = Counter(row.state for row in snapshot.rows)
    rate = sum(row.events_per_second for row in snapshot.rows)
    figures = [
        f"{status['total_diagnoses']} diagnoses",
        f"{status['total_connections']} followers",
        f"{short(rate)} events/s",
        *([f"{node['actors']} in memory"] if "actors" in node else []),
        *([f"{size(node['ring_bytes'])} of events"] if "ring_bytes" in node else []),
        *([f"{node['aborted']} cut off"] if "aborted" in node else []),
    ]
    disk = node.get("storage_waiting_seconds") or 0.0
    counted: Line = []
    for name in ("running", "restarting", "quarantined", "passive"):
        counted.append((f"{states[name]} {name}", STATES[name] if states[name] else "dim"))
        counted.append(("  ", ""))
    age = "reading" if snapshot.rows_at is None else f"within {max(0.0, now - snapshot.rows_at):.0f} s"
    counted.append((f"({age})", "dim"))
    held = status.get("clock_held_since")
    first: Line = [("avicenna-live", "bold"), (f" {status.get('version', '')}  {printable(snapshot.url)}", "")]
    first.append((f"  up {duration(status.get('uptime_seconds', 0))}", ""))
    second: Line = [("  ".join(figures), "")]
    if disk >= 1:
        second.append((f"  disk waits {disk:.1f} s", "red"))
    if held is not None:
        second.append((f"  clock not believed since {held}", "red"))
    return [first, second, counted]
