"""What is asked of a store in another process and what it answers, as msgpack: the values of `storage.store`. Pure.

The forms of arguments and answers follow from the annotations of the Protocols of `storage.store`, so that a method is
described once. Both ends are of one version: a process that asks is started by the one that starts the store.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_type_hints

import msgspec

from storage import errors, store
from storage.changes import Change
from storage.damage import Damage
from storage.errors import Failed, OutboxDamaged, StorageError
from storage.news import News
from storage.records import Appended, Epoch, Event, NewEvent, Seq, StoreStatistics, Window

Kind = TypeVar("Kind")

READS: Final = frozenset(
    {
        "look_up",
        "diagnoses",
        "outboxes",
        "read_after",
        "cursors",
        "cursor",
        "furthest_behind",
        "revocations",
        "audit",
        "accesses",
        "idempotency_keys",
        "barrier",
    }
)
"""Methods that change nothing: they may be asked again where it is not known whether they were answered."""

LONG: Final = frozenset({"backup", "check", "look_through", "erase"})
"""Methods that take as long as they take, in steps: whoever gives up ends them."""

CHANGES: Final = frozenset(
    {
        "register",
        "delete",
        "purge",
        "move_cursors",
        "forget",
        "revoke",
        "lift_revocation",
        "expire_revocations",
        "record",
        "record_accesses",
        "drop_damaged",
        "evict",
        "expire",
        "forget_unseen",
    }
)

METHODS: Final = READS | LONG | CHANGES
"""All that is asked by name. An append has a form of its own."""

APPEND: Final = "append"
CANCEL: Final = "cancel"
FOLLOW: Final = "follow"
UNFOLLOW: Final = "unfollow"
CONFIRM: Final = "confirm"
SUBSCRIBE: Final = "subscribe"
UNSUBSCRIBE: Final = "unsubscribe"
PUBLISH: Final = "publish"
ASK: Final = "ask"
ANSWER: Final = "answer"


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not travel")


def _from_plain(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} does not travel")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_to_plain)


def _reading(kind: type[Kind]) -> Callable[[bytes | msgspec.Raw], Kind]:
    """What reads a value of this kind; it raises `msgspec.DecodeError` for another."""
    return msgspec.msgpack.Decoder(kind, dec_hook=_from_plain).decode


_arguments: Final = _reading(dict[str, msgspec.Raw])


class _Method:
    """How one method is asked and answered."""

    def __init__(self, name: str) -> None:
        function = getattr(store.Store, name)
        hints = get_type_hints(function)
        answer = hints.pop("return")
        self._names = tuple(inspect.signature(function).parameters)[1:]
        self._each = {one: _reading(kind) for one, kind in hints.items()}
        self.answer = _reading(answer)

    def arguments_of(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def decoded(self, data: bytes | msgspec.Raw) -> dict[str, Any]:
        return {name: self._each[name](value) for name, value in _arguments(data).items()}


_METHODS: Final = {name: _Method(name) for name in METHODS}


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What goes either way."""

    number: int
    """Of the request, from 1; 0: it is none, and has no answer."""
    what: str
    """From a client a method, or what else it wants; from the server what the content is."""
    content: msgspec.Raw = msgspec.Raw(b"\xc0")


def encoded(number: int, what: str, content: object = None) -> bytes:
    """A frame.

    Raises:
        UnicodeEncodeError: a text has lone surrogates.
    """
    return _encoder.encode((number, what, content))


def decoded(data: bytes) -> Frame:
    """A frame whose content is still to be read.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _frame(data)


_frame: Final = _reading(Frame)


def asked(number: int, method: str, args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """A method is asked."""
    return encoded(number, method, _METHODS[method].arguments_of(args, kwargs))


def arguments(method: str, content: msgspec.Raw) -> dict[str, Any]:
    """What a method is asked with."""
    return _METHODS[method].decoded(content)


def answer(method: str, content: msgspec.Raw) -> Any:
    """What a method has answered."""
    return _METHODS[method].answer(content)


# Errors

_ERRORS: Final = {
    one.__name__: one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, StorageError) and one is not OutboxDamaged
}


class _Error(msgspec.Struct, frozen=True, array_like=True, tag=1):
    kind: str
    text: str
    diagnosis_id: str | None = None
    damage: Damage | None = None

    def made(self) -> StorageError:
        if self.diagnosis_id is not None and self.damage is not None:
            return OutboxDamaged(self.diagnosis_id, self.damage)
        return _ERRORS.get(self.kind, Failed)(self.text)


class _Stored(msgspec.Struct, frozen=True, array_like=True, tag=0):
    seq: int
    at: float
    epoch: str
    replayed: bool


_error: Final = _reading(_Error)
_outcomes: Final = _reading(list[_Stored | _Error])


def _error_of(error: StorageError) -> _Error:
    if isinstance(error, OutboxDamaged):
        return _Error("", "", error.diagnosis_id, error.damage)
    return _Error(type(error).__name__, str(error))


def refused(number: int, error: StorageError) -> bytes:
    """A request was refused, or has failed."""
    return encoded(number, "error", _error_of(error))


def error(content: msgspec.Raw) -> StorageError:
    """Why a request was refused, or has failed."""
    return _error(content).made()


# Appends


class _Append(msgspec.Struct, frozen=True, array_like=True):
    diagnosis_id: str
    events: list[tuple[str, bytes, str | None, bytes]]


_append: Final = _reading(_Append)


def append_asked(number: int, diagnosis_id: str, events: Sequence[NewEvent]) -> bytes:
    """Events are handed over."""
    given = [(one.kind, one.body, one.key, one.digest) for one in events]
    return encoded(number, APPEND, _Append(diagnosis_id, given))


def append_of(content: msgspec.Raw) -> tuple[str, Sequence[NewEvent]]:
    """The events that are handed over, and their diagnosis."""
    made = _append(content)
    return made.diagnosis_id, [NewEvent(*one) for one in made.events]


def append_answered(number: int, outcomes: Sequence[Appended | StorageError]) -> bytes:
    """What became of each event."""
    given = [
        _error_of(one) if isinstance(one, StorageError) else _Stored(one.seq, one.at, one.epoch, one.replayed)
        for one in outcomes
    ]
    return encoded(number, "outcomes", given)


def outcomes_of(content: msgspec.Raw) -> Sequence[Appended | StorageError]:
    """What became of each event."""
    return [
        one.made() if isinstance(one, _Error) else Appended(Seq(one.seq), one.at, Epoch(one.epoch), one.replayed)
        for one in _outcomes(content)
    ]


# What is told without being asked

_CHANGES: Final = {one.__name__: one for one in get_args(Change)}
_change_readers: Final = {name: _reading(kind) for name, kind in _CHANGES.items()}


@dataclass(frozen=True, slots=True)
class State:
    """How the store is doing."""

    statistics: StoreStatistics
    damaged: dict[str, Damage]
    is_check_pending: bool
    reckoned: float
    """The time, as `storage.belief.Moment.reckoned`."""
    held_since: float | None
    """As `StoreTime.clock_held_since`."""
    nodes: tuple[str, ...]
    """The processes that are connected, by name."""
    have_rights_changed: bool
    """Since this process of the store began, somebody may have lost a right."""
    last_change: int
    """The number of the last change of this process of the store; 0: there was none."""


def changed(change: Change) -> bytes:
    """An act was committed."""
    return encoded(0, "changed", (type(change).__name__, change))


def change_of(content: msgspec.Raw) -> Change:
    """The act that was committed."""
    name, value = _named(content)
    made: Change = _change_readers[name](value)
    return made


_named: Final = _reading(tuple[str, msgspec.Raw])

# News

_grown: Final = _reading(tuple[str, tuple[str, int, int, int] | None, list[tuple[int, float, str, bytes]], bool])


def grew(diagnosis_id: str, news: News) -> bytes:
    """A log has grown. Without names of fields, as each event is told so."""
    window = news.window
    place = None if window is None else (window.epoch, window.head, window.floor, window.purged)
    return encoded(0, "grew", (diagnosis_id, place, news.events, news.is_whole))


def news_of(content: msgspec.Raw) -> tuple[str, News]:
    """Which log has grown, and by what."""
    diagnosis_id, place, events, is_whole = _grown(content)
    if place is None:
        return diagnosis_id, News(None, is_whole=is_whole)
    epoch, head, floor, purged = place
    window = Window(Epoch(epoch), Seq(head), Seq(floor), Seq(purged))
    stored = tuple([Event(Seq(seq), at, kind, body) for seq, at, kind, body in events])
    return diagnosis_id, News(window, stored, is_whole)


# The rest

state_of: Final = _reading(State)
text_of: Final = _reading(str)
number_of: Final = _reading(int)
publishing_of: Final = _reading(tuple[str, bytes])
"""Topic and content of what a node publishes."""
note_of: Final = _reading(tuple[str, str, bytes])
"""Node, topic and content of what another node has published."""
asking_of: Final = _reading(tuple[int, str, bytes])
"""Number, topic and content of a question to all others."""
question_of: Final = _reading(tuple[int, str, str, bytes])
"""Number of a question of another node, that node, topic and content."""
answering_of: Final = _reading(tuple[int, bytes])
"""Number of a question, and the answer."""
answered_of: Final = _reading(tuple[int, str, bytes])
"""Number of a question, the node that has answered it, and the answer."""
