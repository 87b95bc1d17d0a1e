"""The exit code of every command for every kind of failure, and the object that `--json` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.test_strange_answers import COMMANDS, Fake, answering
from tests.server.process import run, served
from web import cli
from web.commands.failures import MEANINGS
from web.commands.following import code_of

REFUSALS = [
    (401, "unauthenticated", 4),
    (401, "token_expired", 4),
    (403, "forbidden", 4),
    (403, "origin_not_allowed", 4),
    (404, "not_found", 5),
    (409, "key_reused", 6),
    (413, "too_large", 6),
    (429, "mailbox_full", 6),
    (429, "rate_limited", 6),
    (503, "rate_limited", 6),
    (422, "invalid_field", 2),
    (500, "internal_error", 1),
    (501, "not_supported", 1),
    (503, "draining", 1),
    (503, "quarantined", 1),
    (503, "storage_unavailable", 1),
    (418, "a_code_of_a_newer_server", 1),
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    with answering() as found:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("AVICENNA_URL", found.url)
        monkeypatch.setenv("AVICENNA_TOKEN", "a.b.c")
        yield found


@pytest.mark.parametrize(("status", "code", "exit_code"), REFUSALS)
def test_the_code_of_a_refusal_decides_the_exit_code_of_every_command(
    status: int, code: str, exit_code: int, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.status, fake.content = status, json.dumps({"code": code, "detail": "it says why"}).encode()
    for name, command in COMMANDS.items():
        assert cli.main(command) == exit_code, name
        assert capsys.readouterr() == ("", f"avicenna-live: {code}: it says why\n"), name
        assert cli.main([*command, "--json"]) == exit_code, name
        printed = capsys.readouterr()
        assert printed.out == "", name
        told = {"error": {"code": code, "detail": "it says why", "exit_code": exit_code}}
        assert json.loads(printed.err.splitlines()[-1]) == told, name


def test_nobody_there_is_exit_code_3_of_every_command(
    unused_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, command in COMMANDS.items():
        assert cli.main([*command, "--url", unused_url, "--token", "a.b.c", "--json"]) == 3, name
        error = json.loads(capsys.readouterr().err)["error"]
        assert (error["code"], error["exit_code"]) == ("unreachable", 3), name
        assert error["detail"].startswith("cannot reach http://127.0.0.1:"), name


@pytest.mark.parametrize(
    ("argv", "detail"),
    [
        (["purge", "--json"], "the following arguments are required: ID"),
        (["status", "--json", "--url", "ftp://x"], "the URL of the server must be"),
        (["purge", "42", "--json"], "give --yes"),
        (["delivery", "42", "0", "--json"], "argument SEQ: must be an integer 1-"),
        (["disconnect", "42", "--json"], "one of the arguments --sub --anonymous is required"),
        (["revocations", "--lift", "1", "--sub", "a", "--json"], "goes together with neither"),
    ],
)
def test_a_wrong_command_line_is_an_object_too(
    argv: list[str], detail: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sys.exit(cli.main(argv))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    error = json.loads(printed.err)["error"]
    assert (error["code"], error["exit_code"], printed.out) == ("wrong_usage", 2, "")
    assert detail in error["detail"]


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (401, "", "unauthenticated"),
        (404, "", "not_found"),
        (429, "", "rate_limited"),
        (503, "", "failed"),
        (1008, "invalid token", "unauthenticated"),
        (1008, "access denied", "forbidden"),
        (1008, "diagnosis deleted", "not_found"),
        (1008, "rate limited", "rate_limited"),
        (1008, "a reason of a newer server", "failed"),
        (1011, "rate limited", "failed"),
        (4000, "replaced", "replaced"),
    ],
)
def test_the_end_of_a_connection_has_a_code(code: int, reason: str, expected: str) -> None:
    assert code_of(code, reason) == expected


async def test_each_exit_code_comes_from_a_real_server(tmp_path: Path) -> None:
    data, seen = tmp_path / "data", set()
    async with served(data, AVICENNA_USER_EVENTS_PER_SECOND="0.01") as (process, server):
        await server.register()
        at = ("--data", data)
        lines: list[tuple[int, tuple[Any, ...], dict[str, str]]] = [
            (0, ("status", *at), {}),
            (2, ("audit", "--since", "yesterday", *at), {}),
            (4, ("actors", "list", *at), {"AVICENNA_TOKEN": server.token("amira")}),
            (4, ("tail", "42", *at), {"AVICENNA_TOKEN": "no.token.this"}),
            (5, ("purge", "43", "--yes", *at), {}),
            (5, ("tail", "43", *at), {}),
            (5, ("outbox", "43", *at), {}),
            (0, ("publish", "feedback", "42", "--feedback-id", "1", "--rating", "5", *at), {}),
            (6, ("publish", "feedback", "42", "--feedback-id", "2", "--rating", "5", *at), {}),
        ]
        for expected, command, environment in lines:
            code, _, said = await run(*command, **environment)
            assert code == expected, (command, said)
            seen.add(code)
        assert await process.stop() == 0
        code, _, said = await run("status", "--url", server.url)
        assert (code, "cannot reach" in said) == (3, True)
        seen.add(code)
    (data / "avicenna.db").write_bytes(b"x" * 100_000)
    with trio.fail_after(60):
        code, _, said = await run("check", "--data", data)
    seen.add(code)
    assert seen == {*MEANINGS}, said
