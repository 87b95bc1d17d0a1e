"""JetStream over a connection: streams are made, messages stored one by one or all or none, and found again.

Every outcome is judged by the server: a message says which was the last of its subject (`EXPECTED_LAST`), and one that
was sent twice has an id (`MESSAGE_ID`). So whoever gets `Unanswered` sends the very same again.

What a leader answers (`last`, `at`) has every message that was acknowledged before. What any replica answers (`direct`)
may lack the newest.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from storage.nats.connection import ANSWER_SECONDS_MAX, Connection
from storage.nats.errors import Garbled, JetStreamError
from storage.nats.wire import Message, Outgoing, headers_of

BATCH_MESSAGES_MAX: Final = 1000
"""Messages that are stored all or none. Reason: the server's limit."""

SUBJECTS_MAX: Final = 1024
"""Subjects whose last messages are asked for at once. Reason: the server's limit. Beyond: refused."""

EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"
MESSAGE_ID: Final = "Nats-Msg-Id"
ROLLUP: Final = "Nats-Rollup"
TTL: Final = "Nats-TTL"

NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059
WRONG_LAST: Final = 10071
WRONG_LAST_IN_BATCH: Final = 10164
DUPLICATE_IN_BATCH: Final = 10201


class Stored(NamedTuple):
    """The answer to messages that were stored."""

    pos: int
    """The position of the last of them in its stream."""
    is_duplicate: bool
    """It was stored before, under the same id; `pos` is where."""


class Found(NamedTuple):
    """A message of a stream."""

    pos: int
    subject: str
    headers: Mapping[str, str]
    data: bytes


class StreamState(msgspec.Struct, frozen=True, rename={"first_pos": "first_seq", "last_pos": "last_seq"}):
    """Where the messages of a stream begin and end."""

    first_pos: int = 0
    last_pos: int = 0


class _Fault(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _Fault | None = None


class JetStream:
    """What is asked of JetStream. Any method may raise what `Connection.request` does, and `JetStreamError`."""

    def __init__(self, connection: Connection, new_id: Callable[[], str]) -> None:
        """JetStream as it is reached over this connection.

        Args:
            new_id: names a batch; never the same again.
        """
        self.connection = connection
        self._new_id = new_id

    async def api(self, what: str, request: object = None, seconds: float = ANSWER_SECONDS_MAX) -> Mapping[str, Any]:
        """The answer to a request of JetStream's API, as JSON has it.

        Args:
            what: e.g. `STREAM.INFO.name`.
        """
        data = b"" if request is None else msgspec.json.encode(request)
        answer = await self.connection.request(Outgoing(f"$JS.API.{what}", data), seconds=seconds)
        try:
            said = msgspec.json.decode(answer.data, type=dict[str, Any])
            error = said.get("error")
            fault = None if error is None else msgspec.convert(error, _Fault)
        except (msgspec.MsgspecError, UnicodeDecodeError) as unreadable:
            raise Garbled(f"the answer to {what} is not what it should be") from unreadable
        if fault is not None:
            raise JetStreamError(fault.code, fault.err_code, fault.description)
        return said

    async def store(self, messages: Sequence[Outgoing], seconds: float = ANSWER_SECONDS_MAX) -> Stored:
        """Store messages of one stream, all or none, in one round trip.

        Args:
            messages: at most `BATCH_MESSAGES_MAX`, at least one.
        """
        assert 0 < len(messages) <= BATCH_MESSAGES_MAX, "a batch is refused as a whole beyond that"
        if len(messages) > 1:
            batch = self._new_id()
            messages = [_in_batch(one, batch, number) for number, one in enumerate(messages, start=1)]
            last = messages[-1]
            last = last._replace(headers={**(last.headers or {}), "Nats-Batch-Commit": "1"})
        else:
            (last,) = messages
        answer = await self.connection.request(last, before=messages[:-1], seconds=seconds)
        try:
            ack = msgspec.json.decode(answer.data, type=_Ack)
        except (msgspec.MsgspecError, UnicodeDecodeError) as unreadable:
            raise Garbled("the answer to what was to be stored is not what it should be") from unreadable
        if ack.error is not None:
            raise JetStreamError(ack.error.code, ack.error.err_code, ack.error.description)
        return Stored(ack.seq, ack.duplicate)

    async def last(self, stream: str, subject: str) -> Found | None:
        """The last message of a subject, from the leader; `None`: there is none."""
        return await self._got(stream, {"last_by_subj": subject})

    async def at(self, stream: str, pos: int) -> Found | None:
        """The message at a position, from the leader; `None`: it is gone, or was never there."""
        return await self._got(stream, {"seq": pos})

    async def _got(self, stream: str, which: Mapping[str, object]) -> Found | None:
        try:
            message = (await self.api(f"STREAM.MSG.GET.{stream}", which))["message"]
        except JetStreamError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        headers = headers_of(base64.b64decode(message.get("hdrs") or ""))
        return Found(message["seq"], message["subject"], headers, base64.b64decode(message.get("data") or ""))

    async def direct(self, stream: str, request: Mapping[str, object]) -> Sequence[Found]:
        """What any replica has of a stream, in the order of positions. Not to be trusted to be the newest.

        Args:
            request: `{"multi_last": subjects}` for the last message of each, or `{"seq": pos, "next_by_subj": subject,
                "batch": n}` for so many from a position on.
        """
        asked, found = dict(request), list[Found]()
        wanted = asked.setdefault("batch", SUBJECTS_MAX)
        assert isinstance(wanted, int)
        while True:
            data = msgspec.json.encode(asked)
            *answers, end = await self.connection.request_many(
                Outgoing(f"$JS.API.DIRECT.GET.{stream}", data), _ends_direct
            )
            found += map(_found, answers)
            headers = end.headers
            if end.status not in {204, 404}:
                raise JetStreamError(end.status, 0, end.head.partition(b"\r\n")[0].decode("utf-8", "replace"))
            # A page ends also where its bytes do.
            if not answers or not int(headers.get("Nats-Num-Pending", "0")):
                return found
            asked["seq"] = int(headers["Nats-Last-Sequence"]) + 1
            if "multi_last" in asked:
                asked["up_to_seq"] = int(headers["Nats-UpTo-Sequence"])
            elif (more := wanted - len(found)) > 0:
                asked["batch"] = more
            else:
                return found

    async def first(self, stream: str, subject: str, begin: int = 1) -> tuple[Found | None, int]:
        """The first message of a subject, which may have wildcards, and how many there are; from any replica.

        Args:
            begin: those before this position do not count.
        """
        found = await self.direct(stream, {"seq": begin, "next_by_subj": subject, "batch": 1})
        return (found[0], 1 + int(found[0].headers["Nats-Num-Pending"])) if found else (None, 0)

    async def purge(self, stream: str, subject: str, before: int | None = None) -> int:
        """Drop messages of a subject, which may have wildcards; how many there were.

        Args:
            before: only those before this position; `None`: all.
        """
        asked: dict[str, object] = {"filter": subject}
        if before is not None:
            asked["seq"] = before
        purged: int = (await self.api(f"STREAM.PURGE.{stream}", asked))["purged"]
        return purged

    async def state(self, stream: str) -> StreamState:
        """Where the messages of a stream begin and end."""
        return msgspec.convert((await self.api(f"STREAM.INFO.{stream}"))["state"], StreamState)

    async def have_stream(self, config: Mapping[str, Any], seconds: float = ANSWER_SECONDS_MAX) -> Mapping[str, Any]:
        """The settings of a stream, which is made with these if it is not there. They may differ from those given."""
        name = config["name"]
        if (found := await self.config_of(name, seconds)) is not None:
            return found
        await self.api(f"STREAM.CREATE.{name}", config, seconds)
        return await self._config(name, seconds)

    async def config_of(self, name: str, seconds: float = ANSWER_SECONDS_MAX) -> Mapping[str, Any] | None:
        """The settings of a stream; `None`: there is none of this name."""
        try:
            return await self._config(name, seconds)
        except JetStreamError as error:
            if error.err_code != NO_STREAM:
                raise
            return None

    async def _config(self, name: str, seconds: float) -> Mapping[str, Any]:
        config: Mapping[str, Any] = (await self.api(f"STREAM.INFO.{name}", seconds=seconds))["config"]
        return config


def _in_batch(message: Outgoing, batch: str, number: int) -> Outgoing:
    headers = {**(message.headers or {}), "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
    return message._replace(headers=headers)


def _ends_direct(message: Message) -> bool:
    return message.status != 0


def _found(message: Message) -> Found:
    headers = message.headers
    return Found(int(headers["Nats-Sequence"]), headers["Nats-Subject"], headers, message.data)
