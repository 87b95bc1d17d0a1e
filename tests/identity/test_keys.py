"""Keys: what a file or a JWKS document may hold, and what an operator is told about a wrong one."""

from __future__ import annotations

import json
import logging
import subprocess
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import example, given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from storage.records import Revocation
from tests.identity.conftest import PrivateKey, pem_of
from tests.server.process import COMMAND
from web import cli
from web.contract.errors import Problem
from web.contract.wire import decode_revocation
from web.identity.keyring import load_keys
from web.identity.keys import Key, KeySpec, KeyUnusable, hmac_key, keys_of_jwks, load_key_file
from web.identity.revoked import Revoked
from web.identity.tokens import (
    VERIFIED_TOKENS_MAX,
    KeysMissing,
    TokenError,
    TokenExpired,
    TokenInvalid,
    TokenRevoked,
    Verifier,
    issue,
)
from web.identity.unknown_keys import UnknownKeys
from web.server.settings import Settings, SettingsError, load

NOW = 1_800_000_000.0
SECRET = b"s" * 32


def claims(**changes: object) -> dict[str, object]:
    return {"sub": "amira", "iat": int(NOW), "exp": int(NOW) + 600, **changes}


def spec(file: Path, content: bytes, algorithm: str, kid: str | None = None) -> KeySpec:
    file.write_bytes(content)
    return KeySpec(algorithm, file, kid)


def test_each_algorithm_has_its_kind_of_key(
    tmp_path: Path, rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey, ed_key: ed25519.Ed25519PrivateKey
) -> None:
    pairs: dict[str, PrivateKey] = {"RS256": rsa_key, "ES256": ec_key, "EdDSA": ed_key}
    for algorithm, private in pairs.items():
        verifier = Verifier([load_key_file(spec(tmp_path / "key", pem_of(private), algorithm))], Revoked())
        assert verifier.verify(jwt.encode(claims(), private, algorithm), NOW).sub == "amira"
        for other in pairs.keys() - {algorithm}:
            with pytest.raises(KeyUnusable, match=f"holds no {other} key"):
                load_key_file(spec(tmp_path / "key", pem_of(private), other))


def test_the_newline_at_the_end_of_a_secret_that_is_text_is_no_part_of_it(tmp_path: Path) -> None:
    text = b"a secret that is text, and long enough"
    assert load_key_file(spec(tmp_path / "k", text + b"\n", "HS256")).material == text
    assert load_key_file(spec(tmp_path / "k", text + b"\r\n", "HS256")).material == text
    raw = b"\x00" * 31 + b"\n"
    assert load_key_file(spec(tmp_path / "k", raw, "HS256")).material == raw


def private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("algorithm", "content", "said"),
    [
        ("HS256", b"short\n", "at least 32 bytes, this one has 5"),
        ("HS256", pem_of(ec.generate_private_key(ec.SECP256R1())), "a public key, a certificate or a JWK"),
        ("HS256", b'{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}', "a public key, a certificate or a JWK"),
        ("RS256", b"", "public key in PEM"),
        ("RS256", b"nonsense", "public key in PEM"),
        ("RS256", b"x" * 70_000, "at most 65536 bytes"),
        ("ES256", pem_of(ec.generate_private_key(ec.SECP384R1())), "holds no ES256 key"),
        ("RS256", pem_of(rsa.generate_private_key(65537, 1024)), "at least 2048 bits"),
        ("EdDSA", private_pem(ed25519.Ed25519PrivateKey.generate()), "public key in PEM"),
    ],
)
def test_a_wrong_key_file_is_named_and_explained(tmp_path: Path, algorithm: str, content: bytes, said: str) -> None:
    with pytest.raises(KeyUnusable) as refused:
        load_key_file(spec(tmp_path / "the-key", content, algorithm))
    assert "the-key" in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "HS512:/key",
        "none:/key",
        "/key",
        "HS256:",
        "HS256:/key#",
        "HS256",
        "RS256:/key#" + "k" * 201,
        ":/key",
        "HS256:/old#2025 HS256:/new#2026",
        "HS256:/old EdDSA:/new#2026",
    ],
)
def test_a_key_that_is_wrongly_named_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="AVICENNA_TOKEN_KEYS must be a list"):
        load({"AVICENNA_TOKEN_KEYS": text})


@pytest.mark.parametrize(
    "text", ["http://idp.example/jwks", "ftp://idp.example", "https://", "https://u:p@idp.example", "https://a b"]
)
def test_a_jwks_url_must_be_https_unless_it_is_on_this_machine(text: str) -> None:
    with pytest.raises(SettingsError, match="AVICENNA_JWKS must be an https"):
        load({"AVICENNA_JWKS": text})
    assert load({"AVICENNA_JWKS": "http://127.0.0.1:8080/jwks"}).jwks


def test_a_server_without_any_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="local_key must be true"):
        load({"AVICENNA_LOCAL_KEY": "false"})


@pytest.mark.parametrize("kind", ["a missing file", "a wrong file", "two of one name", "a wrong JWKS file"])
async def test_a_key_that_cannot_be_used_is_one_clear_line_and_exit_2(tmp_path: Path, kind: str) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(SECRET)
    bad.write_text("nonsense")
    variables = {
        "a missing file": {"AVICENNA_TOKEN_KEYS": f"RS256:{tmp_path}/absent"},
        "a wrong file": {"AVICENNA_TOKEN_KEYS": f"RS256:{bad}"},
        "two of one name": {"AVICENNA_TOKEN_KEYS": f"HS256:{good}#a,HS256:{good}#a"},
        "a wrong JWKS file": {"AVICENNA_JWKS": str(bad)},
    }[kind]
    command = [str(COMMAND), "serve", "--port", "0", "--data", str(tmp_path / "data")]
    done = await trio.run_process(
        command, check=False, capture_stderr=True, stdout=subprocess.DEVNULL, env={"PATH": "", **variables}
    )
    assert done.returncode == 2
    said = done.stderr.decode()
    assert said.count("\n") == 1
    assert "cannot start" in said


# JWKS documents


def jwk_of(key: PrivateKey, **more: Any) -> dict[str, Any]:
    match key:
        case rsa.RSAPrivateKey():
            made = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case ec.EllipticCurvePrivateKey():
            made = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case _:
            made = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**{name: value for name, value in made.items() if name != "key_ops"}, **more}


def test_the_usable_keys_of_a_jwks_document_are_taken_and_the_others_passed_over(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey, ed_key: ed25519.Ed25519PrivateKey
) -> None:
    document = {
        "keys": [
            jwk_of(rsa_key, kid="r", use="sig", alg="RS256"),
            jwk_of(ec_key, kid="e"),
            jwk_of(ed_key, kid="o"),
            jwk_of(rsa_key, kid="encrypts", use="enc"),
            jwk_of(rsa_key, kid="PS256", alg="PS256"),
            jwk_of(ec.generate_private_key(ec.SECP384R1()), kid="P-384"),
            jwk_of(rsa_key, kid=7),
            {"kty": "oct", "kid": "secret", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            {"kty": []},
            "nonsense",
        ]
    }
    assert {(key.algorithm, key.kid) for key in keys_of_jwks(document)} == {
        ("RS256", "r"),
        ("ES256", "e"),
        ("EdDSA", "o"),
    }


@pytest.mark.parametrize("kid", [None, "the same"])
def test_all_keys_of_one_name_or_of_none_are_tried_up_to_eight(kid: str | None) -> None:
    private = [ed25519.Ed25519PrivateKey.generate() for _ in range(9)]
    named = {} if kid is None else {"kid": kid}
    verifier = Verifier(keys_of_jwks({"keys": [jwk_of(key, **named) for key in private]}), Revoked())

    def is_accepted(key: ed25519.Ed25519PrivateKey) -> bool:
        try:
            verifier.verify(jwt.encode(claims(), key, "EdDSA", headers=named), NOW)
        except TokenError:
            return False
        return True

    assert [is_accepted(key) for key in private] == [True] * 8 + [False]
    assert verifier.keys_never_tried == 1


def test_a_jwks_file_may_have_one_kid_twice_and_keys_beyond_eight_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jwks.json"
    for count in (2, 10):
        document = {"keys": [jwk_of(ed25519.Ed25519PrivateKey.generate(), kid="k") for _ in range(count)]}
        file.write_text(json.dumps(document))
        assert len(load_keys(Settings(data=tmp_path / "data", jwks=str(file)))) == count
    assert [record.getMessage()[:22] for record in caplog.records] == ["2 keys are never tried"]


@pytest.mark.parametrize(
    ("members", "is_taken"),
    [
        ({}, True),
        ({"use": "sig"}, True),
        ({"use": "enc"}, False),
        ({"use": ["sig"]}, False),
        ({"key_ops": ["verify"]}, True),
        ({"key_ops": ["sign", "verify"]}, True),
        ({"key_ops": ["verify", "encrypt"]}, True),
        ({"key_ops": []}, False),
        ({"key_ops": ["sign"]}, False),
        ({"key_ops": ["encrypt"]}, False),
        ({"key_ops": "verify"}, False),
        ({"key_ops": None}, False),
        ({"key_ops": ["verify", 7]}, False),
        ({"key_ops": ["verify", "verify"]}, False),
        ({"use": "sig", "key_ops": ["verify"]}, True),
        ({"use": "sig", "key_ops": ["sign"]}, False),
        ({"use": "enc", "key_ops": ["verify"]}, False),
        ({"use": "sig", "key_ops": ["verify", "wrapKey"]}, False),
    ],
)
def test_what_a_key_is_for_is_honoured(
    ed_key: ed25519.Ed25519PrivateKey, members: dict[str, object], is_taken: bool
) -> None:
    other = jwk_of(ed25519.Ed25519PrivateKey.generate(), kid="other")
    found = keys_of_jwks({"keys": [other, jwk_of(ed_key, kid="k", **members)]})
    assert ("k" in [key.kid for key in found]) is is_taken


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": []}, {"keys": [{}] * 101}])
def test_what_is_no_jwks_document_is_refused(document: object) -> None:
    with pytest.raises(KeyUnusable):
        keys_of_jwks(document)


# The verifier


def test_keys_rotate_by_kid_and_a_fetched_set_replaces_the_one_before() -> None:
    verifier = Verifier([hmac_key(SECRET, "configured")], Revoked(), unknown=UnknownKeys())
    old, new = (jwt.encode(claims(), SECRET, "HS256", headers={"kid": kid}) for kid in ("old", "new"))
    with pytest.raises(KeysMissing):
        verifier.verify(old, NOW)
    verifier.take_fetched([hmac_key(SECRET, "old"), hmac_key(SECRET, "new")])
    assert verifier.verify(old, NOW) == verifier.verify(new, NOW)
    verifier.take_fetched([hmac_key(SECRET, "new")])
    with pytest.raises(TokenError):
        verifier.verify(old, NOW)
    assert verifier.verify(new, NOW).sub == "amira"
    assert verifier.verify(jwt.encode(claims(), SECRET, "HS256", headers={"kid": "configured"}), NOW).sub == "amira"


def test_whoever_was_verified_with_a_key_is_not_accepted_once_the_key_is_withdrawn() -> None:
    verifier = Verifier([hmac_key(SECRET, "configured")], Revoked(), unknown=UnknownKeys())
    verifier.take_fetched([hmac_key(SECRET, "fetched")])
    fetched, configured = (
        verifier.verify(jwt.encode(claims(), SECRET, "HS256", headers={"kid": kid}), NOW)
        for kid in ("fetched", "configured")
    )
    verifier.take_fetched([hmac_key(SECRET, "fetched")])
    verifier.check(fetched, NOW)
    verifier.take_fetched([hmac_key(SECRET, "another")])
    verifier.check(configured, NOW)
    with pytest.raises(TokenInvalid, match="withdrawn"):
        verifier.check(fetched, NOW)


def test_a_token_that_is_remembered_still_expires_and_can_be_revoked() -> None:
    revoked = Revoked()
    verifier = Verifier([hmac_key(SECRET)], revoked)
    token = jwt.encode(claims(jti="t"), SECRET, "HS256")
    assert verifier.verify(token, NOW) is verifier.verify(token, NOW)
    with pytest.raises(TokenExpired):
        verifier.verify(token, NOW + 610)
    revocation = Revocation(1, None, "t", NOW, covers_until=NOW)
    revoked.add(revocation)
    with pytest.raises(TokenRevoked):
        verifier.verify(token, NOW)
    revoked.lift(revocation)
    assert verifier.verify(token, NOW).sub == "amira"
    revoked.add(Revocation(2, "amira", None, NOW, covers_until=NOW))
    with pytest.raises(TokenRevoked):
        verifier.verify(token, NOW)
    revoked.lift(Revocation(2, "amira", None, NOW, covers_until=NOW))
    assert verifier.verify(token, NOW).sub == "amira"


def test_a_token_that_is_from_the_future_since_the_clock_was_set_back_is_older_than_a_revocation() -> None:
    revoked = Revoked()
    verifier = Verifier([hmac_key(SECRET)], revoked)
    token = jwt.encode(claims(), SECRET, "HS256")
    verifier.verify(token, NOW)
    back = NOW - 86_400
    revoked.add(Revocation(1, "amira", None, back, covers_until=back + 10))
    with pytest.raises(TokenRevoked):
        verifier.verify(token, back)


def test_a_lifted_revocation_does_not_lift_the_one_that_took_its_place() -> None:
    first = Revocation(1, "amira", None, NOW, covers_until=NOW)
    second = Revocation(2, "amira", None, NOW + 1, covers_until=NOW + 1)
    revoked = Revoked([first, second])
    revoked.lift(first)
    assert revoked.covering("amira", None, NOW) == second


def test_the_memory_for_verified_tokens_is_bounded() -> None:
    verifier = Verifier([hmac_key(SECRET)], Revoked())
    first = jwt.encode(claims(jti="first"), SECRET, "HS256")
    who = verifier.verify(first, NOW)
    for number in range(VERIFIED_TOKENS_MAX):
        verifier.verify(jwt.encode(claims(jti=str(number)), SECRET, "HS256"), NOW)
    assert len(verifier._verified) == VERIFIED_TOKENS_MAX
    assert verifier.verify(first, NOW) is not who


@given(st.text(max_size=300) | st.text(alphabet="j\n\0\x7f\x80\ud800\u2028", min_size=1, max_size=257))
@example("j" * 256)
@example("j" * 257)
@example("")
def test_a_token_is_accepted_exactly_if_its_jti_can_be_revoked(token_id: str) -> None:
    body = json.dumps({"jti": token_id}).encode()
    try:
        is_revocable = decode_revocation(body).jti == token_id
    except Problem:
        is_revocable = False
    token = jwt.encode(claims(jti=token_id), SECRET, "HS256")
    try:
        is_accepted = Verifier([hmac_key(SECRET)], Revoked()).verify(token, NOW).token_id == token_id
    except TokenInvalid:
        is_accepted = False
    assert is_accepted is is_revocable


def test_a_key_shows_nothing_of_itself() -> None:
    assert "sss" not in repr(Key("HS256", None, SECRET))


# The command


def test_a_token_can_be_made_with_a_named_key_and_never_lives_longer_than_the_server_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "k").write_bytes(SECRET)
    monkeypatch.setenv("AVICENNA_TOKEN_KEYS", f"HS256:{tmp_path}/k#new")
    monkeypatch.setenv("AVICENNA_DATA", str(tmp_path / "data"))
    assert cli.main(["token", "--sub", "amira", "--kid", "new"]) == 0
    token = capsys.readouterr().out.strip()
    assert Verifier([hmac_key(SECRET, "new")], Revoked()).verify(token, time.time()).sub == "amira"
    assert not (tmp_path / "data").exists()
    assert cli.main(["token", "--sub", "amira", "--kid", "absent"]) == 2
    assert cli.main(["token", "--sub", "amira", "--ttl", str(31 * 86_400)]) == 2
    assert "--ttl must be at most 2592000 (token_lifetime_seconds_max)" in capsys.readouterr().err


def test_a_token_made_here_says_when_it_was_issued_and_which_key_made_it() -> None:
    token = issue(SECRET, sub="amira", scope="", ttl_seconds=60, now=NOW + 0.7, token_id="t", kid="k")
    assert jwt.get_unverified_header(token)["kid"] == "k"
    payload = token.split(".")[1]
    decoded = jwt.utils.base64url_decode(payload)
    assert json.loads(decoded)["iat"] == NOW


@pytest.mark.parametrize(("mode", "is_private"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_a_secret_that_others_can_read_is_warned_about_by_its_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rsa_key: rsa.RSAPrivateKey, mode: int, is_private: bool
) -> None:
    local, secret, public = tmp_path / "jwt.key", tmp_path / "secret", tmp_path / "public"
    configured = (spec(secret, b"t" * 32, "HS256", "a"), spec(public, pem_of(rsa_key), "RS256", "b"))
    local.write_bytes(SECRET)
    for file in (local, secret, public):
        file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert len(load_keys(Settings(data=tmp_path, token_keys=configured))) == 3
    warned = [(record.levelname, record.getMessage()) for record in caplog.records]
    advice = f"can be read by others than its owner (mode {mode:04o}): make it 0600"
    expected = [("WARNING", f"the secret key {file} {advice}") for file in (secret, local)]
    assert warned == ([] if is_private else expected)


def test_a_key_that_was_just_made_is_private(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_keys(Settings(data=tmp_path / "data"))
        load_keys(Settings(data=tmp_path / "data"))
    assert caplog.records == []
