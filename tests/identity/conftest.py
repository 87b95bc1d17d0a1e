"""Keys, a clock that can be moved, and the server of the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from storage.clock import SystemClock
from tests.server.harness import Server, running_server
from web.server.settings import Settings

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class MovableClock(SystemClock):
    """The machine's clock, whose wall time a test can set forward."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead_seconds


def pem_of(key: PrivateKey) -> bytes:
    """The public half."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of the server under test: a free port and a database of its own."""
    return Settings(port=0, data=tmp_path / "data")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def server(settings: Settings, clock: MovableClock) -> AsyncIterator[Server]:
    """A running server whose time is `clock`."""
    async with running_server(settings, clock) as running:
        yield running
