"""Plots as SVG: lines over a size, and bars of parts. Pure: the same figures make the same bytes.

They are written by hand, and not with a plotting library (decision 0118): one file serves light and dark pages, its
text stays text, and the test that compares the plots with their figures needs no further package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
HEIGHT: Final = 420
LEFT: Final = 70
RIGHT: Final = 190
"""Room for the names of the lines."""
TOP: Final = 78
BOTTOM: Final = 56

PLOT_RIGHT: Final = WIDTH - RIGHT
PLOT_BOTTOM: Final = HEIGHT - BOTTOM
NAME_HEIGHT: Final = 17
"""Between the names of two lines that end beside each other."""
BAR_HEIGHT: Final = 18
ROW_HEIGHT: Final = 30
CHARACTER_WIDTH: Final = 6.6
DENSE_DECADES_MAX: Final = 3
"""Of an axis that has ticks between its powers of ten."""

STYLE: Final = """
svg { font: 12px system-ui, sans-serif; --ink: #1f2328; --quiet: #59636e; --rule: #d1d9e0; --page: #ffffff;
  --a: #0969da; --b: #bc4c00; --c: #1a7f37; --d: #8250df; }
@media (prefers-color-scheme: dark) { svg { --ink: #f0f6fc; --quiet: #9198a1; --rule: #3d444d; --page: #0d1117;
  --a: #4493f8; --b: #f0883e; --c: #3fb950; --d: #ab7df8; } }
.page { fill: var(--page); } text { fill: var(--ink); } .quiet { fill: var(--quiet); }
.title { font-size: 15px; font-weight: 600; } .rule { stroke: var(--rule); } .end { text-anchor: end; }
.middle { text-anchor: middle; } .line { fill: none; stroke-width: 2; }
.a { --own: var(--a); } .b { --own: var(--b); } .c { --own: var(--c); } .d { --own: var(--d); }
.line { stroke: var(--own); } .dot, .bar { fill: var(--own); } .own { fill: var(--own); }
.dashed { stroke-dasharray: 6 4; } .pale { fill-opacity: 0.45; }
.leader { stroke: var(--own); stroke-opacity: 0.6; stroke-dasharray: 1 3; }
.over { paint-order: stroke; stroke: var(--page); stroke-width: 5; }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    """One of `a` to `d`."""
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of parts, one behind the other."""

    name: str
    parts: Sequence[tuple[str, float]]
    colour: str


@dataclass(frozen=True, slots=True)
class Axis:
    """What one direction of a plot shows."""

    label: str
    is_logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places."""

    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[float, ...]
    is_logarithmic: bool

    def at(self, value: float) -> float:
        low, high, here = (
            (math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low)))
            if self.is_logarithmic
            else (self.low, self.high, value)
        )
        return round(self.begin + (here - low) / (high - low) * (self.end - self.begin), 1)


def lines(title: str, about: str, x: Axis, y: Axis, drawn: Sequence[Line]) -> str:
    """A plot of lines, each with its name at its end; at least one line has a point.

    Args:
        about: a line below the title.
    """
    xs, ys = ([point[which] for line in drawn for point in line.points] for which in (0, 1))
    across = _scale(xs, x, LEFT, PLOT_RIGHT)
    up = _scale(ys, y, PLOT_BOTTOM, TOP)
    parts = [_grid(across, up, x, y)]
    for line in drawn:
        dashed = " dashed" if line.is_dashed else ""
        places = [(across.at(a), up.at(b)) for a, b in line.points]
        path = " ".join(f"{a:g},{b:g}" for a, b in places)
        parts.append(f'<g class="{line.colour}"><polyline class="line{dashed}" points="{path}"/>')
        parts += [f'<circle class="dot" cx="{a:g}" cy="{b:g}" r="3"/>' for a, b in places]
        parts.append("</g>")
    parts += _names(drawn, across, up)
    return _page(title, about, HEIGHT, parts)


def bars(title: str, about: str, x: Axis, drawn: Sequence[Bar]) -> str:
    """Rows of parts, each part with its name and value; the parts after the first are paler."""
    left = max(LEFT, round(max(len(bar.name) for bar in drawn) * CHARACTER_WIDTH) + 24)
    bottom = TOP + ROW_HEIGHT * len(drawn)
    height = bottom + BOTTOM
    across = _scale([sum(value for _, value in bar.parts) for bar in drawn] + [0.0], x, left, PLOT_RIGHT)
    parts = [
        f'<line class="rule" x1="{across.at(tick):g}" x2="{across.at(tick):g}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="quiet middle" x="{across.at(tick):g}" y="{bottom + 18}">{_shown(tick)}</text>'
        for tick in across.ticks
    ]
    parts.append(
        f'<text class="quiet middle" x="{(left + PLOT_RIGHT) // 2}" y="{height - 14}">{escape(x.label)}</text>'
    )
    for number, bar in enumerate(drawn):
        y, at = TOP + ROW_HEIGHT * number + (ROW_HEIGHT - BAR_HEIGHT) // 2, 0.0
        parts.append(
            f'<text class="end" x="{left - 10}" y="{y + 13}">{escape(bar.name)}</text><g class="{bar.colour}">'
        )
        for turn, (_, value) in enumerate(bar.parts):
            begin, end = across.at(at), across.at(at + value)
            pale = " pale" if turn else ""
            parts.append(
                f'<rect class="bar{pale}" x="{begin:g}" y="{y}"'
                f' width="{max(0.0, end - begin):.1f}" height="{BAR_HEIGHT}"/>'
            )
            at += value
        said = ", ".join(f"{name} {_digits(value)}".strip() for name, value in bar.parts)
        parts.append(f'</g><text class="over" x="{across.at(at) + 8:g}" y="{y + 13}">{escape(said)}</text>')
    return _page(title, about, height, parts)


def _page(title: str, about: str, height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{escape(title)}">'
    )
    return "\n".join(
        [
            head,
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}"/>',
            f'<text class="title" x="16" y="26">{escape(title)}</text>',
            f'<text class="quiet" x="16" y="46">{escape(about)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def _scale(values: Sequence[float], axis: Axis, begin: float, end: float) -> _Scale:
    """From the least tick that no value is below to the one that none is above; a linear scale begins at 0."""
    if axis.is_logarithmic:
        positive = [value for value in values if value > 0] or [1.0]
        ticks = _powers(min(positive), max(positive))
        return _Scale(ticks[0], ticks[-1], begin, end, ticks, is_logarithmic=True)
    step = _step(max(*values, 1e-9))
    count = max(1, math.ceil(max(values) / step - 1e-9))
    ticks = tuple(round(number * step, 9) for number in range(count + 1))
    return _Scale(0.0, ticks[-1], begin, end, ticks, is_logarithmic=False)


def _powers(least: float, most: float) -> tuple[float, ...]:
    """Powers of ten around these values, two at least; of a short range 2 and 5 times them, too."""
    first, last = math.floor(math.log10(least) + 1e-9), math.ceil(math.log10(most) - 1e-9)
    parts = (1, 2, 5) if last - first <= DENSE_DECADES_MAX else (1,)
    ticks = [float(f"{part}e{power}") for power in range(first, max(last, first + 1) + 1) for part in parts]
    low = max(tick for tick in ticks if tick <= least * (1 + 1e-9))
    high = min((tick for tick in ticks if tick >= most * (1 - 1e-9) and tick > low), default=ticks[-1])
    return tuple(tick for tick in ticks if low <= tick <= high)


def _step(most: float) -> float:
    """A round distance of four to ten ticks."""
    power = 10.0 ** math.floor(math.log10(most))
    return float(next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if most / (power * part) <= 8))


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> str:
    parts = [
        f'<line class="rule" x1="{LEFT}" x2="{PLOT_RIGHT}" y1="{up.at(tick):g}" y2="{up.at(tick):g}"/>'
        f'<text class="quiet end" x="{LEFT - 8}" y="{up.at(tick) + 4:g}">{_shown(tick)}</text>'
        for tick in up.ticks
    ]
    parts += [
        f'<line class="rule" x1="{across.at(tick):g}" x2="{across.at(tick):g}" y1="{TOP}" y2="{PLOT_BOTTOM}"/>'
        f'<text class="quiet middle" x="{across.at(tick):g}" y="{PLOT_BOTTOM + 18}">{_shown(tick)}</text>'
        for tick in across.ticks
    ]
    parts.append(
        f'<text class="quiet middle" x="{(LEFT + PLOT_RIGHT) // 2}" y="{HEIGHT - 14}">{escape(x.label)}</text>'
        f'<text class="quiet" x="16" y="{TOP - 12}">{escape(y.label)}</text>'
    )
    return "\n".join(parts)


def _names(drawn: Sequence[Line], across: _Scale, up: _Scale) -> list[str]:
    """The name of each line in the margin, as near to its end as the other names leave room, with a rule to it."""
    ends = sorted(((line.points[-1], line) for line in drawn if line.points), key=lambda end: up.at(end[0][1]))
    found, free = [], float(TOP)
    beyond = len(ends) * NAME_HEIGHT
    for (last_x, last_y), line in ends:
        x, y = across.at(last_x), up.at(last_y)
        place = min(max(y, free), PLOT_BOTTOM - beyond + NAME_HEIGHT)
        free, beyond = place + NAME_HEIGHT, beyond - NAME_HEIGHT
        found.append(
            f'<g class="{line.colour}">'
            f'<line class="leader" x1="{x + 5:g}" y1="{y:g}" x2="{PLOT_RIGHT + 12}" y2="{place:g}"/>'
            f'<text class="own" x="{PLOT_RIGHT + 16}" y="{place + 4:g}">{escape(line.name)}</text></g>'
        )
    return found


def _shown(tick: float) -> str:
    return f"{tick:,.10g}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 10 else f"{value:.3g}"
