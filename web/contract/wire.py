"""JSON, both ways: the only file that encodes or decodes it, with `strict_json` for what clients send. Pure.

Bodies and client frames are decoded into the records of `web.contract.records`; server frames and problem
documents are made here. An event is stored as the JSON of its `data`, and what subscribers get is that text
with the envelope put around it: encoded once, however often it is sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from actors.messages import Admission, Receipt
from actors.ring import Gap
from storage.records import AcknowledgedBy, Epoch, Event, NewEvent, Seq
from web.contract.errors import Problem
from web.contract.number import as_valued, as_written
from web.contract.principals import Principal
from web.contract.records import (
    CLIENT_FRAME_RULES,
    KEY,
    KINDS,
    LINE_RULES,
    PUBLISH_RULES,
    SENDER_FRAME_RULES,
    Ack,
    Auth,
    Identified,
    Line,
    Ping,
    Place,
    PlacedId,
    PlacedTarget,
    PublishFrame,
    PublishId,
    RawTarget,
    RecommendationUpdate,
    Registration,
    Revoking,
    Target,
    Update,
    diagnosis_id_as_json,
    diagnosis_id_of,
    fault_of,
    large_integer,
)
from web.contract.strict_json import NAMED_TWICE, NotJson, WrongField, decoder_of, read, sole_value

Record = TypeVar("Record")

PING_INTERVAL_SECONDS: Final = 25.0
"""The server pings after so much silence (PROTOCOL section 6)."""

ANSWER_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""Of every answer with JSON: no browser takes it for a page, and no cache keeps it (PROTOCOL section 7)."""

_TITLES: Final = {413: "Request Entity Too Large", 414: "Request-URI Too Long", 422: "Unprocessable Entity"}
"""Titles of problems whose status Python has given another name in 3.13. Reason: a client sees the same on all."""

_encoder: Final = msgspec.json.Encoder(enc_hook=as_written)
_canonical_encoder: Final = msgspec.json.Encoder(enc_hook=as_valued, order="sorted")
_update_decoders: Final = {kind: decoder_of(kind) for kind in KINDS.values()}
_line_decoder: Final[msgspec.json.Decoder[Line]] = decoder_of(Line)
_raw_target_decoder: Final = msgspec.json.Decoder(RawTarget)
_target_decoder: Final = decoder_of(Target)
_registration_decoder: Final = decoder_of(Registration)
_revoking_decoder: Final = decoder_of(Revoking)
_client_frame_decoder: Final[msgspec.json.Decoder[Ping | Ack | Auth]] = decoder_of(Ping | Ack | Auth)
_sender_frame_decoder: Final[msgspec.json.Decoder[Ping | Auth]] = decoder_of(Ping | Auth)
_publish_decoder: Final[msgspec.json.Decoder[PublishFrame]] = decoder_of(PublishFrame)
_identified_decoder: Final = msgspec.json.Decoder(Identified)
_AT_FIELD: Final = re.compile(r"at `\$\.([A-Za-z_]+)")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
_NAMED_FIELD: Final = re.compile(r"field `([^`]*)`")
_LARGE_ID: Final = re.compile(rb'("(?:recommendation|feedback)_id":)(-?[0-9]{16,})')
"""An id in the stored JSON of an event. Within a text a quotation mark is escaped, so this is a field and its value."""


_PLAIN_ID: Final = re.compile(rb'"([A-Za-z0-9_-]{1,64})"|(0|[1-9][0-9]{0,14})')
"""A diagnosis id as nearly all bodies spell it: one that needs no decoding."""

TARGET_BYTES_MAX: Final = 1024
"""Longest spelling of a diagnosis id that is looked at before the rest. Reason: 64 characters, each as `\\u0061`, and
room for zeros. Beyond: it is found with the rest."""


class FrameError(Exception):
    """A client frame that is answered with an `error` frame; the connection lives on."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def encode(value: object) -> bytes:
    """JSON text of plain values."""
    return _encoder.encode(value)


def rewritten(text: str, string: Callable[[str], str]) -> str:
    """A JSON text with every string that is a value replaced by what `string` makes of it; names of fields stay."""

    def of(value: object) -> object:
        match value:
            case str():
                return string(value)
            case list():
                return [of(item) for item in value]
            case dict():
                return {name: of(item) for name, item in value.items()}
            case _:
                return value

    return encode(of(msgspec.json.decode(text))).decode()


# Request bodies


def target_of(body: bytes, what: str = "the body") -> str | None:
    """The diagnosis a broadcast is for, as `decode_update` and `decode_line` find it, at a hundredth of their cost.

    `None`: it names none, or is no JSON, or its id is an odd one: decoding refuses it, and says why.

    Args:
        what: the text is, in words.

    Raises:
        Problem: `bad_json`, it names two.
    """
    try:
        spelling = bytes(_raw_target_decoder.decode(body).diagnosis_id)
        # A search for one byte costs a tenth of one for two.
        if (body.count(b"diagnosis_id") != 1 or b"\\" in body) and _places(PlacedTarget, body) > 1:
            raise Problem("bad_json", f"{what} {NAMED_TWICE}")
        if (plain := _PLAIN_ID.fullmatch(spelling)) is not None:
            return (plain[1] or plain[2]).decode()
        if len(spelling) > TARGET_BYTES_MAX:
            return None
        # Read as the field of a whole body is, so that both are one id.
        return diagnosis_id_of(read(_target_decoder, b'{"diagnosis_id":%b}' % spelling).diagnosis_id)
    except (msgspec.DecodeError, RecursionError, NotJson, WrongField):
        return None


def _places(record: type[PlacedTarget | PlacedId], body: bytes) -> int:
    """How often an object has the one field of a record, however its name is spelled."""
    places = 0

    def found(_: type, value: object) -> Place:
        nonlocal places
        places += 1
        return Place()

    msgspec.json.decode(body, type=record, dec_hook=found)
    return places


def decode_update(kind: type[Update], body: bytes) -> Update:
    """The body of a broadcast.

    Raises:
        Problem: `bad_json`, or `invalid_field` with the field and its rule.
    """
    return _decode(_update_decoders[kind], lambda _: kind.RULES, body)


def decode_line(line: bytes) -> Line:
    """A line of a bulk request. Raises as `decode_update`."""
    return _with_key(_decode(_line_decoder, partial(_rules, LINE_RULES), line, what="the line"))


def decode_publish(text: bytes) -> PublishFrame:
    """A frame that publishes, whose id was found (`publish_id_of`). Raises as `decode_update`."""
    return _with_key(_decode(_publish_decoder, partial(_rules, PUBLISH_RULES), text, what="the frame"))


Keyed = TypeVar("Keyed", bound=Line | PublishFrame)


def _with_key(decoded: Keyed) -> Keyed:
    if decoded.idempotency_key is not None and not KEY.fullmatch(decoded.idempotency_key):
        raise Problem("invalid_field", f"idempotency_key {LINE_RULES['idempotency_key']}")
    return decoded


def _rules(rules: dict[str, str], found: object) -> dict[str, str]:
    kind = KINDS.get(str(found.get("type"))) if isinstance(found, dict) else None
    return rules if kind is None else rules | kind.RULES


def decode_registration(body: bytes) -> Registration:
    """The body of a registration. Raises as `decode_update`."""
    return _decode(_registration_decoder, lambda _: Registration.RULES, body)


def decode_revocation(body: bytes) -> Revoking:
    """The body of a revocation. Raises as `decode_update`."""
    return _decode(_revoking_decoder, lambda _: Revoking.RULES, body)


def decode_json(text: bytes) -> object:
    """Any JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("this is not valid JSON") from None


def new_event(update: Update, key: str | None) -> NewEvent:
    """The event to store for a broadcast; equal updates have equal digests, however they are written.

    Raises:
        Problem: fields contradict each other.
    """
    data = update.data()
    return NewEvent(update.KIND, _encoder.encode(data), key, _digest(update.KIND, data) if key else b"")


def _digest(kind: str, data: dict[str, object]) -> bytes:
    # -0.0 + 0.0 is 0.0: fields that ask for a double are floats, all other numbers know their value.
    valued = {name: value + 0.0 if isinstance(value, float) else value for name, value in data.items()}
    return hashlib.sha256(kind.encode() + b"\0" + _canonical_encoder.encode(valued)).digest()


def _decode(
    decoder: msgspec.json.Decoder[Record],
    rules: Callable[[object], dict[str, str]],
    text: bytes,
    what: str = "the body",
) -> Record:
    """The record a text holds.

    Args:
        rules: what the fields must be, given the text as plain values; asked only if one is wrong.
        what: the text is, in words.
    """
    try:
        return read(decoder, text)
    except NotJson as error:
        raise Problem("bad_json", f"{what} {error}") from None
    except WrongField as wrong:
        raise Problem("invalid_field", _explain(wrong.message, rules(wrong.found), what)) from None


def _explain(message: str, rules: dict[str, str], what: str) -> str:
    """Say which field breaks which rule, from msgspec's words (pinned by tests), without echoing a value."""
    if (at := _AT_FIELD.search(message)) is not None and at[1] in rules:
        return f"{at[1]} {rules[at[1]]}"
    if (named := _NAMED_FIELD.search(message)) is not None:
        if named[1] in rules:
            return f"{named[1]} is required: it {rules[named[1]]}"
        name = named[1] if _PLAIN_NAME.fullmatch(named[1]) else "a field that was sent"
        return f"{name} is not known here; known are {', '.join(rules)}"
    return f"{what} must be a JSON object"


# Client frames


def decode_client_frame(text: str) -> Ping | Ack | Auth:
    """A frame from a client.

    Raises:
        FrameError: `bad_frame`, `unknown_type` or `invalid_field`.
    """
    return _client_frame(_client_frame_decoder, CLIENT_FRAME_RULES, text)


def decode_sender_frame(text: bytes) -> Ping | Auth:
    """A frame of a client that publishes, but one that publishes. Raises as `decode_client_frame`."""
    return _client_frame(_sender_frame_decoder, SENDER_FRAME_RULES, text)


ClientFrame = TypeVar("ClientFrame")


def _client_frame(
    decoder: msgspec.json.Decoder[ClientFrame], rules: dict[str, dict[str, str]], text: str | bytes
) -> ClientFrame:
    try:
        frame = read(decoder, text)
    except NotJson as error:
        raise FrameError("bad_frame", f"the frame {error}") from None
    except WrongField as wrong:
        raise _frame_error(wrong, rules) from None
    if isinstance(frame, Ping) and (fault := fault_of(frame.data)) is not None:
        raise FrameError("invalid_field", f"data {fault}")
    return frame


def _frame_error(wrong: WrongField, rules: dict[str, dict[str, str]]) -> FrameError:
    found = wrong.found
    if not isinstance(found, dict):
        return FrameError("bad_frame", "a frame must be a JSON object")
    kind = found.get("type")
    if not isinstance(kind, str) or kind not in rules:
        return FrameError("unknown_type", f"type must be one of {', '.join(rules)}")
    return FrameError("invalid_field", _explain(wrong.message, rules[kind], "a frame"))


def publish_id_of(text: bytes) -> str | None:
    """The id under which a frame that publishes is answered; `None`: none can be read.

    It can be read in a frame that is refused for something else, also for a number that is no JSON (`NaN`).
    """
    try:
        found = _identified_decoder.decode(text).id
        if (text.count(b'"id"') != 1 or rb"\u" in text) and _places(PlacedId, text) > 1:
            return None
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError):
        return _id_of(sole_value("id", text))
    return found


def _id_of(value: object) -> str | None:
    try:
        found = msgspec.convert(value, PublishId)
        found.encode()
    except (msgspec.ValidationError, UnicodeEncodeError):  # half of a surrogate pair cannot be sent back
        return None
    return found


# Server frames


_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


@lru_cache(maxsize=16)
def timestamp(at: float) -> str:
    """RFC 3339, UTC with Z, milliseconds. Those of the last times are remembered: one commit has one time."""
    # A time that a damaged disk made up is shown as the first or last one there is, and its list goes on.
    seconds, microseconds = divmod(round(min(max(at, _FIRST), _LAST) * 1_000_000), 1_000_000)
    return f"{_second(seconds)}.{microseconds // 1000:03d}Z"


@lru_cache(maxsize=16)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().removesuffix("+00:00")


def render_event(diagnosis_id: str, event: Event) -> bytes:
    """The JSON text of a stored event, as every subscriber gets it: the same bytes on every delivery."""
    body = event.body
    if event.kind != RecommendationUpdate.KIND and _LARGE_ID.search(body):
        body = _LARGE_ID.sub(_readable_id, body)
    return b'{"type":"%b","diagnosis_id":%b,"seq":%d,"timestamp":"%b","data":%b}' % (
        event.kind.encode(),
        _shown_id(diagnosis_id),
        event.seq,
        timestamp(event.at).encode(),
        body,
    )


@lru_cache(maxsize=1024)
def _shown_id(diagnosis_id: str) -> bytes:
    return encode(diagnosis_id_as_json(diagnosis_id))


def _readable_id(found: re.Match[bytes]) -> bytes:
    """An id that was stored as an integer before large ones became strings."""
    return b'%b"%b"' % found.groups() if large_integer(int(found[2])) else found[0]


def event_object(diagnosis_id: str, event: Event) -> msgspec.Raw:
    """A stored event as it stands in a list: as every subscriber gets it."""
    return msgspec.Raw(render_event(diagnosis_id, event))


def event_head(diagnosis_id: str, event: Event) -> dict[str, object]:
    """A stored event as it stands in a list that does not show what it says."""
    return {
        "type": event.kind,
        "diagnosis_id": diagnosis_id_as_json(diagnosis_id),
        "seq": event.seq,
        "timestamp": timestamp(event.at),
        "bytes": len(event.body),
    }


def frame(kind: str, diagnosis_id: str | None, at: float, data: object) -> bytes:
    """A server frame that is no event.

    Args:
        diagnosis_id: the diagnosis it is about; `None`: it is about none.
    """
    envelope = {
        "type": kind,
        "diagnosis_id": None if diagnosis_id is None else diagnosis_id_as_json(diagnosis_id),
        "timestamp": timestamp(at),
        "data": data,
    }
    return encode(envelope)


class _Subscribers(msgspec.Struct):
    online: int
    known: int
    at_risk: int


class Broadcasted(msgspec.Struct):
    """The answer to a single broadcast (PROTOCOL section 7.5). It takes a third of the time of a dict."""

    status: str
    diagnosis_id: int | str
    seq: Seq
    epoch: Epoch
    clients_notified: int
    subscribers: _Subscribers
    replayed: bool


class _Result(msgspec.Struct):
    """The same of one line of many. The order of the fields is that of their texts."""

    line: int
    status: int
    diagnosis_id: int | str
    seq: Seq
    epoch: Epoch
    clients_notified: int
    subscribers: _Subscribers
    replayed: bool


class _ReceiptFrame(msgspec.Struct):
    type: str
    diagnosis_id: int | str
    timestamp: str
    id: str
    receipt: Broadcasted


def broadcasted(diagnosis_id: str, receipt: Receipt) -> Broadcasted:
    """What a publisher is told about an event that is on disk."""
    return Broadcasted(
        "broadcasted",
        diagnosis_id_as_json(diagnosis_id),
        receipt.seq,
        receipt.epoch,
        receipt.clients_notified,
        _Subscribers(receipt.online, receipt.known, receipt.at_risk),
        receipt.replayed,
    )


def result_line(line: int, diagnosis_id: str, receipt: Receipt) -> bytes:
    """The result of a line of a bulk request whose event is on disk; without a newline."""
    return encode(
        _Result(
            line,
            HTTPStatus.OK.value,
            diagnosis_id_as_json(diagnosis_id),
            receipt.seq,
            receipt.epoch,
            receipt.clients_notified,
            _Subscribers(receipt.online, receipt.known, receipt.at_risk),
            receipt.replayed,
        )
    )


def refused_line(line: int, problem: Problem) -> bytes:
    """The result of a line of a bulk request of which nothing was stored; without a newline."""
    return encode({"line": line, **problem_object(problem)})


def receipt_frame(publish_id: str, diagnosis_id: str, at: str, receipt: Receipt) -> bytes:
    """The answer to a frame that published.

    Args:
        at: when it is answered, as `timestamp` has it.
    """
    shown = broadcasted(diagnosis_id, receipt)
    return encode(_ReceiptFrame("receipt", shown.diagnosis_id, at, publish_id, shown))


def refused_frame(publish_id: str, diagnosis_id: str | None, at: str, problem: Problem) -> bytes:
    """The answer to a frame of which nothing was published.

    Args:
        diagnosis_id: the diagnosis it meant; `None`: it named none that could be one.
        at: see `receipt_frame`.
    """
    shown = None if diagnosis_id is None else diagnosis_id_as_json(diagnosis_id)
    document = problem_object(problem)
    return encode({"type": "refused", "diagnosis_id": shown, "timestamp": at, "id": publish_id, "problem": document})


def publishing_data(who: Principal, window: int, message_bytes_max: int) -> dict[str, object]:
    """`data` of the `connect` frame of a client that publishes.

    Args:
        window: so many frames it may have sent that are not answered.
        message_bytes_max: the largest of them.
    """
    return {
        "window": window,
        "message_bytes_max": message_bytes_max,
        "token_expires_at": None if who.expires_at is None else timestamp(who.expires_at),
    }


def connect_data(
    admission: Admission, who: Principal, device: str | None, ack: AcknowledgedBy | None
) -> dict[str, object]:
    """`data` of the `connect` frame; `ack` `None`: the client peeks."""
    window, plan = admission.window, admission.plan
    return {
        "message": "Connected to real-time updates",
        "user_id": who.sub,
        "device": device,
        "ack": ack,
        "epoch": window.epoch,
        "head": window.head,
        "floor": window.floor,
        "resume": plan.resume.value,
        "missed": plan.missed,
        "queued": plan.queued,
        "ping_interval_seconds": PING_INTERVAL_SECONDS,
        "token_expires_at": None if who.expires_at is None else timestamp(who.expires_at),
    }


def gap_data(gap: Gap) -> dict[str, object]:
    """`data` of a `gap` frame."""
    return {
        "from": gap.first,
        "to": gap.last,
        "count": gap.count,
        "reason": "purged" if gap.purged else "evicted",
    }


def seq_data(seq: Seq) -> dict[str, object]:
    """`data` of `live` and `acked`."""
    return {"seq": seq}


def error_data(code: str, detail: str) -> dict[str, object]:
    """`data` of an `error` frame."""
    return {"code": code, "detail": detail}


def bye_data(code: int, reason: str, retry_after_ms: int | None) -> dict[str, object]:
    """`data` of a `bye` frame."""
    return {"code": code, "reason": reason, "retry_after_ms": retry_after_ms}


# Problem documents


def problem_object(problem: Problem) -> dict[str, object]:
    """RFC 9457: `type`, `title`, `status`, `detail` and our stable `code`."""
    return {
        "type": "about:blank",
        "title": _TITLES.get(problem.status) or HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
    }
