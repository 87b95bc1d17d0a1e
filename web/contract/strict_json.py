"""Strict JSON: a text is a record, or it is said what is wrong with it. Pure; `web.contract.wire` alone calls this.

msgspec decodes, and leaves three things open: it takes the last of two fields of one name, it reports a wrong field
before it has read the text to its end, and it takes no `5.0` for an integer. So a good text is read a second time for
the names of its fields, and a text with a wrong field is read anew, slowly and to its end.

Numbers that are passed on are kept as they are written (`web.contract.number`).
"""

from __future__ import annotations

import json
from types import UnionType
from typing import Final, NoReturn, TypeVar

import msgspec

from web.contract.number import WrittenNumber, as_written

Record = TypeVar("Record")

INTEGER_CHARACTERS_MAX: Final = 320
"""Longest integer that is read as one while a text is read anew. Reason: no double has more digits. Beyond: infinity,
which no field takes."""


FLAT_BYTES_MAX: Final = 4096
"""Longest text whose strings are compared. Beyond: it is read a second time. Reason: longer numbers `json` refuses."""

NAMED_TWICE: Final = "has an object that names a field twice"


class NotJson(Exception):
    """The text is no JSON, or has an object that names a field twice; what it is goes on "the text ..."."""


class WrongField(Exception):
    """The text is JSON, and one of its fields is wrong."""

    def __init__(self, message: str, found: object) -> None:
        super().__init__(message)
        self.message = message
        """What msgspec says; it echoes no value."""
        self.found = found
        """The text as plain values."""


def decoder_of(kind: type[Record] | UnionType) -> msgspec.json.Decoder[Record]:
    """A decoder for `read`, of a record or of a union of them."""
    return msgspec.json.Decoder(kind, strict=True, float_hook=WrittenNumber)


def read(decoder: msgspec.json.Decoder[Record], text: str | bytes) -> Record:
    """The record a text holds.

    A field that must be an integer may be written with a fraction of zero (`5.0`, `1.2e2`): Dart prints integers so.

    Raises:
        NotJson, WrongField: it holds none.
    """
    try:
        try:
            record = decoder.decode(text)
        except msgspec.ValidationError:
            return _read_anew(decoder, _as_text(text))
        if not _names_each_once(text):
            _names.decode(_as_text(text))
    except RecursionError:
        raise NotJson("is nested too deeply") from None
    except (msgspec.DecodeError, ValueError):
        raise NotJson("is not valid JSON") from None
    return record


def _names_each_once(text: str | bytes) -> bool:
    """Whether a JSON text is, for certain, one object that names each field once. Cheaper than to read it again.

    Without an escape a string is spelled in one way, and a quote begins or ends one.
    """
    if not isinstance(text, bytes) or len(text) > FLAT_BYTES_MAX or b"\\" in text or text.count(b"{") != 1:
        return False
    pieces = text.split(b'"')
    strings = pieces[1::2]
    if len(set(strings)) == len(strings):
        return True
    names = [string for string, behind in zip(strings, pieces[2::2], strict=True) if behind.lstrip().startswith(b":")]
    return len(set(names)) == len(names)


def _read_anew(decoder: msgspec.json.Decoder[Record], text: str) -> Record:
    """The record of a text that msgspec found a wrong field in. Raises as `read`, and what `json` raises."""
    found = _tolerant.decode(text)
    msgspec.json.encode(found, enc_hook=as_written)  # a lone surrogate, which `json` lets pass, is refused here
    if isinstance(found, dict):
        found |= {name: _plain(value) for name, value in found.items() if isinstance(value, WrittenNumber)}
    try:
        record: Record = msgspec.convert(found, decoder.type)
    except msgspec.ValidationError as error:
        raise WrongField(str(error), found) from None
    return record


def _plain(number: WrittenNumber) -> int | float:
    """A number as a field takes it: none of a record's own is passed on as it is written."""
    whole = number.as_integer()
    return float(number) if whole is None else whole


def _as_text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode()


def sole_value(name: str, text: bytes) -> object:
    """What the one field of this name holds in a text that `read` refuses; `None`: there is none, or more than one.

    A text that only has a number that is no JSON, a field named twice elsewhere, or half of a surrogate pair is read.
    """
    try:
        pairs = _pairs.decode(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs):
        return None
    values = [value for named, value in pairs if named == name]
    return values[0] if len(values) == 1 else None


class _Pairs(list[tuple[str, object]]):
    """The fields of an object, in order."""


def _check_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object, if it names each field once (RFC 8259 section 4): whoever reads it would choose one of the two."""
    named = dict(pairs)
    if len(named) != len(pairs):
        raise NotJson(NAMED_TWICE)
    return named


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= INTEGER_CHARACTERS_MAX else float(text)


_pairs: Final = json.JSONDecoder(object_pairs_hook=_Pairs)
_names: Final = json.JSONDecoder(object_pairs_hook=_check_names)
_tolerant: Final = json.JSONDecoder(
    object_pairs_hook=_check_names, parse_int=_integer, parse_float=WrittenNumber, parse_constant=_refuse_constant
)
