"""`doctor`, `health` and `serve --check`: what is wrong is named, with what helps, and nothing hides anything."""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.strangers import Stranger
from tests.server.harness import Server
from web import cli
from web.commands import doctor, examinations
from web.commands.examinations import EXAMINATIONS, Finding, Patient
from web.server.listening_file import announced
from web.server.settings import Settings

SYNC_SECONDS, FILE_SYSTEM_OF = examinations.sync_seconds, examinations.file_system_of
IS_SYNCHRONIZED = examinations.is_synchronized
"""As they are; tests have others."""

Findings = dict[str, list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty directory, without a setting, on a port that is free."""
    monkeypatch.chdir(tmp_path)
    for name in [one for one in os.environ if one.startswith("AVICENNA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AVICENNA_PORT", "0")
    # What this machine is does not matter here.
    monkeypatch.setattr(examinations, "is_synchronized", lambda: True)
    monkeypatch.setattr(examinations, "sync_seconds", lambda directory: 0.001)
    monkeypatch.setattr(examinations, "file_system_of", lambda path: "ext4")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 100_000))


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Findings]:
    """The exit code, and what `doctor --json` prints, by check."""
    code = cli.main(["doctor", "--json", *arguments])
    findings: Findings = {}
    for one in json.loads(capsys.readouterr().out)["findings"]:
        findings.setdefault(one["check"], []).append(one)
    return code, findings


def levels(findings: Findings) -> dict[str, list[str]]:
    return {check: [one["level"] for one in ones] for check, ones in findings.items()}


def test_where_nothing_is_wrong_every_check_says_so_and_nothing_is_changed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, findings = found(capsys)
    assert (code, levels(findings)) == (0, {check: ["ok"] for check in EXAMINATIONS})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("wanted", "cores", "level"), [(1, 1, "ok"), (2, 2, "ok"), (8, 2, "warning")])
def test_workers_want_cores(
    wanted: int, cores: int, level: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("AVICENNA_WORKERS", str(wanted))
    code, findings = found(capsys)
    assert (code, findings["workers"][0]["level"]) == (0, level)
    assert findings["workers"][0]["help"] == (f"AVICENNA_WORKERS={cores}" if level == "warning" else None)


def test_it_says_how_many_processes_serve_for_the_server_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with announced(data, ["http://127.0.0.1:1"], workers=2):
        _, findings = found(capsys, "--data", str(data))
    assert findings["workers"][0]["text"].startswith("2 processes serve, and one has the database")


def test_people_see_a_line_for_each_and_what_helps_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examinations, "sync_seconds", lambda directory: 0.25)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(
        number
        for number, line in enumerate(lines)
        if line.startswith("warning  disk: a sync (fdatasync) takes 250.0 ms")
    )
    assert lines[at + 1].startswith("         -> put the data directory on a faster disk")


def test_every_wrong_setting_is_a_problem_with_its_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVICENNA_PORT", "99999")
    monkeypatch.setenv("AVICENNA_HOSST", "here")
    code, findings = found(capsys)
    assert code == 2
    assert [one["text"] for one in findings["settings"]] == [
        "AVICENNA_HOSST is not a setting; is AVICENNA_HOST meant?",
        "AVICENNA_PORT must be an integer 0-65535; it is '99999'",
    ]
    assert set(findings) == set(EXAMINATIONS), "the other checks are made all the same"


def test_serve_check_names_every_wrong_setting_and_opens_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.main(["serve", "--check"]) == 0
    assert capsys.readouterr().out == "the settings can be used\n"
    file = tmp_path / "avicenna.toml"
    file.write_text('durability = "no"\ntoken_keys = ["HS256:absent"]\n')
    monkeypatch.setenv("AVICENNA_ADDRESS_SHARE", "7")
    assert cli.main(["serve", "--check", "--config", str(file), "--port", "x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"avicenna-live: durability in {file} must be full or normal; it is 'no'",
        "avicenna-live: AVICENNA_ADDRESS_SHARE must be a number 0.0001-1; it is '7'",
        "avicenna-live: --port must be an integer 0-65535; it is 'x'",
    ]
    assert list(tmp_path.iterdir()) == [file]


def crash(patient: Patient) -> Sequence[Finding]:
    raise RuntimeError("of the check itself")


def test_a_check_that_fails_is_a_finding_and_hides_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "EXAMINATIONS", {**EXAMINATIONS, "keys": crash})
    code, findings = found(capsys)
    assert code == 1
    assert findings.pop("keys")[0]["text"] == "this check failed: RuntimeError: of the check itself"
    assert levels(findings) == {check: ["ok"] for check in EXAMINATIONS if check != "keys"}


def test_a_check_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()

    def hang(patient: Patient) -> Sequence[Finding]:
        ends.wait(30)
        return []

    monkeypatch.setattr(doctor, "CHECK_SECONDS_MAX", 0.05)
    (one,) = doctor.examined("disk", hang, Patient(Settings(), (), None, argparse.Namespace()))
    ends.set()
    assert (one.level, one.text) == ("problem", "this check has not ended within 0 s: does a disk hang?")


def test_a_directory_that_everybody_can_write_is_a_problem_with_its_cure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    code, findings = found(capsys, "--data", str(data))
    (one,) = findings["data directory"]
    assert (code, one["level"]) == (1, "problem")
    assert f"avicenna-live serve --data {data}/avicenna" in one["text"]


def test_a_key_without_its_database_is_a_problem_and_one_that_others_read_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "jwt.key").write_bytes(b"k" * 32)
    (data / "jwt.key").chmod(0o644)
    code, findings = found(capsys)
    assert code == 1
    assert "avicenna-live new-database --data" in findings["data directory"][0]["text"]
    assert findings["keys"][0]["level"] == "warning"
    assert "make it 0600" in findings["keys"][0]["text"]
    (data / "jwt.key").write_bytes(b"short")
    code, findings = found(capsys)
    assert findings["keys"][0]["level"] == "problem"


@pytest.mark.parametrize(("kind", "level", "code"), [("nfs4", "problem", 1), ("tmpfs", "warning", 0)])
def test_a_file_system_that_does_not_do_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, level: str, code: int
) -> None:
    monkeypatch.setattr(examinations, "file_system_of", lambda path: kind)
    ended, findings = found(capsys)
    assert (ended, levels(findings)["disk"]) == (code, [level])
    assert kind in findings["disk"][0]["text"]


def test_a_clock_that_went_back_is_a_problem_and_one_that_nobody_keeps_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = tmp_path / "data" / "avicenna.db"
    database.parent.mkdir(mode=0o700)
    database.touch(mode=0o600)
    os.utime(database, (4e9, 4e9))
    monkeypatch.setattr(examinations, "is_synchronized", lambda: False)
    code, findings = found(capsys)
    assert (code, levels(findings)["clock"]) == (1, ["problem", "warning"])
    assert "it has gone back" in findings["clock"][0]["text"]


def test_too_few_open_files_are_a_warning_with_the_limit_that_is_needed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    code, findings = found(capsys)
    assert (code, findings["open files"][0]["level"]) == (0, "warning")
    assert "LimitNOFILE=10200" in findings["open files"][0]["help"]


def test_an_old_sqlite_is_a_problem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 30, 0))
    code, findings = found(capsys)
    assert (code, findings["libraries"][0]["level"]) == (1, "problem")


def test_places_that_are_taken_are_named_with_their_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as other:
        port = taken.getsockname()[1]
        other.bind("other.sock")
        other.listen()
        (tmp_path / "file").touch()
        for name, value in {
            "PORT": str(port),
            "UNIX_SOCKET": str(tmp_path / "absent" / "live.sock"),
            "OPERATORS_LISTEN": "unix:other.sock",
        }.items():
            monkeypatch.setenv(f"AVICENNA_{name}", value)
        code, findings = found(capsys)
        assert code == 1
        assert [(one["level"], one["help"]) for one in findings["listening"]] == [
            ("problem", f"ss -ltnp 'sport = :{port}'"),
            ("problem", f"mkdir -p {tmp_path}/absent"),
            ("warning", "ss -lxp | grep other.sock"),
        ]
        monkeypatch.setenv("AVICENNA_OPERATORS_LISTEN", "unix:file")
        _, findings = found(capsys)
        assert "is there already and is no socket" in findings["listening"][2]["text"]


async def test_a_running_server_is_found_and_looked_at_by_its_url(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> tuple[int, Findings]:
        return found(capsys, "--data", str(server.data), "--url", server.url)

    code, findings = await trio.to_thread.run_sync(look)
    assert (code, levels(findings)) == (0, {check: ["ok"] for check in EXAMINATIONS})
    assert server.url in findings["listening"][0]["text"]
    assert findings["proxy"][0]["text"] == f"{server.url} answers, and passes WebSockets"

    # As a proxy that speaks HTTP/1.0 to the server.
    asked = examinations._asked

    def as_an_old_proxy(url: str, path: str, headers: Mapping[str, str]) -> Any:
        return asked(url, path, {"Connection": "close", **headers})

    monkeypatch.setattr(examinations, "_asked", as_an_old_proxy)
    code, findings = await trio.to_thread.run_sync(look)
    assert (code, findings["proxy"][0]["level"]) == (0, "warning")
    assert "proxy_http_version 1.1;" in findings["proxy"][0]["help"]


def test_a_url_where_nobody_answers_is_code_3_unless_more_is_wrong(
    capsys: pytest.CaptureFixture[str], unused_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(capsys, "--url", unused_url)[0] == 3
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 30, 0))
    assert found(capsys, "--url", unused_url)[0] == 1
    assert cli.main(["doctor", "--url", "nonsense"]) == 2


def test_a_stranger_at_the_url_is_a_problem(capsys: pytest.CaptureFixture[str], stranger: Stranger) -> None:
    code, findings = found(capsys, "--url", stranger.url)
    assert code in (1, 3)
    assert findings["proxy"][0]["level"] == "problem"


async def test_health_needs_no_token(
    server: Server, capsys: pytest.CaptureFixture[str], unused_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["--url", server.url], ["--data", str(server.data)], ["--ready", "--url", server.url]):
        assert await trio.to_thread.run_sync(cli.main, ["health", *arguments]) == 0
    assert capsys.readouterr().out.split() == ["ok", "ok", "ready"]
    assert cli.main(["health", "--url", unused_url]) == 3


def test_what_is_measured_of_this_machine_leaves_no_file(tmp_path: Path) -> None:
    assert SYNC_SECONDS(tmp_path) > 0
    assert FILE_SYSTEM_OF(Path("/proc")) == "proc"
    assert IS_SYNCHRONIZED() in (True, False, None)
    assert list(tmp_path.iterdir()) == []
