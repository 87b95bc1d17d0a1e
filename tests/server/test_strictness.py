"""JSON that other programs would read differently is refused, and nothing a client sends makes a 500."""

from __future__ import annotations

import pytest

from tests.server.harness import Server
from tests.server.test_broadcasts import assert_problem


def feedback(**raw: bytes) -> bytes:
    fields = {"diagnosis_id": b"42", "feedback_id": b"1", "rating": b"5"} | raw
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in fields.items()) + b"}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (feedback(comment=b'"\\ud800"'), "bad_json"),
        (feedback(comment=b'"\xff"'), "bad_json"),
        (feedback(effectiveness=b"NaN"), "bad_json"),
        (feedback(effectiveness=b"Infinity"), "bad_json"),
        (feedback(effectiveness=b"1e999"), "invalid_field"),
        (feedback(feedback_id=b"9" * 5000), "invalid_field"),
        (b'{"diagnosis_id":42,"diagnosis_id":43,"feedback_id":1,"rating":5}', "bad_json"),
        (b"\xef\xbb\xbf" + feedback(), "bad_json"),
        (feedback() + b"x", "bad_json"),
        (feedback(rating=b"4.5"), "invalid_field"),
        (feedback(rating=b"true"), "invalid_field"),
        (feedback(feedback_id=b"1.5"), "invalid_field"),
        (feedback(diagnosis_id=b'"42\\u0000"'), "invalid_field"),
        (feedback(diagnosis_id=b"9" * 65), "invalid_field"),
    ],
)
async def test_an_odd_body_is_refused(server: Server, body: bytes, code: str) -> None:
    await server.register()
    headers = server.bearer("amira") | {"Content-Type": "application/json; charset=utf-8"}
    answer = await server.http.post("/ws/broadcast-feedback-update", content=body, headers=headers)
    assert_problem(answer, 400 if code == "bad_json" else 422, code)
    assert (await server.publish()).json()["seq"] == 1


async def test_a_field_named_twice_is_refused_at_any_depth(server: Server) -> None:
    await server.register()
    body = b'{"diagnosis_id":42,"new_data":{"a":[{"dose":1,"dose":2}]}}'
    headers = server.bearer("amira") | {"Content-Type": "application/json"}
    answer = await server.http.post("/ws/broadcast-recommendation-update", content=body, headers=headers)
    assert_problem(answer, 400, "bad_json", "twice")
    assert "dose" not in answer.text


async def test_integers_of_any_size_are_delivered_as_they_were_sent(server: Server) -> None:
    await server.register()
    async with server.live() as client:
        assert (await server.post("recommendation", {"diagnosis_id": 42, "new_data": {"n": 10**30}})).status_code == 200
        assert (await client.next())["data"]["new_data"] == {"n": 10**30}


async def test_another_charset_is_refused(server: Server) -> None:
    headers = server.bearer("amira") | {"Content-Type": "application/json; charset=utf-16"}
    answer = await server.http.post("/ws/broadcast-feedback-update", content=feedback(), headers=headers)
    assert_problem(answer, 415, "unsupported_media_type", "UTF-8")


async def test_a_body_with_a_content_encoding_is_refused(server: Server) -> None:
    headers = server.bearer("amira") | {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await server.http.post("/ws/broadcast-feedback-update", content=feedback(), headers=headers)
    assert_problem(answer, 415, "unsupported_media_type", "Content-Encoding")


@pytest.mark.parametrize(
    ("name", "status"), [("Idempotency-Key", 422), ("Authorization", 401)], ids=["Idempotency-Key", "Authorization"]
)
async def test_a_header_that_decides_something_is_taken_once(server: Server, name: str, status: int) -> None:
    await server.register()
    given = server.bearer("amira") | {"Content-Type": "application/json", "Idempotency-Key": "k"}
    answer = await server.http.post(
        "/ws/broadcast-feedback-update", content=feedback(), headers=[*given.items(), (name, given[name])]
    )
    assert answer.status_code == status


async def test_a_name_that_no_token_can_have_is_not_registered(server: Server) -> None:
    for owner in ("a\nb", "a\x7f", "b\n"):
        assert_problem(await server.register(42, owner), 422, "invalid_field", "owner must be")
        assert_problem(await server.register(42, "amira", owner), 422, "invalid_field", "viewers must be")


@pytest.mark.parametrize("path", ["/diagnoses/", "/diagnoses//42", "/%2e%2e/healthz"])
async def test_a_path_that_only_looks_like_another_is_not_found(server: Server, path: str) -> None:
    answer = await server.http.get(server.url + path)
    assert_problem(answer, 404, "not_found")


async def test_options_and_405_name_exactly_the_methods_of_a_path(server: Server) -> None:
    await server.register()
    for path, methods in (("/ws/broadcast", "OPTIONS, POST"), ("/diagnoses/42", "DELETE, GET, HEAD, OPTIONS, PUT")):
        asked = await server.http.options(path)
        assert (asked.status_code, asked.content, asked.headers["allow"]) == (200, b"", methods)
        refused = await server.http.patch(path)
        assert_problem(refused, 405, "method_not_allowed")
        assert refused.headers["allow"] == methods


async def test_head_is_get_without_a_body(server: Server) -> None:
    answer = await server.http.head("/healthz")
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"", "application/json")
