"""Every HTTP operation of this server: who may, what goes in, what can come back. Pure; `/openapi.json` is made of it.

A new route needs one entry here; `tests/server/test_documents.py` fails until it has one, and every answer any test
gets is compared with what is said here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from web.contract.schemas import DIAGNOSIS_ID_TEXT, TEXT, Schema, lines_of, ref

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"
JAVASCRIPT: Final = "text/javascript; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
CSS: Final = "text/css; charset=utf-8"
SVG: Final = "image/svg+xml"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The text format of Prometheus."""

Access = Literal["token", "maybe", "elsewhere", "nobody"]
"""A token is required; required unless the operator allows anonymous subscribers; required but on the listener of the
operators; not looked at."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a request."""

    name: str
    place: Literal["path", "query", "header"]
    schema: Schema
    doc: str
    required: bool = False
    example: str | int | None = None

    def shown(self) -> Schema:
        """As OpenAPI has it."""
        return {
            "name": self.name,
            "in": self.place,
            "required": self.required,
            "description": self.doc,
            "schema": self.schema,
            **({} if self.example is None else {"example": self.example}),
        }


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    name: str
    """Names it for programs: what a generated client calls it."""
    doc: str
    answers: Mapping[int, Schema]
    """The schema of each good answer."""
    problems: tuple[str, ...] = ()
    """Codes it can answer with, beside those of its access and those any operation can (`web.server.openapi`)."""
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    body_type: str = JSON
    example: object = None
    """A good body."""
    answer_type: str = JSON
    access: Access = "token"
    tag: str = ""
    is_static: bool = False
    """The good answer stays as it is while the server runs: a cache may keep it and asks whether it still holds."""
    links: Mapping[str, Schema] = field(default_factory=dict)
    """Where a good answer leads, by name (OpenAPI "Link Object")."""


ID: Final = Parameter("diagnosis_id", "path", DIAGNOSIS_ID_TEXT, "The diagnosis.", required=True, example="42")
KEY: Final = Parameter(
    "Idempotency-Key",
    "header",
    # A header loses spaces at its ends on the way.
    {"type": "string", "pattern": "^[!-~]([ -~]{0,126}[!-~])?$"},
    "The same key makes no second event for 24 hours.",
)
LIMIT: Final = Parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    "Items of a page, at most: it ends with the item that reaches 256 KiB, and `next` is set if there are more.",
)
AFTER: Final = Parameter("after", "query", {"type": "string"}, "The `next` of the page before.")
PAGE: Final = (LIMIT, AFTER)
NUMBERED_AFTER: Final = Parameter(
    "after", "query", {"type": "string", "pattern": "^[0-9]{0,15}$"}, "The `next` of the page before."
)
"""Of lists that numbers order."""

NUMBER: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,15}$"}
EVENT_ID: Final[Schema] = {"type": "string", "pattern": "^([!-~]{1,64}[.][0-9]{1,15})?$"}
DEVICE: Final = Parameter(
    "device", "query", {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}, "Names the subscriber."
)

TIME: Final[Schema] = {"type": "string", "format": "date-time"}
TRAIL: Final = (
    Parameter("diagnosis_id", "query", DIAGNOSIS_ID_TEXT, "The diagnosis the row is about."),
    Parameter("since", "query", TIME, "Only rows of this time and later."),
    Parameter("until", "query", TIME, "Only rows of before this time."),
    LIMIT,
    NUMBERED_AFTER,
)
"""Parameters of both trails."""

ON_ANY_HOST: Final = frozenset({"/healthz", "/readyz"})
"""Paths that answer whatever host they are asked on: they say nothing, and machines ask them under any name."""

STORE: Final = ("storage_unavailable",)
ACTOR: Final = ("mailbox_full", "quarantined", "draining", *STORE)
BODY: Final = ("bad_json", "too_large", "unsupported_media_type", "invalid_field")


def _broadcast(kind: str, name: str, **fields: object) -> Operation:
    return Operation(
        "post",
        f"/ws/broadcast-{kind}-update",
        f"broadcast{kind.capitalize()}Update",
        f"Publish: the {kind} update is on disk and on its way when this answers.",
        {200: ref("Broadcasted")},
        ("forbidden", "not_found", "key_reused", *BODY, *ACTOR),
        (KEY,),
        ref(name),
        example={"diagnosis_id": 42, **fields},
        tag="publishing",
    )


def _links(*operations: str) -> dict[str, Schema]:
    """From a registered diagnosis to what can be done with it."""
    given = {"diagnosis_id": "$request.path.diagnosis_id"}
    return {name: {"operationId": name, "parameters": given} for name in operations}


OPERATIONS: Final = (
    _broadcast("recommendation", "RecommendationUpdate", new_data={"herb": "saffron"}, reason="new evidence"),
    _broadcast("effectiveness", "EffectivenessUpdate", recommendation_id=7, new_effectiveness=0.85),
    _broadcast("feedback", "FeedbackUpdate", feedback_id=9, rating=5),
    Operation(
        "post",
        "/ws/broadcast",
        "broadcastMany",
        "Publish up to 1000 updates, one a line; line n of the answer is the result of line n.",
        {200: lines_of("StoredLine", "RefusedLine")},
        (
            "forbidden",
            "length_required",
            "too_large",
            "unsupported_media_type",
            "bad_json",
            "invalid_field",
            "rate_limited",
            *STORE,
        ),
        body=lines_of("RecommendationLine", "EffectivenessLine", "FeedbackLine"),
        body_type=NDJSON,
        answer_type=NDJSON,
        tag="publishing",
    ),
    Operation(
        "get",
        "/ws/status",
        "getStatus",
        "What is going on here, as far as the one who asks may see.",
        {200: ref("Status")},
        STORE,
        access="maybe",
        tag="looking",
    ),
    Operation(
        "get",
        "/diagnoses",
        "listDiagnoses",
        "Registered diagnoses by id: one's own, or all for the scopes `register` and `operate`.",
        {200: ref("Diagnoses")},
        ("invalid_field", *STORE),
        PAGE,
        tag="registry",
    ),
    Operation(
        "put",
        "/diagnoses/{diagnosis_id}",
        "putDiagnosis",
        "Register a diagnosis (201), or replace owner and viewers (200). Scope `register` or `operate`.",
        {200: ref("Diagnosis"), 201: ref("Diagnosis")},
        ("forbidden", *BODY, *STORE),
        (ID,),
        ref("Registration"),
        example={"owner": "doctor-1", "viewers": ["patient-1"]},
        tag="registry",
        links=_links("getDiagnosis", "getPosition", "getActor", "restartActor", "getOutbox", "deleteDiagnosis"),
    ),
    Operation(
        "get",
        "/diagnoses/{diagnosis_id}",
        "getDiagnosis",
        "A registered diagnosis. Its owner, or scope `register` or `operate`.",
        {200: ref("Diagnosis")},
        ("forbidden", "not_found", "invalid_field", *STORE),
        (ID,),
        tag="registry",
    ),
    Operation(
        "delete",
        "/diagnoses/{diagnosis_id}",
        "deleteDiagnosis",
        "Delete a diagnosis with its events; its connections are closed. Scope `register` or `operate`.",
        {200: ref("Diagnosis")},
        ("forbidden", "not_found", "invalid_field", *STORE),
        (ID,),
        tag="registry",
    ),
    Operation(
        "get",
        "/diagnoses/{diagnosis_id}/position",
        "getPosition",
        "Where a diagnosis stands. Call this, load your data, then follow from here: no race.",
        {200: ref("Position")},
        ("forbidden", "not_found", "invalid_field", *ACTOR),
        (ID,),
        access="maybe",
        tag="following",
    ),
    Operation(
        "get",
        "/diagnoses/{diagnosis_id}/delivery",
        "getDelivery",
        "What became of one event, for every known subscriber. The owner, or scope `broadcast` or `operate`.",
        {200: ref("Deliveries")},
        ("forbidden", "not_found", "invalid_field", *ACTOR),
        (
            ID,
            Parameter("seq", "query", {"type": "integer", "minimum": 1}, "The event.", required=True, example=1),
            *PAGE,
        ),
        tag="publishing",
    ),
    Operation(
        "get",
        "/diagnoses/{diagnosis_id}/events",
        "followEvents",
        "Follow a diagnosis by Server-Sent Events; `data` holds the frames of `docs/asyncapi.yaml`.",
        {
            200: {
                "description": "One message of the stream. Where `Accept` names `text/event-stream`, a passing failure"
                " (429, 503) is a stream, too: `retry`, one `bye` 1013, and the end.",
                "type": "object",
                "required": ["data"],
                "properties": {
                    "id": TEXT,
                    "data": TEXT | {"contentMediaType": JSON},
                    "retry": {"type": "integer", "minimum": 0, "description": "Milliseconds."},
                },
            }
        },
        ("forbidden", "origin_not_allowed", "not_found", "invalid_field", *ACTOR),
        (
            ID,
            Parameter("token", "query", {"type": "string"}, "The token, where the operator allows it here."),
            DEVICE,
            Parameter("after", "query", NUMBER, "Resume after this number."),
            Parameter("epoch", "query", {"type": "string", "pattern": "^[!-~]{1,64}$"}, "The history of `after`."),
            Parameter("start", "query", {"type": "string", "pattern": "^(oldest|new|[0-9]{1,15})$"}, "Else, where."),
            Parameter("peek", "query", {"type": "string", "enum": ["0", "1"]}, "1: only look; not with `device`."),
            Parameter(
                "ack",
                "query",
                {"type": "string", "enum": ["transport", "app"]},
                "As on a WebSocket, and changes nothing: a stream has `app`. Not with `peek`.",
            ),
            Parameter(
                "heartbeat",
                "query",
                {"type": "integer", "minimum": 5, "maximum": 300},
                "A `heartbeat` after so many seconds without a message, in place of a comment.",
            ),
            Parameter(
                "Last-Event-ID", "header", EVENT_ID, "Resume after this message; wins over the query.", example="3f.7"
            ),
            Parameter("lastEventId", "query", EVENT_ID, "The same, as some polyfills send it; wins over `after`."),
            Parameter(
                "Last-Event-ID", "query", EVENT_ID, "The same, as other polyfills send it; not beside `lastEventId`."
            ),
        ),
        answer_type=EVENT_STREAM,
        access="maybe",
        tag="following",
    ),
    Operation(
        "get",
        "/actors",
        "listActors",
        "All diagnosis actors, those that rest included, by id.",
        {200: ref("Actors")},
        ("forbidden", "invalid_field", *STORE),
        PAGE,
        tag="operating",
    ),
    Operation(
        "get",
        "/actors/{diagnosis_id}",
        "getActor",
        "One diagnosis actor.",
        {200: ref("Actor")},
        ("forbidden", "not_found", "invalid_field", *STORE),
        (ID,),
        tag="operating",
    ),
    Operation(
        "post",
        "/actors/{diagnosis_id}/restart",
        "restartActor",
        "A new incarnation; connections stay open. Also releases a quarantine.",
        {200: ref("Actor")},
        ("forbidden", "not_found", "invalid_field", *ACTOR),
        (ID,),
        tag="operating",
    ),
    Operation(
        "post",
        "/actors/{diagnosis_id}/stop",
        "stopActor",
        "Have the actor leave memory; connections stay open, the next message wakes it.",
        {200: ref("Actor")},
        ("forbidden", "not_found", "invalid_field", *ACTOR),
        (ID,),
        tag="operating",
    ),
    Operation(
        "get",
        "/actors/{diagnosis_id}/outbox",
        "getOutbox",
        "The retained events. Reading what they say leaves an audit row.",
        {200: ref("Events")},
        ("forbidden", "not_found", "invalid_field", *STORE),
        (
            ID,
            Parameter("payload", "query", {"type": "string", "enum": ["0", "1"]}, "0: without what they say."),
            LIMIT,
            NUMBERED_AFTER,
        ),
        tag="operating",
    ),
    Operation(
        "delete",
        "/actors/{diagnosis_id}/outbox",
        "purgeOutbox",
        "Drop the retained events; numbers and keys stay.",
        {200: ref("Window")},
        ("forbidden", "not_found", "invalid_field", *ACTOR),
        (ID,),
        tag="operating",
    ),
    Operation(
        "delete",
        "/actors/{diagnosis_id}/subscribers",
        "disconnectSubscribers",
        "Disconnect: without `sub` the anonymous, without `device` every connection of that `sub`.",
        {200: ref("Disconnected")},
        ("forbidden", "not_found", "invalid_field", *ACTOR),
        (
            ID,
            Parameter("sub", "query", {"type": "string"}, "The user."),
            DEVICE,
            Parameter("forget", "query", {"type": "string", "enum": ["0", "1"]}, "1: drop the cursor, too."),
        ),
        tag="operating",
    ),
    Operation(
        "delete",
        "/subjects",
        "eraseSubjectByQuery",
        "Erase a person, whatever its name: also one that begins with `/`, which no path can hold.",
        {200: ref("Erased")},
        ("forbidden", "invalid_field", "draining", *STORE),
        (
            Parameter(
                "sub",
                "query",
                {"type": "string", "minLength": 1},
                "The `sub` of its tokens.",
                required=True,
                example="/C=DE/O=Clinic/CN=Ann",
            ),
        ),
        tag="operating",
    ),
    Operation(
        "delete",
        "/subjects/{sub}",
        "eraseSubject",
        "Erase a person: connections, cursors, viewer entries, and its name in both trails.",
        {200: ref("Erased")},
        ("forbidden", "draining", *STORE),
        (
            Parameter(
                "sub",
                "path",
                {"type": "string", "minLength": 1},
                "The `sub` of its tokens.",
                required=True,
                example="patient-1",
            ),
        ),
        tag="operating",
    ),
    Operation(
        "post",
        "/revocations",
        "revokeTokens",
        "Refuse the tokens a subject has now, or the one token with this `jti`; live connections close at once.",
        {201: ref("Revocation")},
        ("forbidden", *BODY, *STORE),
        body=ref("Revoking"),
        example={"sub": "patient-1"},
        tag="operating",
        links={"liftRevocation": {"operationId": "liftRevocation", "parameters": {"number": "$response.body#/id"}}},
    ),
    Operation(
        "get",
        "/revocations",
        "listRevocations",
        "The revocations in force, oldest first.",
        {200: ref("Revocations")},
        ("forbidden", "invalid_field", *STORE),
        (
            LIMIT,
            NUMBERED_AFTER,
        ),
        tag="operating",
    ),
    Operation(
        "delete",
        "/revocations/{number}",
        "liftRevocation",
        "Lift a revocation.",
        {200: ref("Revocation")},
        ("forbidden", "not_found", *STORE),
        (Parameter("number", "path", TEXT, "The `id` of the revocation.", required=True, example="1"),),
        tag="operating",
    ),
    Operation(
        "get",
        "/audit",
        "listActs",
        "What operators and registrars have done, newest first.",
        {200: ref("Acts")},
        ("forbidden", "invalid_field", *STORE),
        (
            Parameter("actor", "query", {"type": "string"}, "The `sub` of who acted."),
            Parameter("action", "query", {"type": "string"}, "The act.", example="diagnosis.register"),
            *TRAIL,
        ),
        tag="operating",
    ),
    Operation(
        "get",
        "/accesses",
        "listAccesses",
        "Who followed which diagnosis when, newest first, if the server keeps that trail.",
        {200: ref("Accesses")},
        ("forbidden", "invalid_field", *STORE),
        (
            Parameter("user_id", "query", {"type": "string"}, "The `sub` of who followed."),
            Parameter("what", "query", {"type": "string"}, "`connect` or `disconnect`.", example="connect"),
            *TRAIL,
        ),
        tag="operating",
    ),
    Operation(
        "post",
        "/backup",
        "makeBackup",
        "A consistent copy of the database in the server's data directory, made while others go on.",
        {200: ref("Backup")},
        ("forbidden", "draining", "not_supported", *STORE),
        tag="operating",
    ),
    Operation(
        "post",
        "/check",
        "checkDatabase",
        "The problems an integrity check of the database finds.",
        {200: ref("Checked")},
        ("forbidden", "draining", *STORE),
        tag="operating",
    ),
    Operation(
        "post",
        "/drain",
        "drainServer",
        "End the server in order, as SIGTERM does: followers get `bye`, commits finish, the process ends.",
        {202: ref("Draining")},
        ("forbidden", *STORE),
        tag="operating",
    ),
    Operation(
        "get",
        "/console/events",
        "followConsole",
        "What a console shows, as an event stream: all diagnoses and the figures of the server, then what changes.",
        {
            200: {
                "description": "One message of the stream.",
                "type": "object",
                "required": ["data"],
                "properties": {
                    "data": TEXT | {"contentMediaType": JSON, "contentSchema": ref("ConsoleMessage")},
                    "retry": {"type": "integer", "minimum": 0, "description": "Milliseconds."},
                },
            }
        },
        ("forbidden", "origin_not_allowed", "draining", "rate_limited"),
        answer_type=EVENT_STREAM,
        tag="operating",
    ),
    Operation(
        "get",
        "/console",
        "getConsole",
        "The page of the console. It asks for a token with scope `operate`.",
        {200: {"type": "string"}},
        access="nobody",
        answer_type=HTML,
        tag="operating",
        is_static=True,
    ),
    Operation(
        "get",
        "/console/console.css",
        "getConsoleStyle",
        "How that page looks.",
        {200: {"type": "string"}},
        access="nobody",
        answer_type=CSS,
        tag="operating",
        is_static=True,
    ),
    Operation(
        "get",
        "/console/icon.svg",
        "getConsoleIcon",
        "Its icon.",
        {200: {"type": "string"}},
        access="nobody",
        answer_type=SVG,
        tag="operating",
        is_static=True,
    ),
    Operation(
        "get",
        "/console/{module}.js",
        "getConsoleModule",
        "A module of its script.",
        {200: {"type": "string"}},
        ("not_found",),
        (Parameter("module", "path", {"type": "string"}, "Its name.", required=True, example="main"),),
        access="nobody",
        answer_type=JAVASCRIPT,
        tag="operating",
        is_static=True,
    ),
    Operation(
        "get", "/healthz", "getHealth", "The process answers.", {200: ref("Health")}, access="nobody", tag="looking"
    ),
    Operation(
        "get",
        "/readyz",
        "getReadiness",
        "It takes work.",
        {200: ref("Readiness")},
        ("draining", "quarantined", *STORE),
        access="nobody",
        tag="looking",
    ),
    Operation(
        "get",
        "/metrics",
        "getMetrics",
        "Figures of this server for Prometheus. Scope `operate`; no token on the listener of the operators.",
        {200: {"type": "string"}},
        ("forbidden",),
        access="elsewhere",
        answer_type=METRICS,
        tag="looking",
    ),
    Operation(
        "get",
        "/openapi.json",
        "getDocument",
        "This document.",
        {200: {"type": "object"}},
        access="nobody",
        tag="looking",
        is_static=True,
    ),
    Operation(
        "get",
        "/client.js",
        "getClient",
        'The JavaScript client, a module: `import { Follower } from "/client.js"`.',
        {200: {"type": "string"}},
        access="nobody",
        answer_type=JAVASCRIPT,
        tag="following",
        is_static=True,
    ),
)

TAGS: Final = {
    "publishing": "Updates go in, and what became of them comes out.",
    "following": "Where a diagnosis stands, and its events as they come. The WebSocket is in `docs/asyncapi.yaml`.",
    "registry": "Which diagnoses there are, who owns and who may follow them.",
    "operating": "Actors, outboxes, connections, persons, revocations, both trails, the database and the end.",
    "looking": "How the server is.",
}
"""What the operations of each tag are about."""
