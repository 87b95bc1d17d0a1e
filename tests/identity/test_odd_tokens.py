"""Forged and odd tokens: each is refused, with the right answer, on every transport."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.identity.conftest import pem_of
from tests.logbook import Logbook
from tests.server.harness import Server, begin, open_socket, running_server
from web.server.settings import Settings

DAY: Final = 86_400
ISSUER, AUDIENCE = "https://idp.example", "avicenna"


class Forge:
    """Makes tokens that no library would make."""

    def __init__(self, server: Server, rsa_key: rsa.RSAPrivateKey) -> None:
        self.server = server
        self.rsa_key = rsa_key
        self.now = int(time.time())

    @property
    def claims(self) -> dict[str, Any]:
        """Those of a good token."""
        now = self.now
        return {"sub": "amira", "scope": "", "iat": now, "exp": now + 600, "iss": ISSUER, "aud": AUDIENCE}

    def good(self, **changes: Any) -> str:
        """A token made with the local key, with some claims changed; those that are `...` are left out."""
        claims = {name: value for name, value in {**self.claims, **changes}.items() if value is not ...}
        return self.raw({"alg": "HS256", "typ": "JWT"}, claims)

    def raw(self, header: dict[str, Any] | bytes, claims: dict[str, Any] | bytes, key: bytes | None = None) -> str:
        """Signed with HMAC, whatever the header says."""
        parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
        text = b".".join(_encoded(part) for part in parts)
        signature = hmac.digest(key or self.server.key, text, hashlib.sha256)
        return (text + b"." + _encoded(signature)).decode()

    def with_header(self, **header: Any) -> str:
        """A token whose header says more."""
        return self.raw({"alg": "HS256", "typ": "JWT", **header}, self.claims)

    def with_text(self, old: str, new: str) -> str:
        """A token whose claims are a JSON text that no encoder makes."""
        return self.raw({"alg": "HS256"}, json.dumps(self.claims).replace(old, new).encode())


def _encoded(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def _tampered(token: str) -> str:
    head, claims, signature = token.split(".")
    return f"{head}.{claims}.{('B' if signature[0] == 'A' else 'A') + signature[1:]}"


def _with_spare_bit(part: str) -> str:
    """The part, spelled otherwise: decoders ignore the last bit of the last character."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(part) % 4 in (2, 3)
    return part[:-1] + alphabet[alphabet.index(part[-1]) + 1]


def _with_spare_bit_in(forge: Forge, place: int) -> str:
    """A good token, but for the spelling of one part; header and claims are signed as they are spelled."""
    claims = forge.claims
    while len(json.dumps(claims)) % 3 == 0:
        claims["sub"] += "a"
    parts = [_encoded(json.dumps(part).encode()).decode() for part in ({"alg": "HS256"}, claims)]
    if place < 2:
        parts[place] = _with_spare_bit(parts[place])
    text = ".".join(parts)
    signature = _encoded(hmac.digest(forge.server.key, text.encode(), hashlib.sha256)).decode()
    return f"{text}.{_with_spare_bit(signature) if place == 2 else signature}"


INVALID, EXPIRED = (
    ("unauthenticated", "invalid_token", "invalid token"),
    ("token_expired", "token_expired", "token expired"),
)
"""Code of the problem, code of the error frame, reason of the close."""

ODD: dict[str, Callable[[Forge], str]] = {
    "empty": lambda f: "",
    "nonsense": lambda f: "nonsense",
    "two parts": lambda f: "e30.e30",
    "four parts": lambda f: f.good() + ".e30",
    "an empty signature": lambda f: f.good().rsplit(".", 1)[0] + ".",
    "a changed signature": lambda f: _tampered(f.good()),
    "characters outside the alphabet": lambda f: f.good() + "!",
    "padding": lambda f: f.good() + "=",
    "a spare bit in its header": lambda f: _with_spare_bit_in(f, 0),
    "a spare bit in its claims": lambda f: _with_spare_bit_in(f, 1),
    "a spare bit in its signature": lambda f: _with_spare_bit_in(f, 2),
    "not ASCII": lambda f: f.good() + "\u00e9",
    "alg none": lambda f: f.raw({"alg": "none"}, f.claims).rsplit(".", 1)[0] + ".",
    "alg none with a signature": lambda f: f.raw({"alg": "none"}, f.claims),
    "alg None": lambda f: f.raw({"alg": None}, f.claims),
    "no alg": lambda f: f.raw({"typ": "JWT"}, f.claims),
    "alg as a list": lambda f: f.raw({"alg": ["HS256"]}, f.claims),
    "alg in small letters": lambda f: f.raw({"alg": "hs256"}, f.claims),
    "alg HS512 with the same key": lambda f: jwt.encode(f.claims, f.server.key * 2, "HS512"),
    "another key": lambda f: f.raw({"alg": "HS256"}, f.claims, b"x" * 32),
    "HS256 signed with the RSA public key": lambda f: f.raw(
        {"alg": "HS256", "kid": "rsa"}, f.claims, pem_of(f.rsa_key)
    ),
    "HS256 signed with it and no kid": lambda f: f.raw({"alg": "HS256"}, f.claims, pem_of(f.rsa_key)),
    "RS256 by an unknown key": lambda f: jwt.encode(
        f.claims, rsa.generate_private_key(65537, 2048), "RS256", headers={"kid": "rsa"}
    ),
    "RS256 without its kid": lambda f: jwt.encode(f.claims, f.rsa_key, "RS256"),
    "kid of another key": lambda f: jwt.encode(f.claims, f.rsa_key, "RS256", headers={"kid": "ec"}),
    "kid with a path": lambda f: f.with_header(kid="../../../dev/null"),
    "kid of the local key's file": lambda f: f.with_header(kid="jwt.key"),
    "kid as SQL": lambda f: f.with_header(kid="' OR 1=1 --"),
    "kid as a number": lambda f: f.with_header(kid=1),
    "kid null": lambda f: f.with_header(kid=None),
    "kid null byte": lambda f: f.with_header(kid="rsa\0"),
    "crit": lambda f: f.with_header(crit=["exp"]),
    "crit empty": lambda f: f.with_header(crit=[]),
    "b64 false": lambda f: f.with_header(b64=False),
    "typ of another kind": lambda f: f.with_header(typ="dpop+jwt"),
    "typ of an id token": lambda f: f.with_header(typ="id_token+jwt"),
    "typ of a logout token": lambda f: f.with_header(typ="logout+jwt"),
    "typ JWS": lambda f: f.with_header(typ="JOSE"),
    "typ at+jwt and more": lambda f: f.with_header(typ="at+jwt;a=b"),
    "typ empty": lambda f: f.with_header(typ=""),
    "typ null": lambda f: f.with_header(typ=None),
    "typ a list": lambda f: f.with_header(typ=["JWT"]),
    "a header twice": lambda f: f.raw(b'{"alg":"none","alg":"HS256"}', f.claims),
    "a header that is a list": lambda f: f.raw(b'["HS256"]', f.claims),
    "a claim twice": lambda f: f.with_text('"sub": "amira"', '"sub": "mallory", "sub": "amira"'),
    "a claim twice within another": lambda f: f.with_text('"scope": ""', '"scope": "", "x": {"a": 1, "a": 2}'),
    "claims that are a list": lambda f: f.raw({"alg": "HS256"}, b"[]"),
    "claims that are no JSON": lambda f: f.raw({"alg": "HS256"}, b"{"),
    "claims that are not UTF-8": lambda f: f.raw({"alg": "HS256"}, b'{"sub":"\xff"}'),
    "claims a thousand levels deep": lambda f: f.raw({"alg": "HS256"}, b"[" * 3000),
    "NaN": lambda f: f.with_text('"scope": ""', '"scope": "", "x": NaN'),
    "no exp": lambda f: f.good(exp=...),
    "exp null": lambda f: f.good(exp=None),
    "exp 1e308": lambda f: f.with_text(str(f.now + 600), "1e308"),
    "exp beyond any number": lambda f: f.with_text(str(f.now + 600), "9" * 400),
    "exp a fraction": lambda f: f.good(exp=f.now + 600.5),
    "exp a fraction of a millionth": lambda f: f.with_text(str(f.now + 600), f"{f.now + 600}.000001"),
    "exp with an exponent and a fraction": lambda f: f.with_text(str(f.now + 600), f"{f.now + 600}5e-1"),
    "exp 1e400": lambda f: f.with_text(str(f.now + 600), "1e400"),
    "iat a fraction": lambda f: f.good(iat=f.now - 0.5),
    "nbf a fraction": lambda f: f.good(nbf=f.now - 0.5),
    "a number beyond any double somewhere": lambda f: f.with_text('"scope": ""', '"scope": "", "x": 1e400'),
    "exp a string": lambda f: f.good(exp=str(f.now + 600)),
    "exp true": lambda f: f.good(exp=True),
    "exp negative": lambda f: f.good(exp=-1),
    "a life above the cap": lambda f: f.good(exp=f.now + 30 * DAY + 1),
    "a life above the cap, iat unsaid": lambda f: f.good(iat=..., exp=f.now + 31 * DAY),
    "iat in the future": lambda f: f.good(iat=f.now + 300),
    "iat a string": lambda f: f.good(iat=str(f.now)),
    "nbf in the future": lambda f: f.good(nbf=f.now + 300),
    "nbf a string": lambda f: f.good(nbf="0"),
    "no sub": lambda f: f.good(sub=...),
    "sub empty": lambda f: f.good(sub=""),
    "sub null": lambda f: f.good(sub=None),
    "sub a number": lambda f: f.good(sub=7),
    "sub a list": lambda f: f.good(sub=["amira"]),
    "sub with a line break": lambda f: f.good(sub="amira\nop"),
    "sub half a character": lambda f: f.good(sub="\ud800"),
    "sub too long": lambda f: f.good(sub="a" * 257),
    "scope a list": lambda f: f.good(scope=["operate"]),
    "scope null": lambda f: f.good(scope=None),
    "jti a number": lambda f: f.good(jti=7),
    "jti empty": lambda f: f.good(jti=""),
    "jti too long": lambda f: f.good(jti="j" * 257),
    "jti with a line break": lambda f: f.good(jti="j\n"),
    "jti with a null": lambda f: f.good(jti="j\0"),
    "jti with a delete character": lambda f: f.good(jti="j\x7f"),
    "jti half a character": lambda f: f.good(jti="\udfff"),
    "another issuer": lambda f: f.good(iss="https://evil.example"),
    "no issuer": lambda f: f.good(iss=...),
    "issuer a list": lambda f: f.good(iss=[ISSUER]),
    "another audience": lambda f: f.good(aud="other"),
    "no audience": lambda f: f.good(aud=...),
    "audience an object": lambda f: f.good(aud={AUDIENCE: True}),
    "more than 7 KiB": lambda f: f.good(padding="x" * 6000),
}
LATE: dict[str, Callable[[Forge], str]] = {
    "expired": lambda f: f.good(iat=f.now - 600, exp=f.now - 60),
    "expired, iat unsaid": lambda f: f.good(iat=..., exp=f.now - 60),
}
CASES = [(name, make, INVALID) for name, make in ODD.items()] + [(name, make, EXPIRED) for name, make in LATE.items()]


async def over_http(server: Server, token: str) -> tuple[str, int]:
    """Code of the problem, and the status."""
    return await refused_at(server, "/diagnoses/42/position", token)


async def over_sse(server: Server, token: str) -> tuple[str, int]:
    """The same of an event stream."""
    return await refused_at(server, "/diagnoses/42/events", token)


async def refused_at(server: Server, path: str, token: str) -> tuple[str, int]:
    """Code of the problem, and the status."""
    answer = await server.http.get(path, headers=[(b"Authorization", f"Bearer {token}".strip().encode("latin-1"))])
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["code"], answer.status_code


async def over_websocket(server: Server, token: str) -> tuple[str, int, str]:
    """Code of the error frame, close code and reason."""
    url = server.url.replace("http://", "ws://") + "/ws/42"
    async with open_socket(url, extra_headers=[("Authorization", f"Bearer {token}".strip())]) as client:
        frames, code, reason = await client.close_frames()
    assert [frame["type"] for frame in frames] == ["error"]
    assert not token or token not in json.dumps(frames)
    return frames[0]["data"]["code"], code, reason


@pytest.fixture
async def server(
    settings: Settings, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> AsyncIterator[Server]:
    """A server with an issuer, an audience, the local key, and an RSA and an EC key of an identity provider."""
    for name, key in (("rsa", rsa_key), ("ec", ec_key)):
        (settings.data.parent / f"{name}.pem").write_bytes(pem_of(key))
    begin(settings.data)
    configured = Settings(
        port=0,
        data=settings.data,
        issuer=ISSUER,
        audience=AUDIENCE,
        token_keys=(
            f"RS256:{settings.data.parent}/rsa.pem#rsa",
            f"ES256:{settings.data.parent}/ec.pem#ec",
        ),  # type: ignore[arg-type]
    )
    async with running_server(configured) as running:
        yield running


async def test_forged_and_odd_tokens_are_refused_everywhere(server: Server, rsa_key: rsa.RSAPrivateKey) -> None:
    forge = Forge(server, rsa_key)
    transports: list[Callable[[Server, str], Awaitable[tuple[Any, ...]]]] = [over_http, over_sse, over_websocket]
    wrong: list[object] = []

    async def check(name: str, token: str, codes: tuple[str, str, str]) -> None:
        problem_code, frame_code, reason = codes
        for transport in transports:
            if not token.isascii() and transport is over_websocket:
                continue  # no header can carry it
            got = await transport(server, token)
            wanted = (frame_code, 1008, reason) if transport is over_websocket else (problem_code, 401)
            if got != wanted:
                wrong.append((name, transport.__name__, got))

    async with trio.open_nursery() as nursery:
        for name, make, codes in CASES:
            nursery.start_soon(check, name, make(forge), codes)
    assert wrong == []


WHY: Final = {
    "nonsense": "it is not three parts of base64url",
    "more than 7 KiB": "it has more than 7168 bytes",
    "crit": "its header has crit or b64",
    "RS256 without its kid": "no key known here has its kid and alg",
    "a changed signature": "its signature does not fit its key",
    "no exp": "exp is missing",
    "expired": "the token has expired",
    "iat in the future": "nbf or iat is in the future",
    "a life above the cap": "it lives for more than 2592000 s",
    "another issuer": "iss is another issuer's",
    "another audience": "aud names somebody else",
    "sub a number": "sub must be a text",
    "exp a string": "exp must be whole seconds",
    "a claim twice": "a name twice",
}
"""What the operator reads."""


async def test_the_log_says_why_a_token_was_not_accepted_with_the_id_of_the_request(
    server: Server, rsa_key: rsa.RSAPrivateKey, logbook: Logbook
) -> None:
    forge = Forge(server, rsa_key)
    for name, why in WHY.items():
        token = (ODD | LATE)[name](forge)
        answer = await server.http.get("/diagnoses/42/position", headers={"Authorization": f"Bearer {token}"})
        (line,) = [one for one in logbook.lines if "a token was not accepted" in one]
        assert f"not accepted: {why}" in line or why in line
        assert f"[{answer.headers['X-Request-ID']}]" in line
        assert " INFO " in line
        assert token not in "".join(logbook.lines)
        logbook.lines.clear()
    await over_websocket(server, forge.good(iss=...))
    (line,) = [one for one in logbook.lines if "a token was not accepted" in one]
    (opened,) = [one for one in logbook.lines if "GET /ws/42 WebSocket" in one]
    assert line.rpartition("[")[2] == opened.rpartition("[")[2]


async def test_a_token_of_60_kb_is_refused(server: Server, rsa_key: rsa.RSAPrivateKey) -> None:
    token = Forge(server, rsa_key).good(padding="x" * 45_000)
    answer = await server.http.get("/ws/status", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code in (400, 401, 431)


async def test_good_tokens_pass(server: Server, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey) -> None:
    forge = Forge(server, rsa_key)
    now = forge.now
    good = {
        "as it is": forge.good(),
        "an audience list": forge.good(aud=["other", AUDIENCE]),
        "no iat": forge.good(iat=...),
        "no scope": forge.good(scope=...),
        "the longest life": forge.good(exp=now + 30 * DAY),
        "clocks apart": forge.good(iat=now + 5, nbf=now + 5),
        "just expired": forge.good(iat=now - 600, exp=now - 3),
        "the longest jti": forge.good(jti="\u0661" * 256),
        "no typ": forge.raw({"alg": "HS256"}, forge.claims),
        "typ in small letters": forge.with_header(typ="jwt"),
        "typ of an access token": forge.with_header(typ="at+jwt"),
        "typ of an access token in full": forge.with_header(typ="application/AT+JWT"),
        "times with a fraction of zero": forge.good(exp=float(now + 600), iat=float(now), nbf=float(now)),
        "exp with an exponent": forge.with_text(str(now + 600), f"{(now + 600) / 1e9:.9f}e+09"),
        "by the RSA key": jwt.encode(forge.claims, rsa_key, "RS256", headers={"kid": "rsa"}),
        "by the EC key": jwt.encode(forge.claims, ec_key, "ES256", headers={"kid": "ec"}),
    }
    refused = [
        name
        for name, token in good.items()
        if (await server.http.get("/ws/status", headers={"Authorization": f"Bearer {token}"})).status_code != 200
    ]
    assert refused == []
