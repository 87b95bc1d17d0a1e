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
    """Run one command; its exit code: one of `web.commands.failures`, or 130: interrupted."""
    try:
        _leave_when_interrupted()
        _open_what_is_closed()
        # These take longer than many commands do.
        from web.commands import line  # noqa: PLC0415
        from web.demo import command as demo  # noqa: PLC0415

        _raise_when_interrupted()
        return line.run(argv, demo)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        _leave_when_interrupted()


def _open_what_is_closed() -> None:
    """Have something behind descriptors 0, 1 and 2: else a socket or the database becomes what output is written to."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free is this one. Workers get it, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _leave_when_interrupted() -> None:
    """End at once: in an import or at the exit, an exception would be printed, or taken for a fault of the import."""
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
