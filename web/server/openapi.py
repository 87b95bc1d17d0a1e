"""`GET /openapi.json`: the HTTP contract for programs (OpenAPI 3.1), made from `operations` and `schemas`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Final

from web.contract import wire
from web.contract.errors import STATUS_OF_CODE
from web.contract.exchange import PROBLEM, Answer, Handlers, Request
from web.contract.operations import EVENT_STREAM, JSON, ON_ANY_HOST, OPERATIONS, TAGS, Operation, Parameter
from web.contract.schemas import TEXT, Schema, components, ref, words
from web.http.bodies import StaticContent

ANY_OPERATION: Final = ("internal_error", "method_not_allowed", "rate_limited")
"""Codes that need no entry: anything can fail, a path that takes other methods says so, an address asks too often."""

OF_CHANGES: Final = ("origin_not_allowed", "too_large")
"""Codes of every operation that changes something: pages of foreign origins may not, and a body has its limit."""

OF_HOSTS: Final = ("misdirected_request",)
"""Codes of operations that are not answered on every host, where the operator allows anonymous subscribers."""

OF_THE_EDGE: Final = ((408, "bad_json"), (414, "too_large"), (431, "too_large"), (503, "rate_limited"))
"""Answers that come before any operation is chosen: a slow request, a large head or query, a server that is full."""

OF_ACCESS: Final = {
    "token": ("unauthenticated", "token_expired"),
    "maybe": ("unauthenticated", "token_expired"),
    "elsewhere": ("unauthenticated", "token_expired"),
    "nobody": (),
}

SECURITY: Final[dict[str, list[Schema]]] = {
    "token": [{"token": []}],
    "maybe": [{"token": []}, {}],
    "elsewhere": [{"token": []}, {}],
    "nobody": [],
}

_HEADERS: Final[dict[str, Schema]] = {
    "X-Request-ID": {"schema": TEXT, "description": "Names this request in the log."},
    "X-Content-Type-Options": {"required": True, "schema": {"type": "string", "const": "nosniff"}},
    "Cache-Control": {"required": True, "schema": words("no-store", "no-cache")},
    "ETag": {"required": True, "schema": TEXT, "description": "Names the content."},
    "WWW-Authenticate": {"required": True, "schema": TEXT, "description": "RFC 6750."},
    "Allow": {"required": True, "schema": TEXT, "description": "The methods this path takes."},
    "Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}, "description": "Seconds."},
}
"""Headers of answers."""

_OF_STATUS: Final = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}
"""Headers of problems, by status."""

_IF_NONE_MATCH: Final = Parameter("If-None-Match", "header", TEXT, "The `ETag` of the content that is there already.")


def openapi() -> Handlers:
    """The operation."""
    content = _content()

    async def show(asked: Request) -> Answer:
        return content.answer(asked)

    return {"getDocument": show}


@cache
def _content() -> StaticContent:
    """The document, made once for all servers of a process: it takes longer than the rest of a start."""
    return StaticContent(wire.encode(document()), JSON)


def document() -> Schema:
    """The whole document."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _shown(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Avicenna Live",
            "version": version("avicenna-live"),
            "summary": "Live updates of medical recommendations, numbered, stored and delivered in order.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The server this document comes from."}],
        "tags": [{"name": name, "description": doc} for name, doc in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components(),
            "headers": _HEADERS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def codes_of(operation: Operation) -> list[str]:
    """Every problem code an operation can answer with."""
    of_method = () if operation.method == "get" else OF_CHANGES
    of_host = () if operation.path in ON_ANY_HOST else OF_HOSTS
    return sorted({*operation.problems, *OF_ACCESS[operation.access], *of_method, *of_host, *ANY_OPERATION})


def _shown(operation: Operation) -> Schema:
    answers: dict[str, Schema] = {
        str(status): {
            "description": operation.doc,
            "headers": _headers("X-Request-ID", *_of_content(operation)),
            "content": {operation.answer_type: {"schema": schema}},
            **({"links": operation.links} if operation.links else {}),
        }
        for status, schema in operation.answers.items()
    }
    if operation.is_static:
        unchanged = _headers("X-Request-ID", "Cache-Control", "ETag")
        answers["304"] = {"description": "The content is that of `If-None-Match`.", "headers": unchanged}
    parameters = (*operation.parameters, *([_IF_NONE_MATCH] if operation.is_static else []))
    shown: Schema = {
        "operationId": operation.name,
        "summary": operation.doc,
        "tags": [operation.tag],
        "security": SECURITY[operation.access],
        "parameters": [one.shown() for one in parameters],
        "responses": answers | _problems(codes_of(operation)),
    }
    if operation.body is not None:
        content = {"schema": operation.body} | ({} if operation.example is None else {"example": operation.example})
        shown["requestBody"] = {"required": True, "content": {operation.body_type: content}}
    return shown


def _of_content(operation: Operation) -> tuple[str, ...]:
    if operation.is_static:
        return "X-Content-Type-Options", "Cache-Control", "ETag"
    if operation.answer_type == EVENT_STREAM:
        return ("Cache-Control",)
    return "X-Content-Type-Options", "Cache-Control"


def _headers(*names: str) -> dict[str, Schema]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problems(codes: Iterable[str]) -> dict[str, Schema]:
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS_OF_CODE[code], []).append(code)
    for status, code in OF_THE_EDGE:
        by_status.setdefault(status, []).append(code)
    return {
        str(status): {
            "description": " or ".join(of_status),
            "headers": _headers("X-Request-ID", "X-Content-Type-Options", "Cache-Control", *_OF_STATUS.get(status, ())),
            "content": {
                PROBLEM: {
                    "schema": {"allOf": [ref("Problem"), {"properties": {"code": words(*of_status)}}]},
                }
            },
        }
        for status, of_status in sorted(by_status.items())
    }
