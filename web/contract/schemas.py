"""What travels over HTTP as JSON Schema (2020-12), for `/openapi.json`. Pure.

Bodies come from the records that decode them. Answers are written down here; tests compare every answer they get with
its schema, and schemathesis does.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from actors.counts import RESTART_REASONS
from storage.records import OUTBOX_EVENTS_MAX
from web.contract.errors import STATUS_OF_CODE, STATUSES_OF_THE_EDGE
from web.contract.records import (
    ID_DIGITS_MAX,
    KINDS,
    SUB_CHARACTERS_MAX,
    EffectivenessLine,
    EffectivenessUpdate,
    FeedbackLine,
    FeedbackUpdate,
    RecommendationLine,
    RecommendationUpdate,
    Registration,
    Revoking,
)

Schema = dict[str, Any]

REF: Final = "#/components/schemas/"

BODIES: Final = (
    RecommendationUpdate,
    EffectivenessUpdate,
    FeedbackUpdate,
    RecommendationLine,
    EffectivenessLine,
    FeedbackLine,
    Registration,
    Revoking,
)


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": REF + name}


def thing(**fields: Schema) -> Schema:
    """An object with exactly these fields now; a later version may add some."""
    return {"type": "object", "required": list(fields), "properties": fields}


def some_of(optional: dict[str, Schema], **fields: Schema) -> Schema:
    """As `thing`, with fields that may be absent."""
    whole = thing(**fields)
    return whole | {"properties": whole["properties"] | optional}


def items(schema: Schema, most: int | None = None) -> Schema:
    """A list."""
    return {"type": "array", "items": schema} | ({} if most is None else {"maxItems": most})


def page(name: str) -> Schema:
    """A page of a list, and where the next one begins."""
    return thing(items=items(ref(name), 1000), next=TEXT_OR_NULL)


def words(*allowed: str) -> Schema:
    """One of a few texts."""
    return {"type": "string", "enum": list(allowed)}


def lines_of(*names: str) -> Schema:
    """NDJSON whose lines are each one of these components; a program that splits it has the list."""
    one = {"oneOf": [ref(name) for name in names]}
    return {"type": "string", "contentMediaType": "application/x-ndjson", "contentSchema": items(one, 1000)}


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Final[Schema] = {"type": "string"}
TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
FLAG: Final[Schema] = {"type": "boolean"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TIME: Final[Schema] = {"type": "string", "format": "date-time", "pattern": "Z$"}
COUNTS_BY_DIAGNOSIS: Final[Schema] = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}

DIAGNOSIS_ID_TEXT: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}

_DIAGNOSIS_ID: Final[Schema] = {
    "description": "An integer where the id looks like one of up to 15 digits, else a text.",
    "anyOf": [{"type": "integer", "minimum": 0, "maximum": 10**15 - 1}, DIAGNOSIS_ID_TEXT],
}

_RECEIPT: Final[dict[str, Schema]] = {
    "diagnosis_id": ref("DiagnosisId"),
    "seq": {"type": "integer", "minimum": 1},
    "epoch": TEXT,
    "clients_notified": COUNT,
    "subscribers": thing(online=COUNT, known=COUNT, at_risk=COUNT),
    "replayed": FLAG,
}

_WINDOW: Final[dict[str, Schema]] = {
    "diagnosis_id": ref("DiagnosisId"),
    "epoch": TEXT,
    "head": COUNT,
    "floor": COUNT,
}

_STATE: Final[Schema] = {
    "description": "What the act is about as it was or as it is, depending on the act; null: there is nothing.",
    "type": ["object", "null"],
}

_LAG: Final = thing(user_id=TEXT_OR_NULL, device=TEXT_OR_NULL, online=FLAG, cursor=COUNT, lag=COUNT)

_NODE: Final[dict[str, Schema]] = {
    "state": words("running", "restarting", "quarantined", "passive"),
    "incarnation": COUNT,
    "subscribers": COUNT,
    "mailbox": thing(depth=COUNT, limit=COUNT),
    "last_crash": or_null(thing(at=TIME, error=TEXT)),
}
"""An actor at one server, or at all."""

_STATUS: Final[Schema] = {
    "type": "object",
    "description": "The last four fields depend on who asks: totals only, one's own diagnoses, everything.",
    "required": [
        "nodes",
        "total_diagnoses",
        "total_connections",
        "connections_open",
        "clock_held_since",
        "uptime_seconds",
        "version",
    ],
    "properties": {
        "nodes": thing(known=COUNT, answered=COUNT)
        | {"description": "Servers on one store that are known, and that have answered; this one is among them."},
        "total_diagnoses": COUNT,
        "total_connections": COUNT,
        "connections_open": COUNT
        | {"description": "All connections of the servers that answered, whatever they are for."},
        "clock_held_since": or_null(TIME),
        "uptime_seconds": {"type": "number", "minimum": 0},
        "version": TEXT,
        "connections_by_diagnosis": COUNTS_BY_DIAGNOSIS,
        "queued_messages_by_diagnosis": COUNTS_BY_DIAGNOSIS,
        "damage_by_diagnosis": {"type": "object", "additionalProperties": TEXT},
        "node": some_of(
            {
                "idempotency_keys": COUNT,
                "idempotency_keys_max": COUNT,
                "idempotency_keys_oldest_seconds": or_null({"type": "number", "minimum": 0}),
            },
            actors=COUNT,
            connections=COUNT,
            aborted=COUNT,
            requests=thing(short=COUNT, long=COUNT),
            ring_bytes=COUNT,
            ring_bytes_exceeded=FLAG,
            storage_waiting_seconds={"type": "number", "minimum": 0},
            check_pending=FLAG,
        ),
    },
}


def _of_console(kind: str, data: Schema) -> Schema:
    """A message for consoles."""
    return thing(type=words(kind), diagnosis_id={"type": "null"}, timestamp=TIME, data=data)


_ANSWERS: Final[dict[str, Schema]] = {
    "DiagnosisId": _DIAGNOSIS_ID,
    "Problem": {
        "description": "RFC 9457, with a stable code.",
        **thing(
            type=TEXT,
            title=TEXT,
            status={"type": "integer", "enum": sorted({*STATUS_OF_CODE.values(), *STATUSES_OF_THE_EDGE})},
            detail=TEXT,
            code=words(*STATUS_OF_CODE),
        ),
    },
    "Broadcasted": thing(status=words("broadcasted"), **_RECEIPT),
    "StoredLine": thing(line={"type": "integer", "minimum": 1}, status={"type": "integer", "enum": [200]}, **_RECEIPT),
    "RefusedLine": {
        "allOf": [ref("Problem"), {"properties": {"line": {"type": "integer", "minimum": 1}}, "required": ["line"]}]
    },
    "Diagnosis": thing(
        diagnosis_id=ref("DiagnosisId"), owner=TEXT, viewers=items(TEXT, 1000), epoch=TEXT, created_at=TIME
    ),
    "Diagnoses": page("Diagnosis"),
    "Position": thing(epoch=TEXT, head=COUNT, floor=COUNT),
    "Delivery": thing(
        user_id=TEXT_OR_NULL,
        device=TEXT_OR_NULL,
        online=FLAG,
        cursor=COUNT,
        state=words("acknowledged", "written", "pending", "lost"),
        acknowledged_at=or_null(TIME),
        acknowledged_by=or_null(words("transport", "app")),
    ),
    "Deliveries": page("Delivery"),
    "Window": thing(**_WINDOW),
    "Actor": some_of(
        {
            "nodes": items(thing(node=TEXT, **_NODE))
            | {"description": "The actor at each of several servers; absent where there is one."}
        },
        **_WINDOW,
        **_NODE,
        restarts=COUNT,
        recent_restarts=items(
            thing(incarnation=COUNT, at=TIME, reason=words(*RESTART_REASONS), error=TEXT_OR_NULL), 10
        ),
        damage=or_null(
            TEXT | {"description": "What is wrong with what is stored of it; no event of it is sent or taken."}
        ),
        lag=items(_LAG, 10),
    ),
    "Actors": page("Actor"),
    "Event": thing(
        type=words(*KINDS),
        diagnosis_id=ref("DiagnosisId"),
        seq={"type": "integer", "minimum": 1},
        timestamp=TIME,
        data={"type": "object"},
    ),
    "EventHead": thing(
        type=words(*KINDS),
        diagnosis_id=ref("DiagnosisId"),
        seq={"type": "integer", "minimum": 1},
        timestamp=TIME,
        bytes=COUNT,
    ),
    "Events": thing(items=items({"anyOf": [ref("Event"), ref("EventHead")]}, OUTBOX_EVENTS_MAX), next=TEXT_OR_NULL),
    "Disconnected": thing(disconnected=COUNT, forgotten=COUNT),
    "Erased": thing(
        connections=COUNT,
        cursors=COUNT,
        viewer_entries=COUNT,
        audit_rows=COUNT,
        access_rows=COUNT,
        owned=items(ref("DiagnosisId"), 1000),
        owned_total=COUNT,
    ),
    "Revocation": {
        "type": "object",
        "required": ["id", "at", "covers_until"],
        "properties": {"id": COUNT, "sub": TEXT, "jti": TEXT, "at": TIME, "covers_until": TIME},
        "oneOf": [{"required": ["sub"]}, {"required": ["jti"]}],
    },
    "Revocations": page("Revocation"),
    "Act": thing(
        id={"type": "integer", "minimum": 1},
        at=TIME,
        actor=TEXT,
        action=TEXT,
        target=TEXT,
        diagnosis_id=or_null(ref("DiagnosisId")),
        before=_STATE,
        after=_STATE,
    ),
    "Acts": page("Act"),
    "Access": thing(
        id={"type": "integer", "minimum": 1},
        at=TIME,
        what=words("connect", "disconnect"),
        diagnosis_id=ref("DiagnosisId"),
        user_id=TEXT_OR_NULL,
        device=TEXT_OR_NULL,
    ),
    "Accesses": page("Access"),
    "Backup": thing(path=TEXT, bytes=COUNT, sha256={"type": "string", "pattern": "^[0-9a-f]{64}$"}),
    "Checked": thing(status=words("ok", "damaged"), problems=items(TEXT)),
    "Status": _STATUS,
    "ConsoleMessage": {
        "oneOf": [
            _of_console("snapshot", thing(columns=items(TEXT), diagnoses=COUNT)),
            _of_console("rows", thing(rows=items({"type": "array", "minItems": 13}), gone=items(DIAGNOSIS_ID_TEXT))),
            _of_console("turn", thing(turn=COUNT, node={"type": "object", "additionalProperties": True})),
            _of_console("auth_expiring", thing(expires_at=TIME, seconds_left=COUNT)),
            _of_console("bye", thing(code=COUNT, reason=TEXT, retry_after_ms=or_null(COUNT))),
        ]
    },
    "Health": thing(status=words("ok")),
    "Readiness": thing(status=words("ready")),
    "Draining": thing(status=words("draining")),
}


_ID_DOC: Final = (
    f"An integer of at most {ID_DIGITS_MAX} digits, or a text. An integer beyond 2^53-1 of either sign is delivered as "
    "the text of its digits."
)


def components() -> dict[str, Schema]:
    """Every schema by name."""
    _, bodies = msgspec.json.schema_components(BODIES, ref_template=REF + "{name}")
    for body in bodies.values():
        if "diagnosis_id" in body["properties"]:
            # The records take any integer or text; the rule is checked after decoding.
            body["properties"]["diagnosis_id"] = ref("DiagnosisId")
        for name in ("recommendation_id", "feedback_id"):
            if name in body["properties"]:
                body["properties"][name]["description"] = _ID_DOC
        if "new_effectiveness" in body["properties"]:
            names = ("new_effectiveness", "effectiveness")
            body["oneOf"] = [{"required": [name], "properties": {name: {}}} for name in names]
        if "jti" in body["properties"]:
            one_text = {"type": "string", "minLength": 1, "maxLength": SUB_CHARACTERS_MAX}
            body["oneOf"] = [{"required": [name], "properties": {name: one_text}} for name in ("sub", "jti")]
        if "idempotency_key" in body["properties"]:
            body["properties"]["idempotency_key"] = or_null({"type": "string", "pattern": "^[ -~]{1,128}$"})
    return {**{name: _in_ecma(body) for name, body in bodies.items()}, **_ANSWERS}


def _in_ecma(schema: Any) -> Any:
    """The same schema for readers of ECMA-262, as JSON Schema has it; the records keep Python's patterns.

    Their ends differ: `$` of ECMA-262 is Python's `\\Z`, while Python's `$` also stands before a last line feed.
    """
    if isinstance(schema, list):
        return [_in_ecma(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _in_ecma(value) for name, value in schema.items()}
    if isinstance(pattern := found.get("pattern"), str):
        found["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
    return found
