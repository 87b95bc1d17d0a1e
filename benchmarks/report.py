"""The plots and tables of docs/BENCHMARKS.md and README.md, made from the runs in docs/measured: `make bench-report`.

Each run makes the plots that `DRAWN` has for its benchmark. In a page they stand between two marks, and so do the table
of the targets and that of the README; what stands around them is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from benchmarks import cluster, plots, records, workers
from benchmarks.plots import Axis, Bar, Line
from benchmarks.records import AT_REST, Point, Run
from benchmarks.results import markdown, medians, shown, targets
from benchmarks.servers import FASTAPI, LONG_WAY, LOOP, OURS, ROOT

PLOTS: Final = ROOT / "docs" / "plots"

VERSIONS_SHOWN: Final = ("commit", "python", "sqlite", "fastapi", "uvicorn")
"""The others are in the run."""

COLOURS: Final = {OURS: "a", LONG_WAY: "d", FASTAPI: "b", LOOP: "c"}
"""Of each server, the same in every plot."""


def about(run: Run) -> str:
    """Where and when a run was made, in one line."""
    machine = run.machine
    busy = f"; BUSY MACHINE, load {machine.load_before:g}" if machine.was_busy else ""
    return f"{machine.cpu}, {machine.cores} cores, Linux {machine.kernel.partition('-')[0]}; {run.taken}{busy}"


def line_of(points: Sequence[Point], name: str) -> list[tuple[float, float]]:
    """The medians of one figure, by size."""
    return [(point.x, median(point.values[name])) for point in points if name in point.values]


def costs(title: str, x_label: str) -> Callable[[Run], str]:
    """What draws the CPU time of a delivery over a size."""

    def draw(run: Run) -> str:
        drawn = [Line(server, line_of(points, "cpu_us"), COLOURS[server]) for server, points in run.series.items()]
        return plots.lines(
            title, about(run), Axis(x_label, is_logarithmic=True), Axis("CPU us", is_logarithmic=True), drawn
        )

    return draw


def load(run: Run) -> str:
    """The time of a publish over the offered load."""
    drawn = [
        Line(f"{server}, {name}", line_of(points, f"{name}_ms"), COLOURS[server], is_dashed=name == "p50")
        for server, points in run.series.items()
        for name in ("p99", "p50")
    ]
    return plots.lines(
        "Time of a publish until it is answered, up to the load that saturates",
        about(run),
        Axis("publishes offered a second", is_logarithmic=True),
        Axis("ms", is_logarithmic=True),
        drawn,
    )


def idle_memory(run: Run) -> str:
    """Memory of an idle connection, in the process and in the kernel."""
    drawn = [
        Bar(
            f"{server}, {point.x:,g}",
            [
                (part, max(0.0, median(point.values[f"{part}_kb"])))
                for part in ("process", "kernel")
                if f"{part}_kb" in point.values
            ],
            COLOURS[server],
        )
        for server, points in run.series.items()
        for point in points
    ]
    return plots.bars("Memory of an idle connection", about(run), Axis("KB for each connection"), drawn)


def idle_cpu(run: Run) -> str:
    """CPU time of idle connections."""
    drawn = [
        Bar(f"{server}, {point.x:,g}", [("", median(point.values["cpu_us_per_second"]))], COLOURS[server])
        for server, points in run.series.items()
        for point in points
    ]
    return plots.bars("CPU time of an idle connection", about(run), Axis("us a second for each connection"), drawn)


def recovery(run: Run) -> str:
    """How long followers wait after `kill -9`."""
    said = {"all_s": "all are live", "half_s": "half are live", "listening_s": "it listens"}
    drawn = [
        Line(f"{server}: {what}", line_of(points, name), COLOURS[server], is_dashed=name != "all_s")
        for server, points in run.series.items()
        for name, what in said.items()
    ]
    return plots.lines(
        "Time from kill -9 until the followers of 500 diagnoses are live again",
        about(run),
        Axis("followers"),
        Axis("seconds"),
        drawn,
    )


def soaked(title: str, y_label: str, names: Mapping[str, str]) -> Callable[[Run], str]:
    """What draws figures of a soak over its minutes; at rest a dashed line joins what is compared.

    Args:
        names: of the figures in the plot, each with its colour.
    """

    def draw(run: Run) -> str:
        drawn = [
            Line(f"{series}: {name.partition('_')[0]}", line_of(points, name), colour, is_dashed=series == AT_REST)
            for name, colour in names.items()
            for series, points in run.series.items()
        ]
        return plots.lines(title, about(run), Axis("minutes"), Axis(y_label), drawn)

    return draw


DRAWN: Final[dict[str, dict[str, Callable[[Run], str]]]] = {
    "growth-followers": {
        "growth-followers": costs("CPU time of a delivery, by followers of one diagnosis", "followers")
    },
    "growth-diagnoses": {
        "growth-diagnoses": costs("CPU time of a delivery, by diagnoses with one follower each", "diagnoses")
    },
    "growth-load": {"growth-load": load},
    "growth-idle": {"growth-idle-memory": idle_memory, "growth-idle-cpu": idle_cpu},
    "growth-recovery": {"growth-recovery": recovery},
    "soak": {
        "soak-memory": soaked("Memory and write-ahead log during a soak", "MiB", {"memory_mib": "a", "wal_mib": "b"}),
        "soak-counts": soaked(
            "Tasks, descriptors and threads during a soak",
            "how many",
            {"tasks": "a", "descriptors": "b", "threads": "c"},
        ),
    },
}
"""By benchmark: the names of its plots, and what draws each."""


PAGES: Final = (ROOT / "README.md", ROOT / "docs" / "BENCHMARKS.md")
MARKED: Final = re.compile(r"(<!-- bench-report: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""A part of a page that is made, by name."""

NOT_MEASURED: Final = "No run is in the tree yet."

SPEED: Final = {
    "delivery to 1000 subscribers, median / p99": (("delivery_p50_ms", "delivery_p99_ms"), "ms"),
    "deliveries a second, 100 diagnoses with 10 subscribers": (("deliveries_per_second",), ""),
    "connects a second, 32 at a time": (("connects_per_second",), ""),
    "set-up of each, median / p99": (("setup_p50_ms", "setup_p99_ms"), "ms"),
    "memory of the process for each of 5000 idle connections": (("memory_kb_per_connection",), "KB"),
    "CPU seconds for 100,000 deliveries": (("cpu_seconds_per_100k",), ""),
    "publishes a second, 16 connections": (("posts_per_second",), ""),
    "publishes a second, over one WebSocket (`GET /publish`)": (("stream_events_per_second",), ""),
    "publishes a second, requests of 1000 lines (`POST /ws/broadcast`)": (("bulk_events_per_second",), ""),
}
"""The rows of the README's table: the figures of each, and their unit."""


def drawn_from(run: Run) -> dict[str, str]:
    """The plots of a run, by name."""
    return {name: draw(run) for name, draw in DRAWN.get(run.benchmark, {}).items()}


def runs_in(directory: Path) -> list[Run]:
    """All runs of a directory, by name.

    Raises:
        msgspec.MsgspecError: a file is no run; a note names the file.
    """
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(records.read(path))
        except msgspec.MsgspecError as failure:
            failure.add_note(str(path))
            raise
    return found


def parts_of(runs: Sequence[Run]) -> dict[str, str]:
    """What these runs say in the page, by the name of the part."""
    parts = {name: [NOT_MEASURED] for name in ("targets", "growth", "soak", "workers", "cluster")}
    for name, said in parts.items():
        if found := [_part(run) for run in runs if run.benchmark.startswith(name)]:
            said[:] = found
    parts["speed"] = [speed(run) for run in runs if run.benchmark == "targets"] or [NOT_MEASURED]
    return {name: "\n\n".join(said) + "\n" for name, said in parts.items()}


def speed(run: Run) -> str:
    """The table of the README: medians of our server and of FastAPI."""
    measured = medians(run.rounds)
    rows = [["", "Avicenna Live", "FastAPI + uvicorn, in memory, no tokens"]]
    for label, (names, unit) in SPEED.items():
        cells = []
        for server in (OURS, FASTAPI):
            values = [measured[server][name] for name in names if name in measured.get(server, {})]
            cells.append(f"{' / '.join(map(shown, values))} {unit}".strip() if values else "")
        rows.append([label, *cells])
    return f"{about(run)}\n\n{markdown(rows, is_aligned=False)}"


def _part(run: Run) -> str:
    """One run in the page: where it was made, its plots, its table if it has one, and what went wrong."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if name in VERSIONS_SHOWN)
    said = [f"`{run.command}`\n{about(run)}\n{versions}; [{run.benchmark}.json](measured/{run.benchmark}.json)"]
    said += [f"![{name}](plots/{name}.svg)" for name in DRAWN.get(run.benchmark, {})]
    if run.benchmark == workers.BENCHMARK:
        said += [workers.table(run.rounds), f"On paper:\n\n{workers.on_paper(run.rounds)}"]
    elif run.benchmark == cluster.BENCHMARK:
        found = medians(run.rounds)
        said += [cluster.table(found), "\n".join(f"* {line}" for line in cluster.judged(found))]
    elif run.rounds:
        ways = [name for name in (OURS, LONG_WAY) if name in run.rounds]
        said.append(markdown(targets(run.rounds, ways), is_aligned=False))
    if rest := run.series.get(AT_REST):
        said.append(_at_rest(rest))
    said += [f"FAULT: {fault}" for fault in run.faults]
    return "\n\n".join(said)


def _at_rest(points: Sequence[Point]) -> str:
    """What a soak compares: a server at rest, after the first tenth and at the end."""
    rows = [["at rest", *(f"after {point.x:.1f} minutes" for point in points)]]
    rows += [[name, *(f"{point.values[name][0]:g}" for point in points)] for name in points[0].values]
    return markdown(rows, is_aligned=False)


def filled(page: str, parts: Mapping[str, str]) -> str:
    """A page with its marked parts made anew."""
    return MARKED.sub(lambda found: found[1] + parts[found[2]] + found[3], page)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw every run of a directory, and fill the pages."""
    parser = argparse.ArgumentParser(prog="make bench-report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--measured", type=Path, default=records.MEASURED, metavar="DIR", help="where the runs are")
    parser.add_argument("--plots", type=Path, default=PLOTS, metavar="DIR", help="where the plots go")
    parser.add_argument(
        "--pages", type=Path, nargs="+", default=PAGES, metavar="FILE", help="the pages that are filled"
    )
    options = parser.parse_args(argv)
    try:
        runs = runs_in(options.measured)
    except msgspec.MsgspecError as failure:
        print(f"benchmarks.report: {', '.join(failure.__notes__)}: {failure}", file=sys.stderr)
        return 2
    options.plots.mkdir(parents=True, exist_ok=True)
    for run in runs:
        for name, svg in drawn_from(run).items():
            (options.plots / f"{name}.svg").write_text(svg)
            print(f"{options.plots / name}.svg")
    for page in options.pages:
        page.write_text(filled(page.read_text(), parts_of(runs)))
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
