"""The documents say what the server does: the routes of the one, the frames of the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from jsonschema import Draft202012Validator

from actors.transport import Ending
from tests.contract import asyncapi, complaint, frame_complaint, openapi, strict_frame
from tests.server.harness import Server
from web.contract import errors, wire
from web.contract.errors import STATUS_OF_CODE, CloseCode, Problem, close_of
from web.contract.exchange import Handler
from web.contract.operations import OPERATIONS
from web.contract.parameters import NAMES
from web.contract.records import KINDS, Ack, Auth, Ping
from web.identity.access import Access
from web.server.app import Socket, create_app
from web.server.openapi import codes_of
from web.server.reception import Reception
from web.server.settings import Settings


async def test_the_document_is_served_to_everybody(server: Server) -> None:
    answer = await server.http.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.json() == openapi()


def test_every_route_is_documented_and_everything_documented_is_a_route() -> None:
    handlers = dict.fromkeys((one.name for one in OPERATIONS), cast(Handler, None))
    access = cast(Access, SimpleNamespace(rules=Settings()))
    app = create_app(cast(Reception, None), access, handlers, cast(Socket, None), cast(Socket, None))
    routes = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if not rule.websocket
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert routes == {(one.method, one.path) for one in OPERATIONS}, (
        "each needs one entry in web/contract/operations.py"
    )


def test_every_parameter_of_a_query_that_must_be_given_once_is_documented_and_no_other_is() -> None:
    operations = [operation for path in openapi()["paths"].values() for operation in path.values()]
    of_http = {one["name"] for operation in operations for one in operation["parameters"] if one["in"] == "query"}
    of_sockets = [channel["bindings"]["ws"]["query"]["properties"] for channel in asyncapi()["channels"].values()]
    assert of_http.union(*of_sockets) == NAMES


def test_every_problem_code_is_documented_somewhere_and_has_a_status() -> None:
    documented = {code for operation in OPERATIONS for code in codes_of(operation)}
    assert documented == STATUS_OF_CODE.keys()


def test_every_schema_is_a_schema() -> None:
    for schema in openapi()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for schema in asyncapi()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for message in asyncapi()["components"]["messages"].values():
        Draft202012Validator.check_schema(message["payload"])


def references(value: object) -> Iterator[str]:
    """Every `$ref` below a value."""
    match value:
        case dict():
            if isinstance(found := value.get("$ref"), str):
                yield found
            for one in value.values():
                yield from references(one)
        case list():
            for one in value:
                yield from references(one)


@pytest.mark.parametrize("document", [openapi, asyncapi])
def test_every_component_is_used_and_every_reference_leads_to_one(document: Callable[[], dict[str, Any]]) -> None:
    components = {
        f"#/components/{kind}/{name}"
        for kind, by_name in document()["components"].items()
        for name in by_name
        if kind != "securitySchemes" or document is asyncapi
    }
    assert {found for found in references(document()) if found.startswith("#/components/")} == components


def test_the_document_says_where_the_server_is_and_what_its_tags_mean() -> None:
    assert [one["url"] for one in openapi()["servers"]] == ["/"]
    used = {tag for path in openapi()["paths"].values() for operation in path.values() for tag in operation["tags"]}
    assert {tag["name"] for tag in openapi()["tags"]} == used


@pytest.mark.parametrize(
    ("status", "media_type", "body"),
    [
        (418, "application/json", b"{}"),
        (200, "text/plain", b"{}"),
        (200, "application/json", b'{"status":"ok","surprise":1}'),
        (200, "application/json", b"{}"),
        (401, "application/problem+json", b"{}"),
    ],
)
def test_an_answer_that_is_not_documented_is_noticed(status: int, media_type: str, body: bytes) -> None:
    assert complaint("GET", "/healthz", status, media_type, body) is not None
    assert complaint("GET", "/healthz", 200, "application/json", b'{"status":"ok"}') is None


def test_a_problem_with_a_code_that_is_not_documented_is_noticed() -> None:
    problem: dict[str, Any] = {"type": "about:blank", "title": "", "status": 422, "detail": "", "code": "invalid_field"}
    media_type = "application/problem+json"
    assert complaint("GET", "/diagnoses/42", 422, media_type, msgspec.json.encode(problem)) is None
    problem["code"] = "bad_json"
    assert complaint("GET", "/diagnoses/42", 422, media_type, msgspec.json.encode(problem)) is not None


def test_every_frame_both_ways_is_documented() -> None:
    channels = asyncapi()["channels"]
    messages = channels["diagnosis"]["messages"].keys()
    clients = {str(one.__struct_config__.tag) for one in (Ping, Ack, Auth)}
    replies = {"pong", "acked", "auth_expiring", "auth_ok", "error"}
    servers = {"connect", "gap", "live", "heartbeat", "bye", *replies, *KINDS}
    assert messages == clients | servers
    publishers = {str(one.__struct_config__.tag) for one in (Ping, Auth)} | KINDS.keys()
    answers = {"connect", "receipt", "refused", "bye", *replies} - {"acked"}
    assert channels["publish"]["messages"].keys() == publishers | answers
    used = {one["$ref"].rpartition("/")[2] for channel in channels.values() for one in channel["messages"].values()}
    assert used == asyncapi()["components"]["messages"].keys()
    operations = asyncapi()["operations"]
    said = {
        name: {one["$ref"].rpartition("/")[2] for one in operation["messages"]}
        for name, operation in operations.items()
    }
    assert said == {
        "sendFrames": servers,
        "receiveFrames": clients,
        "answerPublisher": answers,
        "receiveUpdates": publishers,
    }


UPDATE = '{"id":"1","type":"feedback_update","diagnosis_id":42,"feedback_id":1,"rating":5'


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (UPDATE + "}", True),
        (UPDATE + ',"idempotency_key":null,"comment":null,"effectiveness":1,"recommendation_id":"r"}', True),
        (UPDATE.replace('"1"', '""') + "}", False),
        (UPDATE.replace('"1"', '"' + "a" * 65 + '"') + "}", False),
        (UPDATE.replace('"1"', "1") + "}", False),
        (UPDATE + ',"surprise":1}', False),
        (UPDATE + ',"idempotency_key":""}', False),
        (UPDATE.replace("5", "6") + "}", False),
        ('{"id":"1","type":"recommendation_update","diagnosis_id":"a","new_data":{},"old_data":null}', True),
        ('{"id":"1","type":"recommendation_update","diagnosis_id":"a","new_data":[]}', False),
        ('{"id":"1","type":"effectiveness_update","diagnosis_id":1,"recommendation_id":1,"new_effectiveness":1}', True),
        ('{"id":"1","type":"effectiveness_update","diagnosis_id":1,"new_effectiveness":1}', False),
    ],
)
def test_the_document_takes_the_updates_the_server_takes(text: str, good: bool) -> None:
    value = msgspec.json.decode(text)
    assert strict_frame(value["type"], "publish").is_valid(value) is good
    try:
        assert wire.publish_id_of(text.encode()) is not None
        wire.decode_publish(text.encode())
    except (AssertionError, Problem):
        assert not good
    else:
        assert good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"type":"ping"}', True),
        ('{"type":"ping","data":{"a":1}}', True),
        ('{"type":"ping","data":1}', False),
        ('{"type":"ack","seq":3}', True),
        ('{"type":"ack","seq":-1}', False),
        ('{"type":"ack"}', False),
        ('{"type":"auth","token":"t"}', True),
        ('{"type":"auth","token":1}', False),
        ('{"type":"ping","surprise":1}', False),
    ],
)
def test_the_document_takes_the_client_frames_the_server_takes(text: str, good: bool) -> None:
    value = msgspec.json.decode(text)
    assert strict_frame(value["type"]).is_valid(value) is good
    try:
        msgspec.json.decode(text, type=Ping | Ack | Auth, strict=True)
    except msgspec.ValidationError:
        assert not good
    else:
        assert good


def test_a_frame_that_is_not_documented_is_noticed() -> None:
    frame: dict[str, Any] = {"type": "live", "diagnosis_id": 1, "timestamp": "2026-01-01T00:00:00.000Z"}
    assert frame_complaint({**frame, "data": {"seq": 1}}) is None
    for data in ({}, {"seq": 1, "more": 1}, {"seq": "1"}, None):
        assert frame_complaint({**frame, "data": data}) is not None
    assert frame_complaint({**frame, "data": {"seq": 1}, "more": 1}) is not None
    assert frame_complaint({**frame, "type": "surprise", "data": {}}) is not None


def test_every_close_code_and_reason_is_documented() -> None:
    documented = asyncapi()["channels"]["diagnosis"]["x-close-codes"]
    assert documented.keys() == {str(int(code)) for code in (*CloseCode, 1001)}
    reasons = set(documented["1008"]["reasons"])
    refusals = [value for value in vars(errors).values() if isinstance(value, errors.Refusal)]
    endings = [close_of(ending) for ending in Ending]
    assert {one.reason for one in refusals if one.close_code is CloseCode.POLICY} <= reasons
    assert {reason for code, reason in endings if code is CloseCode.POLICY} <= reasons
    assert {str(int(code)) for code, _ in endings} <= documented.keys()
    codes = set(asyncapi()["components"]["schemas"]["Error"]["properties"]["code"]["enum"])
    assert {one.code for one in refusals} <= codes
