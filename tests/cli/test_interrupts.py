"""Ctrl-C while the command line is imported, and readers that go away: silence, and the code that a shell expects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.process import COMMAND
from web.commands.failures import CLOSED_PIPE

INTERRUPTED = """
import os, signal, sys

wanted = sys.argv[1]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from web.cli import main
sys.argv[1:] = ["--version"]
sys.exit(main())
"""


@pytest.mark.parametrize(
    "module",
    ["web.commands", "web.commands.line", "argparse", "web.commands.serve", "trio", "jwt", "importlib.metadata"],
)
def test_an_interrupt_during_an_import_is_obeyed_in_silence(module: str) -> None:
    ended = run(INTERRUPTED, module)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_who_ignores_interrupts_goes_on_ignoring_them() -> None:
    ended = run(f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{INTERRUPTED}", "trio")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("avicenna-live ")


def test_until_it_is_ready_next_to_nothing_is_imported() -> None:
    code = "import sys; before = set(sys.modules); import web.cli; print(*sorted(set(sys.modules) - before))"
    assert set(run(code).stdout.split()) <= {"__future__", "enum", "signal", "web", "web.cli", *ALWAYS_WITH_THEM}


@pytest.mark.parametrize(
    "words", [["completion", "bash"], ["help", "--json"], ["doctor"], ["token", "--sub", "a"], ["serve", "--check"]]
)
def test_a_reader_that_has_gone_is_no_failure_to_tell_of(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    (tmp_path / "data").mkdir()
    with os.fdopen(writing, "w") as output:
        ended = subprocess.run(
            [COMMAND, *words], stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False, cwd=tmp_path
        )
    assert (ended.returncode, ended.stderr.removeprefix("made a new token key in data\n")) == (CLOSED_PIPE, "")


ALWAYS_WITH_THEM = {
    "_collections",
    "_functools",
    "_operator",
    "_types",
    "builtins",
    "collections",
    "functools",
    "itertools",
} | {
    "keyword",
    "operator",
    "reprlib",
    "types",
}
"""What the standard library needs for `enum`."""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A shell without job control has its background processes ignore SIGINT, and they hand that on.
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
