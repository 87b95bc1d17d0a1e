"""`tail` against a stand-in that speaks the server's side of the protocol, over real sockets."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from tests.server.process import COMMAND
from web.cli import main
from web.commands.client import Client, Credentials
from web.commands.failures import CLOSED_PIPE, CommandFailed, Unreachable
from web.commands.following import Position
from web.commands.tail import Tail

Act = Callable[[WebSocketConnection], Awaitable[None]]


@dataclass
class StandIn:
    """Accepts connections and lets the next prepared act speak on each."""

    acts: list[Act]
    url: str = ""
    queries: list[dict[str, list[str]]] = field(default_factory=list)
    headers: list[dict[bytes, bytes]] = field(default_factory=list)

    async def handle(self, request: WebSocketRequest) -> None:
        self.queries.append(parse_qs(urlsplit(request.path).query))
        self.headers.append(dict(request.headers))
        await self.acts.pop(0)(await request.accept())


@asynccontextmanager
async def standing_in(*acts: Act) -> AsyncIterator[StandIn]:
    stand_in = StandIn(list(acts))
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, stand_in.handle, "127.0.0.1", 0, None)
        stand_in.url = f"http://127.0.0.1:{server.port}"
        with trio.fail_after(20):
            yield stand_in
        nursery.cancel_scope.cancel()


def connect(
    resume: str = "fresh",
    epoch: str = "e1",
    floor: int = 0,
    head: int = 0,
    ack: str | None = None,
    queued: int = 0,
    missed: int = 0,
) -> str:
    data: dict[str, Any] = {"resume": resume, "epoch": epoch, "floor": floor, "head": head, "ack": ack}
    data |= {"missed": missed, "queued": queued}
    return json.dumps({"type": "connect", "diagnosis_id": 42, "data": data})


def event(seq: int) -> str:
    data = {"feedback_id": seq, "rating": 5, "effectiveness": None}
    return json.dumps({"type": "feedback_update", "seq": seq, "diagnosis_id": 42, "timestamp": "T", "data": data})


def other(kind: str, **data: Any) -> str:
    return json.dumps({"type": kind, "diagnosis_id": 42, "timestamp": "T", "data": data})


def says(*frames: str, then_close: tuple[int, str] | None = None) -> Act:
    async def act(connection: WebSocketConnection) -> None:
        for frame in frames:
            await connection.send_message(frame)
        if then_close is not None:
            await connection.aclose(*then_close)
        else:
            await trio.sleep_forever()

    return act


def tail_of(stand_in: StandIn, position: Position | None = None, **options: Any) -> Tail:
    client = Client(stand_in.url, Credentials("secret"))
    return Tail(client, "42", position or Position(), jitter=lambda: 0.0, **options)


def numbers(printed: str) -> list[int]:
    return [int(line.split("#")[1].split()[0]) for line in printed.splitlines()]


async def test_events_are_printed_one_a_line_until_enough(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(says(connect(), event(1), other("live", seq=1), event(2), event(3))) as stand_in:
        await tail_of(stand_in, events_max=2, device="d", start="new").follow(True)
    printed = capsys.readouterr()
    assert numbers(printed.out) == [1, 2]
    assert printed.err.startswith("connected to diagnosis 42, from now on")
    assert stand_in.queries == [{"device": ["d"], "start": ["new"], "heartbeat": ["20"]}]


async def test_the_token_travels_in_the_header_and_not_in_the_url() -> None:
    async with standing_in(says(connect(), event(1))) as stand_in:
        await tail_of(stand_in, events_max=1).follow(True)
    assert stand_in.headers[0][b"authorization"] == b"Bearer secret"
    assert "token" not in stand_in.queries[0]


async def test_after_a_restart_it_comes_back_with_its_position_and_prints_nothing_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    restart = other("bye", code=1012, reason="restart", retry_after_ms=10)
    async with standing_in(
        says(connect(), event(1), event(2), restart, then_close=(1012, "restart")),
        says(connect("exact"), event(2), event(3)),
    ) as stand_in:
        await tail_of(stand_in, events_max=3).follow(True)
    printed = capsys.readouterr()
    assert numbers(printed.out) == [1, 2, 3]
    assert "the connection ended: 1012 restart; coming back in 0.0 s" in printed.err
    assert stand_in.queries[1] == {"after": ["2"], "epoch": ["e1"], "heartbeat": ["20"]}


async def test_a_connection_that_breaks_is_taken_up_again(capsys: pytest.CaptureFixture[str]) -> None:
    async def breaks(connection: WebSocketConnection) -> None:
        await connection.send_message(connect())
        await connection.send_message(event(1))
        await connection._stream.aclose()

    async with standing_in(breaks, says(connect("exact"), event(2))) as stand_in:
        await tail_of(stand_in, events_max=2).follow(True)
    assert numbers(capsys.readouterr().out) == [1, 2]


async def test_a_connection_that_breaks_after_a_goodbye_has_ended_as_that_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def breaks(connection: WebSocketConnection) -> None:
        await says_now(connection, connect(), other("bye", code=4000, reason="replaced", retry_after_ms=None))
        await connection._stream.aclose()

    async with standing_in(breaks) as stand_in:
        with pytest.raises(CommandFailed, match="the connection ended: 4000 replaced"):
            await tail_of(stand_in).follow(True)


async def test_a_new_numbering_starts_over(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(says(connect("reset", epoch="e2", floor=0), event(1))) as stand_in:
        await tail_of(stand_in, Position(50, "e1"), events_max=1).follow(True)
    printed = capsys.readouterr()
    assert numbers(printed.out) == [1]
    assert "reload your data" in printed.err
    assert stand_in.queries[0] == {"after": ["50"], "epoch": ["e1"], "heartbeat": ["20"]}


@pytest.mark.parametrize(("code", "reason"), [(1008, "access denied"), (4000, "replaced")])
async def test_a_refusal_ends_it(code: int, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = other("error", code="access_denied", detail="you may not follow this diagnosis")
    async with standing_in(says(refusal, then_close=(code, reason))) as stand_in:
        with pytest.raises(CommandFailed, match=f"the connection ended: {code} {reason}"):
            await tail_of(stand_in).follow(True)
    assert "access_denied: you may not follow this diagnosis" in capsys.readouterr().err


async def test_without_reconnecting_any_end_is_the_end() -> None:
    async with standing_in(says(connect(), then_close=(1012, "restart"))) as stand_in:
        with pytest.raises(CommandFailed, match="1012 restart"):
            await tail_of(stand_in).follow(False)


async def test_a_gap_is_printed_among_the_events(capsys: pytest.CaptureFixture[str]) -> None:
    gap = {"from": 1, "to": 4, "count": 4, "reason": "evicted"}
    async with standing_in(says(connect(), other("gap", **gap), event(5))) as stand_in:
        await tail_of(stand_in, events_max=1).follow(True)
    assert capsys.readouterr().out.splitlines()[0] == "gap  #1 to #4: 4 no longer retained (evicted)"


async def test_programs_get_every_frame_as_it_came_and_each_status(capsys: pytest.CaptureFixture[str]) -> None:
    frames = [connect(), event(1), other("live", seq=1)]
    restart = other("bye", code=1012, reason="restart", retry_after_ms=10)
    more = [connect("exact"), other("heartbeat", seq=1), event(2)]
    async with standing_in(says(*frames, restart, then_close=(1012, "restart")), says(*more)) as stand_in:
        await tail_of(stand_in, events_max=2, as_json=True).follow(True)
    assert [*map(json.loads, capsys.readouterr().out.splitlines())] == [
        status("connecting"),
        *map(json.loads, frames),
        status("live"),
        json.loads(restart),
        status("offline", 1012, "restart"),
        status("connecting"),
        json.loads(more[0]),
        json.loads(more[2]),
    ]


async def test_programs_are_told_why_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    async with standing_in(says(connect(), then_close=(4000, "replaced"))) as stand_in:
        with pytest.raises(CommandFailed):
            await tail_of(stand_in, as_json=True).follow(True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == status("ended", 4000, "replaced")


def status(name: str, code: int | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"type": "status", "data": {"status": name, "code": code, "reason": reason}}


async def test_with_application_acknowledgement_each_printed_event_is_acknowledged() -> None:
    acknowledged: list[Any] = []
    all_of_them = trio.Event()

    async def act(connection: WebSocketConnection) -> None:
        await says_now(connection, connect(ack="app"), event(1), event(2))
        acknowledged.extend([json.loads(await connection.get_message()) for _ in range(2)])
        all_of_them.set()
        await trio.sleep_forever()

    async with standing_in(act) as stand_in:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tail_of(stand_in, ack="app").follow, True)
            await all_of_them.wait()
            nursery.cancel_scope.cancel()
        assert stand_in.queries[0] == {"ack": ["app"], "heartbeat": ["20"]}
    assert acknowledged == [{"type": "ack", "seq": 1}, {"type": "ack", "seq": 2}]


async def test_a_peek_comes_back_as_one_and_acknowledges_nothing() -> None:
    said: list[Any] = []

    async def act(connection: WebSocketConnection) -> None:
        await says_now(connection, connect("exact"), event(2), other("pong"), event(3))
        with pytest.raises(ConnectionClosed):
            said.append(await connection.get_message())

    async with standing_in(says(connect(), event(1), then_close=(1012, "restart")), act) as stand_in:
        await tail_of(stand_in, peek=True, events_max=3).follow(True)
        first, second = stand_in.queries
        assert first == {"peek": ["1"], "heartbeat": ["20"]}
        assert second == {"peek": ["1"], "heartbeat": ["20"], "after": ["1"], "epoch": ["e1"]}
    assert said == []


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        (["--token", "t"], {"ack": ["app"]}),
        (["--token", "t", "--peek"], {"peek": ["1"]}),
        (["--token", "t", "--ack", "transport"], {"ack": ["transport"]}),
        (["--device", "d"], {"device": ["d"], "ack": ["app"]}),
        (["--heartbeat", "5"], {"heartbeat": ["5"]}),
        ([], {}),
    ],
)
async def test_the_line_that_is_printed_acknowledges_unless_the_server_would_refuse_that(
    arguments: list[str], query: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no key lies here
    monkeypatch.delenv("AVICENNA_TOKEN", raising=False)
    async with standing_in(says(connect(), event(1))) as stand_in:
        command = ["tail", "42", "--url", stand_in.url, "--count", "1", *arguments]
        assert await trio.to_thread.run_sync(main, command) == 0
        assert stand_in.queries == [{"heartbeat": ["20"]} | query]


@pytest.mark.parametrize("other_option", [["--device", "d"], ["--ack", "app"]])
def test_a_peek_with_a_queue_is_refused_before_anything_is_sent(
    other_option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tail", "42", "--peek", *other_option]) == 2
    assert "--peek" in capsys.readouterr().err


@pytest.mark.parametrize("resume", ["fresh", "reset"])
async def test_how_many_events_before_the_first_are_gone_is_said(
    resume: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with standing_in(says(connect(resume, floor=12, head=13, queued=1), event(13))) as stand_in:
        await tail_of(stand_in, events_max=1).follow(True)
    assert capsys.readouterr().err.rstrip().endswith("; 12 events before #13 are gone")


@pytest.mark.parametrize(
    ("start", "floor", "head", "said"),
    [
        (None, 0, 7, "from the start; 0 queued, head #7"),
        ("oldest", 12, 20, "from #13 on; 0 queued, head #20; 12 events before #13 are gone"),
        ("new", 30, 130, "from now on; 0 queued, head #130"),
        ("2", 30, 130, "from #129 on; 0 queued, head #130"),
        ("100", 30, 130, "from #31 on; 0 queued, head #130"),
        ("101", 30, 130, "from #31 on; 0 queued, head #130; 1 event before #31 is gone"),
        ("900", 30, 130, "from #31 on; 0 queued, head #130; 30 events before #31 are gone"),
        ("0", 30, 130, "from #131 on; 0 queued, head #130"),
        ("5", 0, 3, "from the start; 0 queued, head #3"),
    ],
)
async def test_where_it_really_begins_is_said_and_as_gone_only_what_was_asked_for(
    start: str | None, floor: int, head: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with standing_in(says(connect(floor=floor, head=head), event(head + 1))) as stand_in:
        await tail_of(stand_in, start=start, events_max=1).follow(True)
    assert capsys.readouterr().err == f"connected to diagnosis 42, {said}\n"


async def test_a_refused_upgrade_is_said_with_code_and_detail() -> None:
    problem = json.dumps({"code": "misdirected_request", "detail": "see allowed_hosts \x1b"}).encode()
    for body, said in (
        (problem, ": misdirected_request: see allowed_hosts \\x1b"),
        (b"<html>", ""),
        (b'{"code": 1}', ""),
        (b"", ""),
    ):
        async with refusing(421, body) as url:
            tail = Tail(Client(url, Credentials("t")), "42", Position(), jitter=lambda: 0.0)
            with pytest.raises(CommandFailed) as failure, trio.fail_after(10):
                await tail.follow(True)
        assert str(failure.value) == "the connection ended: 421 instead of a WebSocket" + said


@asynccontextmanager
async def refusing(status: int, body: bytes, headers: bytes = b"") -> AsyncIterator[str]:
    """Something that answers an upgrade with this."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 %d No\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_parameter_the_server_takes_for_wrong_is_wrong_usage() -> None:
    refused = says(other("error", code="invalid_field", detail="start must be ..."), then_close=(1008, "invalid field"))
    async with standing_in(refused) as stand_in:
        command = ["tail", "42", "--url", stand_in.url, "--token", "t", "--start", "middle"]
        assert await trio.to_thread.run_sync(main, command) == 2


STRANGE = pytest.mark.parametrize(
    "frame",
    [
        other("bye", code=1, reason=1)[:-1] + ', "data": "x"}',
        '{"type": "bye", "data": [1]}',
        '{"type": "connect", "data": "x"}',
        "[" * 100_000 + "]" * 100_000,
        "[]",
        "1",
        '{"type": "feedback_update", "seq": "x", "data": {}}',
        '{"type": [], "data": {}}',
        event(1),
    ],
)


@STRANGE
async def test_a_frame_that_is_none_ends_the_connection_with_one_line(frame: str) -> None:
    async with standing_in(says(frame, then_close=(1012, "restart"))) as stand_in:
        with pytest.raises(CommandFailed, match="the connection ended: 1002"):
            await tail_of(stand_in).follow(True)


@STRANGE
async def test_a_server_that_was_good_and_then_says_what_is_none_is_asked_again(
    frame: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    async def act(connection: WebSocketConnection) -> None:
        await says_now(connection, connect(head=4), frame.replace('"seq": 1', '"seq": 6'))
        with pytest.raises(ConnectionClosed) as closed:
            await connection.get_message()
        codes.append(closed.value.reason.code if closed.value.reason else 0)

    async with standing_in(act, says(connect("exact", head=5), event(5))) as stand_in:
        await tail_of(stand_in, events_max=1).follow(True)
        assert stand_in.queries[1]["after"] == ["4"]
    assert codes == [1002]
    assert numbers(capsys.readouterr().out) == [5]


async def test_nothing_is_said_to_be_gone_where_nothing_is_or_a_gap_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for frame in (connect("fresh", head=1), connect("exact", floor=1, head=1), connect("partial", floor=1, head=1)):
        async with standing_in(says(frame, event(2))) as stand_in:
            await tail_of(stand_in, events_max=1).follow(True)
    assert "gone" not in capsys.readouterr().err


async def test_a_token_of_our_own_is_renewed_before_it_expires() -> None:
    renewed = trio.Event()

    async def act(connection: WebSocketConnection) -> None:
        await says_now(connection, connect(), other("auth_expiring", expires_at="T", seconds_left=60))
        frame = json.loads(await connection.get_message())
        assert frame["type"] == "auth"
        assert frame["token"].count(".") == 2
        renewed.set()
        await trio.sleep_forever()

    async with standing_in(act) as stand_in, trio.open_nursery() as nursery:
        client = Client(stand_in.url, Credentials(key=b"k" * 32))
        nursery.start_soon(Tail(client, "42", Position(), jitter=lambda: 0.0).follow, True)
        await renewed.wait()
        nursery.cancel_scope.cancel()


async def test_a_token_file_is_read_again_before_each_connect_and_when_the_token_is_about_to_end(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    file = tmp_path / "token"

    async def act(connection: WebSocketConnection) -> None:
        file.write_text("second")
        await says_now(connection, connect(), other("auth_expiring", expires_at="T", seconds_left=60))
        said.append(json.loads(await connection.get_message())["token"])
        file.write_text("third\n")
        await connection.aclose(1008, "token expired")

    async def is_being_replaced(connection: WebSocketConnection) -> None:
        file.write_text("")
        await connection.aclose(1012)

    file.write_text("first")
    async with standing_in(act, is_being_replaced, says(connect(), event(1))) as stand_in:
        command = ["tail", "42", "--url", stand_in.url, "--token-file", str(file), "--count", "1"]
        assert await trio.to_thread.run_sync(main, command) == 0
        sent = [headers[b"authorization"].decode() for headers in stand_in.headers]
    assert said == ["second"]
    assert sent == ["Bearer first", "Bearer third", "Bearer third"]


@pytest.mark.parametrize("credentials", [Credentials("secret"), Credentials(key=b"k" * 32)])
async def test_a_first_token_that_is_refused_is_not_tried_again(credentials: Credentials) -> None:
    async with standing_in(says(then_close=(1008, "invalid token"))) as stand_in:
        tail = Tail(Client(stand_in.url, credentials), "42", Position(), jitter=lambda: 0.0)
        with pytest.raises(CommandFailed, match="1008 invalid token"):
            await tail.follow(True)


async def test_a_token_that_cannot_be_replaced_ends_it_when_it_ends() -> None:
    async with standing_in(says(connect(), then_close=(1008, "token expired"))) as stand_in:
        with pytest.raises(CommandFailed, match="1008 token expired"):
            await tail_of(stand_in).follow(True)


async def test_a_refusal_with_a_status_that_passes_is_waited_out_as_long_as_it_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with refusing(503, b"", b"Retry-After: 7\r\n") as url:
        tail = Tail(Client(url, Credentials("t")), "42", Position(), jitter=lambda: 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tail.follow, True)
            said = ""
            while "coming back" not in (said := said + capsys.readouterr().err):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert "503 instead of a WebSocket; coming back in 7.0 s" in said


async def test_a_connection_that_is_reset_before_the_upgrade_is_sent_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def reset(url: str) -> trio.SocketStream:
        ours, theirs = trio.socket.socketpair()
        theirs.close()
        return trio.SocketStream(ours)

    monkeypatch.setattr("web.commands.tail._open_stream", reset)
    tail = Tail(Client("http://127.0.0.1:9", Credentials("t")), "42", Position(), jitter=lambda: 0.0)
    with pytest.raises(Unreachable, match="ended without an answer"), trio.fail_after(5):
        await tail.follow(True)


async def test_a_server_that_was_never_there_is_not_waited_for() -> None:
    async with standing_in() as stand_in:
        url = stand_in.url
    stand_in.url = url
    with pytest.raises(Unreachable, match="cannot reach"):
        await tail_of(stand_in).follow(True)


async def says_now(connection: WebSocketConnection, *frames: str) -> None:
    for frame in frames:
        await connection.send_message(frame)


@asynccontextmanager
async def tail_process(url: str, directory: Path, output: int | IO[str]) -> AsyncIterator[trio.Process]:
    """A running `avicenna-live tail 42`, without a token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AVICENNA_")}
    process = await trio.lowlevel.open_process(
        [str(COMMAND), "tail", "42", "--url", url],
        cwd=directory,
        env=environment,
        stdout=output,
        stderr=subprocess.PIPE,
    )
    try:
        with trio.fail_after(30):
            yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_it_ends_when_nobody_reads_any_more_also_where_nothing_comes(tmp_path: Path) -> None:
    async with (
        standing_in(says(connect(), event(1), other("live", seq=1))) as stand_in,
        tail_process(stand_in.url, tmp_path, subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        said = b""
        async with process.stdout:
            while not said.endswith(b"\n"):
                said += await process.stdout.receive_some()
        assert b"#1" in said
        assert await process.wait() == CLOSED_PIPE


@pytest.fixture
def full() -> Iterator[IO[str]]:
    """Every write to it fails, as on a full disk."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full here")
    with device.open("w") as opened:
        yield opened


async def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, full: IO[str]) -> None:
    async with (
        standing_in(says(connect(), event(1))) as stand_in,
        tail_process(stand_in.url, tmp_path, full) as process,
    ):
        assert process.stderr is not None
        said = b"".join([bytes(chunk) async for chunk in process.stderr]).decode().splitlines()
        assert await process.wait() == 1
    assert said[0].startswith("connected to diagnosis 42")
    assert said[1:] == ["avicenna-live: cannot write the output: No space left on device"]
