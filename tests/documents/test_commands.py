"""The commands that the pages show: each is run by a test, or `NOT_RUN` says why it is not.

A command stands in a console block (`$ ...`). Those of the tutorial and of the guides are run here, in the order of the
page. What wants root or other directories is run on a stage (`tests/documents/stage.py`).
"""

from __future__ import annotations

import argparse
import getpass
import importlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.documents.stage import Stage, stage
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
        "docs/guides/upgrade.md",
        "docs/guides/backup.md",
    ),
    ("docs/guides/behind-a-proxy.md",),
    ("docs/DEPLOYMENT.md",),
)
"""Pages whose commands are run as they stand, those of a group with one server; the last of a group may stop it."""

STAGED: Final = ("docs/guides/behind-a-proxy.md", "docs/DEPLOYMENT.md")
"""Those of them that write to `/etc`, `/opt` or `/run`: they are run on a stage."""

ELSEWHERE: Final = {
    "README.md": {
        "make demo": "tests/server/test_readme.py",
        "make serve": "tests/server/test_readme.py",
        ".venv/bin/avicenna-live diagnoses add 42 --owner doctor-1": "tests/server/test_readme.py",
        ".venv/bin/avicenna-live token --sub doctor-1 | *": "tests/server/test_readme.py",
        ".venv/bin/avicenna-live publish recommendation 42 *": "tests/server/test_readme.py",
    },
    "examples/README.md": {
        "*/python examples/ward.py *": "tests/examples/test_examples.py",
        "*/python examples/crash_demo.py": "tests/examples/test_examples.py",
    },
    "docs/RELIABILITY.md": {
        "avicenna-live check": "tests/server/test_damage.py",
        "avicenna-live check --drop-damaged 42": "tests/server/test_damage.py",
    },
}
"""Commands that another test runs, by page; `*` stands for the rest."""

_MINUTES: Final = "it measures, or kills, for minutes; its options are parsed here"
_ENGINE: Final = (
    "it wants a container engine; `make container-test` builds the file with buildah, and runs what came of it"
)

NOT_RUN: Final = {
    "git clone *": "these tests run in a clone; `make first-hour` makes one",
    "make bench*": _MINUTES,
    "make crash-test *": _MINUTES,
    "make workers-test *": _MINUTES,
    "make soak *": _MINUTES,
    "make chaos *": _MINUTES,
    "docker build *": _ENGINE,
    "docker run *": _ENGINE,
    "docker exec *": _ENGINE,
    "SITE=* docker compose up *": "it wants an engine and images; podman-compose reads the file in `tests/deploy`",
    "pip install ./clients/python*": "it wants an index; `make python-client` installs the client",
    "pip install './clients/python[[]*": "it wants an index; `make python-client` installs the client with its extras",
    "*/pip install '.[[]otel]' *": "it wants an index",
    "*/opentelemetry-instrument *": "what it starts comes from an index; `tests/server/test_traces.py` has a provider",
    "AVICENNA_TRACING=on OTEL_*": "the exporter comes from an index; `tests/server/test_traces.py` has one that prints",
    "make test *": "these are tests; which they select is looked for",
    "ALL_WAYS=1 make test *": "these are tests",
    "make python-client-test *": "these are tests, and `make test` runs them",
    ".venv/bin/python -m pytest *": "these are tests",
}
"""Commands that no test runs, each with the reason."""

NOT_SETTINGS: Final = {"AVICENNA_URL", "AVICENNA_TOKEN", "AVICENNA_TOKEN_FILE", "AVICENNA_CONFIG", "AVICENNA_KEY_FILE"}
"""Variables of the commands, of the Python client and of an example."""

STAYS: Final = {
    "make serve": "listening on",
    " tail ": "connected to",
    "avicenna-live serve": "listening on",
    "http.server": "Serving HTTP",
    "uvicorn": "startup complete",
}
"""Commands that go on until somebody ends them, and what they say when they are there."""

SECONDS_MAX: Final = 60

_BLOCK: Final = re.compile(r"^( *)```console\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_PYTHON: Final = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_TOML: Final = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)
_TERMINAL: Final = re.compile(r"# terminal (\d)")
_INDENTED: Final = re.compile(r"^(?:#.*)?\n((?: {4}\S.*\n)+)", re.MULTILINE)
_FENCED: Final = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_SETTING: Final = re.compile(r"^(AVICENNA_[A-Z_]+)=(\S+)$", re.MULTILINE)
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
    if command.startswith(("git clone", "docker ", "SITE=")):
        command = command.partition("docker exec avicenna-live ")[2]
    for arguments in _OURS.findall(command):
        # A command within quotation marks ends with one that it does not begin.
        text = arguments.strip() if arguments.count('"') % 2 == 0 else arguments.rpartition('"')[0]
        words = shlex.split(text, comments=True)
        if words and "..." not in words:
            line.parser(demo).parse_args(words)


def listed(page: Path | str, command: str) -> str | None:
    """Who runs a command that is not run here, or why nobody does; `None`: it is run here."""
    words = command.partition(" #")[0].strip()
    for lists in (ELSEWHERE.get(str(page), {}), NOT_RUN):
        if (found := next((said for shape, said in lists.items() if fnmatch(words, shape)), None)) is not None:
            return found
    return None


def test_every_command_is_run_by_a_test_or_the_reason_why_not_is_given() -> None:
    run_here = {page for group in RUN for page in group}
    missing = [(page, one) for page, one in shown() if str(page) not in run_here and listed(page, one) is None]
    assert missing == [], "run its page (RUN), name who runs it (ELSEWHERE), or say why nobody does (NOT_RUN)"


def test_every_line_of_the_lists_is_of_a_command_that_is_shown() -> None:
    commands = [(str(page), one.partition(" #")[0].strip()) for page, one in shown()]
    assert [shape for shape in NOT_RUN if not any(fnmatch(one, shape) for _, one in commands)] == []
    for page, lists in ELSEWHERE.items():
        assert [shape for shape in lists if (page not in {p for p, _ in commands}) or not any(
            fnmatch(one, shape) for where, one in commands if where == page)] == []  # fmt: skip
        assert all((ROOT / test).exists() for test in lists.values())


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_stand_in_console_blocks_alone(page: Path) -> None:
    """So that none is overlooked: a block says what it is, and no block is indented in place of that."""
    text = (ROOT / page).read_text()
    marks = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
    assert all(opening for opening in marks[::2]), "a block that does not say what it is"
    assert not {"sh", "shell", "bash", "shell-session"} & set(marks[::2]), "console"
    for text_of_block in _BLOCK.findall(text):
        assert re.search(r"^ *\$ ", text_of_block[1], re.MULTILINE), text_of_block
    if page.name != "ARCHITECTURE.md":  # its drawings
        assert _INDENTED.findall(_FENCED.sub("", text)) == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_settings_that_a_page_shows_can_be_used(page: Path) -> None:
    for kind, text in re.findall(
        r"^ *```(ini|yaml)\n(.*?)^ *```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    ):
        if kind == "ini":
            load(dict(_SETTING.findall(text)))
            assert len(_SETTING.findall(text)) == len(text.splitlines())
        else:
            assert yaml.safe_load(text)["scrape_configs"]


def test_prometheus_takes_what_the_page_shows(tmp_path: Path) -> None:
    (shown_there,) = re.findall(
        r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "DEPLOYMENT.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "prometheus.yml").write_text(shown_there)
    shutil.copy(ROOT / "deploy" / "prometheus" / "alerts.yml", tmp_path)
    command = [program("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class ParsedError(Exception):
    """The options of a benchmark were parsed, which is all that is wanted here."""


def measuring() -> list[tuple[str, str]]:
    """The benchmarks that pages show, with their options."""
    found: set[tuple[str, str]] = set()
    for _, command in shown():
        for target, arguments in re.findall(r'\bmake (bench[a-z-]*)(?: ARGS="([^"]*)")?', command.partition(" #")[0]):
            found.add((target, arguments))
    return sorted(found)


@pytest.mark.parametrize(("target", "arguments"), measuring(), ids=" ".join)
def test_the_options_of_every_benchmark_that_a_page_shows_are_known(
    target: str, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = re.search(rf"^{target}:.*\n\t\$\(BIN\)/python -m ([\w.]+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    name = recipe[1] if "." in recipe[1] else f"{recipe[1]}.__main__"
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(parser: argparse.ArgumentParser, *given: object, **named: object) -> None:
        parse(parser, *given, **named)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    monkeypatch.setattr(
        "sys.argv", [target, *shlex.split(arguments), *(["--before", "x"] if target == "bench-compare" else [])]
    )
    with pytest.raises(ParsedError):
        importlib.import_module(name).main()


@pytest.mark.parametrize("command", [one for _, one in shown() if re.search(r"\bmake test |-m pytest ", one)], ids=str)
def test_the_tests_that_a_page_names_are_there(command: str) -> None:
    words = shlex.split(command.partition(" #")[0].replace("ARGS=", " "))
    named = [one for word in words for one in word.split() if one.startswith("tests/")]
    assert all((ROOT / one).exists() for one in named)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_variable_that_a_page_names_is_one(page: Path) -> None:
    named = set(re.findall(r"\bAVICENNA_[A-Z_]*[A-Z]\b", (ROOT / page).read_text()))
    settings = {f"AVICENNA_{one.name.upper()}" for one in fields(Settings)}
    assert named <= settings | NOT_SETTINGS


@dataclass
class Terminal:
    """A shell in which one command runs at a time; a new one ends that which stays."""

    directory: Path
    environment: Mapping[str, str]
    at: Path | None = None
    """Where its commands begin; `None`: in `directory`, where also what they say is kept."""
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
        stays = not command.endswith("--check")
        awaited = next((words for mark, words in STAYS.items() if stays and mark in command), None)
        with out.open("wb") as file:
            process = subprocess.Popen(
                ["sh", "-c", script], cwd=self.at or self.directory, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
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
def place(tmp_path: Path) -> tuple[Path, Mapping[str, str], Mapping[str, str]]:
    """A directory that looks like the clone, what the environment is, and which ports stand for those of the pages."""
    for name in (".venv", "clients", "deploy", "examples"):
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
        "USER": getpass.getuser(),
        "PYTHONUNBUFFERED": "1",
    }
    return tmp_path, environment, {"8000": server, "9000": page}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", RUN, ids=lambda names: names[0])
def test_the_commands_of_a_page_do_what_it_says(
    names: tuple[str, ...], place: tuple[Path, Mapping[str, str], Mapping[str, str]]
) -> None:
    program("python-client")
    directory, environment, ports = place
    here = Terminal(directory, environment)
    with ExitStack() as stack:
        stack.callback(lambda: LOGBOOK.write("".join(file.read_bytes().decode() for file in here.said).encode()))
        stack.callback(here.end)
        if len(names) > 1:
            here.run("make serve")
        for name in names:
            if name in STAGED:
                there = stack.enter_context(stage(int(ports["9000"])))
                run_staged(name, Terminal(directory, environment), there)
            else:
                run_page(name, here, ports, has_server=len(names) > 1)


def run_staged(name: str, here: Terminal, there: Stage) -> None:
    """Run the commands of a page on a stage. Those of the deployment stand in the checkout."""
    of_deployment = name == "docs/DEPLOYMENT.md"
    environment = dict(here.environment) | {
        "PATH": f"{there.programs}:{here.environment['PATH']}",
        "HOME": str(there.root),
        "AVICENNA_PORT": "0",
    }
    if of_deployment:
        environment["AVICENNA_DATA"] = str(there.root / "data")
        (there.root / "run" / "avicenna").mkdir()
    staged = Terminal(here.directory, environment, ROOT if of_deployment else None)
    run_page(name, staged, {}, has_server=False, staged=there)
    if of_deployment:
        wanted = there.root / "etc" / "systemd" / "system"
        assert (wanted / "multi-user.target.wants" / "avicenna-live.service").is_symlink()
        assert {one.name for one in (wanted / "sockets.target.wants").iterdir()} == {
            "avicenna-live.socket", "avicenna-live-operators.socket",
        }  # fmt: skip
        assert "avicenna-live" in (there.root / "etc" / "passwd").read_text()
        installed = there.root / "opt" / "avicenna-live" / "bin" / "avicenna-live"
        staged.run(f"{installed} serve --check")
    else:
        assert there.noted == [f"systemctl reload {one}" for one in ("nginx", "haproxy", "caddy")]


def run_page(
    name: str, here: Terminal, ports: Mapping[str, str], *, has_server: bool, staged: Stage | None = None
) -> None:
    """Run the commands of a page in its terminals.

    Args:
        here: the terminal of the server, if there is one beside the page.
        ports: which ports stand for those of the page.
    """
    if name == "docs/TUTORIAL.md":
        (script,) = _PYTHON.findall((ROOT / name).read_text())
        (here.directory / "service.py").write_text(script)
    if name == "docs/guides/behind-a-proxy.md" and staged is not None:
        (settings,) = _TOML.findall((ROOT / name).read_text())
        (here.directory / "live.toml").write_text(staged.here(settings))
    terminals = {number: Terminal(here.directory, here.environment, here.at) for number in "1239"}
    try:
        if has_server:
            registering = Terminal(here.directory, here.environment)
            registering.run(".venv/bin/avicenna-live diagnoses add 42 --owner amira --viewer farid")
        for number, command in ((terminal, command) for terminal, found in blocks(Path(name)) for command in found):
            if listed(name, command) is not None:
                continue
            for port, stand_in in ports.items():
                command = re.sub(rf"\b{port}\b", stand_in, command)  # noqa: PLW2901
            terminals[number].run(command if staged is None else staged.here(command))
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
    "docs/guides/behind-a-proxy.md": ("the settings can be used", "answers, and passes WebSockets", "connected to"),
    "docs/DEPLOYMENT.md": ("42",),
    "docs/guides/keys.md": ("the settings can be used", "lifted"),
    "docs/guides/upgrade.md": ("the settings can be used", "can be restored"),
}
"""What must be among what they print."""
