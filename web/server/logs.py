"""Logging, set up once: to stderr, for people or as JSON, one line a record.

Never a token, a query string, a payload or a key: callers do not put them into a message, and the formatter here,
the one every line of this process goes through (Hypercorn's, Quart's and Python's warnings included), takes out
what looks like one. An exception is shown by kind and place, without its text, which may hold what a client sent.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, cast

from web.contract import wire
from web.contract.log_fields import FIELDS, REQUEST_ID, TRACE_ID, current_request
from web.contract.trace_context import trace_id_of
from web.server.log_events import LIBRARY, LogEvent, event_of
from web.server.log_writer import LogWriter
from web.server.settings import Settings

PLACES_MAX: Final = 12
"""Innermost frames shown of an exception. Reason: a line stays a line, also after a RecursionError."""

EXCEPTIONS_MAX: Final = 16
"""Exceptions shown of a group and its causes. Beyond: left out."""

OURS: Final = "avicenna"
"""Above all loggers of this server."""

_SECRETS: Final = (
    # Three parts as a signed token has them (RFC 7515), whatever JSON its header is; two more has an encrypted one.
    (
        re.compile(
            r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{40,}(\.[A-Za-z0-9_-]*){0,2}"
        ),
        "[token]",
    ),
    # A piece of a JWT (RFC 7519): its header nearly always begins with `{"`, so its base64 with `eyJ`.
    (re.compile(r"eyJ[A-Za-z0-9_-]{4,}(\.[A-Za-z0-9_-]*){0,4}"), "[token]"),
    # What follows the scheme in `Authorization: Bearer ...`, or the prefix in our subprotocol.
    (re.compile(r"(?i)\b(bearer[ .]+)(?!error=)[^\s,;\"'\]\)]{8,}"), r"\1[token]"),
    # The query of a URL or of a request target.
    (re.compile(r"(?<=[\w/.%~-])\?[^\s\"'<>]*=[^\s\"'<>]*"), "?[query]"),
)

_SUSPECT: Final = re.compile(r"\.[A-Za-z0-9_-]{40}|eyJ|\?|[Bb][Ee][Aa][Rr][Ee][Rr]")
"""A text with a secret contains one of these. Reason: most lines contain none, and one search tells."""


_AS_THEY_ARE: Final = frozenset({int, bool, type(None)})
"""Kinds of values that hold no text."""


def redacted(text: str) -> str:
    """The text without tokens and query strings, on one line, without characters that hide or reorder text."""
    if _SUSPECT.search(text):
        for pattern, stand_in in _SECRETS:
            text = pattern.sub(stand_in, text)
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    """The character; its number if it ends a line, moves a cursor, turns the direction of text, or cannot be seen."""
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def describe(error: BaseException) -> str:
    """Kind and place of an exception, its causes and its members; never its text, which may hold a payload."""
    found: list[str] = []
    for how, one in _related(error, ""):
        if len(found) == EXCEPTIONS_MAX:
            break
        found.append(f"{how}{type(one).__name__}{_places(one.__traceback__)}")
    return "; ".join(found)


def _related(error: BaseException, how: str) -> Iterator[tuple[str, BaseException]]:
    yield how, error
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _related(member, "with ")
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and cause is not error:
        yield from _related(cause, "after ")


def _places(trace: TracebackType | None) -> str:
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)][-PLACES_MAX:]
    return "".join(f" < {code.co_qualname}:{line}" for code, line in reversed(frames))


class Formatter(logging.Formatter):
    """Renders a record as one redacted line.

    Never uses `record.exc_text`, where other formatters leave the whole text of an exception.
    """

    def __init__(self, *, json: bool) -> None:
        super().__init__()
        self._json = json

    def format(self, record: logging.LogRecord) -> str:
        at, message = wire.timestamp(record.created), redacted(record.getMessage())
        request_id = getattr(record, REQUEST_ID, None) or current_request.get()
        error = record.exc_info[1] if record.exc_info else None
        trace_id = trace_id_of(request_id)
        if not self._json:
            text = f"{at} {record.levelname.upper()} {record.name}: {message}"
            if request_id is not None:
                text += f" [{request_id}]" if trace_id is None else f" [{request_id} {trace_id}]"
            return text if error is None else f"{text} ({describe(error)})"
        event = event_of(record)
        line: dict[str, object] = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": LIBRARY if event is None else event.name,
            "message": message,
        }
        if request_id is not None:
            line[REQUEST_ID] = str(request_id)
        if trace_id is not None:
            line[TRACE_ID] = trace_id
        if error is not None:
            line["exception"] = describe(error)
        if event is not None:
            for name, value in zip(event.fields, _values_of(event, record), strict=True):
                kind = type(value)
                if kind is float:
                    line[name] = round(value, 3)
                else:
                    line[name] = value if kind in _AS_THEY_ARE else redacted(str(value))
        return wire.encode(line).decode()


def _values_of(event: LogEvent, record: logging.LogRecord) -> Sequence[Any]:
    """What stands in the fields of an event."""
    if event.is_whole:
        given: Mapping[str, object] = getattr(record, FIELDS, {})
        return [given.get(name) for name in event.fields]
    return cast("tuple[Any, ...]", record.args or ())


class Record(logging.LogRecord):
    """A record that knows what a line shows, and no more: to find out the rest costs more than to write the line."""

    pathname = ""
    lineno = 0
    exc_text = stack_info = None

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
    ) -> None:
        self.name = name
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.msg = msg
        # One mapping as the only argument is a mapping of names (`logging.LogRecord`).
        is_mapping = args and len(args) == 1 and isinstance(args[0], Mapping) and args[0]
        self.args = args[0] if is_mapping else args
        self.exc_info = exc_info
        self.created = time.time()


def _dropped(count: int) -> logging.LogRecord:
    """What the log says once it flows again."""
    said = "%d log lines were dropped: nobody read the log"
    return logging.LogRecord("avicenna.log", logging.WARNING, __file__, 0, said, (count,), None)


def set_up_logging(settings: Settings) -> LogWriter:
    """Send every log line of this process to stderr in the format the operator chose.

    The end of the process writes what still waits (`logging.shutdown`).

    Returns:
        What writes them.
    """
    # We never print these, so do not collect them (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the place of the call, see the same page
    logging.setLogRecordFactory(Record)
    formatter = Formatter(json=settings.log_format == "json")
    handler = LogWriter(sys.stderr.fileno(), lambda dropped: formatter.format(_dropped(dropped)))
    handler.setFormatter(formatter)
    level = settings.log_level.upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Of libraries only what an operator should know: some say at the level `debug` what they were given.
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger(OURS).setLevel(level)
    logging.captureWarnings(capture=True)
    return handler
