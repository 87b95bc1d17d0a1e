"""Every event that the log tells of: its name, its level, its text, and the fields that a JSON line of it has.

Whoever logs gives a text and its arguments, as Python's logging has it. The formatter finds the event by logger, level
and text, and names the arguments; so a name costs whoever logs nothing. An argument that is a field alone, and no part
of the text, stands in the text as `%.0s`. A test holds this table and all calls of loggers together.

`python -m web.server.log_events` prints docs/LOG.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from web.contract.log_fields import REQUEST_ID, TRACE_ID

Level = Literal["info", "warning", "error", "critical"]

LIBRARY: Final = "library"
"""The event of whatever a library logs."""

FIELD_DOCS: Final[Mapping[str, str]] = {
    "acknowledged": "The highest number that the subscriber has acknowledged.",
    "address": "Where a server listens, as host and port.",
    "after_seconds": "How long it took, in seconds.",
    "bytes": "Size, in bytes.",
    "close_code": "The code of the Close, or of the `bye` of an event stream.",
    "code": "Why a request was refused: the `code` of its problem document.",
    "connections": "How many connections it concerns.",
    "count": "How many there were.",
    "detail": "What happened, in words.",
    "device": "The device that the client names.",
    "diagnosis_id": "The diagnosis it is about.",
    "error": "Kind and place of an exception, or what the system or the store says. Never a payload.",
    "events_lost": "Events that can no longer be had.",
    "events_sent": "Events that were written to the connection.",
    "events_stored": "Events that were stored for the connection.",
    "file": "A file or directory.",
    "gaps": "Gaps that were told.",
    "host": "The host of a URL.",
    "in_hand": "The kinds of messages that an actor was working on.",
    "incarnation": "Which incarnation of the actor.",
    "installation": "The name of what several servers share: `nats_name`.",
    "limit": "The limit that was reached.",
    "method": "The method of the request.",
    "milliseconds": "From the request's head to its answer.",
    "mode": "The permissions of a file.",
    "node": "The name of a server among those on one engine.",
    "path": "The path of the request: its route, with the diagnosis filled in; without a query.",
    "pid": "The number of a process.",
    "process": "The name of a worker, or `store`.",
    "reason": "Why, in words.",
    "seconds": "How long, in seconds.",
    "server": "The name of a server of the engine.",
    "service": "A task that runs as long as the server.",
    "status": "The status of the answer.",
    "subject": "Who, as the setting `log_subjects` has it.",
    "total": "Of how many.",
    "url": "Where it listens.",
}
"""What the fields say."""


class LogEvent(NamedTuple):
    """One event, and the call that logs it."""

    name: str
    logger: str
    """Without `avicenna.`."""
    level: Level
    text: str
    fields: tuple[str, ...]
    """The arguments, in order; or, where `is_whole`, the fields that come with the record."""
    is_whole: bool = False
    """The one argument is all fields as text: for people."""


def _event(name: str, logger: str, level: Level, text: str, fields: str = "", *, is_whole: bool = False) -> LogEvent:
    return LogEvent(name, logger, level, text, tuple(fields.split()), is_whole)


_SUBSCRIBER: Final = "diagnosis_id subject device"
_END: Final = f"{_SUBSCRIBER} close_code reason seconds events_sent acknowledged"

LOG_EVENTS: Final = (
    # Requests and connections
    _event(
        "request", "access", "info", "%s %s %d %.1f ms%.0s%.0s", "method path status milliseconds diagnosis_id code"
    ),
    _event("handshake", "access", "info", "GET %s WebSocket%.0s", "path diagnosis_id"),
    _event("edge_answer", "access", "info", "answered by the edge: %d, %s%.0s", "status detail code"),
    _event("token_refused", "access", "info", "a token was not accepted: %s", "reason"),
    _event("websocket_ended", "connections", "info", "WebSocket ended: %s", _END, is_whole=True),
    _event("stream_ended", "connections", "info", "event stream ended: %s", _END, is_whole=True),
    _event(
        "console_ended", "connections", "info", "console ended: %s", "subject close_code reason seconds", is_whole=True
    ),
    _event(
        "publisher_ended",
        "connections",
        "info",
        "publishing WebSocket ended: %s",
        "subject close_code reason seconds events_stored",
        is_whole=True,
    ),
    _event("stalled", "connections", "info", "stalled peer cut off: %s", f"{_SUBSCRIBER} reason", is_whole=True),
    _event("gaps_told", "connections", "info", "told of gaps: %s", f"{_SUBSCRIBER} gaps events_lost", is_whole=True),
    _event(
        "replacing",
        "connections",
        "info",
        "connections replace each other: %s",
        f"{_SUBSCRIBER} close_code reason connections",
        is_whole=True,
    ),
    _event("peer_stalled", "http", "info", "a connection is cut: its peer accepted nothing for %g s", "seconds"),
    _event("connections_full", "http", "warning", "refusing connections: all %d are taken", "limit"),
    _event(
        "address_full",
        "http",
        "warning",
        "refusing connections of an address that has %d, its share (address_share); "
        "if it is a proxy's, name it in trusted_proxies",
        "limit",
    ),
    _event("connections_cut", "http", "warning", "cutting %d connections that have not ended in time", "connections"),
    _event("accepting_failed", "http", "error", "no room for connections: %s", "error"),
    _event("connection_failed", "http", "error", "a connection ended by an unexpected error"),
    _event("application_failed", "http", "error", "the application failed over a request"),
    _event("request_failed", "web", "error", "a request failed unexpectedly: %s", "error"),
    _event("socket_failed", "web", "error", "a connection failed: %s", "error"),
    _event("socket_failed", "edge", "error", "a connection failed: %s", "error"),
    _event("socket_failed_untold", "edge", "error", "and could not be told: %s", "error"),
    # Tokens and keys
    _event("console_reads_old", "web", "warning", "the console shows what was read before: %s", "error"),
    _event("expiry_failed", "web", "error", "a connection with an expiring token failed: %s", "error"),
    _event("renewal_failed", "web", "error", "a token could not be renewed: %s", "error"),
    _event(
        "renewal_refused",
        "web",
        "info",
        "a newer token was not accepted on a connection of %s: %s%.0s",
        "detail reason diagnosis_id",
    ),
    _event(
        "keys_not_fetched",
        "keys",
        "warning",
        "the keys at %s cannot be fetched, the last ones are kept: %s",
        "host error",
    ),
    _event("keys_fetched", "keys", "info", "fetched %d keys from %s", "count host"),
    _event(
        "keys_never_tried",
        "keys",
        "warning",
        "%d keys are never tried: no more than %d may have one algorithm and one KID, or no KID",
        "count limit",
    ),
    _event(
        "keys_never_tried",
        "server",
        "warning",
        "%d keys are never tried: no more than %d may have one algorithm and one KID, or no KID",
        "count limit",
    ),
    _event("keys_read", "keys", "info", "keys read anew: %d", "count"),
    _event("keys_not_read", "keys", "error", "the keys stay as they were: %s", "error"),
    _event(
        "keys_not_read",
        "keys",
        "error",
        "the keys stay as they were: their files could not be read within %.0f s",
        "seconds",
    ),
    _event("caution", "keys", "warning", "%s", "detail"),
    _event("key_made", "server", "info", "made a new token key in %s", "file"),
    _event("key_odd", "server", "warning", "the key file %s %s: it counts byte for byte as it stands", "file reason"),
    _event(
        "key_exposed",
        "server",
        "warning",
        "the secret key %s can be %s by others than its owner (mode %s): make it 0600",
        "file reason mode",
    ),
    # The server
    _event("introduction", "server", "info", "%s", "detail"),
    _event("caution", "server", "warning", "%s", "detail"),
    _event("listening", "server", "info", "listening on %s", "url"),
    _event("listening_for_operators", "server", "info", "listening for operators on %s", "url"),
    _event("listening_unannounced", "server", "warning", "cannot write %s in %s: %s", "detail file error"),
    _event(
        "open_files_few",
        "server",
        "warning",
        "max_connections is %d, but with at most %d open files only %d are possible; raise the process's limit",
        "count limit connections",
    ),
    _event("manager_untold", "server", "warning", "the service manager was not told %s: %s", "detail error"),
    _event(
        "manager_unknown",
        "server",
        "warning",
        "NOTIFY_SOCKET must be a path, or @ and a name, and is neither: no service manager is told",
    ),
    _event("draining", "server", "info", "draining after %s", "reason"),
    _event("stopped", "server", "info", "stopped"),
    _event("failed", "server", "critical", "the server failed: %s", "error"),
    _event("not_started", "server", "critical", "cannot start: %s", "error"),
    _event("storage_failed", "server", "critical", "storage failed, stopping so that nothing is lost: %s", "error"),
    _event("failed_unexpectedly", "server", "critical", "the server failed unexpectedly"),
    # Several processes
    _event("workers_serve", "server", "info", "%d workers serve, and a process has the database", "count"),
    _event("workers_replaced", "server", "info", "the workers were replaced"),
    _event("process_ended", "server", "error", "process %s (%d) has ended: %s", "process pid reason"),
    _event("listener_kept", "server", "warning", "a listener is kept, with those who wait in it: %s", "reason"),
    _event(
        "process_not_started", "server", "error", "no process could be started in place of %s: %s", "process reason"
    ),
    _event("process_does_not_end", "server", "error", "process %s does not end: it is killed", "process"),
    _event("process_late", "server", "error", "process %s does not serve after %g s: it is ended", "process seconds"),
    _event(
        "process_stays",
        "server",
        "error",
        "process %s stays: the one in its place could not start",
        "process",
    ),
    _event(
        "process_unconfirmed",
        "server",
        "error",
        "process %s did not confirm a change in time: it is ended",
        "process",
    ),
    _event("process_silent", "server", "error", "process %s has told nothing for %g s: it is ended", "process seconds"),
    _event(
        "reload_ended",
        "server",
        "error",
        "the reload ends here: workers that were not replaced serve on as they were started",
    ),
    _event("figures_unreadable", "server", "error", "a process told figures that cannot be read: %s", "error"),
    _event("process_not_told", "server", "error", "a process has ended before it was told what to be"),
    _event("processes_end_too_often", "server", "critical", "the server ends: %s", "reason"),
    _event("store_process_failed", "server", "critical", "the process of the store failed unexpectedly"),
    _event("store_failed", "server", "critical", "storage failed: %s", "error"),
    _event("client_full", "storage", "error", "a process does not read what it is sent: it is cut off"),
    _event("client_wrong", "storage", "error", "a process sent what is no frame, and is cut off: %s", "error"),
    _event("client_request_failed", "storage", "error", "a request of a process failed unexpectedly: %s", "error"),
    _event(
        "client_unconfirmed",
        "storage",
        "error",
        "a process has not confirmed a change within %g s: it is cut off",
        "seconds",
    ),
    _event(
        "ended_without_disk",
        "server",
        "critical",
        "the database is not closed after %.0f s: ending without that",
        "seconds",
    ),
    _event("leftover_removed", "server", "warning", "removed %s: the process that wrote it was killed", "file"),
    _event(
        "check_postponed",
        "server",
        "warning",
        "outboxes were not checked, trying again in %.0f s: %s",
        "seconds error",
    ),
    _event(
        "old_rows_kept", "server", "warning", "old rows were not dropped, trying again in %.0f s: %s", "seconds error"
    ),
    _event("backups_kept", "server", "warning", "old backups were not deleted: cannot open %s: %s", "file error"),
    _event("backup_kept", "server", "warning", "the old backup %s was not deleted: %s", "file error"),
    _event("backup_deleted", "server", "info", "deleted the old backup %s (backups_kept = %d)", "file limit"),
    _event(
        "erasure_postponed", "server", "warning", "what an erased person left is not erased, trying again: %s", "error"
    ),
    _event("rights_postponed", "server", "warning", "rights are not judged anew, trying again: %s", "error"),
    _event("consequence_failed", "server", "error", "what follows from an act failed unexpectedly: %s", "error"),
    _event("act_failed", "server", "error", "an act failed unexpectedly, and nobody waited for it: %s", "error"),
    _event("tracing_failed", "server", "error", "a span failed, and others may: %s", "error"),
    _event("lines_dropped", "log", "warning", "%d log lines were dropped: nobody read the log", "count"),
    # Actors
    _event("outbox_not_loaded", "actors", "warning", "diagnosis %s: outbox not loaded: %s", "diagnosis_id error"),
    _event(
        "actor_crashed",
        "actors",
        "error",
        "diagnosis %s: incarnation %d crashed: %s, in hand: %s",
        "diagnosis_id incarnation error in_hand",
    ),
    _event(
        "quarantined",
        "actors",
        "error",
        "diagnosis %s: quarantined for %.0f s after %d crashes",
        "diagnosis_id seconds count",
    ),
    _event(
        "escalated",
        "actors",
        "critical",
        "escalated: more than %d diagnoses quarantined within %.0f s, this server is not ready",
        "limit seconds",
    ),
    _event("not_stored_yet", "actors", "warning", "%d %s not stored, trying again: %s", "count detail error"),
    _event(
        "trail_lost",
        "actors",
        "error",
        "%d rows of the access trail were lost while the store took none",
        "count",
    ),
    _event("service_crashed", "actors", "error", "the %s crashed: %s", "service error"),
    _event("peer_unanswered", "actors", "error", "a question of another process was not answered: %s", "error"),
    # The store
    _event(
        "clock_believed",
        "storage",
        "warning",
        "the wall clock has run evenly for %.0f minutes: it is believed again",
        "count",
    ),
    _event(
        "clock_jumped",
        "storage",
        "warning",
        "the wall clock is %.0f s %s %s: nothing expires or is dropped until it has run evenly for %.0f minutes",
        "seconds detail reason count",
    ),
    _event("progress", "storage.progress", "info", "%s: %s", "service detail"),
    _event(
        "copy_given_up",
        "storage",
        "info",
        "a copy of the database is given up: %d of %d pages were left",
        "count total",
    ),
    _event("database_set_aside", "storage", "error", "%s; it is now %s, and an empty one is begun", "reason file"),
    _event(
        "unclean_end",
        "storage",
        "warning",
        "%s (%d bytes) was not closed in order: %s; its events are still to be checked",
        "file bytes detail",
    ),
    _event("epochs_renewed", "storage", "warning", "every diagnosis begins a new epoch: %s", "reason"),
    _event("not_closed", "storage", "warning", "the database could not be closed in order: %s", "error"),
    _event("backup_damaged", "storage", "warning", "%s: %s", "file reason"),
    _event(
        "keys_exhausted",
        "storage",
        "warning",
        "events with new keys are refused: %s (setting idempotency_keys_max)",
        "reason",
    ),
    _event("storing_stopped", "storage", "warning", "nothing is stored until further notice: %s", "error"),
    _event("storing_resumed", "storage", "warning", "what comes is stored again, after %.1f s", "after_seconds"),
    _event(
        "disk_stalled",
        "storage",
        "warning",
        "the disk has not answered for %.0f s: who waits for it is told so",
        "seconds",
    ),
    _event("disk_answers", "storage", "warning", "the disk answers again, after %.1f s", "after_seconds"),
    _event("node_named", "server", "info", "this is node %s of %s", "node installation"),
    _event("isolated", "server", "warning", "neither the engine nor another server is heard: letting clients go"),
    _event(
        "secret_open",
        "server",
        "warning",
        "the secret %s is open to others than its owner (mode %s): make it 0600",
        "file mode",
    ),
    _event("nats_connected", "storage", "info", "connected to the NATS server %s at %s", "server address"),
    _event(
        "nats_connection_ended",
        "storage",
        "warning",
        "the connection to the NATS server %s at %s ended: %s",
        "server address reason",
    ),
    _event("nats_server_passed_over", "storage", "warning", "the NATS server at %s is not used: %s", "address reason"),
    _event("nats_denied", "storage", "warning", "the NATS server does not let us: %s", "reason"),
    _event("outbox_damaged", "storage", "error", "%s%.0s", "reason diagnosis_id"),
    _event("outboxes_whole", "storage", "info", "the events of %d diagnoses were checked: all are whole", "count"),
    _event(
        "outboxes_damaged", "storage", "error", "the events of %d diagnoses were checked: damaged: %d", "total count"
    ),
)

Call = tuple[str, int, str]
"""Logger, level and text of a record."""

_LEVELS: Final = logging.getLevelNamesMapping()

BY_CALL: Final[Mapping[Call, LogEvent]] = {
    (f"avicenna.{one.logger}", _LEVELS[one.level.upper()], one.text): one for one in LOG_EVENTS
}

assert len(BY_CALL) == len(LOG_EVENTS), "a call logs one event"
assert {name for one in LOG_EVENTS for name in one.fields} == set(FIELD_DOCS), "every field has its meaning"


def event_of(record: logging.LogRecord) -> LogEvent | None:
    """The event that a record tells of; `None`: a library logged it."""
    return BY_CALL.get((record.name, record.levelno, record.msg)) if isinstance(record.msg, str) else None


def log_page() -> str:
    """docs/LOG.md, from the tables."""
    events = [
        f"| `{one.name}` | {one.level} | `{one.logger}` | {', '.join(f'`{field}`' for field in one.fields)} | "
        f"{_shown_text(one)} |"
        for one in LOG_EVENTS
    ]
    fields = [f"| `{name}` | {doc} |" for name, doc in FIELD_DOCS.items()]
    return "\n".join((_PAGE_HEAD, *events, _FIELDS_HEAD, *fields, ""))


def _shown_text(event: LogEvent) -> str:
    """The text for people, its arguments by name."""
    text = event.text
    for name in ("fields",) if event.is_whole else event.fields:
        at = text.index("%")
        end = next(place for place in range(at + 1, len(text)) if text[place].isalpha())
        shown = "" if text[at : end + 1] == "%.0s" else f"*{name}*"
        text = text[:at] + shown + text[end + 1 :]
    return text.replace("|", "\\|").replace("_", "\\_")


_PAGE_HEAD: Final = f"""\
# The log

<!-- Made from web/server/log_events.py by `make log`; change it there. -->

Lines go to stderr. With `log_format = json` each is one JSON object:

| field | what it says |
|---|---|
| `at` | when, in RFC 3339, UTC, with milliseconds |
| `level` | `info`, `warning`, `error` or `critical` |
| `logger` | the part of the server, or the library, that speaks |
| `event` | the name of the event, as below; `{LIBRARY}`: a library speaks |
| `message` | the text that people get |
| `{REQUEST_ID}` | the request it belongs to, as `X-Request-ID` of its answer says; not there: to none |
| `{TRACE_ID}` | the trace of that request ([DEPLOYMENT](DEPLOYMENT.md#traces)); not there: it has none |
| `exception` | kind and place of an exception, without its text; not there: there is none |

Every line of an event has its fields; `null` says that there is nothing to say. No line holds a token, a key, a
payload, a query or an address of a client. Of libraries only warnings, and what is worse, are logged, whatever
`log_level` says.

A line for people has the time, the level, the logger, the text, and in brackets the request and its trace.

| event | level | logger `avicenna.` | fields | text for people |
|---|---|---|---|---|"""

_FIELDS_HEAD: Final = """
| field | what it says |
|---|---|"""


if __name__ == "__main__":
    sys.stdout.write(log_page())
