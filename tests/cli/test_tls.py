"""What the commands say of a server behind TLS whose certificate, or whose port, is not the right one."""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from web import cli

TODAY = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)

COMMANDS = pytest.mark.parametrize("argv", [["status"], ["tail", "42"]], ids=" ".join)


class Handler(BaseHTTPRequestHandler):
    """Answers everything with 404."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class QuietServer(ThreadingHTTPServer):
    """Says nothing of a handshake that fails: that is what is tried here."""

    def handle_error(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(certificate: Path | None) -> Iterator[int]:
    """Something on a port, behind TLS if there is a certificate."""
    with QuietServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=HTTPServer.serve_forever, args=(server, 0.01))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def certificate(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A certificate that signs itself, for an address, until a time; in PEM, with its key."""
    name, until = getattr(request, "param", ("127.0.0.1", TODAY + DAY))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(TODAY - 3 * DAY)
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFIG", "URL", "DATA"):
        monkeypatch.delenv(f"AVICENNA_{name}", raising=False)
    monkeypatch.setenv("AVICENNA_TOKEN", "t")
    monkeypatch.chdir(tmp_path)


@COMMANDS
def test_a_certificate_nobody_vouches_for_is_named_as_the_reason(
    argv: list[str], certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(certificate) as port:
        assert cli.main([*argv, "--url", f"https://127.0.0.1:{port}"]) == 3
    assert capsys.readouterr().err == (
        f"avicenna-live: cannot reach https://127.0.0.1:{port}: "
        "its certificate cannot be verified: self-signed certificate\n"
    )


@COMMANDS
@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (("127.0.0.1", TODAY - DAY), "certificate has expired"),
        (("192.0.2.7", TODAY + DAY), "IP address mismatch"),
    ],
    indirect=["certificate"],
)
def test_a_certificate_of_another_time_or_host_is_said_to_be_so(
    argv: list[str], certificate: Path, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(certificate) as port:
        assert cli.main([*argv, "--url", f"https://127.0.0.1:{port}"]) == 3
    said = capsys.readouterr().err
    assert "its certificate cannot be verified" in said
    assert why in said


@COMMANDS
def test_a_port_without_tls_is_said_to_be_one(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(None) as port:
        assert cli.main([*argv, "--url", f"https://127.0.0.1:{port}"]) == 3
    assert capsys.readouterr().err.endswith("what answers there does not speak TLS; is http:// meant?\n")


@COMMANDS
def test_a_port_with_tls_is_not_taken_for_one_without(
    argv: list[str], certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(certificate) as port:
        assert cli.main([*argv, "--url", f"http://127.0.0.1:{port}"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"avicenna-live: cannot reach http://127.0.0.1:{port}: ")
    # A server that speaks TLS answers with an alert, or with nothing.
    assert said.endswith(f" --url https://127.0.0.1:{port}\n")
    assert any(why in said for why in ("speaks TLS", "ended without an answer", "Connection reset"))


@COMMANDS
def test_an_alert_of_tls_is_known_for_one(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with answering_once(bytes.fromhex("15030300020246")) as port:
        assert cli.main([*argv, "--url", f"http://127.0.0.1:{port}"]) == 3
    url = f"127.0.0.1:{port}"
    assert capsys.readouterr().err == (
        f"avicenna-live: cannot reach http://{url}: what answers there speaks TLS; give --url https://{url}\n"
    )


@COMMANDS
@pytest.mark.parametrize("with_reset", [True, False])
def test_a_server_that_breaks_off_may_speak_tls(
    with_reset: bool, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with answering_once(b"", with_reset=with_reset) as port:
        assert cli.main([*argv, "--url", f"http://127.0.0.1:{port}"]) == 3
    assert capsys.readouterr().err.endswith(f"; does it speak TLS? then --url https://127.0.0.1:{port}\n")


@contextmanager
def answering_once(answer: bytes, *, with_reset: bool = False) -> Iterator[int]:
    """Something that answers the first bytes of one connection so, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                if with_reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@COMMANDS
def test_a_certificate_that_is_trusted_is_enough(
    argv: list[str], certificate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(certificate) as port:
        # The other side answers 404, to one of them with a problem of no kind of ours.
        assert cli.main([*argv, "--url", f"https://127.0.0.1:{port}"]) in (1, 5)
    assert "404" in capsys.readouterr().err
