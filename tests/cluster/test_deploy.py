"""The configuration of NATS servers that `deploy` holds: what our servers do is allowed by it, and nothing else is.

The server speaks TLS alone, and wants to see a certificate.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.clock import SystemClock
from storage.errors import CannotOpen
from storage.names import new_id
from storage.nats.connection import Connection
from storage.nats.errors import Denied
from storage.nats.wire import Outgoing
from tests.cluster.nodes import directory_with_key, start_node, variables_of
from tests.cluster.servers import NatsServer, nats_servers
from tests.cluster.test_nats import certificate
from tests.logbook import Logbook
from tests.programs import program
from tests.server.harness import Server, running_server
from web.operating.audit_rows import AUDIT_ROWS
from web.server import nats_engine
from web.server.settings import load

pytestmark = [pytest.mark.cluster, pytest.mark.one_process]

SHIPPED = Path(__file__).parents[2] / "deploy" / "nats" / "nats-server.conf"


def nkey(prefix: bytes, raw: bytes) -> str:
    """The text of an nkey: what it is, the key, and its checksum."""
    data = prefix + raw
    return base64.b32encode(data + binascii.crc_hqx(data, 0).to_bytes(2, "little")).decode().rstrip("=")


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file with the seed of a user, and the user's public key."""
    raw = secrets.token_bytes(32)
    public = Ed25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    file = tmp_path_factory.mktemp("seed") / "user.nk"
    # The kinds "seed" and "user" share the first two bytes (five bits each).
    file.write_text(nkey(bytes([18 << 3 | (20 << 3) >> 5, ((20 << 3) & 31) << 3]), raw) + "\n")
    file.chmod(0o600)
    return file, nkey(bytes([20 << 3]), public)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that vouches for the server and for us, and its key."""
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def variables(guarded: NatsServer, seed: tuple[Path, str], certified: tuple[Path, Path]) -> dict[str, str]:
    """Those of a server of ours that this NATS server takes."""
    cert, key = certified
    return variables_of([guarded], "avicenna") | {
        "AVICENNA_NATS_URL": f"tls://{guarded.address}",
        "AVICENNA_NATS_CREDENTIALS": str(seed[0]),
        "AVICENNA_NATS_CA": str(cert),
        "AVICENNA_NATS_CERTIFICATE": str(cert),
        "AVICENNA_NATS_CERTIFICATE_KEY": str(key),
    }


@pytest.fixture(scope="module")
def guarded(
    seed: tuple[Path, str], certified: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NatsServer]:
    """One server with the permissions that are shipped."""
    cert, key = certified
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{cert}", verify: true }}\n'
    found = re.search(r"^authorization \{.*^\}", SHIPPED.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    permissions = found[0].replace("$AVICENNA_NKEY", seed[1])
    with nats_servers(tmp_path_factory.mktemp("nats"), more=tls + permissions) as (server,):
        yield server


async def test_our_servers_may_do_all_they_do(variables: dict[str, str], tmp_path: Path, logbook: Logbook) -> None:
    given = variables | {
        "AVICENNA_ACCESS_TRAIL": "true",
        "AVICENNA_PORT": "0",
        "AVICENNA_DATA": str(directory_with_key(tmp_path / "data")),
    }
    async with running_server(load(given)) as server:
        await server.register(42, "amira", "bo")
        async with server.live(device="phone", ack="app") as client:
            body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5, "comment": "x"}
            answer = await server.post("feedback", body, **{"Idempotency-Key": "key-of-the-first-one"})
            assert answer.json()["seq"] == 1
            (event,) = await client.events(1)
            await client.say(type="ack", seq=event["seq"])
            await client.next_of("acked")
        headers = server.bearer("op", "operate")
        for method, path, asked in (
            ("DELETE", "/actors/42/outbox", None),
            ("POST", "/revocations", {"sub": "bo"}),
            ("DELETE", "/subjects/bo", None),
            ("POST", "/check", None),
            ("GET", "/audit", None),
            ("GET", "/accesses", None),
        ):
            found = await server.http.request(method, path, json=asked, headers=headers)
            assert found.status_code in (200, 201, 204), (path, found.text)
        await server.http.delete("/diagnoses/42", headers=server.bearer("registrar", "register"))
    assert not any("does not let us" in line for line in logbook.lines)


async def test_a_process_of_its_own_serves_by_tls_with_a_user_and_says_why_it_cannot(
    variables: dict[str, str], tmp_path: Path
) -> None:
    node = start_node(directory_with_key(tmp_path / "data"), variables)
    try:
        await trio.to_thread.run_sync(node.wait)
        async with Server(node.url, node.data) as server:
            await server.register(43)
            async with server.live(43) as client:
                assert (await server.publish(1, 43)).json()["seq"] == 1
                assert [one["seq"] for one in await client.events(1)] == [1]
        assert await trio.to_thread.run_sync(node.end) == 0
    finally:
        node.process.kill()
    without = {name: value for name, value in variables.items() if "CERTIFICATE" not in name}
    refused = start_node(directory_with_key(tmp_path / "refused"), without)
    assert await trio.to_thread.run_sync(partial(refused.process.wait, 60)) == 2
    assert "the NATS server at 127.0.0.1" in refused.log


async def test_nobody_else_may_and_our_user_nothing_else(guarded: NatsServer, variables: dict[str, str]) -> None:
    nameless = {name: value for name, value in variables.items() if "CREDENTIALS" not in name}
    ours, nobody, unencrypted = (
        nats_engine.connection_of(load(variables), "a"),
        nats_engine.connection_of(load(nameless), "b"),
        Connection([guarded.address], name="c", new_id=new_id, jitter=lambda: 0.5),
    )
    async with trio.open_nursery() as nursery:
        for one in (ours, nobody, unencrypted):
            nursery.start_soon(one.run)
        with trio.fail_after(30):
            await ours.up.wait()
            for subject in ("$JS.API.STREAM.DELETE.avicenna", "avicenna.x", "$JS.API.STREAM.INFO.other"):
                with pytest.raises(Denied):
                    await ours.request(Outgoing(subject, b""))
            while nobody.refused is None or unencrypted.refused is None:
                await trio.sleep(0.01)
        assert "no user is configured" in str(nobody.refused)
        assert "wants TLS" in str(unencrypted.refused)
        nursery.cancel_scope.cancel()


async def test_a_server_with_another_name_is_told_what_it_may_not(variables: dict[str, str], tmp_path: Path) -> None:
    given = variables | {"AVICENNA_NATS_NAME": "other", "AVICENNA_DATA": str(tmp_path)}
    says = pytest.RaisesExc(CannotOpen, match=r"the user may not publish to \$JS\.API\.STREAM\.INFO\.other")
    with pytest.RaisesGroup(says, flatten_subgroups=True):
        async with nats_engine.open_nats(load(given), SystemClock(), AUDIT_ROWS):
            pass


def test_the_whole_configuration_is_understood(seed: tuple[Path, str], tmp_path: Path) -> None:
    environment = os.environ | {"NATS_NODE": "n1", "NATS_STORE": str(tmp_path), "AVICENNA_NKEY": seed[1]}
    done = subprocess.run(
        [program("nats-server"), "-t", "-c", str(SHIPPED)], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
