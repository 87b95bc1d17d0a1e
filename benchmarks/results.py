"""Medians, ratios and targets, and the table that shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.servers import FASTAPI, LOOP, OURS

Rounds = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by server, by figure, one a round."""


@dataclass(frozen=True, slots=True)
class Target:
    """What our server is to reach in a figure."""

    limit: float
    beside: str | None = None
    """The server whose figure the limit is a multiple of; `None`: the limit is absolute."""
    moonshot: float | None = None
    """A limit beyond the first; `None`: there is none."""
    beside_figure: str | None = None
    """The figure of that server; `None`: the same figure. Of an absolute limit: one of ours that is shown beside."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity."""

    name: str
    label: str
    more_is_better: bool = False
    targets: tuple[Target, ...] = ()


FIGURES: Final = (
    Figure(
        "posts_per_second", "POST/s, 16 connections", more_is_better=True, targets=(Target(1.3, FASTAPI, moonshot=2),)
    ),
    Figure(
        "deliveries_per_second",
        "deliveries/s, 100 x 10",
        more_is_better=True,
        targets=(Target(1.0, FASTAPI, moonshot=1.5),),
    ),
    Figure(
        "connects_per_second",
        "connects/s, 32 in flight",
        more_is_better=True,
        targets=(Target(1.5, FASTAPI, moonshot=2.5),),
    ),
    Figure("setup_p50_ms", "set-up p50 ms, 32 in flight"),
    Figure("setup_p99_ms", "set-up p99 ms, 32 in flight", targets=(Target(50),)),
    Figure(
        "cpu_seconds_per_100k",
        "CPU s per 100,000 deliveries, 1 x 1000",
        targets=(Target(1.35, LOOP, moonshot=1.15),),
    ),
    Figure("delivery_p50_ms", "delivery p50 ms, 5/s to 1000", targets=(Target(0.65, FASTAPI, moonshot=0.5),)),
    Figure("delivery_p99_ms", "delivery p99 ms, 5/s to 1000", targets=(Target(0.65, FASTAPI, moonshot=0.5),)),
    Figure("single_delivery_p50_ms", "delivery p50 ms, 100/s to 1"),
    Figure("single_delivery_p99_ms", "delivery p99 ms, 100/s to 1"),
    Figure("sync_p50_ms", "one fdatasync beside, p50 ms"),
    Figure(
        "single_above_sync_ms",
        "delivery p50 ms, 100/s to 1, less one fdatasync (beside)",
        targets=(Target(1.0, moonshot=0.5, beside_figure="sync_p50_ms"),),
    ),
    Figure(
        "bulk_events_per_second",
        "NDJSON events/s, 100 diagnoses",
        more_is_better=True,
        targets=(Target(3, FASTAPI, moonshot=5, beside_figure="posts_per_second"),),
    ),
    Figure(
        "stream_events_per_second",
        "events/s over one WebSocket, window 256",
        more_is_better=True,
        targets=(Target(3.5, FASTAPI, moonshot=5, beside_figure="posts_per_second"),),
    ),
    Figure("memory_kb_per_connection", "KB of memory per idle connection", targets=(Target(1.5, moonshot=1.0),)),
    Figure("listening_seconds", "s from kill -9 until the server listens"),
    Figure("recovery_seconds", "s from kill -9 until 10,000 followers are live", targets=(Target(8, moonshot=4),)),
)


def medians(rounds: Rounds) -> dict[str, dict[str, float]]:
    """The median of each figure of each server."""
    return {server: {name: median(values) for name, values in found.items()} for server, found in rounds.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours to theirs in the same round: neighbours on the machine disturb both alike."""
    return median(mine / other if other else float("inf") for mine, other in zip(ours, theirs, strict=True))


def reached(figure: Figure, target: Target, rounds: Rounds, ours: str = OURS) -> float | None:
    """What is held against the limit of a target; `None`: it, or what it is compared with, was not measured.

    Args:
        ours: the name under which our server was measured.
    """
    mine = rounds.get(ours, {}).get(figure.name)
    if not mine or target.beside is None:
        return median(mine) if mine else None
    theirs = rounds.get(target.beside, {}).get(target.beside_figure or figure.name)
    return ratio(mine, theirs) if theirs else None


def keeps(figure: Figure, limit: float, value: float) -> bool:
    """Whether a value is within a limit of this figure."""
    return value >= limit if figure.more_is_better else value <= limit


def verdict(figure: Figure, target: Target, rounds: Rounds) -> bool | None:
    """Whether our server meets a target; `None`: it was not measured."""
    value = reached(figure, target, rounds)
    return None if value is None else keeps(figure, target.limit, value)


def shown(value: float) -> str:
    """A value with three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rounds: Rounds) -> str:
    """Medians with their spread, our ratio to FastAPI, and which targets are met, as a Markdown table."""
    servers = list(rounds)
    return markdown([["figure", *servers, f"{OURS} / {FASTAPI}", "target"], *_rows(rounds, servers)])


def targets(rounds: Rounds, ways: Sequence[str]) -> list[list[str]]:
    """The rows of a table: every target with what was measured, and whether it and the moonshot beyond it are met.

    Args:
        ways: the names under which our server was measured.
    """
    rows = [["figure", "server", "measured", "beside", "of it", "target", "", "moonshot", ""]]
    for figure in FIGURES:
        for target in figure.targets:
            for way in ways:
                mine = rounds.get(way, {}).get(figure.name, ())
                other = rounds.get(target.beside or way, {}).get(target.beside_figure or figure.name, ())
                value = reached(figure, target, rounds, way)
                is_beside = target.beside or target.beside_figure
                beside = f"{target.beside or ''} {_cell(other)}".strip() if is_beside else ""
                of_it = f"{value:.2f}" if target.beside and value is not None else ""
                limits = [_limit(figure, limit, value) for limit in (target.limit, target.moonshot)]
                rows.append([figure.label, way, _cell(mine), beside, of_it, *limits[0], *limits[1]])
    return rows


def _limit(figure: Figure, limit: float | None, value: float | None) -> tuple[str, str]:
    """A limit, and what came of it."""
    if limit is None:
        return "", ""
    said = "not measured" if value is None else "met" if keeps(figure, limit, value) else "not met"
    return f"{'>=' if figure.more_is_better else '<='} {limit:g}", said


def markdown(rows: Sequence[Sequence[str]], *, is_aligned: bool = True) -> str:
    """A table whose first row is its head; aligned for a terminal."""
    widths = [max(len(row[column]) for row in rows) if is_aligned else 0 for column in range(len(rows[0]))]
    lines = [rows[0], ["-" * max(width, 3) for width in widths], *rows[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
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
