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

OLD_SECONDS: Final = 3.0
"""What is older is said to be old. Reason: something new comes every second."""

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
    figures: Mapping[str, Any]
    """Of the server: what `web.commands.answers.ConsoleFigures` names. Empty: nothing has come yet."""
    rows: Sequence[Row]
    events_per_second: float
    deliveries_per_second: float
    at: float | None
    """On the monotonic clock, in seconds; `None`: nothing has come yet."""
    failure: str = ""
    """Why nothing comes; empty: it does."""


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
        """The rows of a snapshot that are wanted, in order; worked out once for the same rows and choice."""
        of = (snapshot.rows, self.sort, self.turned, self.search)
        if len(self._of) != len(of) or self._of[0] is not snapshot.rows or self._of[1:] != of[1:]:
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
            now: on the clock of `Snapshot.at`.
        """
        rows = self.rows(snapshot)
        room = rows_of_screen(height)
        self.first = max(0, min(self.first, len(rows) - room))
        shown = rows[self.first : self.first + room]
        widths, trouble = _widths(width, shown, self.sort)
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

    def _head(self, widths: Widths, trouble: int, width: int) -> Line:
        titles = [column.title for column in COLUMNS]
        titles[self.sort] += "^" if COLUMNS[self.sort].falls is self.turned else "v"
        cells = [_aligned(titles[number], one, left=number < 2) for number, one in widths.items()]
        line = " ".join((*cells, _aligned("TROUBLE", trouble, left=True)) if trouble else cells)
        return [(line + " " * (width - cells_of(line)), "inverse")]

    def _foot(self, count: int, total: int, room: int, width: int) -> Line:
        keys = "enter: done  escape: all" if self.typing else "q quit  s sort  r reverse  / search  arrows, PgUp, PgDn"
        last = min(count, self.first + room)
        where = f"{self.first + 1 if count else 0}-{last} of {count}" + ("" if count == total else f" ({total})")
        keys = cut(keys, max(1, width - len(where) - 1))
        return [(keys, "dim"), (" " * max(1, width - cells_of(keys) - len(where)), ""), (where, "")]


def rows_of_screen(height: int) -> int:
    """Rows that a screen of this height has room for."""
    return max(0, height - HEAD_LINES - FOOT_LINES)


Widths = dict[int, int]
"""How wide each column is that is shown, by its index."""


def _widths(width: int, shown: Sequence[Row], sort: int) -> tuple[Widths, int]:
    """How wide each column is, and the last one, which says what is wrong (0: there is no room for it).

    Where there is no room for all, the ones at the right are left out, but for the one that rows are sorted by.
    """
    # An arrow stands behind the title of the column that rows are sorted by.
    fixed = {number: max(one.width, len(one.title) + 1) for number, one in enumerate(COLUMNS) if number}
    while (left := width - sum(fixed.values()) - len(fixed)) < ID_MIN and len(fixed) > 1:
        del fixed[max(one for one in fixed if one != sort)]
    wanted = max([len(COLUMNS[0].title) + 1, *(cells_of(COLUMNS[0].text(row)) for row in shown)])
    longest = max((cells_of(printable(row.trouble)) for row in shown), default=0)
    own = max(ID_MIN, min(wanted, left))
    trouble = left - own - 1
    return {0: own, **fixed}, (trouble if longest and trouble >= TROUBLE_MIN else 0)


def _row_line(row: Row, widths: Widths, trouble: int) -> Line:
    line: Line = []
    for number, width in widths.items():
        column = COLUMNS[number]
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
    node = snapshot.figures
    states = Counter(row.state for row in snapshot.rows)
    figures = [
        f"{node['diagnoses']} diagnoses",
        f"{node['followers']} followers",
        f"{short(snapshot.events_per_second)} events/s",
        f"{short(snapshot.deliveries_per_second)} deliveries/s",
        f"{node['actors']} in memory",
        f"{size(node['ring_bytes'])} of events",
        f"{node['stalls']} cut off",
    ]
    counted: Line = []
    for name in ("running", "restarting", "quarantined", "passive"):
        counted.append((f"{states[name]} {name}", STATES[name] if states[name] else "dim"))
        counted.append(("  ", ""))
    age = 0.0 if snapshot.at is None else now - snapshot.at
    if age >= OLD_SECONDS:
        counted.append((f"(of {age:.0f} s ago)", "yellow"))
    first: Line = [("avicenna-live", "bold"), (f" {printable(node['version'])}  {printable(snapshot.url)}", "")]
    first.append((f"  up {duration(node['uptime_seconds'])}", ""))
    second: Line = [("  ".join(figures), "")]
    if node["store_waiting_seconds"] >= 1:
        second.insert(0, (f"disk waits {node['store_waiting_seconds']:.1f} s  ", "red"))
    if node["clock_held_since"] is not None:
        second.insert(0, (f"clock not believed since {printable(node['clock_held_since'])}  ", "red"))
    return [first, second, counted]
