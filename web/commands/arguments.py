"""Types of command line values: each reads one value, or says what it must be. Pure."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from web.contract.number import WrittenNumber
from web.contract.records import KEY, KEY_RULE
from web.server import setting_kinds

STANDARD_INPUT: Final = "-"
"""As the name of a file."""

FILE_MARK: Final = "@"
"""Stands before the name of a file that holds a value."""

FILE_BYTES_MAX: Final = 1024 * 1024
"""Largest file that is read for a value. Reason: the server judges bodies, and takes much less."""

_NUMERIC_ID: Final = re.compile(r"0|[1-9][0-9]{0,14}")


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads an integer from `least` to `most`."""
    return partial(_read, setting_kinds.whole(least, most))


def fraction(text: str) -> float:
    """Reads a number from 0 to 1."""
    value: float = _read(setting_kinds.number(0, 1), text)
    return value


def reference(text: str) -> int | str:
    """Reads an id: digits are sent as an integer, anything else as text."""
    return int(text) if _NUMERIC_ID.fullmatch(text) else text


def idempotency_key(text: str) -> str:
    """Reads a key that a header can carry."""
    if not KEY.fullmatch(text):
        raise argparse.ArgumentTypeError(KEY_RULE)
    return text


def json_object(text: str) -> dict[str, Any]:
    """Reads a JSON object, or `@` and the file that holds it, or `-`: from standard input.

    Numbers stay as they are written.
    """
    try:
        value = json.loads(_content_of(text), parse_float=WrittenNumber, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('must be a JSON object, such as \'{"herb":"mint"}\'')
    return value


def _read(kind: setting_kinds.Kind, text: str) -> Any:
    try:
        return kind.from_text(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {kind.limit}") from None


def _content_of(text: str) -> str | bytes:
    """What is meant: the text itself, or what it names."""
    if text == STANDARD_INPUT:
        content, where = sys.stdin.buffer.read(FILE_BYTES_MAX + 1), "standard input"
    elif text.startswith(FILE_MARK):
        file = Path(text.removeprefix(FILE_MARK))
        try:
            with file.open("rb") as opened:
                content, where = opened.read(FILE_BYTES_MAX + 1), str(file)
        except OSError as error:
            raise argparse.ArgumentTypeError(f"cannot read {file}: {error.strerror}") from None
    else:
        return text
    if len(content) > FILE_BYTES_MAX:
        raise argparse.ArgumentTypeError(f"{where} has more than {FILE_BYTES_MAX} bytes; the server takes 65536")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
