"""What every command must do: found by the parser, so that a new one cannot lack it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_help import EVERY
from tests.cli.test_strange_answers import COMMANDS, GOOD, Fake, answering
from web import cli
from web.commands.failures import MEANINGS

LEAVES = {
    " ".join(names): parser
    for names, parser in EVERY.items()
    if names and not any(isinstance(one, argparse._SubParsersAction) and one.required for one in parser._actions)
}
"""Every command that can be run, by its words."""

LINES = {" ".join(name.split(" --")[:1]): command for name, command in COMMANDS.items() if name in LEAVES}
LINES |= {
    "publish": ["publish", "--stream"],
    "publish feedback": ["publish", "feedback", "42", "--feedback-id", "9", "--rating", "5"],
    "publish recommendation": ["publish", "recommendation", "42", "--new-data", "{}"],
    "publish effectiveness": ["publish", "effectiveness", "42", "--recommendation-id", "1", "--new-effectiveness", "1"],
    "tail": ["tail", "42"],
    "health": ["health"],
    "top": ["top"],
    "doctor": ["doctor"],
    "backup": ["backup", "copy.db"],
    "restore": ["restore", "copy.db"],
    "new-database": ["new-database"],
    "serve": ["serve", "--check"],
    "demo": ["demo"],
    "token": ["token", "--sub", "a"],
    "help": ["help", "actors", "list"],
    "completion": ["completion", "bash"],
    "reload": ["reload"],
    "cluster check": ["cluster", "check"],
    "cluster renew": ["cluster", "renew"],
    "cluster transfer": ["cluster", "transfer", "--from", "."],
}
"""A command line of each."""

HERE = {
    "restore": (["restore", "absent.db"], 1),
    "new-database": (["new-database", "--config", "absent.toml"], 2),
    "serve": (["serve", "--check", "--port", "x"], 2),
    "demo": (["demo", "--port", "x"], 2),
    "token": (["token", "--sub", "a", "--data", "absent"], 1),
    "help": (["help", "absent"], 2),
    "completion": (["completion", "tcsh"], 2),
    "reload": (["reload"], 3),
    "cluster check": (["cluster", "check"], 2),
    "cluster renew": (["cluster", "renew"], 2),
    "cluster transfer": (["cluster", "transfer", "--from", "absent"], 2),
}
"""Those that ask no server: a line that fails, and with which code."""

REMOTE = sorted(set(LEAVES) - set(HERE))


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("CONFIG", "URL", "TOKEN", "DATA", "PORT"):
        monkeypatch.delenv(f"AVICENNA_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typed").write_text("{}\n")
    with (tmp_path / "typed").open() as typed:
        monkeypatch.setattr("sys.stdin", typed)
        yield


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with answering() as found:
        monkeypatch.setenv("AVICENNA_URL", found.url)
        monkeypatch.setenv("AVICENNA_TOKEN", "a.b.c")
        yield found


def ended(argv: list[str]) -> object:
    """The exit code."""
    try:
        return cli.main(argv)
    except SystemExit as ending:
        return ending.code


def failure_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    """What was printed, and the last line of stderr."""
    printed = capsys.readouterr()
    told = json.loads(printed.err.splitlines()[-1])
    assert set(told) == {"error"}
    assert set(told["error"]) == {"code", "detail", "exit_code"}
    return printed.out, told["error"]


def test_every_command_has_a_line_here() -> None:
    assert set(LINES) == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_takes_json_and_says_so(name: str) -> None:
    options = {option: action.help for action in LEAVES[name]._actions for option in action.option_strings}
    assert "JSON" in str(options["--json"]) or "object" in str(options["--json"])


@pytest.mark.parametrize("name", LEAVES)
def test_a_wrong_option_of_every_command_is_an_object_and_code_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended([*LINES[name], "--json", "--no-such-option"]) == 2
    printed, error = failure_of(capsys)
    assert (printed, error["code"], error["exit_code"]) == ("", "wrong_usage", 2)
    assert "--no-such-option" in error["detail"]
    assert ended([*LINES[name], "--no-such-option"]) == 2
    assert capsys.readouterr().err.startswith(f"usage: avicenna-live {name} ")


@pytest.mark.parametrize("name", HERE)
def test_a_failure_of_every_command_that_asks_no_server_is_an_object(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line, code = HERE[name]
    assert ended([*line, "--json"]) == code
    printed, error = failure_of(capsys)
    assert (printed, error["exit_code"], error["code"]) == (
        "",
        code,
        {1: "failed", 2: "wrong_usage", 3: "unreachable"}[code],
    )


@pytest.mark.parametrize("name", REMOTE)
def test_without_a_server_every_command_that_needs_one_ends_with_3(
    name: str, capsys: pytest.CaptureFixture[str], unused_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVICENNA_URL", unused_url)
    monkeypatch.setenv("AVICENNA_TOKEN", "a.b.c")
    assert ended([*LINES[name], "--json"]) == 3
    _, error = failure_of(capsys)
    assert (error["code"], error["exit_code"]) == ("unreachable", 3)
    assert f"cannot reach {unused_url}" in error["detail"] or unused_url in error["detail"]


@pytest.mark.parametrize("code", ["unauthenticated", "not_found", "rate_limited", "invalid_field"])
@pytest.mark.parametrize("name", [one for one in REMOTE if one != "doctor"])
def test_a_refusal_of_every_command_has_the_servers_code(
    name: str, code: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    status, exit_code = {
        "unauthenticated": (401, 4),
        "not_found": (404, 5),
        "rate_limited": (429, 6),
        "invalid_field": (422, 2),
    }[code]
    fake.status, fake.content = status, json.dumps({"code": code, "detail": "it says why"}).encode()
    line = [*LINES[name], "--no-reconnect"] if name == "tail" else LINES[name]
    assert ended([*line, "--json"]) == exit_code
    printed, error = failure_of(capsys)
    assert error["exit_code"] == exit_code
    assert exit_code in MEANINGS
    assert all(json.loads(one)["type"] == "status" for one in printed.splitlines())


@pytest.mark.parametrize(
    "name",
    [
        *(one for one in HERE if one not in ("demo", "restore", "reload") and not one.startswith("cluster")),
        *(one for one in GOOD if one in LEAVES and one != "publish"),
    ],
)
def test_the_result_of_every_command_is_json(name: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "token":
        Path("data").mkdir()
    fake.content = json.dumps(GOOD.get(name, {})).encode()
    assert ended([*LINES[name], "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    json.loads(printed)
