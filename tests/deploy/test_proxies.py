"""The proxies of `deploy/`: their own programs take the configurations, and each passes on what clients want.

While the server is away, an `EventSource` is told to come back, and everybody else gets the proxy's status.
"""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio
from trio_websocket import open_websocket_url

from tests.browser.chromium import chromium
from tests.documents.test_nginx import NGINX, certificate, configured, free_port, listens, until_received
from tests.documents.test_nginx import command as nginx_command
from tests.logbook import LOGBOOK
from tests.programs import ROOT, program
from tests.server.harness import Client, Server, running_server
from tests.server.process import served
from tests.server.ways import ways_of
from web.server.settings import Settings, load

DEPLOY: Final = ROOT / "deploy"
EVENTS: Final = "/diagnoses/42/events"
BROWSER: Final = {"Accept": "text/event-stream", "Origin": "https://page.example"}


@dataclass(frozen=True)
class Configured:
    """A proxy that is ready to be started."""

    command: list[str]
    check: list[str]
    """Has its program look at the configuration."""
    url: str
    trust: ssl.SSLContext | bool = True
    variables: Mapping[str, str] = field(default_factory=dict)


def nginx(directory: Path, port: int) -> Configured:
    trust = ssl.create_default_context(cafile=str(certificate(directory)))
    command = nginx_command(configured(directory, port))
    return Configured(command, [*command, "-t"], f"https://127.0.0.1:{port}", trust)


def haproxy(directory: Path, port: int) -> Configured:
    pem = certificate(directory)
    trust = ssl.create_default_context(cafile=str(pem))
    pem.write_bytes(pem.read_bytes() + (directory / "live.key").read_bytes())  # HAProxy wants both in one file
    places = {
        "/run/avicenna/live.sock": f"{directory}/live.sock",
        "/etc/ssl/": f"{directory}/",
        "/etc/haproxy/": f"{DEPLOY}/haproxy/",
        "bind :443 ": f"bind 127.0.0.1:{port} ",
        "retries 5": "retries 0",  # each waits for a second
        "    user haproxy\n    group haproxy\n": "",  # the socket is of whoever runs this
    }
    file = directory / "haproxy.cfg"
    file.write_text(replaced((DEPLOY / "haproxy" / "haproxy.cfg").read_text(), places))
    found = program("haproxy")
    return Configured(
        [found, "-db", "-q", "-f", str(file)], [found, "-c", "-f", str(file)], f"https://127.0.0.1:{port}", trust
    )


def caddy(directory: Path, port: int) -> Configured:
    file = directory / "Caddyfile"
    places = {"lb_try_duration 5s": "lb_try_duration 0s"}  # for so long it waits for the server
    file.write_text(replaced((DEPLOY / "caddy" / "Caddyfile").read_text(), places))
    found, options = program("caddy"), ["--config", str(file), "--adapter", "caddyfile"]
    variables = {
        # Without TLS: Caddy would ask an authority for a certificate.
        "SITE": f"http://127.0.0.1:{port}",
        "UPSTREAM": f"unix/{directory}/live.sock",
        "CADDY_ADMIN": f"unix/{directory}/admin.sock",
        "XDG_DATA_HOME": str(directory / "caddy"),
        "XDG_CONFIG_HOME": str(directory / "caddy"),
        "HOME": str(directory),
    }
    return Configured(
        [found, "run", *options], [found, "validate", *options], f"http://127.0.0.1:{port}", True, variables
    )


def replaced(text: str, places: Mapping[str, str]) -> str:
    """The text with what is this test's in place of what is the machine's."""
    for theirs, ours in places.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    return text


PROXIES: Final[Mapping[str, Callable[[Path, int], Configured]]] = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy}


@pytest.mark.parametrize("name", PROXIES)
def test_its_own_program_takes_the_configuration(name: str, tmp_path: Path) -> None:
    proxy = PROXIES[name](tmp_path, free_port())
    done = subprocess.run(
        proxy.check, env=os.environ | proxy.variables, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr.lower() for word in ("[emerg]", "[alert]", '"level":"error"')), done.stderr


@asynccontextmanager
async def started(name: str, directory: Path) -> AsyncIterator[Configured]:
    """A proxy in front of a server that listens at `live.sock`, or will."""
    directory.chmod(0o755)
    port = free_port()
    proxy = PROXIES[name](directory, port)
    with (directory / "said").open("w") as said:
        process = await trio.lowlevel.open_process(
            proxy.command, stdout=said, stderr=said, env=os.environ | proxy.variables
        )
    try:
        with trio.fail_after(30):
            while not await listens(port):
                assert process.poll() is None, (directory / "said").read_text()
                await trio.sleep(0.01)
        yield proxy
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def running(name: str, directory: Path) -> AsyncIterator[tuple[Server, Configured]]:
    """A proxy in front of a server with the settings of the page."""
    settings = Settings(
        port=0,
        data=directory / "data",
        unix_socket=directory / "live.sock",
        trusted_proxies=("unix",),
        allowed_origins=(BROWSER["Origin"],),
    )
    async with running_server(settings) as server, started(name, directory) as proxy:
        yield server, proxy


@pytest.mark.parametrize("name", PROXIES)
async def test_what_clients_want_passes_and_who_comes_while_the_server_is_away_is_told_so(
    name: str, tmp_path: Path
) -> None:
    async with (
        running(name, tmp_path) as (server, proxy),
        httpx.AsyncClient(base_url=proxy.url, verify=proxy.trust, timeout=10) as client,
    ):
        await server.register()
        bearer = server.bearer("amira")
        url = proxy.url.replace("http", "ws", 1) + "/ws/42"
        context = proxy.trust if isinstance(proxy.trust, ssl.SSLContext) else None
        async with (
            open_websocket_url(url, context, extra_headers=ascii_of(bearer)) as connection,
            await streamed(proxy, bearer | BROWSER) as stream,
        ):
            follower = Client(connection)
            await follower.until_live()
            await until_received(stream, b'"type":"live"')
            assert (await server.publish(7)).json()["clients_notified"] == 2
            await until_received(stream, b'"feedback_id":7')
            assert (await follower.next())["data"]["feedback_id"] == 7

        server.stop()
        with trio.fail_after(15):
            while (tmp_path / "live.sock").exists():
                await trio.sleep(0.01)
        body = {"diagnosis_id": 42, "feedback_id": 8, "rating": 5}
        posted = await client.post("/ws/broadcast-feedback-update", json=body, headers=bearer)
        away = 503 if name == "haproxy" else 502
        assert posted.status_code == away
        for path in ("/diagnoses/42", "/diagnoses/42/event", "/diagnoses/42/events/1", "/actors"):
            assert (await client.get(path, headers=bearer)).status_code == away
        told = await client.get(EVENTS, headers=BROWSER)
        assert (told.status_code, told.text) == (200, "retry: 2000\n\n")
        assert told.headers["Content-Type"].partition(";")[0] == "text/event-stream"
        assert told.headers["Cache-Control"] == "no-store"
        assert told.headers["Access-Control-Allow-Origin"] in ("*", BROWSER["Origin"])


@pytest.mark.one_way
@pytest.mark.parametrize("name", PROXIES)
async def test_what_comes_through_it_takes_the_short_way(name: str, tmp_path: Path) -> None:
    async with (
        running(name, tmp_path) as (server, proxy),
        httpx.AsyncClient(base_url=proxy.url, verify=proxy.trust, timeout=10, headers=server.bearer("amira")) as client,
    ):
        await server.register()
        body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}

        async def ask() -> None:
            for _ in range(2):
                assert (await client.get("/diagnoses/42")).status_code == 200
                assert (await client.post("/ws/broadcast-feedback-update", json=body)).status_code == 200
            url = proxy.url.replace("http", "ws", 1) + "/ws/42"
            context = proxy.trust if isinstance(proxy.trust, ssl.SSLContext) else None
            async with open_websocket_url(url, context, extra_headers=ascii_of(server.bearer("amira"))) as connection:
                await Client(connection).until_live()

        assert await ways_of(server, ask) == {"short": 5, "long": 0}


FOLLOWING: Final = f"""
  window.told = []; window.errors = [];
  window.source = new EventSource("{EVENTS}");
  source.onmessage = ({{data}}) => told.push(JSON.parse(data));
  source.onerror = () => errors.push(source.readyState);
  null
"""


async def test_an_event_source_of_a_browser_comes_back_through_nginx_after_a_restart(tmp_path: Path) -> None:
    variables = {
        "AVICENNA_UNIX_SOCKET": str(tmp_path / "live.sock"),
        "AVICENNA_TRUSTED_PROXIES": "unix",
        "AVICENNA_ALLOW_ANONYMOUS": "true",
    }
    async with started("nginx", tmp_path) as proxy, chromium(tmp_path / "profile") as browser:
        tab = await browser.open("about:blank")
        await tab.call("Security.setIgnoreCertificateErrors", ignore=True)
        async with served(tmp_path / "data", logbook=LOGBOOK, **variables) as (process, server):
            await server.register()
            await tab.call("Page.navigate", url=f"{proxy.url}/console")
            await tab.until(f"location.href.startsWith('{proxy.url}') && document.readyState === 'complete'")
            await tab.run(FOLLOWING)
            await tab.until("told.some(({type}) => type === 'live')")
            await server.publish(7)
            await tab.until("told.some(({data}) => data?.feedback_id === 7)")
            assert await process.stop() == 0
        # More than one attempt is answered by the proxy alone, and none of them ends it for good.
        await tab.until("errors.length >= 3")
        async with served(tmp_path / "data", logbook=LOGBOOK, **variables) as (_, server):
            await server.publish(8)
            await tab.until("told.some(({data}) => data?.feedback_id === 8)")
        assert await tab.run("errors.includes(EventSource.CLOSED)") is False


def ascii_of(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


async def streamed(proxy: Configured, headers: Mapping[str, str]) -> trio.abc.Stream:
    """The event stream of the diagnosis, from its head on."""
    port = int(proxy.url.rpartition(":")[2])
    stream: trio.abc.Stream
    if isinstance(proxy.trust, ssl.SSLContext):
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=proxy.trust, https_compatible=True)
    else:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    lines = (f"GET {EVENTS} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items()))
    await stream.send_all("\r\n".join((*lines, "", "")).encode())
    return stream


def test_the_page_names_the_examples_and_they_agree_with_it() -> None:
    page = (ROOT / "docs" / "DEPLOYMENT.md").read_text()
    socket = "/run/avicenna/live.sock"
    for path in ("nginx/avicenna-live.conf", "haproxy/haproxy.cfg", "caddy/Caddyfile"):
        assert f"deploy/{path}" in page
        assert socket in (DEPLOY / path).read_text()
    lines = (line.strip().partition("=") for line in page.splitlines() if line.startswith("AVICENNA_UNIX_SOCKET="))
    assert {load({name: value}).unix_socket for name, _, value in lines} == {Path(socket)}
    assert "proxy_http_version 1.1;" in NGINX
