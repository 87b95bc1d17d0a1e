"""SIGHUP: keys and certificates of authorities are read anew, and no connection notices."""

from __future__ import annotations

import signal
import ssl
import time
from pathlib import Path

import pytest
import trio

from tests.documents.test_nginx import certificate
from tests.identity.test_jwks import Source, web_of
from tests.logbook import LOGBOOK, Logbook
from tests.server.harness import Server
from tests.server.process import run, served
from web.identity.tokens import issue


async def data_with_key(directory: Path) -> None:
    """A data directory with a local key: where another key is configured, a server makes none."""
    assert (await run("new-database", "--data", directory))[0] == 0
    (directory / "jwt.key").write_bytes(b"l" * 32)
    (directory / "jwt.key").chmod(0o600)


async def until_said(logbook: Logbook, words: str, times: int = 1) -> None:
    with trio.fail_after(20):
        while "".join(logbook.lines).count(words) < times:
            await trio.sleep(0.01)


def token(secret: bytes, kid: str) -> str:
    LOGBOOK.note_key(secret)
    return issue(secret, sub="amira", scope="", ttl_seconds=600, now=time.time(), token_id="t", kid=kid)


async def status_of(server: Server, token: str) -> int:
    answer = await server.http.get("/diagnoses/42", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


@pytest.mark.one_process("workers are replaced")
async def test_a_reload_takes_up_keys_without_dropping_a_connection_and_keeps_them_if_one_is_broken(
    tmp_path: Path,
) -> None:
    file, logbook = tmp_path / "key", Logbook()
    before, after = b"b" * 32, b"a" * 32
    file.write_bytes(before)
    file.chmod(0o600)
    variables = {"AVICENNA_TOKEN_KEYS": f"HS256:{file}#main"}
    await data_with_key(tmp_path / "data")
    async with served(tmp_path / "data", logbook=logbook, **variables) as (process, server):
        await server.register()
        async with server.live() as client:
            assert (await status_of(server, token(before, "main")), await status_of(server, token(after, "main"))) == (
                200,
                401,
            )

            file.write_bytes(after)
            process.process.send_signal(signal.SIGHUP)
            await until_said(logbook, "keys read anew: 2")
            assert (await status_of(server, token(before, "main")), await status_of(server, token(after, "main"))) == (
                401,
                200,
            )

            file.write_bytes(b"short")
            process.process.send_signal(signal.SIGHUP)
            await until_said(logbook, "the keys stay as they were")
            assert f"the key file {file} cannot be used: an HS256 key must have at least 32 bytes" in "".join(
                logbook.lines
            )
            assert await status_of(server, token(after, "main")) == 200
            file.unlink()
            process.process.send_signal(signal.SIGHUP)
            await until_said(logbook, "the keys stay as they were", 2)
            assert await status_of(server, token(after, "main")) == 200

            await server.publish(1)
            assert (await client.events(1))[0]["seq"] == 1, "it was connected all the time"


@pytest.mark.one_process("workers are replaced")
async def test_a_reload_makes_no_local_key_in_place_of_a_missing_one(tmp_path: Path) -> None:
    logbook, key = Logbook(), tmp_path / "data" / "jwt.key"
    async with served(tmp_path / "data", logbook=logbook) as (process, server):
        await server.register()
        key.unlink()
        process.process.send_signal(signal.SIGHUP)
        await until_said(logbook, f"the keys stay as they were: {key} is missing")
        assert (await server.http.get("/diagnoses/42", headers=server.bearer("amira"))).status_code == 200
        assert not key.exists()


async def test_a_reload_fetches_the_keys_of_a_url_by_the_authorities_that_are_there_now(tmp_path: Path) -> None:
    source, logbook, authorities = Source(), Logbook(), tmp_path / "authorities.pem"
    (tmp_path / "other").mkdir()
    authorities.write_bytes(certificate(tmp_path / "other").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path), tmp_path / "live.key")
    await data_with_key(tmp_path / "data")
    with web_of({"/jwks": (200, {}, source.document)}, tls=context) as url:
        variables = {"AVICENNA_JWKS": f"{url}/jwks", "SSL_CERT_FILE": str(authorities)}
        async with served(tmp_path / "data", logbook=logbook, **variables) as (process, server):
            assert "the keys at 127.0.0.1 cannot be fetched, the last ones are kept" in "".join(logbook.lines)
            await server.register()
            authorities.write_bytes((tmp_path / "live.pem").read_bytes())
            process.process.send_signal(signal.SIGHUP)
            await until_said(logbook, "fetched 1 keys from 127.0.0.1")
            assert await status_of(server, source.token("first", time.time())) == 200
