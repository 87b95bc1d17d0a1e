"""Logging, set up once: to stderr, for people or as JSON. Never a token, a query string or a payload."""

from __future__ import annotations

import logging
import sys
from typing import Final

from web import wire
from web.settings import Settings

_FOR_PEOPLE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": wire.timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return wire.encode(line).decode()


def set_up_logging(settings: Settings) -> None:
    """Send every log line of this process to stderr in the format the operator chose."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if settings.log_format == "json" else logging.Formatter(_FOR_PEOPLE))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
