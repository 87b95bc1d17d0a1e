"""`avicenna-live doctor`: looks at all a server needs, and says what is wrong and which command helps.

Each check runs on a thread of its own, with a deadline: one that fails or hangs is a finding, and hides no other.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from web.commands import examinations
from web.commands.declaring import Commands, declare
from web.commands.examinations import EXAMINATIONS, Finding, Level, Patient
from web.commands.failures import DONE, FAILED, NOBODY_THERE, WRONG_USAGE, Shown
from web.commands.finding import add_client_options
from web.commands.look import Look, look_of
from web.commands.printing import say, say_json
from web.commands.text import printable

CHECK_SECONDS_MAX: Final = 15.0
"""Longest time of one check. Beyond: a finding. Reason: a disk may not answer."""

COLOURS: Final[Mapping[Level, str]] = {"ok": "green", "warning": "yellow", "problem": "red"}


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "doctor",
        "look for what is wrong around a server",
        "doctor --data /var/lib/avicenna-live",
        "doctor --url https://live.example.org",
        "doctor --json",
        description="Look at the settings, the data directory and its keys, the disk, the clock, open files, where the "
        "server listens, and SQLite; with --url, also at the server behind a proxy. Run it as the user of the server, "
        "with its environment. It changes nothing.\n\n"
        "Exit code 0: no problem, warnings at most; 1: a problem; 2: a setting or a key is wrong; 3: no server answers "
        "at --url, and nothing else is wrong.",
    )
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything, and print what was found."""
    patient = examinations.patient_of(arguments)
    findings: list[Finding] = []
    look = look_of(arguments)
    for name, examine in EXAMINATIONS.items():
        for one in examined(name, examine, patient):
            findings.append(one)
            if not arguments.json:
                say(text_of(one, look))
    if arguments.json:
        say_json({"findings": [one.as_json() for one in findings]})
    if code := exit_code_of(findings):
        problems = [one for one in findings if one.level == "problem"]
        raise Shown("; ".join(f"{one.check}: {one.text}" for one in problems), code)
    return DONE


def examined(name: str, examine: Callable[[Patient], Sequence[Finding]], patient: Patient) -> Sequence[Finding]:
    """What a check finds; its own failure is a finding, too."""
    found: list[Sequence[Finding]] = []

    def carry_out() -> None:
        try:
            found.append(examine(patient))
        except Exception as error:  # noqa: BLE001 - the boundary of a check: the others go on
            found.append([Finding(name, "problem", f"this check failed: {type(error).__name__}: {error}")])

    thread = threading.Thread(target=carry_out, daemon=True)
    thread.start()
    thread.join(CHECK_SECONDS_MAX)
    if not found:
        return [
            Finding(name, "problem", f"this check has not ended within {CHECK_SECONDS_MAX:.0f} s: does a disk hang?")
        ]
    return found[0]


def text_of(finding: Finding, look: Look) -> str:
    """A finding, for people."""
    level = look.painted(f"{finding.level:7}", COLOURS[finding.level])
    line = f"{level}  {finding.check}: {printable(finding.text)}"
    return line if finding.cure is None else f"{line}\n         -> {printable(finding.cure)}"


def exit_code_of(findings: Sequence[Finding]) -> int:
    """What the whole comes to."""
    problems = [one for one in findings if one.level == "problem"]
    codes = {one.exit_code for one in problems}
    for code in (WRONG_USAGE, FAILED, NOBODY_THERE):
        if code in codes:
            return code
    return DONE
