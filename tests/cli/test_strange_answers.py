"""The commands against somebody whose answers are no avicenna-live server's: one line, exit 1, and no success."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.cli.strangers import served_by
from web import cli
from web.commands import client

COMMANDS = {
    "publish": ["publish", "feedback", "42", "--feedback-id", "9", "--rating", "5"],
    "diagnoses add": ["diagnoses", "add", "42", "--owner", "dr"],
    "diagnoses list": ["diagnoses", "list"],
    "diagnoses remove": ["diagnoses", "remove", "42"],
    "actors list": ["actors", "list"],
    "actors show": ["actors", "show", "42"],
    "actors restart": ["actors", "restart", "42"],
    "actors stop": ["actors", "stop", "42"],
    "status": ["status"],
    "audit": ["audit"],
    "accesses": ["accesses"],
    "check": ["check"],
    "outbox": ["outbox", "42", "--payload"],
    "delivery": ["delivery", "42", "1"],
    "purge": ["purge", "42", "--yes"],
    "disconnect": ["disconnect", "42", "--sub", "dr"],
    "revoke": ["revoke", "--sub", "dr"],
    "revocations": ["revocations"],
    "revocations --lift": ["revocations", "--lift", "1"],
    "erase": ["erase", "dr", "--yes"],
    "drain": ["drain", "--yes"],
}

RECEIPT: dict[str, Any] = {
    "diagnosis_id": 42,
    "seq": 1,
    "clients_notified": 0,
    "subscribers": {"online": 0, "known": 0, "at_risk": 0},
    "replayed": False,
}
DIAGNOSIS: dict[str, Any] = {"diagnosis_id": 42, "owner": "dr", "viewers": [], "created_at": "t"}
ACTOR: dict[str, Any] = {
    "diagnosis_id": 42,
    "state": "running",
    "incarnation": 1,
    "subscribers": 0,
    "mailbox": {"depth": 0, "limit": 1000},
    "head": 0,
    "floor": 0,
    "restarts": 0,
    "last_crash": {"at": "t", "error": "e"},
    "lag": [{"user_id": None, "device": None, "online": True, "cursor": 0, "lag": 0}],
}
ACT: dict[str, Any] = {"id": 1, "at": "t", "actor": "a", "action": "x", "target": "t", "before": None, "after": {}}
ACCESS: dict[str, Any] = {"id": 1, "at": "t", "what": "w", "diagnosis_id": 42, "user_id": None, "device": None}
EVENT: dict[str, Any] = {"type": "x", "diagnosis_id": 42, "seq": 1, "timestamp": "t", "data": {}}
DELIVERED: dict[str, Any] = {
    "user_id": None,
    "device": None,
    "online": False,
    "cursor": 0,
    "state": "pending",
    "acknowledged_at": None,
    "acknowledged_by": None,
}
REVOCATION: dict[str, Any] = {"id": 1, "sub": "dr", "at": "t", "covers_until": "t"}
ERASED: dict[str, Any] = {
    "connections": 0,
    "cursors": 0,
    "viewer_entries": 0,
    "audit_rows": 0,
    "access_rows": 0,
    "owned": [42],
    "owned_total": 1,
}
STATUS: dict[str, Any] = {"total_diagnoses": 0, "total_connections": 0, "node": {}, "connections_by_diagnosis": {}}

GOOD: dict[str, Any] = {
    "publish": RECEIPT,
    "diagnoses add": {"diagnosis_id": 42},
    "diagnoses list": {"items": [DIAGNOSIS], "next": None},
    "diagnoses remove": {"diagnosis_id": 42},
    "actors list": {"items": [ACTOR], "next": None},
    "actors show": ACTOR,
    "actors restart": ACTOR,
    "actors stop": ACTOR,
    "status": STATUS,
    "audit": {"items": [ACT], "next": None},
    "accesses": {"items": [ACCESS], "next": None},
    "check": {"problems": []},
    "outbox": {"items": [EVENT], "next": None},
    "delivery": {"items": [DELIVERED], "next": None},
    "purge": {"diagnosis_id": 42, "head": 1, "floor": 1},
    "disconnect": {"disconnected": 0, "forgotten": 0},
    "revoke": REVOCATION,
    "revocations": {"items": [REVOCATION], "next": None},
    "revocations --lift": REVOCATION,
    "erase": ERASED,
    "drain": {"status": "draining"},
}

NESTED = b"[" * 500 + b"]" * 500
DEEP = b'{"a":' * 200_000 + b"1" + b"}" * 200_000

BODIES = [
    b"{}",
    b"[]",
    b"null",
    b'"x"',
    b"1",
    b"NaN",
    b"",
    b"hello",
    b"\xff\xfe\x00\xff",
    b'{"items":"\xff"}',
    b'{"items":[1],"next":null}',
    b'{"items":[{}],"next":null}',
    b'{"items":[null],"next":null}',
    b'{"items":[[]],"next":"x"}',
    b'{"items":{},"next":null}',
    b'{"items":[],"next":1}',
    b'{"diagnosis_id":null}',
    b"9" * 10_000,
    NESTED,
    DEEP,
]


class Fake:
    """Answers everything with one body."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.content = b""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    with answering() as found:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("AVICENNA_URL", found.url)
        monkeypatch.setenv("AVICENNA_TOKEN", "a.b.c")
        yield found


@contextmanager
def answering() -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names http.server looks for

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with served_by(Handler) as url:
        found = Fake(url)
        yield found


def fails_with_one_line(name: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main([*COMMANDS[name], *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_answer_of_another_shape_is_one_line_and_no_success(
    name: str, options: tuple[str, ...], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    for body in BODIES:
        fake.content = body
        said = fails_with_one_line(name, capsys, *options)
        detail = json.loads(said)["error"]["detail"] if options else said.rstrip()
        assert detail.endswith("is it an avicenna-live server?"), body[:80]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_part_of_an_answer_that_is_used_must_have_its_type(
    name: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.content = json.dumps(GOOD[name]).encode()
    assert cli.main(COMMANDS[name]) == 0
    capsys.readouterr()
    for spoilt in spoilings(GOOD[name]):
        fake.content = json.dumps(spoilt).encode()
        assert "is another one than was asked for" in fails_with_one_line(name, capsys), spoilt


def spoilings(value: Any) -> Iterator[Any]:
    """The value with one part of it, at any depth, of a type that nothing has."""
    match value:
        case dict():
            for name, part in value.items():
                yield from ({**value, name: one} for one in spoilings(part))
                yield {**value, name: [[0.5]]}
        case [first, *rest]:
            yield from ([one, *rest] for one in spoilings(first))
            yield [[[0.5]], *rest]


def test_what_no_terminal_can_show_is_escaped(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.content = json.dumps({"items": [DIAGNOSIS | {"owner": "\ud800\x1b[2J"}], "next": None}).encode()
    assert cli.main(COMMANDS["diagnoses list"]) == 0
    assert "\\ud800\\x1b[2J" in capsys.readouterr().out


def test_an_answer_that_is_too_large_is_one_line(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ANSWER_BYTES_MAX", 1000)
    fake.content = b'{"diagnosis_id":"' + b"x" * 1000 + b'"}'
    assert "is larger than 1000 bytes" in fails_with_one_line("diagnoses remove", capsys)


@pytest.mark.parametrize(
    "body", [b"[]", b'"x"', b"null", b'{"code":1,"detail":"x"}', b'{"code":"x","detail":{}}', b"\xff", DEEP]
)
def test_a_refusal_of_another_shape_is_one_line(body: bytes, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.status, fake.content = 500, body
    for name in COMMANDS:
        assert "answered 500" in fails_with_one_line(name, capsys)


@pytest.mark.parametrize("name", ["..", "", "\ud800", "a\0b", "x" * 5000])
def test_a_backup_under_a_name_that_no_file_has_is_one_line(
    name: str, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "listening.json").touch()
    (tmp_path / "data" / "backups").mkdir()
    fake.content = json.dumps({"path": f"/data/backups/{name}", "sha256": "0" * 64}).encode()
    assert cli.main(["backup", "copy.db"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "copy.db").exists()
