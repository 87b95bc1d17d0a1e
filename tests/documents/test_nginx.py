"""The nginx of `deploy/nginx` loads as it stands there, and passes on what clients want, with the settings of
`docs/DEPLOYMENT.md`."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio_websocket import open_websocket_url

from tests.contract import ROOT
from tests.programs import program
from tests.server.harness import Client, Server, running_server
from web.server.settings import load

PAGE = (ROOT / "docs" / "DEPLOYMENT.md").read_text()
NGINX = (ROOT / "deploy" / "nginx" / "avicenna-live.conf").read_text()
NAME = "live.example.org"


def block(before: str) -> str:
    """The block of the page that follows a line beginning with these words."""
    found = re.search(rf"^{re.escape(before)}[^\n]*\n+```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, before
    return found[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def certificate(directory: Path) -> Path:
    """A new self-signed certificate of this machine, `live.pem`, beside its key, `live.key`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    unlocked = serialization.NoEncryption()
    (directory / "live.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, unlocked))
    (directory / "live.pem").write_bytes(made.public_bytes(pem))
    return directory / "live.pem"


def configured(directory: Path, port: int) -> Path:
    """The example in a whole configuration, with files and a port of this test in place of the machine's."""
    places = {
        "/run/avicenna/live.sock": directory / "live.sock",
        "/etc/ssl/": f"{directory}/",
        "/var/log/nginx/": f"{directory}/",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
    }
    text = NGINX
    for theirs, ours in places.items():
        assert theirs in text
        text = text.replace(theirs, str(ours))
    # Its workers are root's where this test is, as the socket of the server is.
    user = "user root;" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    log = f"error_log {directory}/error.log;"
    file = directory / "nginx.conf"
    file.write_text(f"daemon off; pid {directory}/pid; {log} {user} events {{}}\nhttp {{ {temporary}\n{text}}}\n")
    return file


def command(file: Path) -> list[str]:
    return [program("nginx"), "-p", str(file.parent), "-e", str(file.parent / "error.log"), "-c", str(file)]


@dataclass(frozen=True)
class Proxy:
    """A running nginx, and what is behind it."""

    server: Server
    port: int
    trust: ssl.SSLContext
    directory: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def logs(self) -> str:
        """All that nginx wrote."""
        return "".join(file.read_text() for file in sorted(self.directory.glob("*.log")))


@asynccontextmanager
async def proxy(directory: Path) -> AsyncIterator[Proxy]:
    """The nginx of the example in front of a server with the settings of the page."""
    directory.chmod(0o755)
    trust = ssl.create_default_context(cafile=str(certificate(directory)))
    port = free_port()
    file = configured(directory, port)
    lines = [line.strip().partition("=") for line in block("## Behind a proxy").splitlines() if line.strip()]
    settings = load({name: value for name, _, value in lines})
    assert not settings.query_tokens
    # Beside TCP, so that the test can register and publish without nginx.
    settings = replace(settings, unix_socket=directory / "live.sock", data=directory / "data", tcp=True, port=0)
    async with running_server(settings) as server:
        nginx = await trio.lowlevel.open_process(command(file), stderr=subprocess.DEVNULL)
        try:
            with trio.fail_after(30):
                while not await listens(port):
                    assert nginx.poll() is None, (directory / "error.log").read_text()
                    await trio.sleep(0.01)
            yield Proxy(server, port, trust, directory)
        finally:
            nginx.terminate()
            with trio.CancelScope(shield=True):
                await nginx.wait()


async def listens(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


def test_the_example_loads(tmp_path: Path) -> None:
    certificate(tmp_path)
    file = configured(tmp_path, free_port())
    done = subprocess.run([*command(file), "-t"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "[emerg]" not in done.stderr


def test_the_example_loads_before_nginx_1_25() -> None:
    """Debian 12 has 1.22, Ubuntu 24.04 has 1.24: neither knows the directive `http2`."""
    assert re.search(r"^ +listen 443 ssl http2;$", NGINX, re.MULTILINE)
    assert not re.search(r"^ +http2 ", NGINX, re.MULTILINE)


async def test_requests_websockets_and_event_streams_pass(tmp_path: Path) -> None:
    async with proxy(tmp_path) as front:
        server = front.server
        await server.register()
        token = server.bearer("amira")["Authorization"]
        async with httpx.AsyncClient(base_url=front.url, verify=front.trust, timeout=10) as https:
            assert (await https.get("/diagnoses/42", headers={"Authorization": token})).json()["owner"] == "amira"
            url = front.url.replace("https", "wss") + "/ws/42"
            offered = ["avicenna.v1", f"bearer.{server.token('amira')}"]
            async with open_websocket_url(url, front.trust, subprotocols=offered) as connection:
                client = Client(connection)
                assert connection.subprotocol == "avicenna.v1"
                await client.until_live()
                async with await connected(front) as stream:
                    lines = ("GET /diagnoses/42/events HTTP/1.1", f"Host: {NAME}", f"Authorization: {token}")
                    await stream.send_all("\r\n".join((*lines, "", "")).encode())
                    await until_received(stream, b'"type":"live"')
                    assert (await server.publish(7)).json()["clients_notified"] == 2
                    await until_received(stream, b'"feedback_id":7')
                    assert (await client.next())["data"]["feedback_id"] == 7


async def connected(front: Proxy) -> trio.SSLStream[trio.SocketStream]:
    # Closed as most peers close: without a word of TLS, which a proxy in the middle of an answer never gives.
    return await trio.open_ssl_over_tcp_stream("127.0.0.1", front.port, ssl_context=front.trust, https_compatible=True)


async def until_received(stream: trio.abc.ReceiveStream, words: bytes) -> None:
    received = b""
    with trio.fail_after(10):
        while words not in received:
            chunk = await stream.receive_some()
            assert chunk, received
            received += chunk


async def test_http_2_is_offered_to_clients(tmp_path: Path) -> None:
    async with proxy(tmp_path) as front:
        front.trust.set_alpn_protocols(["h2"])
        async with await connected(front) as stream:
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize("place", ["query", "subprotocol"])
async def test_a_token_reaches_nginxs_log_from_the_query_and_from_nowhere_else(tmp_path: Path, place: str) -> None:
    """Why the page recommends what it does: clients come back while the server is away."""
    token = "a" * 20 + "." + "b" * 40 + "." + "c" * 43
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    path = "/ws/42"
    if place == "query":
        path = f"{path}?token={token}"
    else:
        headers["Sec-WebSocket-Protocol"] = f"avicenna.v1, bearer.{token}"
    async with proxy(tmp_path) as front:
        front.server.stop()
        with trio.fail_after(15):
            while (tmp_path / "live.sock").exists():
                await trio.sleep(0.01)
            async with httpx.AsyncClient(base_url=front.url, verify=front.trust) as https:
                assert (await https.get(path, headers=headers)).status_code == 502
            while "live.sock failed" not in front.logs:
                await trio.sleep(0.01)
        assert (token in front.logs) is (place == "query")
