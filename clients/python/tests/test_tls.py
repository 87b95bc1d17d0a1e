"""A server behind TLS, whose certificate is trusted or not."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import pytest

from avicenna_live import Backoff, Follower, Status
from avicenna_live.items import Event
from tests.frames import connect, feedback
from tests.scripted import Scripted, say
from tests.served import PYTHON

pytestmark = pytest.mark.anyio

MAKE: Final = """
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
made = (
    x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    .add_extension(alternative, critical=True).sign(key, hashes.SHA256())
)
encoded = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
open(sys.argv[1], "wb").write(encoded + made.public_bytes(serialization.Encoding.PEM))
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, and its key."""
    if not PYTHON.exists():
        pytest.skip("the environment of the checkout is missing: make setup")
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    subprocess.run([PYTHON, "-c", MAKE, file], check=True)
    return file


@pytest.fixture
def secured(certificate: Path) -> Iterator[Scripted]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Scripted(context) as server:
        yield server


async def test_it_follows_over_tls(secured: Scripted, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secured.play(say(connect(head=1, queued=1), feedback(1)))
    async with Follower(secured.url, token="tkn") as live:
        item = await anext(live.follow(42))
        assert isinstance(item, Event)
        assert item.seq == 1
    assert await secured.next_close() == 1000


async def test_a_certificate_that_nobody_trusts_gets_no_token(secured: Scripted) -> None:
    statuses: list[Status] = []
    follower = Follower(
        secured.url, token="tkn", on_state=lambda _, status: statuses.append(status), backoff=Backoff(0.01, 0.01)
    )
    async with follower as live, anyio.create_task_group() as tasks:
        tasks.start_soon(anext, live.follow(42))
        while len(statuses) < 3:
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert "certificate verify failed" in str(statuses[1].reason)
    assert (statuses[1].state, statuses[1].code) == ("offline", None)
    assert not secured.requests
