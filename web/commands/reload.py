"""`avicenna-live reload`: has the server of this machine read its keys anew, as SIGHUP does."""

from __future__ import annotations

import argparse
import os
import signal

from web.commands.declaring import Commands, declare
from web.commands.failures import DONE, CommandFailed, Unreachable
from web.commands.finding import add_data_options, data_directory, merely_lies_here
from web.commands.look import add_colour_option
from web.commands.printing import say, say_json
from web.server.listening_file import NotListening, listening_process


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "reload",
        "have the server read its keys anew",
        "reload",
        "reload --data /var/lib/avicenna-live",
        description="Send SIGHUP to the server of the data directory on this machine. It reads its keys anew; with "
        "several workers it replaces them one by one, which reads other settings, too. Nobody is refused meanwhile. "
        "The log of the server says what came of it.",
    )
    add_data_options(parser.add_argument_group("the server"))
    add_colour_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the signal."""
    directory = data_directory(arguments)
    try:
        process = listening_process(directory, is_trusted=not merely_lies_here(directory, arguments))
    except NotListening as failure:
        raise Unreachable(f"no server runs on {directory}: {failure}") from None
    try:
        os.kill(process, signal.SIGHUP)
    except OSError as error:
        raise CommandFailed(f"cannot tell process {process}: {error.strerror}") from None
    if arguments.json:
        say_json({"status": "reloading", "pid": process})
    else:
        say(f"process {process} reloads: its log says what came of it")
    return DONE
