"""Behind nginx and HAProxy, which send the requests of many clients over one connection, each client gets its own
answers only, whatever another one sends (request smuggling, RFC 9112 section 11.2)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio

from tests.differential.meddling import Meddling, meddled
from tests.differential.pair import Side, running_side
from tests.differential.people import bearer
from tests.differential.requests import FEEDBACK, PUBLISH, chunked, get, publish, raw, request, upgrade
from tests.documents.test_nginx import free_port, listens
from tests.programs import program
from web.server.settings import Settings

VICTIMS: Final = ("v-one", "v-two", "v-three")
"""Diagnoses, each asked for by one client over a connection that stays."""

OPERATOR: Final = {"Authorization": bearer("op", "operate")}

ANSWER_SECONDS_MAX: Final = 0.3
"""For an answer to an attack. Reason: a request that a proxy takes for half of one has none."""

HIDDEN: Final = "GET /diagnoses/v-hidden HTTP/1.1\r\nHost: live.test\r\nAuthorization: Bearer @operator@\r\n\r\n"
"""What is to be taken for a request by one side and not by the other."""

HALF: Final = "GET /diagnoses/v-hidden HTTP/1.1\r\nHost: live.test\r\nX-A: "
"""The same without its end: what comes next on the connection would be a part of it."""

ENCODINGS: Final = (
    "Transfer-Encoding: chunked",
    "Transfer-Encoding:chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding: chunked ",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: chunked, chunked",
    'Transfer-Encoding: "chunked"',
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding: chunked\x0b",
    "Transfer-Encoding: chunked\0",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    " Transfer-Encoding: chunked",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding:\r\n chunked",
    "X-A: b\r\n Transfer-Encoding: chunked",
    "X-A: b\nTransfer-Encoding: chunked",
    "X-A: b\rTransfer-Encoding: chunked",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding:\r\nTransfer-Encoding: chunked",
)

LENGTHS: Final = (
    "Content-Length: 5\r\nContent-Length: {}",
    "Content-Length: {}\r\nContent-Length: 5",
    "Content-Length: 5, {}",
    "Content-Length: {}, 5",
    "Content-Length: +5",
    "Content-Length: -5",
    "Content-Length: 0x5",
    "Content-Length: 5_",
    "Content-Length: 5.0",
    "Content-Length: 5 0",
    "Content-Length: 5\x0b",
    "Content-Length : 5",
    " Content-Length: 5",
    "Content_Length: 5",
    "Content-Length:\r\n 5",
    "X-A: b\nContent-Length: 5",
    "Content-Length: 0000000000000000000000000000005",
    "Content-Length: 18446744073709551621",
)


def _attacks() -> dict[str, bytes]:
    """By what is odd: requests, and what they hide."""
    found: dict[str, bytes] = {}
    for tail_name, tail in (("a request", HIDDEN), ("half a request", HALF)):
        hiding = "0\r\n\r\n" + tail
        for field in ENCODINGS:
            found[f"{field!r}, {tail_name} in the length"] = publish(f"+{field}", body=hiding)
            found[f"{field!r}, {tail_name} behind the length"] = publish("Content-Length: 5", f"+{field}", body=hiding)
            found[f"{field!r}, {tail_name} without a length"] = publish("-Content-Length", f"+{field}", body=hiding)
        for field in LENGTHS:
            edit = "+" + field.format(len(hiding))
            found[f"{field!r}, {tail_name}"] = publish("-Content-Length", edit, body=hiding)
        found |= {
            f"a look with a body that is {tail_name}": get("/healthz", f"Content-Length: {len(raw(tail))}") + raw(tail),
            f"a HEAD and {tail_name}": request("HEAD /diagnoses/v-hidden HTTP/1.1") + raw(tail),
            f"a body that is expected and {tail_name}": publish("Expect: 100-continue", body=tail),
            f"a refusal before its body, {tail_name}": publish("-Authorization", body=tail),
            f"a chunk size with an extension and {tail_name}": publish(
                "-Content-Length", "Transfer-Encoding: chunked", body="0;a\n\r\n\r\n" + tail
            ),
            f"a chunk size that overflows and {tail_name}": publish(
                "-Content-Length", "Transfer-Encoding: chunked", body="10000000000000000\r\n" + tail
            ),
            f"a chunk that ends with a line feed and {tail_name}": publish(
                "-Content-Length", "Transfer-Encoding: chunked", body="5\r\nhello\n0\n\n" + tail
            ),
            f"a trailer and {tail_name}": publish(
                "-Content-Length", "Transfer-Encoding: chunked", body="0\r\nContent-Length: 99\r\n\r\n" + tail
            ),
            f"a good request and {tail_name}": publish() + raw(tail),
            f"good chunks and {tail_name}": publish(
                "-Content-Length", "Transfer-Encoding: chunked", body=chunked(FEEDBACK) + tail
            ),
            f"HTTP/1.0 with chunks and {tail_name}": publish(
                "+Transfer-Encoding: chunked", line=PUBLISH.replace("1.1", "1.0"), body="0\r\n\r\n" + tail
            ),
            f"two versions and {tail_name}": publish(line=PUBLISH + " HTTP/1.0") + raw(tail),
            f"a Connection that names the length and {tail_name}": publish("Connection: Content-Length", body=tail),
            f"a Connection to be closed and {tail_name}": publish("Connection: close") + raw(tail),
            f"an upgrade to h2c and {tail_name}": get("/healthz", "Connection: Upgrade", "Upgrade: h2c") + raw(tail),
            f"a WebSocket of another version and {tail_name}": upgrade("Sec-WebSocket-Version: 7") + raw(tail),
            f"a WebSocket without a key and {tail_name}": upgrade("-Sec-WebSocket-Key") + raw(tail),
            f"a WebSocket with a length and {tail_name}": upgrade(f"Content-Length: {len(raw(tail))}") + raw(tail),
            f"a WebSocket and {tail_name}": upgrade() + raw(tail),
        }
    return found


ATTACKS: Final[Mapping[str, bytes]] = _attacks()


def _nginx(directory: Path, port: int, server: int) -> tuple[list[str], Path, str]:
    user = "user root;" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind}; " for kind in kinds)
    text = f"""
daemon off; pid {directory}/pid; error_log {directory}/error.log; {user} worker_processes 1; events {{}}
http {{
    {temporary} access_log off;
    ignore_invalid_headers off; underscores_in_headers on; merge_slashes off; keepalive_requests 100000;
    upstream live {{ server 127.0.0.1:{server}; keepalive 1; keepalive_requests 100000; }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off; proxy_buffering off;
        location / {{ proxy_pass http://live; }}
        location ~ ^/ws/[0-9]+$ {{
            proxy_pass http://live; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade;
        }}
    }}
}}
"""
    file = directory / "nginx.conf"
    return [program("nginx"), "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(file)], file, text


def _haproxy(directory: Path, port: int, server: int) -> tuple[list[str], Path, str]:
    text = f"""
global
    nbthread 1
    maxconn 200
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout http-request 30s
frontend front
    bind 127.0.0.1:{port}
    option accept-invalid-http-request
    default_backend live
backend live
    server live 127.0.0.1:{server}
"""
    file = directory / "haproxy.cfg"
    return [program("haproxy"), "-db", "-q", "-f", str(file)], file, text


PROXIES: Final[Mapping[str, Callable[[Path, int, int], tuple[list[str], Path, str]]]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
}
"""Both as careless about what they pass on as they can be told to be, and with few connections to the server."""


@asynccontextmanager
async def in_front(name: str, directory: Path, meddling: Meddling | None = None) -> AsyncIterator[tuple[int, Side]]:
    """The port of a proxy, and the server behind it.

    Args:
        meddling: spoils what passes between them.
    """
    directory.chmod(0o755)
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(
            running_side(Settings(port=0, data=directory / "data"), trio.current_time())
        )
        behind = side.port if meddling is None else await stack.enter_async_context(meddled(side.port, meddling))
        for diagnosis_id in (*VICTIMS, "v-hidden"):
            body = {"owner": "doctor-1", "viewers": []}
            answer = await side.server.http.put(f"/diagnoses/{diagnosis_id}", json=body, headers=OPERATOR)
            assert answer.status_code == 201
        port = free_port()
        command, file, text = PROXIES[name](directory, port, behind)
        file.write_text(text)
        running = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
        try:
            with trio.fail_after(30):
                while not await listens(port):
                    assert running.poll() is None, text
                    await trio.sleep(0.01)
            yield port, side
        finally:
            running.terminate()
            with trio.CancelScope(shield=True):
                await running.wait()


@asynccontextmanager
async def attacking(port: int, data: bytes) -> AsyncIterator[bytes]:
    """What an attacker hears until it has an answer or none comes for a while; its connection stays meanwhile."""
    heard = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        with trio.move_on_after(ANSWER_SECONDS_MAX), suppress(trio.BrokenResourceError):
            await stream.send_all(data)
            while b"HTTP/1." not in heard and (more := await stream.receive_some(65536)):
                heard += more
        yield heard


async def wrong_answers(port: int, attacks: Mapping[str, bytes]) -> list[str]:
    """What somebody hears that is not the answer to what they asked, while others attack."""
    wrong: list[str] = []
    async with AsyncExitStack() as stack:
        victims = {}
        for one in VICTIMS:
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=OPERATOR, timeout=10)
            victims[one] = await stack.enter_async_context(client)
        for attack, data in attacks.items():
            async with attacking(port, data) as heard:
                wrong += [f"{attack}: the attacker has the answer of {one}" for one in VICTIMS if one.encode() in heard]
                for one, client in victims.items():
                    answer = await client.get(f"/diagnoses/{one}")
                    if answer.status_code != 200 or answer.json()["diagnosis_id"] != one:
                        wrong.append(f"{attack}: {one} is answered {answer.status_code} {answer.text}")
    return wrong


@pytest.mark.parametrize("name", PROXIES)
async def test_nobody_behind_a_proxy_gets_the_answer_to_what_another_has_hidden(name: str, tmp_path: Path) -> None:
    async with in_front(name, tmp_path) as (port, _):
        wrong = await wrong_answers(port, ATTACKS)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PROXIES)
async def test_somebody_gets_a_wrong_answer_if_the_server_misreads_a_length(name: str, tmp_path: Path) -> None:
    hiding = "0\r\n\r\n" + HALF

    def misread(data: bytes) -> bytes:
        length = b"content-length: %d" % len(raw(hiding))
        return re.sub(length, b"content-length: 5", data, flags=re.IGNORECASE)

    async with in_front(name, tmp_path, Meddling(asked=misread)) as (port, _):
        assert await wrong_answers(port, {"half a request": publish(body=hiding)})


@pytest.mark.parametrize("name", PROXIES)
async def test_plain_requests_through_a_proxy_take_the_short_way(name: str, tmp_path: Path) -> None:
    async with in_front(name, tmp_path) as (port, side):
        before = await _ways(side)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=OPERATOR, timeout=10) as client:
            for one in VICTIMS:
                assert (await client.get(f"/diagnoses/{one}")).status_code == 200
            body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}
            assert (await client.post("/ws/broadcast-feedback-update", json=body)).status_code == 200
        after = await _ways(side)
    assert after["short"] - before["short"] == len(VICTIMS) + 2
    assert after["long"] == before["long"]


async def _ways(side: Side) -> dict[str, int]:
    found: dict[str, int] = (await side.server.http.get("/ws/status", headers=OPERATOR)).json()["node"]["requests"]
    return found
