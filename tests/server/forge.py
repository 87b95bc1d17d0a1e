"""Starts servers in a few milliseconds: it imports everything once, and every server is a fork that has served nobody.

A program of its own (`python -m tests.server.forge`). A line on its stdin is one `avicenna-live` to run:
`{"argv": [...], "env": {...}, "set": {...}}`. The line on its stdout is the id of the process that runs it. `set` gives
constants another value, each by its full name. While the file exists that the variable `NOTHING_CAN_BE_RENDERED` names,
an actor crashes over every event. What servers say goes to its stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Final

from storage.records import Event
from web import cli
from web.contract import wire
from web.server import composition
from web.server.workers import children

PR_SET_PDEATHSIG: Final = 1

CRASHES: Final = "NOTHING_CAN_BE_RENDERED"

CONSTANTS: Final = "FORGED_CONSTANTS"
"""The variable that gives constants another value, also in the workers of a server."""


def main() -> None:
    """Fork until stdin ends; servers that were killed are reaped by the kernel."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        process_id = os.fork()
        if process_id == 0:
            _end_with_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # What it prints is said, too: our stdout has the ids.
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            os.environ.update(order["env"])
            os.environ[CONSTANTS] = json.dumps(order["set"])
            prepare()
            vars(children)["PROGRAM"] = "tests.server.forged_worker"
            os._exit(cli.main(order["argv"]))
        sys.stdout.write(f"{process_id}\n")
        sys.stdout.flush()


def prepare() -> None:
    """Change this process as its order says."""
    for name, value in json.loads(os.environ[CONSTANTS]).items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    if CRASHES in os.environ:
        crash_while_exists(Path(os.environ[CRASHES]))


def _end_with_parent() -> None:
    """Have the kernel end this server when the forge is gone, however that ended (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def crash_while_exists(file: Path) -> None:
    """Have actors crash over whatever they render, as a bug would that comes back with every incarnation."""

    def faulty(diagnosis_id: str, event: Event) -> bytes:
        if file.exists():
            raise ZeroDivisionError
        return wire.render_event(diagnosis_id, event)

    vars(composition)["run"] = partial(composition.run, render=faulty)


if __name__ == "__main__":
    main()
