"""The command `avicenna-live`: runs a command line, and obeys Ctrl-C in silence from the first moment on.

So it imports next to nothing until then.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130
"""What a shell reports for a process that SIGINT ended."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 not done, 2 wrongly asked, 3 no server there, 130 interrupted."""
    try:
        _leave_when_interrupted()
        from web.commands import line  # noqa: PLC0415 - takes longer than many commands do

        _raise_when_interrupted()
        return line.run(argv)
    except KeyboardInterrupt:
        return INTERRUPTED


def _leave_when_interrupted() -> None:
    """End at once: in the middle of an import, an exception would be printed, or taken for a fault of the import."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _handle_interrupts(lambda *_: os._exit(INTERRUPTED))


def _raise_when_interrupted() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        _handle_interrupts(signal.default_int_handler)


def _handle_interrupts(handler: signal._HANDLER) -> None:
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:
        # A thread of another program runs us: its main thread handles signals.
        return


if __name__ == "__main__":
    sys.exit(main())
