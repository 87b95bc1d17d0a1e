"""Broadcasting: the three requests, what they make, and what wrong ones are told."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.server.harness import Server

pytestmark = pytest.mark.both_ways

RECOMMENDATION: dict[str, object] = {"diagnosis_id": 42, "new_data": {"herb": "thyme", "dosage": "2 g"}}
EFFECTIVENESS: dict[str, object] = {"diagnosis_id": 42, "recommendation_id": 7, "new_effectiveness": 0.85}
FEEDBACK: dict[str, object] = {"diagnosis_id": 42, "feedback_id": 9, "rating": 5}


async def event_of(server: Server, kind: str, body: dict[str, object]) -> dict[str, Any]:
    """Broadcast one update and return the frame a subscriber gets."""
    await server.register()
    async with server.live() as client:
        answer = await server.post(kind, body)
        assert answer.status_code == 200, answer.text
        event = await client.next()
    assert event["seq"] == answer.json()["seq"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["timestamp"])
    return event


async def test_a_recommendation_update_names_the_changed_fields(server: Server) -> None:
    body = {
        **RECOMMENDATION,
        "old_data": {"dosage": "2 g", "herb": "saffron", "gone": 1},
        "reason": "patient prefers thyme",
    }
    event = await event_of(server, "recommendation", body)
    assert event["type"] == "recommendation_update"
    assert event["data"] == {
        "old_data": body["old_data"],
        "new_data": body["new_data"],
        "reason": "patient prefers thyme",
        "changed_fields": ["herb"],
    }


async def test_a_recommendation_update_without_old_data_changes_every_field(server: Server) -> None:
    event = await event_of(server, "recommendation", {**RECOMMENDATION, "new_data": {"b": None, "a": True}})
    assert event["data"] == {
        "old_data": None,
        "new_data": {"b": None, "a": True},
        "reason": None,
        "changed_fields": ["a", "b"],
    }


async def test_an_effectiveness_update_carries_what_was_sent(server: Server) -> None:
    body = {**EFFECTIVENESS, "confidence": 0.9, "sample_size": 100, "old_effectiveness": 0.5, "herb": "thyme"}
    event = await event_of(server, "effectiveness", body)
    assert event["type"] == "effectiveness_update"
    assert event["data"] == {name: value for name, value in body.items() if name != "diagnosis_id"}


async def test_effectiveness_is_accepted_for_new_effectiveness(server: Server) -> None:
    event = await event_of(
        server, "effectiveness", {"diagnosis_id": "42", "recommendation_id": "r", "effectiveness": 1}
    )
    assert event["data"] == {
        "recommendation_id": "r",
        "new_effectiveness": 1,
        "confidence": None,
        "sample_size": None,
    }


async def test_a_feedback_update_carries_what_was_sent(server: Server) -> None:
    body = {**FEEDBACK, "effectiveness": 0, "recommendation_id": 3, "comment": "warmer hands"}
    event = await event_of(server, "feedback", body)
    assert event["type"] == "feedback_update"
    assert event["data"] == {name: value for name, value in body.items() if name != "diagnosis_id"}


def assert_problem(answer: httpx.Response, status: int, code: str, *words: str) -> None:
    """The answer is a problem document that says this."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["title"]
    for word in words:
        assert word in document["detail"]


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("feedback", {"rating": 6}, ["rating must be 1-5"]),
        ("feedback", {"rating": 0}, ["rating must be 1-5"]),
        ("feedback", {"rating": True}, ["rating must be 1-5"]),
        ("feedback", {"rating": "5"}, ["rating must be 1-5"]),
        ("feedback", {"rating": 4.5}, ["rating must be 1-5"]),
        ("feedback", {"rating": None}, ["rating must be 1-5"]),
        ("feedback", {"effectiveness": 1.2}, ["effectiveness must be 0-1"]),
        ("feedback", {"feedback_id": None}, ["feedback_id must be"]),
        ("feedback", {"surprise": 1}, ["surprise is not known"]),
        ("feedback", {"diagnosis_id": "a b"}, ["diagnosis_id must be 1-64"]),
        ("feedback", {"diagnosis_id": "x" * 65}, ["diagnosis_id must be 1-64"]),
        ("feedback", {"diagnosis_id": "line\n"}, ["diagnosis_id must be 1-64"]),
        ("feedback", {"diagnosis_id": -1}, ["diagnosis_id must be 1-64"]),
        ("effectiveness", {"new_effectiveness": 1.2}, ["new_effectiveness must be 0-1"]),
        ("effectiveness", {"new_effectiveness": -0.1}, ["new_effectiveness must be 0-1"]),
        ("effectiveness", {"effectiveness": 0.5}, ["exactly one of new_effectiveness and effectiveness"]),
        ("effectiveness", {"confidence": 2}, ["confidence must be 0-1"]),
        ("effectiveness", {"sample_size": -1}, ["sample_size must be an integer from 0 to 9007199254740991"]),
        ("recommendation", {"new_data": [1]}, ["new_data must be an object"]),
        ("recommendation", {"old_data": 3}, ["old_data must be an object"]),
        ("recommendation", {"reason": 3}, ["reason must be a string"]),
    ],
)
async def test_a_wrong_field_is_named_with_its_limit_and_nothing_is_stored(
    server: Server, kind: str, change: dict[str, object], words: list[str]
) -> None:
    await server.register()
    good = {"feedback": FEEDBACK, "effectiveness": EFFECTIVENESS, "recommendation": RECOMMENDATION}
    assert_problem(await server.post(kind, good[kind] | change), 422, "invalid_field", *words)
    assert (await server.post(kind, good[kind])).json()["seq"] == 1


@pytest.mark.parametrize(
    ("kind", "body", "missing"),
    [
        ("feedback", FEEDBACK, "rating"),
        ("recommendation", RECOMMENDATION, "new_data"),
        ("feedback", FEEDBACK, "diagnosis_id"),
    ],
)
async def test_a_missing_field_is_named(server: Server, kind: str, body: dict[str, object], missing: str) -> None:
    await server.register()
    lacking = {name: value for name, value in body.items() if name != missing}
    assert_problem(await server.post(kind, lacking), 422, "invalid_field", f"{missing} is required")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"a":NaN}', b"[" * 50_000, b'"\\ud800"'])
async def test_what_is_not_json_is_refused(server: Server, content: bytes) -> None:
    await server.register()
    headers = server.bearer("amira") | {"Content-Type": "application/json"}
    answer = await server.http.post("/ws/broadcast-feedback-update", content=content, headers=headers)
    assert_problem(answer, 400, "bad_json")


async def test_another_media_type_is_refused(server: Server) -> None:
    answer = await server.http.post("/ws/broadcast-feedback-update", content=b"a=1", headers=server.bearer("amira"))
    assert_problem(answer, 415, "unsupported_media_type", "application/json")


async def test_a_body_over_64_kib_is_refused_and_the_server_goes_on(server: Server) -> None:
    await server.register()
    assert_problem(await server.post("feedback", {**FEEDBACK, "comment": "x" * 70_000}), 413, "too_large", "65536")
    assert (await server.publish()).json()["seq"] == 1


async def test_a_request_without_a_token_is_told_how_to_authenticate(server: Server) -> None:
    answer = await server.http.post("/ws/broadcast-feedback-update", json=FEEDBACK)
    assert_problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("value", ["Bearer nonsense", "Bearer", "Basic YTpi", "Bearer a.b.c"])
async def test_a_request_with_a_bad_token_is_refused(server: Server, value: str) -> None:
    answer = await server.http.post("/ws/broadcast-feedback-update", json=FEEDBACK, headers={"Authorization": value})
    assert_problem(answer, 401, "unauthenticated")
    assert "invalid_token" in answer.headers["www-authenticate"]


async def test_a_request_with_an_expired_token_is_told_so(server: Server) -> None:
    expired = server.bearer("amira", ttl_seconds=-60)
    answer = await server.http.post("/ws/broadcast-feedback-update", json=FEEDBACK, headers=expired)
    assert_problem(answer, 401, "token_expired")


async def test_a_foreign_and_an_unknown_diagnosis_look_the_same(server: Server) -> None:
    await server.register()
    foreign = await server.post("feedback", FEEDBACK, sub="mallory")
    unknown = await server.post("feedback", {**FEEDBACK, "diagnosis_id": 43}, sub="mallory")
    assert_problem(foreign, 403, "forbidden")
    assert foreign.json() == unknown.json()


async def test_a_viewer_may_not_broadcast(server: Server) -> None:
    await server.register(42, "amira", "bo")
    assert_problem(await server.post("feedback", FEEDBACK, sub="bo"), 403, "forbidden")


async def test_a_broadcaster_may_broadcast_and_is_told_what_does_not_exist(server: Server) -> None:
    await server.register()
    headers = server.bearer("analytics", "broadcast")
    answer = await server.http.post("/ws/broadcast-feedback-update", json=FEEDBACK, headers=headers)
    assert answer.json()["seq"] == 1
    unknown = await server.http.post(
        "/ws/broadcast-feedback-update", json={**FEEDBACK, "diagnosis_id": 43}, headers=headers
    )
    assert_problem(unknown, 404, "not_found")


async def test_the_same_key_makes_one_event(server: Server) -> None:
    await server.register()
    key = {"Idempotency-Key": "visit-17"}
    first = (await server.post("recommendation", {**RECOMMENDATION, "new_data": {"a": 1, "b": 2}}, **key)).json()
    again = (await server.post("recommendation", {**RECOMMENDATION, "new_data": {"b": 2, "a": 1}}, **key)).json()
    assert (first["seq"], first["replayed"]) == (1, False)
    assert (again["seq"], again["replayed"], again["clients_notified"]) == (1, True, 0)
    other = await server.post("feedback", FEEDBACK, **key)
    assert_problem(other, 409, "key_reused")
    assert (await server.publish()).json()["seq"] == 2


@pytest.mark.parametrize("key", ["", "too-long-" * 15])
async def test_a_wrong_key_is_refused(server: Server, key: str) -> None:
    await server.register()
    answer = await server.post("feedback", FEEDBACK, **{"Idempotency-Key": key})
    assert_problem(answer, 422, "invalid_field", "Idempotency-Key", "1-128")


async def test_an_unknown_path_and_a_wrong_method_get_problem_documents(server: Server) -> None:
    assert_problem(await server.http.get("/nowhere"), 404, "not_found")
    answer = await server.http.get("/ws/broadcast-feedback-update")
    assert_problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]
