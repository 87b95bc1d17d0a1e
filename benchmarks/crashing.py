"""Our server with a fault: `python -m benchmarks.crashing`. An actor crashes over an event that says so, once.

Events that were stored before the process began are spared: a diagnosis that has many of them could not be loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from storage.records import Event
from web.contract.wire import render_event
from web.server import composition, settings

CRASHES: Final = b"the actor crashes here"
"""An event that has these words in its body cannot be rendered at the first try."""

REMEMBERED_MAX: Final = 1000
"""Crashes that are remembered. Reason: the fault must not grow. Beyond: the oldest event may crash its actor again."""


class ActorCrash(Exception):
    """The exception of a crash that was asked for."""


class Faulty:
    """Renders as the server does, but for the first try of some events."""

    def __init__(self, began_at: float) -> None:
        """Spare what was stored before this moment."""
        self._began_at = began_at
        self._crashed: OrderedDict[tuple[str, int], None] = OrderedDict()

    def render(self, diagnosis_id: str, event: Event) -> bytes:
        """The text of an event."""
        known = (diagnosis_id, int(event.seq))
        if event.at >= self._began_at and CRASHES in event.body and known not in self._crashed:
            self._crashed[known] = None
            if len(self._crashed) > REMEMBERED_MAX:
                self._crashed.popitem(last=False)
            raise ActorCrash
        return render_event(diagnosis_id, event)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal, as `avicenna-live serve` does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crashing", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", metavar="P")
    parser.add_argument("--data", metavar="DIR")
    options = parser.parse_args(argv)
    chosen = settings.load(os.environ, options={"port": options.port, "data": options.data})
    return composition.run(chosen, render=Faulty(time.time()).render)


if __name__ == "__main__":
    sys.exit(main())
