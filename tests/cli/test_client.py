"""The commands against a stand-in that answers what a server answers: failures become one line and an exit code."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from web import cli

TOKEN = "very.secret.token"


@dataclass
class StandIn:
    """Answers each request with the next prepared answer, and remembers the requests."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def will_answer(self, status: int, body: object, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.append((status, headers, content))

    def will_refuse(self, status: int, code: str, detail: str) -> None:
        self.will_answer(status, {"type": "about:blank", "status": status, "code": code, "detail": detail})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            stand_in.requests.append((self.command, self.path, headers, json.loads(body) if body else None))
            stand_in.bodies.append(body)
            status, more, content = stand_in.answers.pop(0)
            self.send_response(status)
            for name, value in {**more, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names http.server looks for

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        stand_in.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("AVICENNA_URL", stand_in.url)
        monkeypatch.setenv("AVICENNA_TOKEN", TOKEN)
        # A proxy of the environment would see our token: it must not be asked.
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        yield stand_in
        listening.shutdown()
        thread.join()


def test_a_diagnosis_is_registered_with_owner_and_viewers(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.will_answer(201, {"diagnosis_id": 42})
    assert cli.main(["diagnoses", "add", "42", "--owner", "dr", "--viewer", "a", "--viewer", "b"]) == 0
    method, path, headers, body = server.requests[0]
    assert (method, path, body) == ("PUT", "/diagnoses/42", {"owner": "dr", "viewers": ["a", "b"]})
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["content-type"] == "application/json"
    assert capsys.readouterr().out == "diagnosis 42 registered: owner dr, viewers a, b\n"


def test_every_page_of_the_list_is_asked_for(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"diagnosis_id": 42, "owner": "dr", "viewers": ["a"], "created_at": "2026-01-02T03:04:05Z"}
    server.will_answer(200, {"items": [one], "next": "4 2"})
    server.will_answer(200, {"items": [{**one, "diagnosis_id": "x", "viewers": []}], "next": None})
    assert cli.main(["diagnoses", "list"]) == 0
    assert [path for _, path, _, _ in server.requests] == ["/diagnoses?limit=1000", "/diagnoses?limit=1000&after=4+2"]
    assert capsys.readouterr().out.splitlines() == [
        "DIAGNOSIS  OWNER  VIEWERS  CREATED",
        "42         dr     a        2026-01-02T03:04:05Z",
        "x          dr              2026-01-02T03:04:05Z",
    ]


@pytest.mark.parametrize("body", [[], {}, {"items": 1, "next": None}, {"items": [], "next": 1}, None, "a"])
def test_an_answer_that_is_no_list_is_one_line(
    body: object, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server.will_answer(200, body)
    assert cli.main(["diagnoses", "list"]) == 1
    assert capsys.readouterr().err.count("is it an avicenna-live server?\n") == 1


def test_a_program_gets_the_list_as_json(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.will_answer(200, {"items": [], "next": None})
    assert cli.main(["diagnoses", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_number_of_an_object_is_sent_as_it_is_written(server: StandIn) -> None:
    new = '{"a":123456789.123456789123,"b":[1e-400,9007199254740993.0,9007199254740993]}'
    server.will_refuse(404, "not_found", "this diagnosis is not registered")
    assert cli.main(["publish", "recommendation", "a", "--new-data", new]) == 5
    assert server.bodies == [b'{"diagnosis_id":"a","new_data":%b}' % new.encode()]


def test_what_is_no_text_is_not_sent(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", "recommendation", "a", "--new-data", '{"a":"\\ud800"}']) == 2
    assert "not all text" in capsys.readouterr().err
    assert not server.requests


def test_a_diagnosis_is_removed(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.will_answer(200, {"diagnosis_id": "a"})
    assert cli.main(["diagnoses", "remove", "a"]) == 0
    assert server.requests[0][:2] == ("DELETE", "/diagnoses/a")
    assert capsys.readouterr().out == "diagnosis a removed\n"


def test_an_update_is_published_with_its_key(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    subscribers = {"online": 1, "known": 1, "at_risk": 0}
    receipt = {"diagnosis_id": 42, "seq": 7, "clients_notified": 1, "subscribers": subscribers, "replayed": False}
    server.will_answer(200, receipt)
    line = ["publish", "feedback", "42", "--feedback-id", "9", "--rating", "5", "--idempotency-key", "k 1", "--json"]
    assert cli.main(line) == 0
    method, path, headers, body = server.requests[0]
    assert (method, path) == ("POST", "/ws/broadcast-feedback-update")
    assert headers["idempotency-key"] == "k 1"
    assert body == {"diagnosis_id": "42", "feedback_id": 9, "rating": 5}
    assert json.loads(capsys.readouterr().out) == receipt


def test_a_refusal_is_one_line_with_code_and_detail(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.will_refuse(404, "not_found", "this diagnosis is not registered")
    assert cli.main(["diagnoses", "remove", "a"]) == 5
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "avicenna-live: not_found: this diagnosis is not registered\n"


def test_who_has_no_token_is_told_where_to_get_one(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AVICENNA_TOKEN")
    server.will_refuse(401, "unauthenticated", "a bearer token is required")
    assert cli.main(["status"]) == 4
    assert "authorization" not in server.requests[0][2]
    assert "give --token-file or AVICENNA_TOKEN, or --data DIR" in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"code": 1}'])
def test_a_server_that_is_another_one_is_told_apart(
    server: StandIn, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.will_answer(502, body)
    assert cli.main(["status"]) == 1
    assert "answered 502 Bad Gateway; is it an avicenna-live server?" in capsys.readouterr().err


def test_an_answer_that_is_no_json_is_one_line(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.will_answer(200, b"hello")
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err.endswith("is not JSON; is it an avicenna-live server?\n")


def test_a_redirect_is_not_followed_with_the_token(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.will_answer(302, b"", Location=f"{server.url}/elsewhere")
    assert cli.main(["status"]) == 1
    assert len(server.requests) == 1
    assert "answered 302" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["status"], ["tail", "42"], ["diagnoses", "list"]])
def test_a_server_that_is_not_there_is_one_line_and_exit_code_3(
    command: list[str], unused_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for url, why in (
        (unused_url, "Connection refused"),
        (f"unix:{tmp_path}/absent.sock", "No such file or directory"),
        (f"unix:{tmp_path}/{'long' * 40}.sock", "AF_UNIX path too long"),
        (f"unix:{tmp_path}/file", "Connection refused"),
    ):
        assert cli.main([*command, "--url", url, "--token", TOKEN]) == 3
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err == f"avicenna-live: cannot reach {url}: {why}\n"


def test_a_server_that_hangs_up_is_said_to_have_done_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for command in (["status"], ["tail", "42"]):
            assert cli.main([*command, "--url", url, "--token", TOKEN]) == 3
            assert capsys.readouterr().err == (
                f"avicenna-live: cannot reach {url}: the connection ended without an answer; "
                f"does it speak TLS? then --url {url.replace('http', 'https')}\n"
            )
        thread.join()


def test_no_failure_prints_the_token(server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    server.will_refuse(401, "token_expired", "the token has expired")
    server.will_answer(500, b"oops")
    assert cli.main(["status"]) == 4
    assert cli.main(["status", "--json"]) == 1
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "--since", "2026-11-27"],
        ["accesses", "--user", ""],
        ["diagnoses", "add", "a b", "--owner", "dr"],
        ["actors", "show", "x" * 65],
        ["publish", "feedback", "42", "--feedback-id", "9" * 15, "--rating", "5"],
    ],
)
def test_a_value_that_the_server_takes_for_wrong_is_wrong_usage(
    command: list[str], server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server.will_refuse(422, "invalid_field", "it must be another one")
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "avicenna-live: invalid_field: it must be another one\n"
