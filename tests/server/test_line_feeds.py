"""What the documents refuse the server refuses, too: a line feed at the end of a field, a parameter or a header.

Python's `$` also stands before a last line feed, that of ECMA-262 does not. What is tried is taken from the documents:
a new parameter or field with a rule is tried as soon as it is documented.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest

from tests.contract import Schema, asyncapi, openapi
from tests.documents.test_patterns import GOOD
from tests.server.harness import Server
from web.contract.errors import Problem
from web.contract.operations import OPERATIONS, Operation
from web.contract.parameters import parse_stream
from web.contract.records import KEY

SCOPES = "operate register broadcast monitor"


def good(schema: Schema) -> str | None:
    """A text that a parameter takes and a line feed spoils; `None`: it takes any text."""
    if "pattern" in schema:
        return GOOD[schema["pattern"]]
    if "enum" in schema:
        return str(schema["enum"][-1])
    if schema.get("format") == "date-time":
        return "2026-01-01T00:00:00Z"
    return str(schema["minimum"]) if schema["type"] == "integer" else None


def parameters(place: str) -> list[Any]:
    """Every parameter of a request that has a rule."""
    return [
        pytest.param(operation, parameter.name, text, id=f"{operation.name}-{parameter.name}")
        for operation in OPERATIONS
        for parameter in operation.parameters
        if parameter.place == place and (text := good(parameter.schema)) is not None
    ]


async def ask(server: Server, operation: Operation, body: object = None, **given: str) -> httpx.Response:
    """A request that is right but for what is given."""
    query = {one.name: one.example for one in operation.parameters if one.place == "query" and one.required}
    path = operation.path
    for name, text in given.items():
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(text))
        else:
            query[name] = text
    path = path.replace("{diagnosis_id}", "42")
    # An event stream that is not refused goes on for ever; a HEAD of it is judged alike.
    method = "HEAD" if operation.name == "followEvents" else operation.method.upper()
    headers = server.bearer("amira", SCOPES)
    body = operation.example if body is None else body
    return await server.http.request(method, path, params=cast(Any, query), json=body, headers=headers)


async def prepared(server: Server) -> None:
    await server.register()
    await server.publish()


@pytest.mark.parametrize(("operation", "name", "text"), [*parameters("path"), *parameters("query")])
async def test_a_parameter_with_a_line_feed_at_its_end_is_refused(
    server: Server, operation: Operation, name: str, text: str
) -> None:
    await prepared(server)
    assert (await ask(server, operation, **{name: text + "\n"})).status_code == 422
    assert (await ask(server, operation, **{name: text})).status_code in operation.answers


def is_key(text: str) -> bool:
    return KEY.fullmatch(text) is not None


def is_event_id(text: str) -> bool:
    try:
        parse_stream("42", {}, text, anonymous=False)
    except Problem:
        return False
    return True


CHECKS: dict[str, Callable[[str], bool]] = {"Idempotency-Key": is_key, "Last-Event-ID": is_event_id}
"""What the server checks a header with. No line feed reaches it over HTTP, where it ends the header."""


@pytest.mark.parametrize(("operation", "name", "text"), parameters("header"))
def test_a_header_with_a_line_feed_at_its_end_is_refused(operation: Operation, name: str, text: str) -> None:
    assert CHECKS[name](text)
    assert not CHECKS[name](text + "\n")


def fields(schema: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where a body of this schema has texts with a pattern, and a good one of each."""
    if "$ref" in schema:
        yield from fields(openapi()["components"]["schemas"][schema["$ref"].rpartition("/")[2]], path)
    if "pattern" in schema:
        yield path, GOOD[schema["pattern"]]
    for one in schema.get("anyOf", ()):
        yield from fields(one, path)
    for name, one in schema.get("properties", {}).items():
        yield from fields(one, (*path, name))
    if "items" in schema:
        yield from fields(schema["items"], (*path, 0))


def body_with(example: Any, path: tuple[str | int, ...], text: str) -> Any:
    """A body whose field at `path` is this text."""
    value: Any = [text] if path[1:] == (0,) else text
    # A field that the example leaves out may be another way to say what is in it.
    return {**example, path[0]: value} if path[0] in example or len(example) > 1 else {path[0]: value}


BODIES = [
    pytest.param(operation, path, text, id=f"{operation.name}-{path[0]}")
    for operation in OPERATIONS
    if operation.body is not None
    for path, text in fields(operation.body)
]

LINES = [
    pytest.param(f"{kind}_update", path, text, id=f"{kind}-{path[0]}")
    for kind in ("recommendation", "effectiveness", "feedback")
    for path, text in fields({"$ref": f"#/components/schemas/{kind.capitalize()}Line"})
]


@pytest.mark.parametrize(("operation", "path", "text"), BODIES)
async def test_a_field_with_a_line_feed_at_its_end_is_refused(
    server: Server, operation: Operation, path: tuple[str | int, ...], text: str
) -> None:
    await prepared(server)
    refused = await ask(server, operation, body_with(operation.example, path, text + "\n"))
    assert refused.status_code == 422
    assert str(path[0]) in refused.json()["detail"]
    taken = await ask(server, operation, body_with(operation.example, path, text))
    assert taken.status_code in operation.answers, taken.text


@pytest.mark.parametrize(("kind", "path", "text"), LINES)
async def test_a_field_of_a_line_with_a_line_feed_at_its_end_is_refused(
    server: Server, kind: str, path: tuple[str | int, ...], text: str
) -> None:
    await prepared(server)
    examples = {one.path: one.example for one in OPERATIONS}
    example = {"type": kind, **cast(Any, examples[f"/ws/broadcast-{kind.replace('_', '-')}"])}
    lines = [body_with(example, path, text + end) for end in ("\n", "")]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    headers = server.bearer("amira") | {"Content-Type": "application/x-ndjson"}
    answer = await server.http.post("/ws/broadcast", content=content, headers=headers)
    assert [json.loads(line)["status"] for line in answer.content.splitlines()] == [422, 200]


SOCKET_QUERY = [
    pytest.param(name, text, id=name)
    for name, schema in asyncapi()["channels"]["diagnosis"]["bindings"]["ws"]["query"]["properties"].items()
    if (text := good(schema)) is not None
]


@pytest.mark.parametrize(("name", "text"), SOCKET_QUERY)
async def test_a_parameter_of_a_websocket_with_a_line_feed_at_its_end_is_refused(
    server: Server, name: str, text: str
) -> None:
    await prepared(server)
    async with server.connect(**{name: text}) as client:
        assert (await client.next())["type"] == "connect"
    async with server.connect(**{name: text + "\n"}) as client:
        (error,), code, _ = await client.close_frames()
    assert (error["data"]["code"], code) == ("invalid_field", 1008)
    assert name in error["data"]["detail"]


async def test_a_diagnosis_id_with_a_line_feed_at_its_end_is_refused_on_a_websocket(server: Server) -> None:
    await prepared(server)
    async with server.connect("42%0A") as client:
        (error,), code, _ = await client.close_frames()
    assert (error["data"]["code"], code) == ("invalid_field", 1008)
