"""Answers with JSON are kept by no cache and taken for a page by no browser; what is static is asked for once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import ROOT
from tests.edge.peers import ask, request, upgrade
from tests.server.harness import Server, running_server
from web.server.settings import Settings

PROBLEM = "application/problem+json"


def is_private(headers: dict[str, str]) -> bool:
    """Whether an answer says what every answer with JSON says."""
    return (headers.get("x-content-type-options"), headers.get("cache-control")) == ("nosniff", "no-store")


@pytest.mark.parametrize(
    ("method", "path", "status", "media_type"),
    [
        ("GET", "/healthz", 200, "application/json"),
        ("HEAD", "/healthz", 200, "application/json"),
        ("GET", "/diagnoses", 200, "application/json"),
        ("GET", "/diagnoses/42", 403, PROBLEM),
        ("GET", "/nowhere", 404, PROBLEM),
        ("PATCH", "/healthz", 405, PROBLEM),
        ("POST", "/ws/broadcast-feedback-update", 415, PROBLEM),
        ("GET", "/diagnoses?limit=0", 422, PROBLEM),
        ("GET", "/diagnoses/42/events", 403, PROBLEM),
        ("GET", "/ws/42", 426, PROBLEM),
    ],
)
async def test_every_answer_with_json_says_nosniff_and_no_store(
    server: Server, method: str, path: str, status: int, media_type: str
) -> None:
    answer = await server.http.request(method, path, headers=server.bearer("somebody"))
    assert (answer.status_code, answer.headers["content-type"]) == (status, media_type)
    assert is_private(dict(answer.headers))


async def test_so_does_the_answer_to_a_bulk_request(server: Server) -> None:
    await server.register()
    headers = server.bearer("amira") | {"Content-Type": "application/x-ndjson"}
    answer = await server.http.post("/ws/broadcast", content=b"{}\n", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert is_private(dict(answer.headers))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (request(b"//x"), 400),
        (upgrade(without="Sec_WebSocket_Version"), 426),
        (request(x=b"x" * 20_000), 431),
        (b"GET / HTTP/1.0x\r\n\r\n", 400),
    ],
    ids=["no host", "two slashes", "no version", "too large", "no HTTP"],
)
async def test_so_does_an_answer_of_the_edge(server: Server, sent: bytes, status: int) -> None:
    answer, _ = await ask(server.url, sent)
    assert (answer.status, answer.headers["content-type"]) == (status, PROBLEM)
    assert is_private(answer.headers)


@pytest.mark.parametrize(
    ("path", "status", "allowed"), [(b"/subjects/amira", 405, "DELETE, OPTIONS"), (b"/nowhere", 404, None)]
)
async def test_so_does_the_answer_to_an_upgrade_that_no_route_takes(
    server: Server, caplog: pytest.LogCaptureFixture, path: bytes, status: int, allowed: str | None
) -> None:
    answer, _ = await ask(server.url, upgrade(path))
    assert (answer.status, answer.headers["content-type"]) == (status, PROBLEM)
    assert answer.headers.get("allow") == allowed
    assert is_private(answer.headers)
    assert not [one for one in caplog.records if one.levelname == "ERROR"], "it is the client's fault"


async def test_so_does_a_full_server(tmp_path: Path) -> None:
    async with running_server(Settings(port=0, data=tmp_path, max_connections=1)) as server:
        assert (await server.http.get("/healthz")).status_code == 200  # and its connection stays open
        answer, _ = await ask(server.url, request(b"/openapi.json"))
    assert answer.status == 503
    assert is_private(answer.headers)


STATIC = {"/openapi.json": "application/json", "/client.js": "text/javascript; charset=utf-8"}


@pytest.mark.parametrize("path", STATIC)
async def test_what_stays_as_it_is_is_fetched_once_and_then_asked_about(server: Server, path: str) -> None:
    first = await server.http.get(path)
    tag = first.headers["etag"]
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    assert (first.headers["x-content-type-options"], first.headers["content-type"]) == ("nosniff", STATIC[path])
    again = await server.http.get(path, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert (again.headers["etag"], again.headers["cache-control"]) == (tag, "no-cache")
    assert {"content-type", "content-length"}.isdisjoint(again.headers), "they would be those of another content"
    # The connection goes on after an answer without a body.
    assert (await server.http.get(path)).content == first.content


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ('"another", {tag}', 304),
        ('"an,other" , W/"x",{tag}', 304),
        ("*", 304),
        ('"another"', 200),
        ('W/"another"', 200),
        ('"*"', 200),
        ("", 200),
    ],
)
async def test_if_none_match_takes_a_list_weak_tags_and_a_star(server: Server, given: str, status: int) -> None:
    tag = (await server.http.get("/openapi.json")).headers["etag"]
    for method in ("GET", "HEAD"):
        headers = {"If-None-Match": given.replace("{tag}", tag)}
        assert (await server.http.request(method, "/openapi.json", headers=headers)).status_code == status


async def test_if_none_match_may_be_given_in_several_lines(server: Server) -> None:
    tag = (await server.http.get("/openapi.json")).headers["etag"]
    headers = [("If-None-Match", '"another"'), ("If-None-Match", tag)]
    assert (await server.http.get("/openapi.json", headers=headers)).status_code == 304


@pytest.mark.parametrize("path", STATIC)
async def test_the_tag_names_the_content_and_not_the_run(server: Server, tmp_path: Path, path: str) -> None:
    async with running_server(Settings(port=0, data=tmp_path / "other")) as other:
        tags = {(await one.http.get(path)).headers["etag"] for one in (server, other)}
    assert len(tags) == 1


async def test_the_client_for_pages_is_the_one_of_the_package(server: Server) -> None:
    assert (await server.http.get("/client.js")).content == (ROOT / "clients" / "javascript" / "client.js").read_bytes()
