"""The commands that the pages show: all of them are command lines, and those of the tutorial and the guides are run.

A console block (`$ ...`) is run or parsed. An indented block holds what wants another machine, root or a network: its
commands are parsed, and its files and settings looked for.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.logbook import LOGBOOK
from tests.programs import ROOT, program
from web.commands import line
from web.demo import command as demo
from web.server.settings import Settings, load

PAGES: Final = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "docs/guides/*.md", "clients/*/README.md", "examples/README.md")
    for path in ROOT.glob(pattern)
)

RUN: Final = (
    ("docs/TUTORIAL.md",),
    ("examples/README.md",),
    (
        "docs/guides/service.md",
        "docs/guides/monitoring.md",
        "docs/guides/keys.md",
        "docs/guides/erasure.md",
        "docs/guides/behind-a-proxy.md",
        "docs/guides/sizing.md",
        "docs/guides/upgrade.md",
        "docs/guides/backup.md",
    ),
)
"""Pages whose commands are run as they stand, those of a group with one server; the last of a group may stop it.

`tests/server/test_readme.py` runs those of the README."""

NOT_SETTINGS: Final = {"AVICENNA_URL", "AVICENNA_TOKEN", "AVICENNA_TOKEN_FILE", "AVICENNA_CONFIG", "AVICENNA_KEY_FILE"}
"""Variables of the commands, of the Python client and of an example."""

STAYS: Final = {
    "make serve": "listening on",
    " tail ": "connected to",
    "http.server": "Serving HTTP",
    "uvicorn": "startup complete",
}
"""Commands that go on until somebody ends them, and what they say when they are there."""

SECONDS_MAX: Final = 60

_BLOCK: Final = re.compile(r"^( *)```console\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_PYTHON: Final = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_TERMINAL: Final = re.compile(r"# terminal (\d)")
_SETTING: Final = re.compile(r"\b(AVICENNA_[A-Z_]+)=(\S+)")
_PARSED: Final = re.compile(r"(?:^|[ &])(?:\S*/bin/)?avicenna-live((?: [a-z-][^&|]*)+)$")
"""A command of ours at the end of a line of an indented block."""
_OURS: Final = re.compile(r"avicenna-live((?: [^|>)\n]*)?)")


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The terminal of each console block, and its commands."""
    for _, text in _BLOCK.findall((ROOT / page).read_text()):
        terminal = _TERMINAL.search(text)
        commands = [found.removeprefix("$ ") for one in text.splitlines() if (found := one.strip()).startswith("$ ")]
        yield terminal[1] if terminal else "9", commands


def shown() -> list[tuple[Path, str]]:
    return [(page, command) for page in PAGES for _, commands in blocks(page) for command in commands]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("page", "command"), shown(), ids=str)
def test_every_command_that_a_page_shows_is_one(page: Path, command: str) -> None:
    for named in re.findall(r"\bmake ([a-z][a-z-]*)", command.partition("#")[0]):
        assert named in targets()
    if command.startswith("git clone"):
        return
    for arguments in _OURS.findall(command):
        # A command within quotation marks ends with one that it does not begin.
        text = arguments.strip() if arguments.count('"') % 2 == 0 else arguments.rpartition('"')[0]
        words = shlex.split(text, comments=True)
        if words and "..." not in words:
            line.parser(demo).parse_args(words)


def indented() -> list[tuple[Path, str]]:
    """The indented blocks of the pages for operators."""
    found: list[tuple[Path, str]] = []
    for page in (*sorted(ROOT.glob("docs/guides/*.md")), ROOT / "docs" / "DEPLOYMENT.md"):
        text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        blocks_of_page = re.findall(r"^(?:#.*)?\n((?: {4}.*\n)+)", text, re.MULTILINE)
        found.extend((page.relative_to(ROOT), textwrap.dedent(block)) for block in blocks_of_page)
    return found


def test_the_pages_for_operators_have_such_blocks() -> None:
    assert {page.name for page, _ in indented()} >= {"DEPLOYMENT.md", "behind-a-proxy.md"}


@pytest.mark.parametrize(("page", "block"), indented(), ids=str)
def test_every_indented_block_of_a_guide_can_be_meant(page: Path, block: str) -> None:
    settings = {name: value for name, value in _SETTING.findall(block) if name not in NOT_SETTINGS}
    load(settings)
    if block.startswith("# prometheus.yml"):
        assert yaml.safe_load(block)["scrape_configs"]
        return
    said = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, check=False)
    assert said.returncode == 0, (page, said.stderr)
    for file in re.findall(r"(?:deploy|requirements)/[\w./*-]+", block):
        assert list(ROOT.glob(file)), file
    for command in block.replace("\\\n", " ").splitlines():
        if command.split()[0] in ("docker", "SITE=live.example.org"):
            command = command.partition("exec avicenna-live")[2]  # noqa: PLW2901 - the first name is that of the container
        for arguments in _PARSED.findall(command):
            line.parser(demo).parse_args(shlex.split(arguments, comments=True))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_variable_that_a_page_names_is_one(page: Path) -> None:
    named = set(re.findall(r"\bAVICENNA_[A-Z_]*[A-Z]\b", (ROOT / page).read_text()))
    settings = {f"AVICENNA_{one.name.upper()}" for one in fields(Settings)}
    assert named <= settings | NOT_SETTINGS


@dataclass
class Terminal:
    """A shell in which one command runs at a time; a new one ends that which stays."""

    directory: Path
    environment: dict[str, str]
    exported: list[str] = field(default_factory=list)
    staying: subprocess.Popen[bytes] | None = None
    said: list[Path] = field(default_factory=list)

    def run(self, command: str) -> None:
        """Run a command to its end, or until it says that it is there."""
        self.end()
        if command.startswith("export "):
            self.exported.append(command)
        script = "\n".join(["set -e", *self.exported, command])
        out = self.directory / f"said-{time.monotonic_ns()}"
        self.said.append(out)
        awaited = next((words for mark, words in STAYS.items() if mark in command), None)
        with out.open("wb") as file:
            process = subprocess.Popen(
                ["sh", "-c", script], cwd=self.directory, env=self.environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        if awaited is None:
            assert process.wait(SECONDS_MAX) == 0, (command, out.read_text())
            return
        self.staying = process
        deadline = time.monotonic() + SECONDS_MAX
        while awaited not in out.read_text():
            assert process.poll() is None, (command, out.read_text())
            assert time.monotonic() < deadline, (command, out.read_text())
            time.sleep(0.05)

    def end(self) -> None:
        """Ctrl-C, for what stays."""
        if self.staying is not None:
            os.killpg(self.staying.pid, 2)
            self.staying.wait(SECONDS_MAX)
            self.staying = None


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


MAKE: Final = """#!/bin/sh
[ "$1" = serve ] && exec .venv/bin/avicenna-live serve --port "$SERVER_PORT"
echo "only make serve is run here" >&2; exit 2
"""


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """A directory that looks like the clone, what the environment is, and which ports stand for those of the pages."""
    for name in (".venv", "clients", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text(MAKE)
    (tmp_path / "bin" / "make").chmod(0o755)
    (tmp_path / "ratings.csv").write_text("feedback_id,rating,comment\n1,5,slept well\n")
    server, page = map(str, free_ports(2))
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AVICENNA_")}
    environment = ours | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SERVER_PORT": server,
        "PYTHONUNBUFFERED": "1",
    }
    return tmp_path, environment, {"8000": server, "9000": page}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", RUN, ids=lambda names: names[0])
def test_the_commands_of_a_page_do_what_it_says(
    names: tuple[str, ...], place: tuple[Path, dict[str, str], dict[str, str]]
) -> None:
    program("python-client")
    directory, environment, ports = place
    here = Terminal(directory, environment)
    try:
        if len(names) > 1:
            here.run("make serve")
        for name in names:
            run_page(name, here, ports, has_server=len(names) > 1)
    finally:
        here.end()
        LOGBOOK.write("".join(file.read_bytes().decode() for file in here.said).encode())


def run_page(name: str, here: Terminal, ports: dict[str, str], *, has_server: bool) -> None:
    """Run the commands of a page in its terminals.

    Args:
        here: the terminal of the server, if there is one beside the page.
        ports: which ports stand for those of the page.
    """
    if name == "docs/TUTORIAL.md":
        (script,) = _PYTHON.findall((ROOT / name).read_text())
        (here.directory / "service.py").write_text(script)
    terminals = {number: Terminal(here.directory, here.environment) for number in "1239"}
    try:
        if has_server:
            registering = Terminal(here.directory, here.environment)
            registering.run(".venv/bin/avicenna-live diagnoses add 42 --owner amira --viewer farid")
        for number, command in ((terminal, command) for terminal, found in blocks(Path(name)) for command in found):
            if command.startswith(
                ("git clone", "clients/python/.venv/bin/python examples/crash_demo.py", "make bench")
            ):
                continue  # the clone is here; the second is run by tests/examples
            for port, stand_in in ports.items():
                command = re.sub(rf"\b{port}\b", stand_in, command)  # noqa: PLW2901
            if "ward.py" in command:
                continue  # it stays, and says nothing: run by tests/examples
            terminals[number].run(command)
            if " drain " in command:
                assert here.staying is not None
                assert here.staying.wait(SECONDS_MAX) == 0
                here.staying = None
        said = "".join(file.read_text() for one in terminals.values() for file in one.said)
        for words in SAID.get(name, ()):
            assert words in said, (name, words)
    finally:
        for one in terminals.values():
            one.end()


SAID: Final = {
    "docs/TUTORIAL.md": ("slept well", "saffron", "update 3 is on disk"),
    "docs/guides/backup.md": ("friday.db",),
    "docs/guides/behind-a-proxy.md": ("the settings can be used",),
    "docs/guides/keys.md": ("the settings can be used", "lifted"),
    "docs/guides/upgrade.md": ("the settings can be used", "can be restored"),
}
"""What must be among what they print."""
