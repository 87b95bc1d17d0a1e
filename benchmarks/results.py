"""Medians, ratios and targets, and the table that shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.servers import FASTAPI, OURS, WEBSOCKETS

Rounds = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by server, by figure, one a round."""


@dataclass(frozen=True, slots=True)
class Target:
    """What our server is to reach in a figure."""

    limit: float
    beside: str | None
    """The server whose figure the limit is a multiple of; `None`: the limit is absolute."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity."""

    name: str
    label: str
    more_is_better: bool = False
    targets: tuple[Target, ...] = ()


FIGURES: Final = (
    Figure(
        "cpu_seconds_per_100k",
        "CPU s per 100,000 deliveries, 1 x 1000",
        targets=(Target(0.5, FASTAPI), Target(1.0, WEBSOCKETS)),
    ),
    Figure("deliveries_per_second", "deliveries/s, 100 x 10", more_is_better=True, targets=(Target(0.5, FASTAPI),)),
    Figure("delivery_p50_ms", "delivery p50 ms, 5/s to 1000", targets=(Target(0.8, FASTAPI), Target(10, None))),
    Figure("delivery_p99_ms", "delivery p99 ms, 5/s to 1000", targets=(Target(0.8, FASTAPI),)),
    Figure("single_delivery_p50_ms", "delivery p50 ms, 100/s to 1", targets=(Target(10, None),)),
    Figure("single_delivery_p99_ms", "delivery p99 ms, 100/s to 1"),
    Figure("memory_kb_per_connection", "KB of memory per idle connection", targets=(Target(2, None),)),
    Figure("connects_per_second", "connects/s, 32 in flight", more_is_better=True, targets=(Target(0.7, FASTAPI),)),
    Figure("setup_p50_ms", "set-up p50 ms, 32 in flight", targets=(Target(50, None),)),
    Figure("setup_p99_ms", "set-up p99 ms, 32 in flight", targets=(Target(60, None),)),
    Figure("posts_per_second", "POST/s, 16 connections", more_is_better=True, targets=(Target(0.4, FASTAPI),)),
)


def medians(rounds: Rounds) -> dict[str, dict[str, float]]:
    """The median of each figure of each server."""
    return {server: {name: median(values) for name, values in found.items()} for server, found in rounds.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours to theirs in the same round: neighbours on the machine disturb both alike."""
    return median(mine / other if other else float("inf") for mine, other in zip(ours, theirs, strict=True))


def verdict(figure: Figure, target: Target, rounds: Rounds) -> bool | None:
    """Whether our server meets a target; `None`: one of the two was not measured."""
    ours = rounds.get(OURS, {}).get(figure.name)
    if not ours:
        return None
    if target.beside is None:
        value = median(ours)
    else:
        theirs = rounds.get(target.beside, {}).get(figure.name)
        if not theirs:
            return None
        value = ratio(ours, theirs)
    return value >= target.limit if figure.more_is_better else value <= target.limit


def shown(value: float) -> str:
    """A value with three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rounds: Rounds) -> str:
    """Medians with their spread, our ratio to FastAPI, and which targets are met, as a Markdown table."""
    servers = list(rounds)
    rows = [["figure", *servers, f"{OURS} / {FASTAPI}", "target"], *_rows(rounds, servers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def _rows(rounds: Rounds, servers: Sequence[str]) -> list[list[str]]:
    rows = []
    for figure in FIGURES:
        cells = [_cell(rounds[server].get(figure.name, ())) for server in servers]
        if not any(cells):
            continue
        ours, theirs = (rounds.get(name, {}).get(figure.name) for name in (OURS, FASTAPI))
        beside = f"{ratio(ours, theirs):.2f}" if ours and theirs else ""
        targets = ", ".join(_target(figure, target, rounds) for target in figure.targets)
        rows.append([figure.label, *cells, beside, targets])
    return rows


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ({shown(min(values))}-{shown(max(values))})" if len(values) > 1 else ""
    return shown(median(values)) + spread


def _target(figure: Figure, target: Target, rounds: Rounds) -> str:
    sign = ">=" if figure.more_is_better else "<="
    beside = f" x {target.beside}" if target.beside else ""
    said = {True: "met", False: "MISSED", None: "not measured"}[verdict(figure, target, rounds)]
    return f"{sign} {target.limit:g}{beside}: {said}"
