"""What usual clients and a proxy send takes the short way: the counts of the status say so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio

from tests.documents.test_nginx import free_port, listens
from tests.programs import program
from tests.server.harness import Server, running_server
from tests.server.ways import counts, ways_of
from web.server.settings import Settings

pytestmark = pytest.mark.one_way

PATH = "/ws/broadcast-feedback-update"
BODY = json.dumps({"diagnosis_id": 42, "feedback_id": 1, "rating": 5})

NODE = """
import http from "node:http";
const [url, token, body] = process.argv.slice(1);
const headers = { Authorization: `Bearer ${token}` };
const answer = await fetch(url, { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body });
if (answer.status !== 200) throw new Error(String(answer.status));
await answer.text();
const upgrade = {
  Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13",
  "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions": "permessage-deflate",
};
const request = http.get(new URL("/ws/42", url), { headers: { ...headers, ...upgrade } });
await new Promise((resolve, reject) => {
  request.on("upgrade", (response, socket) => resolve(socket.destroy()));
  request.on("response", (response) => reject(new Error(String(response.statusCode))));
  request.on("error", reject);
});
process.exit(0);
"""

URLLIB = """
import sys, urllib.request
url, token, body = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
assert urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers)).status == 200
"""


REQUESTS = """
import sys, requests
url, token, body = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
with requests.Session() as session:
    for _ in range(2):
        assert session.post(url, data=body, headers=headers).status_code == 200
"""

AIOHTTP = """
import asyncio, sys, aiohttp
url, token, body = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
async def main():
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(url, data=body, headers=headers) as answer:
                assert answer.status == 200
asyncio.run(main())
"""

GO = """
package main
import ("net/http"; "os"; "strings")
func main() {
    for range make([]int, 2) {
        asked, _ := http.NewRequest("POST", os.Args[1], strings.NewReader(os.Args[3]))
        asked.Header.Set("Authorization", "Bearer " + os.Args[2])
        asked.Header.Set("Content-Type", "application/json")
        answer, failure := http.DefaultClient.Do(asked)
        if failure != nil || answer.StatusCode != 200 { os.Exit(1) }
        answer.Body.Close()
    }
}
"""


async def run(*command: str) -> None:
    """Run a client to its end; it must succeed."""
    with trio.fail_after(30):
        await trio.run_process(list(command), stdout=subprocess.DEVNULL)


async def test_httpx_takes_the_short_way(server: Server) -> None:
    await server.register()

    async def publish() -> None:
        assert (await server.publish()).status_code == 200

    assert await ways_of(server, publish) == {"short": 1, "long": 0}


async def test_curl_takes_the_short_way(server: Server) -> None:
    await server.register()
    token = f"Authorization: Bearer {server.token('amira')}"
    curl = (program("curl"), "--fail", "-sS", server.url + PATH, "-H", token, "--json", BODY)
    assert await ways_of(server, lambda: run(*curl)) == {"short": 1, "long": 0}


async def test_node_takes_the_short_way_to_publish_and_to_follow(server: Server) -> None:
    await server.register()
    node = (program("node"), "--input-type=module", "-e", NODE, server.url + PATH, server.token("amira"), BODY)
    assert await ways_of(server, lambda: run(*node)) == {"short": 2, "long": 0}


@pytest.fixture(params=["requests", "aiohttp"])
def library(request: pytest.FixtureRequest) -> str:
    """A program that uses a library for Python which is installed here."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return {"requests": REQUESTS, "aiohttp": AIOHTTP}[request.param]


async def test_libraries_for_python_take_the_short_way(server: Server, library: str) -> None:
    await server.register()
    python = (sys.executable, "-c", library, server.url + PATH, server.token("amira"), BODY)
    assert await ways_of(server, lambda: run(*python)) == {"short": 2, "long": 0}


@pytest.fixture
def go() -> str:
    """The command of Go."""
    return program("go")


async def test_go_takes_the_short_way(server: Server, go: str, tmp_path: Path) -> None:
    await server.register()
    file = tmp_path / "main.go"
    file.write_text(GO)
    command = (go, "run", str(file), server.url + PATH, server.token("amira"), BODY)
    assert await ways_of(server, lambda: run(*command)) == {"short": 2, "long": 0}


async def test_what_asks_to_close_the_connection_takes_the_long_way(server: Server) -> None:
    await server.register()
    python = (sys.executable, "-c", URLLIB, server.url + PATH, server.token("amira"), BODY)
    assert await ways_of(server, lambda: run(*python)) == {"short": 0, "long": 1}


@asynccontextmanager
async def nginx(directory: Path, upstream: str, *lines: str) -> AsyncIterator[str]:
    """An nginx in front of a server, whose `location` has these lines."""
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    block = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://a; {' '.join(lines)} }} }}"
    file = directory / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} upstream a {{ server {upstream}; keepalive 4; }} {block} }}\n"
    )
    command = [program("nginx"), "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(file)]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
    try:
        with trio.fail_after(30):
            while not await listens(port):
                assert process.poll() is None, (directory / "error.log").read_text()
                await trio.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.parametrize(
    ("lines", "way"),
    [
        (("proxy_http_version 1.1;", 'proxy_set_header Connection "";'), "short"),
        ((), "long"),
    ],
    ids=["with the two lines of DEPLOYMENT", "without them"],
)
async def test_nginx_takes_the_short_way_with_two_lines(
    server: Server, tmp_path: Path, lines: tuple[str, ...], way: str
) -> None:
    await server.register()
    async with nginx(tmp_path, server.url.removeprefix("http://"), *lines) as url, httpx.AsyncClient() as client:

        async def publish() -> None:
            headers = server.bearer("amira") | {"Content-Type": "application/json"}
            for _ in range(3):
                assert (await client.post(url + PATH, content=BODY, headers=headers)).status_code == 200

        assert await ways_of(server, publish) == {"short": 0, "long": 0} | {way: 3}


async def test_no_request_takes_the_short_way_where_the_setting_says_so(settings: Settings) -> None:
    async with running_server(replace(settings, short_way=False)) as server:
        await server.register()
        assert (await server.publish()).status_code == 200
        assert await counts(server) == {"short": 0, "long": 3}
