"""`avicenna-live publish --stream`: reads updates from standard input, one a line, and says of each what became of it.

Over one WebSocket (PROTOCOL section 7.15). What was not answered when a connection ends is sent again over the next
one, with the same idempotency key, so each line makes one event.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from storage.errors import first_of
from storage.names import new_id
from web.commands.answers import Receipt, is_a
from web.commands.arguments import STANDARD_INPUT
from web.commands.client import Client
from web.commands.failures import FAILED, WRONG_USAGE, WRONG_VALUE, CommandFailed, RefusedByServer, UsageError
from web.commands.finding import client_of
from web.commands.following import NORMAL, NOTHING_HEARD, Backoff, Then, code_of, then
from web.commands.printing import say, say_aside, say_at_last, say_json
from web.commands.tail import Ended, NotHttp, connected, upgraded
from web.commands.text import printable

LINE_BYTES_MAX: Final = 64 * 1024
"""Longest line, also as a frame. Beyond: it is not sent, and counts as wrong; the server would end the connection."""

SILENT_SECONDS_MAX: Final = 60.0
"""Longest wait for an answer. Reason: a full mailbox waits for 30 s. Beyond: the connection counts as dead."""

PUT_OFF: Final = frozenset({"draining", "storage_unavailable"})
"""Codes that a server says of what it does not finish when it stops; while it goes on, they are an answer."""

PING: Final = json.dumps({"type": "ping"})


@dataclass(slots=True)
class Line:
    """A line that was read and is not answered."""

    number: int
    frame: str


class WrongLine(Exception):
    """A line that is not sent; the text says why."""


class Stream:
    """Publishes what standard input says."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client = client
        self._as_json = as_json
        self._name = new_id()
        """Begins the keys of lines that have none."""
        self._unanswered: OrderedDict[str, Line] = OrderedDict()
        """By id, in the order of the lines."""
        self._put_off: list[tuple[Line, dict[str, Any]]] = []
        """Lines that were refused with `PUT_OFF`, and why; they are sent again if the connection ends for it."""
        self._read = self._stored = self._refused = self._wrong = 0
        """Lines; a wrong one is also one that the server refuses for its fields."""
        self._is_over = False
        """Nothing more can be read."""
        self._window = 1
        self._room = trio.Event()
        self._admitted = False
        self._backoff = Backoff(random.random)
        self._texts, self._next_text = trio.open_memory_channel[bytes](0)
        """What was read; across connections, so that no line is lost with one."""

    @property
    def exit_code(self) -> int:
        """What the command ends with, if every line was answered."""
        if not self._refused:
            return 0
        return WRONG_USAGE if self._refused == self._wrong else FAILED

    @property
    def _is_done(self) -> bool:
        return self._is_over and not self._unanswered and not self._put_off

    @property
    def progress(self) -> str:
        """How far it has come, for people."""
        text = f"{self._read} lines read: {self._stored} stored, {self._refused} refused"
        if waiting := [*self._unanswered.values(), *(line for line, _ in self._put_off)]:
            first = min(line.number for line in waiting)
            text += f", {len(waiting)} not answered, from line {first} on: each may be stored or not"
        return text

    async def run(self) -> None:
        """Publish until standard input ends and every line is answered.

        Raises:
            CommandFailed: the connection ended for good, or there was none from the start.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_all)
            await self._publish_all()
            nursery.cancel_scope.cancel()

    async def _read_all(self) -> None:
        # Not through `sys.stdin`: a thread that still waits in it at the end of the process would break that off.
        source, rest = sys.stdin.fileno(), b""
        with self._texts:
            while chunk := await trio.to_thread.run_sync(os.read, source, LINE_BYTES_MAX, abandon_on_cancel=True):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    await self._texts.send(line)
                if len(rest) > LINE_BYTES_MAX:
                    break
            if rest:
                await self._texts.send(rest)

    async def _publish_all(self) -> None:
        while not self._is_done:
            ended = await self._connect_once()
            if ended.done:
                return
            reason = f"the connection ended: {ended.code} {ended.reason}".rstrip()
            if not self._admitted or then(ended.code, ended.reason) is not Then.COME_BACK:
                self._say_put_off()
                text = f"{reason}; {self.progress}"
                raise RefusedByServer(code_of(ended.code, ended.reason), text, text)
            self._take_back()
            seconds = self._backoff.seconds(ended.retry_after_ms)
            say_aside(f"{reason}; coming back in {seconds:.1f} s")
            await trio.sleep(seconds)

    async def _connect_once(self) -> Ended:
        try:
            async with connected(self._client) as stream:
                return await upgraded(self._client, stream, self._client.target("publish"), self._converse)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, NotHttp) as error:
            failure = self._client.unreachable(error)
        if not self._admitted:
            raise failure
        return Ended(NOTHING_HEARD, str(failure))

    async def _converse(self, connection: WebSocketConnection) -> Ended:
        ended = Ended(NOTHING_HEARD, "the server went silent")
        bye: dict[str, Any] = {}
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    with trio.move_on_after(SILENT_SECONDS_MAX if self._unanswered else float("inf")) as patience:
                        frame = json.loads(await connection.get_message())
                    if patience.cancelled_caught:
                        break
                    match frame["type"]:
                        case "connect":
                            self._admitted, self._window = True, frame["data"]["window"]
                            nursery.start_soon(self._send_all, connection)
                        case "bye":
                            bye = frame["data"]
                        case "auth_expiring" if self._client.credentials.renewable:
                            token = self._client.credentials.token()
                            await connection.send_message(json.dumps({"type": "auth", "token": token}))
                        case "receipt":
                            self._stored_line(frame)
                        case "refused":
                            if self._refused_line(frame):
                                await connection.send_message(PING)
                        case "pong":
                            # The connection goes on.
                            self._say_put_off()
                    if self._is_done:
                        ended = Ended(NORMAL, "", done=True)
                        break
            except ConnectionClosed as closed:
                code = NOTHING_HEARD if closed.reason is None else closed.reason.code
                said = None if closed.reason is None else closed.reason.reason
                ended = Ended(code, printable(said or str(bye.get("reason") or "")), bye.get("retry_after_ms"))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise self._client.strange() from None
            nursery.cancel_scope.cancel()
        return ended

    async def _send_all(self, connection: WebSocketConnection) -> None:
        """Send again what was not answered, then what is read, as far as the window allows."""
        try:
            for line in list(self._unanswered.values()):
                await connection.send_message(line.frame)
            while not self._is_over:
                while len(self._unanswered) >= self._window:
                    self._room = trio.Event()
                    await self._room.wait()
                try:
                    text = await self._next_text.receive()
                except trio.EndOfChannel:
                    self._is_over = True
                    # Whoever reads must look whether that was all.
                    await connection.send_message(PING)
                    return
                self._read += 1
                try:
                    line = self._line(text)
                except WrongLine as wrong:
                    self._say_refused(self._read, {"status": 400, "code": "bad_json", "detail": str(wrong)})
                    if len(text) > LINE_BYTES_MAX:
                        raise CommandFailed(f"line {self._read} is too long; {self.progress}") from None
                    continue
                self._unanswered[str(line.number)] = line
                await connection.send_message(line.frame)
        except ConnectionClosed:
            pass  # whoever reads hears of it

    def _line(self, text: bytes) -> Line:
        """A line as a frame, under its number. Raises `WrongLine`."""
        if len(text) > LINE_BYTES_MAX:
            raise WrongLine(f"a line must be at most {LINE_BYTES_MAX} bytes")
        try:
            decoded = text.decode().strip()
            found = json.loads(decoded)
        except (ValueError, RecursionError):
            raise WrongLine("a line must be a JSON object in UTF-8") from None
        if not isinstance(found, dict):
            raise WrongLine("a line must be a JSON object in UTF-8")
        if "id" in found:
            raise WrongLine("a line must have no id: its number is its id")
        added = {"id": str(self._read)}
        if "idempotency_key" not in found:
            added["idempotency_key"] = f"{self._name}-{self._read}"
        # The rest stays as it is written: numbers keep their digits.
        rest = decoded[1:] if found else "}"
        frame = json.dumps(added)[:-1] + ("," if found else "") + rest
        if len(frame.encode()) > LINE_BYTES_MAX:
            raise WrongLine(f"a line must be at most {LINE_BYTES_MAX} bytes, with the id and key it gets")
        return Line(self._read, frame)

    def _answered(self, frame: dict[str, Any]) -> Line:
        line = self._unanswered.pop(frame["id"])
        self._room.set()
        self._backoff.reset()
        return line

    def _refused_line(self, frame: dict[str, Any]) -> bool:
        """Take in a refusal; whether the server is to be asked, by a `PING`, if the connection goes on."""
        line, problem = self._answered(frame), frame["problem"]
        if problem["code"] not in PUT_OFF:
            self._say_refused(line.number, problem)
            return False
        self._put_off.append((line, problem))
        return len(self._put_off) == 1

    def _say_put_off(self) -> None:
        """What was put off stays refused: the connection goes on, or there is no other one."""
        put_off, self._put_off = self._put_off, []
        for line, problem in put_off:
            self._say_refused(line.number, problem)

    def _take_back(self) -> None:
        """What was put off is due on the next connection, in its order."""
        lines = sorted([*self._unanswered.values(), *(line for line, _ in self._put_off)], key=lambda one: one.number)
        self._unanswered = OrderedDict((str(line.number), line) for line in lines)
        self._put_off = []

    def _stored_line(self, frame: dict[str, Any]) -> None:
        line = self._answered(frame)
        receipt = frame["receipt"]
        if not is_a(receipt, Receipt):
            raise TypeError("a receipt must have its fields")
        self._stored += 1
        if self._as_json:
            say_json({"line": line.number, **receipt})
        else:
            again = " (published before with this key)" if receipt["replayed"] else ""
            say(printable(f"line {line.number}: diagnosis {receipt['diagnosis_id']} #{receipt['seq']} stored{again}"))

    def _say_refused(self, number: int, problem: dict[str, Any]) -> None:
        self._refused += 1
        self._wrong += problem["code"] in (WRONG_VALUE, "bad_json")
        if self._as_json:
            say_json({"line": number, **problem})
        else:
            say(printable(f"line {number}: {problem['code']}: {problem['detail']}"))


def run(arguments: argparse.Namespace) -> int:
    """Publish the lines of standard input; interrupted, say how far it has come."""
    if arguments.token_file == STANDARD_INPUT:
        raise UsageError("with --stream the updates come from standard input: name another file for the token")
    stream = Stream(client_of(arguments, "broadcast"), as_json=arguments.json)
    failure: BaseException | None = None
    try:
        trio.run(stream.run)
    except* KeyboardInterrupt:
        say_at_last(stream.progress)
        failure = KeyboardInterrupt()
    except* (CommandFailed, BrokenPipeError) as group:
        failure = first_of(group)
    if failure is not None:
        raise failure
    say_aside(stream.progress)
    return stream.exit_code
