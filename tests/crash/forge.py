"""Starts servers in a few milliseconds: it imports everything once, and every server is a fork that has served nobody.

A program of its own (`python -m tests.crash.forge`). A line on its stdin is `{"argv": [...], "env": {...}}` of one
`avicenna-live`; the line on its stdout is the id of the process that runs it. What servers say goes to its stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from web import (
    cli,
    composition,  # noqa: F401 - `serve` imports it when it runs: here it is there before
)


def main() -> None:
    """Fork until stdin ends; servers that were killed are reaped by the kernel."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        process_id = os.fork()
        if process_id == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(order["env"])
            os._exit(cli.main(order["argv"]))
        sys.stdout.write(f"{process_id}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
