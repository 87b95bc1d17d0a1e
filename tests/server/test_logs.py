"""What the server writes about its requests, and what it never writes."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import trio

from tests.logbook import Logbook, found_in
from tests.server.harness import Server
from tests.server.process import served
from web.server.logs import Formatter, describe, redacted


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("avicenna.test", logging.INFO, __file__, 1, message, args, exc_info)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer [token]"),
        ("bearer.eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln", "bearer.[token]"),
        ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln here", "got [token] here"),
        (f"got {'ey' + 'A' * 8}.{'b' * 10}.{'c' * 40} here", "got [token] here"),
        (f"got {'ewog' * 9}.{'-_' * 9}.{'s' * 43}", "got [token]"),
        (f"bearer.{'ewog' * 9}.{'-_' * 9}.{'s' * 43},", "bearer.[token],"),
        (f"{'a' * 12}.{'b' * 12}.{'c' * 12}.{'d' * 40}.{'e' * 12}", f"{'a' * 12}.[token]"),
        (f"{'a' * 9}.{'b' * 10}.{'c' * 40}", None),
        (f"{'a' * 10}.{'b' * 9}.{'c' * 40}", None),
        (f"{'a' * 10}.{'b' * 10}.{'c' * 39}", None),
        ("eyJhbGciOiJIUzI1NiJ9 alone", "[token] alone"),
        ("GET /ws/42?token=abc&device=phone 101", "GET /ws/42?[query] 101"),
        ("http://h/diagnoses/42/events?after=3", "http://h/diagnoses/42/events?[query]"),
        ("AVICENNA_PROT is not a setting; is AVICENNA_PORT meant?", None),
        ("one\ntwo\x1b[31m\u2028three", "one\\x0atwo\\x1b[31m\\u2028three"),
        *((f"a{chr(code)}b", f"a\\u{code:04x}b") for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))),
        (
            "zero\u200bwidth\ufeff, a tag \U000e0041, half \ud800",
            r"zero\u200bwidth\ufeff, a tag \U000e0041, half \ud800",
        ),
        ("Ünïcödé 漢字 مرحبا", None),
    ],
)
@pytest.mark.guarantee(14)
def test_a_line_holds_no_token_and_no_query_and_stays_one_line(text: str, written: str | None) -> None:
    assert redacted(text) == (written or text)
    assert redacted(text) in Formatter(json=False).format(record("%s", text))
    assert json.loads(Formatter(json=True).format(record("%s", text)))["message"] == redacted(text)


def test_logging_still_has_what_is_switched_off() -> None:
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        assert hasattr(logging, name), name


@pytest.mark.guarantee(14)
def test_an_exception_is_shown_by_kind_and_place_without_its_text() -> None:
    def fail() -> None:
        try:
            raise ValueError("a payload")
        except ValueError as error:
            raise ExceptionGroup("a payload", [KeyError("a payload")]) from error

    try:
        fail()
    except ExceptionGroup as error:
        shown = describe(error)
        line = record("it failed", error=error)
    line.exc_text = "a payload, as another formatter left it"
    assert "ExceptionGroup < " in shown
    assert "fail:" in shown
    assert "with KeyError" in shown
    assert "after ValueError" in shown
    for json_lines in (True, False):
        written = Formatter(json=json_lines).format(line)
        assert shown in written
        assert "payload" not in written
        assert "\n" not in written


async def test_a_request_has_an_id_in_its_answer_and_in_its_line(server: Server, logbook: Logbook) -> None:
    await server.register()
    headers = server.bearer("amira") | {"X-Request-ID": "chosen-by-the-client"}
    shown = await server.http.get("/diagnoses/42/position?device=phone", headers=headers)
    unknown = await server.http.get("/nowhere")
    for answer, line in ((shown, "GET /diagnoses/42/position 200"), (unknown, "GET /nowhere 404")):
        request_id = answer.headers["x-request-id"]
        assert len(request_id) == 16
        (found,) = found_in(logbook.lines, {request_id: "id"})
        assert line in found
    assert not found_in(logbook.lines, {"chosen-by-the-client": "", "device": ""})


async def test_a_path_without_a_route_is_shown_as_it_was_asked(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(server.url.rpartition(":")[2])
    paths = ("/%2Factors?x=1", "/act%6frs%2f", "/a%0d%0ab", "/" + "p" * 300, "/%2Fsubjects/layla", "/subjects%2Flayla")
    for path in paths:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while await stream.receive_some():
                pass
    lines = [record.getMessage() for record in caplog.records if record.name == "avicenna.access"]
    assert [line.split(" ")[1] for line in lines] == [
        "/%2Factors",
        "/act%6frs%2f",
        "/a%0d%0ab",
        "/" + "p" * 199,
        "/subjects/...",
        "/subjects/...",
    ]


async def test_the_ids_of_requests_do_not_tell_how_many_there_were(server: Server) -> None:
    ids = [(await server.http.get("/healthz")).headers["x-request-id"] for _ in range(300)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)
    steps = [abs(int(after, 16) - int(before, 16)) for before, after in pairwise(ids)]
    assert min(steps) > 2**32, "neighbours are far apart, in both halves"
    low = [int(one[8:], 16) for one in ids]
    assert sum(after > before for before, after in pairwise(low)) < 220, "and in no order"


async def test_a_server_can_write_json_lines(tmp_path: Path) -> None:
    mine = Logbook()
    async with served(tmp_path / "data", logbook=mine, AVICENNA_LOG_FORMAT="json") as (process, server):
        await server.register()
        await process.stop()
    lines = [json.loads(line) for line in "".join(mine.lines).splitlines()]
    (put,) = [line for line in lines if "PUT" in line["message"]]
    assert put["message"].startswith("PUT /diagnoses/42 201")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", put.pop("at"))
    assert put.pop("milliseconds") > 0
    assert len(put.pop("request_id")) == 16
    assert put == {
        "level": "info",
        "logger": "avicenna.access",
        "event": "request",
        "message": put["message"],
        "method": "PUT",
        "path": "/diagnoses/42",
        "status": 201,
        "diagnosis_id": "42",
        "code": None,
    }


async def test_a_broadcast_that_is_refused_is_logged_with_the_diagnosis_that_it_means(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    bodies: list[dict[str, object]] = [
        {"diagnosis_id": 7, "feedback_id": 1, "rating": 5},
        {"diagnosis_id": "ward-7", "rating": "five"},
        {"feedback_id": 1},
    ]
    for body in bodies:
        await server.http.post("/ws/broadcast-feedback-update", json=body, headers=server.bearer("bo"))
    service = server.bearer("service", "broadcast")
    await server.http.post("/ws/broadcast-feedback-update", json=bodies[1], headers=service)
    lines = [one.args for one in caplog.records if one.name == "avicenna.access"]
    told = [(one[2], one[4], one[5]) for one in lines if isinstance(one, tuple)]
    assert told == [
        (403, "7", "forbidden"),
        (403, "ward-7", "forbidden"),
        (403, None, "forbidden"),
        (404, "ward-7", "not_found"),
    ]


def test_a_leak_is_found_wherever_the_pieces_of_the_output_end() -> None:
    assert found_in(["some", "thi", "ng\nel", "se\n"], {"thing": "a word", "anything": "another"}) == [
        "a word in: something"
    ]


@pytest.mark.guarantee(14)
@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(("logged", "exit_code"), [("secret-token", 1), ("nothing", 0)])
def test_a_run_in_which_a_secret_was_logged_fails(tmp_path: Path, logged: str, exit_code: int, processes: int) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_it.py").write_text(
        "import logging\nfrom tests.logbook import LOGBOOK\n\n"
        f"def test_it():\n    LOGBOOK.note('secret-token', 'a token')\n    logging.getLogger('x').error({logged!r})\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    command += ["-n", str(processes), "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "LEAKED a token" in done.stdout) == (exit_code, bool(exit_code)), done.stdout


async def test_a_name_in_a_path_is_not_logged_whether_or_not_there_is_a_route(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    headers = server.bearer("admin", "operate")
    async with httpx.AsyncClient(base_url=server.url) as http:
        for path in ("/subjects/layla", "/subjects/layla%0d%0a"):
            await http.delete(path, headers=headers)
    lines = [record.getMessage() for record in caplog.records if record.name == "avicenna.access"]
    assert len(lines) == 2
    assert not [line for line in lines if "layla" in line]
