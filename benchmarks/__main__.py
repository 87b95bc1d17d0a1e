"""`python -m benchmarks`: our server and its peers, round by round, side by side.

Exit code: 0, 1 if a delivery was lost or repeated or a request refused, 2 if it could not be run. A target that is
missed is said, and changes nothing: figures of one machine are no test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import measuring
from benchmarks.generator import GeneratorError
from benchmarks.results import Rounds, medians, table
from benchmarks.servers import (
    FASTAPI,
    FLOOR,
    LONG_WAY,
    LOOP,
    OURS,
    PICOWS,
    QUART,
    THIS_CHECKOUT,
    WEBSOCKETS,
    WS,
    ServerFailed,
    those_here,
)

SERVERS = (OURS, LONG_WAY, FASTAPI, WEBSOCKETS, PICOWS, WS, QUART, LOOP, FLOOR)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for and print it."""
    options = _parser().parse_args(argv)
    effort = measuring.QUICK if options.quick else measuring.FULL
    servers = those_here(options.servers)
    rounds: dict[str, dict[str, list[float]]] = {server: {} for server in servers}
    faults: list[str] = []
    busiest = 0.0
    try:
        for turn in range(options.rounds or effort.rounds):
            for situation in options.situations:
                for server in servers:
                    print(f"round {turn + 1}: {situation}: {server}", file=sys.stderr, flush=True)
                    measure = measuring.SITUATIONS[situation]
                    measured, session = measure(server, options.server_command, effort)
                    for name, value in measured.items():
                        rounds[server].setdefault(name, []).append(value)
                    faults += [f"{server}, {situation}: {count} {name}" for name, count in session.faults.items()]
                    busiest = max(busiest, session.busiest) if server != FLOOR else busiest
    except (GeneratorError, ServerFailed, OSError) as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 2
    print(table(rounds))
    print(f"\nThe load generator used at most {busiest:.0%} of its core while it loaded a server other than {FLOOR}.")
    for fault in faults:
        print(f"FAULT: {fault}")
    if options.json:
        options.json.write_text(json.dumps(_document(rounds, faults), indent=2) + "\n")
    return 1 if faults else 0


def _document(rounds: Rounds, faults: list[str]) -> dict[str, object]:
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    return {"machine": machine, "medians": medians(rounds), "rounds": rounds, "faults": faults}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, below a minute")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often everything is measured; default 3")
    parser.add_argument(
        "--servers", type=_among(SERVERS), default=list(SERVERS), metavar="A,B", help=", ".join(SERVERS)
    )
    situations = list(measuring.SITUATIONS)
    parser.add_argument(
        "--situations", type=_among(situations), default=situations, metavar="A,B", help=", ".join(situations)
    )
    parser.add_argument(
        "--server-command",
        default=THIS_CHECKOUT,
        metavar="COMMAND",
        help="what starts our server; `--port 0 --data DIR` is added; default: this checkout's",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser


def _among(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted(set(names) - set(known)):
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
