"""`avicenna-live tail`: follows one diagnosis, prints what happens, and comes back where it stopped.

Trio runs here and in `publish --stream`, in no other command that talks to a server: a WebSocket is read while a second
task notices a dead server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import select
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import LocalProtocolError

from storage.errors import first_of
from web.commands.arguments import whole
from web.commands.client import Client
from web.commands.declaring import Commands, declare
from web.commands.failures import CommandFailed, RefusedByServer, UsageError
from web.commands.finding import add_client_options, client_of
from web.commands.following import (
    EVENTS,
    HEARTBEAT_SECONDS,
    NO_CODE,
    NORMAL,
    NOTHING_HEARD,
    POLICY,
    PROTOCOL_ERROR,
    SILENT_HEARTBEATS_MAX,
    TOKEN_SECONDS_FIRST,
    WRONG_PARAMETER,
    Backoff,
    Hole,
    Position,
    Then,
    code_of,
    then,
)
from web.commands.printing import say, say_aside, say_json
from web.commands.text import compact, printable
from web.commands.transport import UNIX_HOST, socket_path_of

CONNECT_SECONDS_MAX: Final = 10
"""Longest wait for a socket, and again for the upgrade. Beyond: the server counts as unreachable."""

CLOSE_SECONDS_MAX: Final = 2
"""Longest wait for the answer to our close. Beyond: the socket is closed without it."""

HTTP_BEGINS: Final = b"HTTP/1."

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class BadFrame(Exception):
    """The server does not speak our protocol."""


class NotHttp(Exception):
    """The other side does not answer the upgrade as HTTP, or not at all."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a connection is over."""

    code: int
    """A close code, or the HTTP status of a refused upgrade."""
    reason: str
    retry_after_ms: object = None
    """In the words of the server."""
    done: bool = False
    """We ended it ourselves: everything asked for was printed."""
    is_strange: bool = False
    """We ended it ourselves: the server sent something outside the protocol."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "tail",
        "follow a diagnosis",
        "tail 42 --device phone",
        "tail 42 --peek --start 10",
        "tail 42 --json --count 1",
        description="Follow a diagnosis, line by line, until Ctrl-C. It comes back by itself, exactly where it was.",
    )
    parser.add_argument("id", metavar="ID", help="the diagnosis")
    parser.add_argument("--device", metavar="D", help="a queue of your own under this name, remembered by the server")
    parser.add_argument(
        "--peek", action="store_true", help="only look: the server does not count you among its readers"
    )
    parser.add_argument("--after", type=whole(0, 10**15 - 1), metavar="N", help="resume after this number")
    parser.add_argument("--epoch", metavar="E", help="the numbering N belongs to; default: the current one")
    parser.add_argument("--start", metavar="S", help="without a position: oldest (default), new, or the newest n")
    parser.add_argument(
        "--ack",
        choices=("app", "transport"),
        help="what acknowledges an event: its line, once printed (app, the default), or the connection",
    )
    parser.add_argument(
        "--heartbeat",
        type=whole(5, 300),
        default=HEARTBEAT_SECONDS,
        metavar="N",
        help="have the server say something at least every N seconds (5-300, default 20); after one and a half times "
        "as long without a word the connection counts as dead",
    )
    parser.add_argument("--count", type=whole(1, 10**15), metavar="N", help="end after so many events")
    parser.add_argument("--no-reconnect", action="store_true", help="end when the connection does")
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Follow until Ctrl-C, the last event that was asked for, or an end that must not be retried."""
    if arguments.peek and (arguments.device or arguments.ack):
        raise UsageError("--peek acknowledges nothing, and goes together with neither --device nor --ack")
    client = client_of(arguments, "monitor")
    # Without a token and a device the server takes it for a peek.
    peeks = arguments.peek or (arguments.device is None and client.credentials.token() is None)
    tail = Tail(
        client,
        arguments.id,
        Position(arguments.after, arguments.epoch),
        device=arguments.device,
        start=arguments.start,
        peek=arguments.peek,
        ack=arguments.ack or (None if peeks else "app"),
        heartbeat_seconds=arguments.heartbeat,
        events_max=arguments.count,
        as_json=arguments.json,
        jitter=random.random,
    )
    failure: BaseException | None = None
    try:
        trio.run(_follow_while_read, tail, not arguments.no_reconnect)
    except* KeyboardInterrupt:
        failure = KeyboardInterrupt()
    except* (CommandFailed, UsageError, BrokenPipeError) as group:
        failure = first_of(group)
    if failure is not None:
        raise failure
    return 0


async def _follow_while_read(tail: Tail, reconnect: bool) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_nobody_reads)
        await tail.follow(reconnect)
        nursery.cancel_scope.cancel()


async def _until_nobody_reads() -> None:
    """Watch the output, where it is a pipe: a diagnosis may be quiet for long after its reader has gone (`| head -1`).

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    try:
        output = sys.stdout.fileno()
        if not stat.S_ISFIFO(os.fstat(output).st_mode):
            return
        # The end that is written to is never readable: this returns when the other one is closed.
        await trio.lowlevel.wait_readable(output)
    except OSError:
        return  # it is no file, or of a kind that this system does not watch
    asked = select.poll()
    asked.register(output, 0)
    if any(events & select.POLLERR for _, events in asked.poll(0)):
        raise BrokenPipeError


class Tail:
    """One client that follows one diagnosis."""

    def __init__(
        self,
        client: Client,
        diagnosis_id: str,
        position: Position,
        *,
        jitter: Callable[[], float],
        device: str | None = None,
        peek: bool = False,
        start: str | None = None,
        ack: str | None = None,
        heartbeat_seconds: int = HEARTBEAT_SECONDS,
        events_max: int | None = None,
        as_json: bool = False,
    ) -> None:
        """Follow `diagnosis_id` from `position`.

        Args:
            events_max: end after so many events, `None`: never.
            as_json: print each frame as it came, and a line of the same form for each status of ours, instead of lines
                for people.
        """
        self._client = client
        self._diagnosis_id = diagnosis_id
        self._position = position
        self._device = device
        self._peek = peek
        self._start = start
        self._ack = ack
        self._heartbeat_seconds = heartbeat_seconds
        self._acknowledges = False
        """Whether the server waits for our acknowledgements: it says so in `connect`."""
        self._events_left = events_max
        self._as_json = as_json
        self._backoff = Backoff(jitter)
        self._token_backoff = Backoff(jitter, TOKEN_SECONDS_FIRST)
        self._admitted = False
        """The server has let us in, now or earlier."""
        self._token_was_good = False
        """The token of this connection was accepted."""
        self._bye: dict[str, Any] = {}
        self._refused_token = False

    async def follow(self, reconnect: bool) -> None:
        """Print events; come back after every end that allows it, if `reconnect`.

        Raises:
            CommandFailed: the connection ended for good, or there was none from the start.
            UsageError: the server takes a parameter for wrong.
        """
        while True:
            self._say_status("connecting")
            ended = await self._connect_once(reconnect)
            if ended.done:
                return
            # 1006 never travels, and adds nothing to the words beside it.
            code = "" if ended.code == NOTHING_HEARD else f"{ended.code} "
            reason = f"the connection ended: {code}{ended.reason}".rstrip()
            if ended.code == POLICY and ended.reason == WRONG_PARAMETER:
                raise UsageError(reason)
            what = self._then(ended) if reconnect else Then.ENDED
            if what is Then.ENDED:
                self._say_status("ended", ended)
                remark = self._client.credentials.remark if self._refused_token else ""
                raise RefusedByServer(code_of(ended.code, ended.reason), reason, reason + remark)
            if what is Then.COME_BACK:
                self._say_status("offline", ended)
                wait_seconds = self._backoff.seconds(ended.retry_after_ms)
            else:
                self._say_status("needs_auth", ended)
                # A token that was good once has merely ended: there may be a newer one already.
                wait_seconds = 0.0 if self._token_was_good else self._token_backoff.seconds()
            say_aside(f"{reason}; coming back in {wait_seconds:.1f} s")
            await trio.sleep(wait_seconds)

    def _then(self, ended: Ended) -> Then:
        """What to do now. A client that was never admitted has more likely asked wrongly than come too early."""
        if ended.is_strange:
            return Then.COME_BACK if self._admitted else Then.ENDED
        what = then(ended.code, ended.reason)
        if what is Then.NEEDS_AUTH and not (self._admitted and self._client.credentials.renewable):
            return Then.ENDED
        return what

    async def _connect_once(self, reconnect: bool) -> Ended:
        """One connection, from the socket to its end."""
        peek = "1" if self._peek else None
        query = {
            "device": self._device,
            "peek": peek,
            "ack": self._ack,
            "heartbeat": str(self._heartbeat_seconds),
            **self._position.query(self._start),
        }
        target = self._client.target("ws", self._diagnosis_id, query=query)
        self._bye, self._refused_token, self._token_was_good = {}, False, False
        try:
            async with connected(self._client) as stream:
                return await upgraded(self._client, stream, target, self._listen)
        except trio.TooSlowError:
            failure = self._client.unreachable(TimeoutError())
        except (OSError, trio.BrokenResourceError, NotHttp) as error:
            failure = self._client.unreachable(_innermost(error))
        # A server that answered before will be back; one that never did is more likely a wrong URL.
        if not (self._admitted and reconnect):
            raise failure
        return Ended(NOTHING_HEARD, str(failure))

    async def _listen(self, connection: WebSocketConnection) -> Ended:
        """Read frames until the connection ends or falls silent, or until everything asked for was printed."""
        try:
            while True:
                # The time that printing takes does not count against the server.
                with trio.move_on_after(self._heartbeat_seconds * SILENT_HEARTBEATS_MAX) as patience:
                    message = await connection.get_message()
                if patience.cancelled_caught:
                    return Ended(NOTHING_HEARD, "the server went silent")
                if await self._received(connection, message):
                    return Ended(NORMAL, "", done=True)
        except ConnectionClosed as closed:
            return self._end_of(closed)
        except Hole as hole:
            return Ended(PROTOCOL_ERROR, f"the server left out numbers: {hole}", is_strange=True)
        except BadFrame:
            return Ended(PROTOCOL_ERROR, "the server sent a frame that is none of this protocol", is_strange=True)

    def _end_of(self, closed: ConnectionClosed) -> Ended:
        code = NOTHING_HEARD if closed.reason is None else closed.reason.code
        said = closed.reason.reason if closed.reason is not None else None
        announced = self._bye.get("code")
        if code in (NO_CODE, NOTHING_HEARD) and isinstance(announced, int):
            # The Close behind a `bye` may be lost.
            code = announced
        reason = said or self._bye.get("reason") or ("it broke" if code == NOTHING_HEARD else "")
        return Ended(code, printable(str(reason)), self._bye.get("retry_after_ms"))

    async def _received(self, connection: WebSocketConnection, message: str | bytes) -> bool:
        """Act on one frame; whether it was the last one wanted."""
        try:
            frame = json.loads(message)
            if not self._position.advance(frame):
                return False
            kind, data = frame["type"], frame.get("data") or {}
            if not isinstance(data, dict):
                raise TypeError("data must be an object")
            if kind in ("acked", "heartbeat"):
                return False
            self._print(message if isinstance(message, str) else message.decode(), kind, frame, data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BadFrame from error
        if kind == "connect":
            self._admitted = self._token_was_good = True
            self._acknowledges = data.get("ack") == "app"
        elif kind == "live":
            self._backoff.reset()
            self._token_backoff.reset()
            self._say_status("live")
        elif kind == "bye":
            self._bye = data
        elif kind == "error" and data.get("code") == "invalid_token":
            self._refused_token = True
        elif kind == "auth_expiring" and self._client.credentials.renewable:
            await connection.send_message(json.dumps({"type": "auth", "token": self._client.credentials.token()}))
        if self._acknowledges and (kind in EVENTS or kind == "gap"):
            # Printed and flushed: only now is it acknowledged.
            reached = frame["seq"] if kind in EVENTS else data["to"]
            await connection.send_message(json.dumps({"type": "ack", "seq": reached}))
        if kind in EVENTS and self._events_left is not None:
            self._events_left -= 1
        return self._events_left == 0

    def _say_status(self, status: str, ended: Ended | None = None) -> None:
        """Tell a program that reads the output how things stand; people read stderr."""
        if self._as_json:
            code, reason = (None, None) if ended is None else (ended.code, ended.reason or None)
            told = {"status": status, "code": code, "reason": reason}
            say_json({"type": "status", "data": told})

    def _print(self, message: str, kind: str, frame: dict[str, Any], data: dict[str, Any]) -> None:
        if self._as_json:
            say(message)
        elif kind in EVENTS:
            say(event_line(frame))
        elif kind == "gap":
            say(gap_line(data))
        elif kind == "connect":
            say_aside(connect_line(self._diagnosis_id, data, self._start))
        elif kind == "error":
            say_aside(f"{data.get('code')}: {data.get('detail')}")


@asynccontextmanager
async def connected(client: Client) -> AsyncIterator[Stream]:
    """A socket to the server, closed at the end: trio-websocket leaves it open after a close that the server began.

    Raises:
        OSError, trio.TooSlowError: there is none.
    """
    with trio.fail_after(CONNECT_SECONDS_MAX):
        stream = await _open_stream(client.url)
    async with stream:
        yield stream


async def upgraded(
    client: Client, stream: Stream, target: str, converse: Callable[[WebSocketConnection], Awaitable[Ended]]
) -> Ended:
    """Upgrade, have a conversation, and close. Raises `NotHttp`."""
    host = UNIX_HOST if socket_path_of(client.url) is not None else urlsplit(client.url).netloc
    headers = [(name.encode(), value.encode()) for name, value in client.credentials.headers().items()]
    ended = Ended(NOTHING_HEARD, "no answer to the upgrade")
    refused: BaseException | None = None
    try:
        async with trio.open_nursery() as connection_nursery:
            with trio.move_on_after(CONNECT_SECONDS_MAX) as opening:
                connection = await wrap_client_stream(
                    connection_nursery,
                    Upgrading(stream),  # type: ignore[arg-type] # it takes any stream
                    host,
                    target,
                    extra_headers=headers,
                )
            if not opening.cancelled_caught:
                ended = await converse(connection)
                if ended.code != NOTHING_HEARD:
                    with trio.move_on_after(CLOSE_SECONDS_MAX):
                        await connection.aclose(PROTOCOL_ERROR if ended.is_strange else NORMAL)
            connection_nursery.cancel_scope.cancel()
    except* LocalProtocolError:
        # trio-websocket answers a Ping that it reads while it closes, which wsproto does not allow.
        pass
    except* ConnectionRejected as group:
        rejected = first_of(group)
        assert isinstance(rejected, ConnectionRejected)
        ended = Ended(rejected.status_code, _why_rejected(client, rejected), _retry_after_ms(rejected))
    except* NotHttp as group:
        refused = first_of(group)
    if refused is not None:
        raise refused
    return ended


def _why_rejected(client: Client, rejected: ConnectionRejected) -> str:
    refusal = client.refusal(rejected.status_code, "", rejected.body or b"")
    said = f": {refusal}" if isinstance(refusal, RefusedByServer) else ""
    return printable(f"instead of a WebSocket{said}")


def _retry_after_ms(rejected: ConnectionRejected) -> int | None:
    """How long a refusal with a status asks to wait, `None`: it does not say."""
    given = dict(rejected.headers or ()).get(b"retry-after", b"")
    return int(given) * 1000 if given.isdigit() and len(given) < len("1000000") else None


def event_line(frame: dict[str, Any]) -> str:
    """An event, for people: when, which number, what."""
    data = frame["data"]
    match frame["type"]:
        case "recommendation_update":
            changed = ", ".join(map(str, data["changed_fields"])) or "nothing"
            what = f"changed: {changed}  {compact(data['new_data'])}"
            what += f"  ({data['reason']})" if data.get("reason") else ""
        case "effectiveness_update":
            what = f"recommendation {data['recommendation_id']}: {data['new_effectiveness']}"
            what += _given(data, "old_effectiveness", "confidence", "sample_size", "herb")
        case _:
            what = f"feedback {data['feedback_id']}: rating {data['rating']}"
            what += _given(data, "effectiveness", "recommendation_id", "comment")
    return printable(f"{frame['timestamp']}  #{frame['seq']}  {frame['type']}  {what}")


def gap_line(data: dict[str, Any]) -> str:
    """A gap, for people: exactly which events are gone."""
    numbers = f"#{data['from']}" if data["from"] == data["to"] else f"#{data['from']} to #{data['to']}"
    return printable(f"gap  {numbers}: {data['count']} no longer retained ({data['reason']})")


def connect_line(diagnosis_id: str, data: dict[str, Any], start: str | None = None) -> str:
    """The start of a connection, for people.

    Args:
        start: where a connection without a position was to begin.
    """
    wanted = _wanted_position(data["head"], start) if data["resume"] == "fresh" else 0
    ways = {
        "fresh": "from now on" if start == "new" else _from(max(wanted, data.get("floor", 0))),
        "exact": "exactly where you stopped",
        "partial": f"where you stopped, {data['missed']} missed",
        "reset": "anew: the numbering changed, reload your data",
    }
    way = ways.get(data["resume"], data["resume"])
    line = f"connected to diagnosis {diagnosis_id}, {way}; {data['queued']} queued, head #{data['head']}"
    if data["resume"] in ("fresh", "reset") and data["floor"] > wanted:
        # For the other resumes a gap frame says so.
        gone, first = data["floor"] - wanted, data["floor"] + 1
        line += f"; {gone} {'event' if gone == 1 else 'events'} before #{first} {'is' if gone == 1 else 'are'} gone"
    return line


def _from(position: int) -> str:
    return f"from #{position + 1} on" if position else "from the start"


def _wanted_position(head: int, start: str | None) -> int:
    """The number after which a connection without a position was to begin, whether or not that is still there."""
    match start:
        case None | "oldest":
            return 0
        case "new":
            return head
        case _:
            return max(0, head - int(start))


def _given(data: dict[str, Any], *names: str) -> str:
    return "".join(f", {name} {data[name]}" for name in names if data.get(name) is not None)


class Upgrading(trio.abc.Stream):
    """A stream that notices an answer which is not HTTP. On such an answer trio-websocket would wait until it is
    cancelled.

    Raises `NotHttp` from `send_all` and `receive_some` until an answer has begun.
    """

    def __init__(self, stream: Stream) -> None:
        """Talk over `stream`, which stays the caller's."""
        self._stream = stream
        self._begun = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send it."""
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            if self._begun:
                raise
            raise NotHttp from http.client.RemoteDisconnected("")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, as they come."""
        try:
            received = bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError:
            if self._begun:
                raise
            received = b""
        if len(self._begun) < len(HTTP_BEGINS):
            self._begun += received
            if not received:
                raise NotHttp from http.client.RemoteDisconnected("")
            if not self._begun.startswith(HTTP_BEGINS[: len(self._begun)]):
                raise NotHttp from http.client.BadStatusLine(self._begun.decode("latin-1"))
        return received

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


async def _open_stream(url: str) -> Stream:
    if (path := socket_path_of(url)) is not None:
        return await trio.open_unix_socket(path)
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme == "http":
        return await trio.open_tcp_stream(host, port)
    stream = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def _innermost(error: BaseException) -> BaseException:
    """What really happened: Trio wraps the failures of all addresses it tried, and those of TLS."""
    while (cause := error.__cause__) is not None:
        error = first_of(cause)
    return error
