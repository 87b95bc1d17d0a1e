"""JSON that other programs would read differently is refused, and nothing a client sends makes a 500."""

from __future__ import annotations

import dataclasses

import pytest

from tests.edge.peers import ask, connect, request, upgrade
from tests.server.harness import Server, open_socket, running_server
from tests.server.test_broadcasts import assert_problem
from web.contract import wire
from web.contract.errors import Problem
from web.contract.records import FeedbackUpdate
from web.server.settings import Settings


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
        (feedback()[:-1] + b',"rating":4}', "bad_json"),
        (feedback()[:-1] + b',"rating" :4}', "bad_json"),
        (feedback()[:-1] + b',"ratin\\u0067":4}', "bad_json"),
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


@pytest.mark.parametrize(
    "twice",
    [
        b'"rating":5,"rating":5',
        b'"rating":1,"rating" \n:\t5',
        b'"comment":"rating","rating":1,"rating":5',
        b'"comment":":","comment":""',
        b'"rating":5,"r\\u0061ting":5',
    ],
)
def test_a_flat_body_that_names_a_field_twice_is_refused_however_it_is_written(twice: bytes) -> None:
    with pytest.raises(Problem, match="names a field twice"):
        wire.decode_update(FeedbackUpdate, b'{"diagnosis_id":42,"feedback_id":1,%b}' % twice)


@pytest.mark.parametrize(
    "values", [b'"comment":":","rating":5', b'"comment":"rating","rating" :5', b'"comment":"comment","rating":5']
)
def test_a_flat_body_may_hold_the_same_text_twice(values: bytes) -> None:
    wire.decode_update(FeedbackUpdate, b'{"diagnosis_id":"42","feedback_id":"42",%b}' % values)


async def test_a_text_may_be_the_name_of_a_field(server: Server) -> None:
    await server.register()
    for comment in ("rating", "{", '"rating":', "\\"):
        body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5, "comment": comment}
        assert (await server.post("feedback", body)).status_code == 200


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


@pytest.mark.parametrize("second", ["{own}", "https://evil.example", "null", ""])
async def test_a_request_names_its_origin_once(server: Server, second: str) -> None:
    await server.register()
    own = server.url
    origins = [("Origin", own), ("oRIGIN", second.format(own=own))]
    for given in (origins, origins[::-1]):
        publish = [*(server.bearer("amira") | {"Content-Type": "application/json"}).items(), *given]
        answer = await server.http.post("/ws/broadcast-feedback-update", content=feedback(), headers=publish)
        assert_problem(answer, 422, "invalid_field", "Origin must be given once")
        follow = [*server.bearer("amira").items(), *given]
        for path in ("/diagnoses/42/events", "/diagnoses/42/position"):
            answer = await server.http.get(path, headers=follow)
            assert_problem(answer, 422, "invalid_field", "Origin must be given once")
        url = f"{server.url.replace('http://', 'ws://')}/ws/42"
        async with open_socket(url, extra_headers=follow) as client:
            (error,), code, reason = await client.close_frames()
        assert (error["data"]["code"], code, reason) == ("invalid_field", 1008, "invalid field")
        assert error["data"]["detail"] == "Origin must be given once"


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("Content-Type", "application/json", "text/plain"),
        ("Content-Encoding", "identity", "gzip"),
        ("Sec-Fetch-Site", "same-origin", "cross-site"),
    ],
)
async def test_what_says_how_to_take_a_request_is_given_once(
    server: Server, name: str, first: str, second: str
) -> None:
    await server.register()
    given = server.bearer("amira") | {"Content-Type": "application/json"}
    given.pop(name, None)
    answer = await server.http.post(
        "/ws/broadcast-feedback-update", content=feedback(), headers=[*given.items(), (name, first), (name, second)]
    )
    assert_problem(answer, 422, "invalid_field", f"{name} must be given once")


async def test_two_tokens_among_the_subprotocols_are_a_bad_one(server: Server) -> None:
    await server.register()
    token = server.token("amira")
    url = f"{server.url.replace('http://', 'ws://')}/ws/42"
    for offered in (["avicenna.v1", f"bearer.{token}"], ["avicenna.v1", f"bearer.{token}", f"bearer.{token}"]):
        async with open_socket(url, subprotocols=offered) as client:
            frame = await client.next()
        assert frame["type"] == ("connect" if len(offered) == 2 else "error")


async def test_a_name_that_no_token_can_have_is_not_registered(server: Server) -> None:
    for owner in ("a\nb", "a\x7f", "b\n"):
        assert_problem(await server.register(42, owner), 422, "invalid_field", "owner must be")
        assert_problem(await server.register(42, "amira", owner), 422, "invalid_field", "viewers must be")


LOOKALIKES = (
    "/diagnoses/",
    "/diagnoses//42",
    "/%2e%2e/healthz",
    "/%2Factors",
    "/%2f%2Factors",
    "/%2Fhealthz",
    "/actors%2F42",
    "/actors/42%2Frestart",
    "/ws%2Fstatus",
    "/ws%2f42",
    "/ws/42%2F",
    "/healthz%2F",
    "/subjects%2Famira",
    "/%2Fsubjects/amira",
    "/healthz%3Fx",
    "/healthz%23x",
    "/healthz%00",
    "/healthz%0a",
    "/healthz;x",
    "/./healthz",
    "/ws/..%2Fhealthz",
    "/%5Chealthz",
)


@pytest.mark.parametrize("path", LOOKALIKES)
async def test_a_path_that_only_looks_like_another_is_not_found(server: Server, path: str) -> None:
    await server.register()
    url = server.url.removeprefix("http://")
    token = b"Bearer " + server.token("op", "operate").encode()
    for method in (b"GET", b"POST", b"DELETE"):
        answer, _ = await ask(f"http://{url}", request(path.encode(), method, Authorization=token, Connection=b"close"))
        assert (answer.status, answer.problem["code"]) == (404, "not_found"), method
    answer, _ = await ask(f"http://{url}", upgrade(path.encode(), Authorization=token))
    assert answer.status == 404


async def test_letters_may_be_encoded_and_a_name_may_hold_a_slash(server: Server) -> None:
    await server.register(42, "ward/7")
    operator = server.bearer("op", "operate")
    assert (await server.http.get(server.url + "/%68ealthz")).status_code == 200
    assert (await server.http.get(server.url + "/actors/%34%32", headers=operator)).status_code == 200
    for path in ("/subjects/ward%2F7", "/%73ubjects/ward%2f7", "/subjects/ward/7"):
        erased = await server.http.delete(server.url + path, headers=operator)
        assert (erased.status_code, erased.json()["owned"]) == (200, [42])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        (b"post", b"/ws/broadcast-feedback-update", "OPTIONS, POST"),
        (b"Post", b"/ws/broadcast", "OPTIONS, POST"),
        (b"get", b"/healthz", "GET, HEAD, OPTIONS"),
        (b"head", b"/healthz", "GET, HEAD, OPTIONS"),
        (b"options", b"/healthz", "GET, HEAD, OPTIONS"),
        (b"delete", b"/diagnoses/42", "DELETE, GET, HEAD, OPTIONS, PUT"),
    ],
)
async def test_a_method_in_lower_case_is_another_method(
    server: Server, method: bytes, path: bytes, allowed: str
) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira", "operate").encode()
    body = b'{"diagnosis_id":42,"feedback_id":1,"rating":5}'
    sent = request(path, method, body, Authorization=token, Content_Type=b"application/json", Connection=b"close")
    answer, _ = await ask(server.url, sent)
    assert (answer.status, answer.problem["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed
    assert (await server.publish()).json()["seq"] == 1, "nothing was published, and nothing deleted"


async def test_a_preflight_in_lower_case_is_none(settings: Settings) -> None:
    shared = dataclasses.replace(settings, allowed_origins=("https://app.example.org",))
    async with running_server(shared) as server:
        sent = request(
            b"/healthz",
            b"options",
            Origin=b"https://app.example.org",
            Access_Control_Request_Method=b"GET",
            Connection=b"close",
        )
        answer, _ = await ask(server.url, sent)
    assert answer.status == 405


async def test_an_upgrade_in_lower_case_is_none(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    sent = upgrade(b"/ws/42", Authorization=token).replace(b"GET ", b"get ")
    async with await connect(server.url) as peer:
        await peer.send(sent)
        assert (await peer.answer()).status == 405


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
