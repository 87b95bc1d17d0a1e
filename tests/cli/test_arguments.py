"""The command line: what is taken, what is refused, and with which exit code. No server runs here."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import jwt
import pytest

from web import cli
from web.commands import line, publish
from web.commands.client import Client, Credentials
from web.commands.failures import UsageError
from web.identity.keyring import load_or_create_key


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFIG", "URL", "TOKEN", "DATA", "PORT"):
        monkeypatch.delenv(f"AVICENNA_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def parsed(*argv: str) -> Any:
    return line.parser().parse_args(argv)


def claims_of(token: str, key: bytes) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["HS256"])
    return claims


def test_the_help_names_what_runs_a_server_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert re.findall(r"^    (\w\S*)", capsys.readouterr().out, re.MULTILINE)[:3] == ["serve", "demo", "token"]


def test_token_prints_a_token_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, _ = load_or_create_key(tmp_path / "data")
    assert cli.main(["token", "--sub", "doctor-1", "--scope", "monitor  operate", "--ttl", "60"]) == 0
    printed = capsys.readouterr()
    claims = claims_of(printed.out.removesuffix("\n"), key)
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == ("doctor-1", "monitor operate", 60)
    assert claims["jti"]
    assert printed.err == ""


def test_token_makes_the_key_that_serve_would_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert cli.main(["token", "--sub", "s", "--data", "elsewhere"]) == 0
    printed = capsys.readouterr()
    file = tmp_path / "elsewhere" / "jwt.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert claims_of(printed.out.strip(), file.read_bytes())["sub"] == "s"
    assert printed.err == "made a new token key in elsewhere\n"


def test_token_finds_the_data_directory_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("AVICENNA_DATA", str(tmp_path / "there"))
    assert cli.main(["token", "--sub", "s"]) == 0
    assert claims_of(capsys.readouterr().out.strip(), (tmp_path / "there" / "jwt.key").read_bytes())


@pytest.mark.parametrize("data", [["--data", "typo"], []], ids=["a slip", "the default"])
def test_token_makes_no_directory(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "--sub", "s", *data]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    name = data[-1] if data else "data"
    assert printed.err.startswith(f"avicenna-live: there is no {name}: `avicenna-live serve --data {name}` makes it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scope", ["opperate", "monitor,operate", "operate Monitor", "monitor operate all", "*"])
def test_a_token_with_an_unknown_scope_is_not_made(scope: str, capsys: pytest.CaptureFixture[str]) -> None:
    load_or_create_key(Path("data"))
    assert cli.main(["token", "--sub", "s", "--scope", scope]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "--scope must be some of monitor, broadcast, register, operate; it names" in printed.err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["tokn"],
        ["token"],
        ["token", "--sub", "s", "--ttl", "0"],
        ["publish", "feedback", "42", "--feedback-id", "1", "--rating", "6"],
        ["publish", "effectiveness", "42", "--recommendation-id", "1", "--new-effectiveness", "1.2"],
        ["publish", "effectiveness", "42", "--recommendation-id", "1", "--new-effectiveness", "nan"],
        ["publish", "recommendation", "42", "--new-data", "[1]"],
        ["publish", "recommendation", "42", "--new-data", '{"a": NaN}'],
        ["publish", "recommendation", "42", "--new-dat", "{}"],
        ["publish", "feedback", "42", "--feedback-id", "1", "--rating", "5", "--idempotency-key", "a\nb"],
        ["publish", "feedback", "42", "--feedback-id", "1", "--rating", "5", "--idempotency-key", "مفتاح"],
        ["tail", "42", "--ack", "maybe"],
        ["diagnoses", "add", "42"],
    ],
)
def test_a_wrong_command_line_ends_with_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "--port", "http"], "avicenna-live: --port must be an integer 0-65535; it is 'http'\n"),
        (["serve", "--config", "absent.toml"], "avicenna-live: cannot read the settings file absent.toml: "),
        (["demo", "--port", "70000"], "avicenna-live: --port must be an integer 0-65535; it is '70000'\n"),
        (["status", "--url", "ftp://127.0.0.1"], "avicenna-live: the URL of the server must be http://HOST[:PORT]"),
        (["token", "--sub", ""], "avicenna-live: --sub must not be empty\n"),
        (["token", "--sub", "a\nb"], "avicenna-live: --sub must be a string of 1-256 characters"),
        (["token", "--sub", "\udcff"], "avicenna-live: --sub must be a string of 1-256 characters"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_an_unknown_variable_of_ours_stops_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVICENNA_PROT", "9000")
    assert cli.main(["serve"]) == 2
    assert "AVICENNA_PROT is not a setting; is AVICENNA_PORT meant?" in capsys.readouterr().err


def test_a_broadcast_holds_the_fields_that_were_given_and_no_others() -> None:
    arguments = parsed(
        *("publish", "effectiveness", "42", "--recommendation-id", "7", "--new-effectiveness", "1"),
        *("--sample-size", "0", "--herb", "mint"),
    )
    assert publish.body_of(arguments) == {
        "diagnosis_id": "42",
        "recommendation_id": 7,
        "new_effectiveness": 1.0,
        "sample_size": 0,
        "herb": "mint",
    }


@pytest.mark.parametrize(("text", "sent"), [("7", 7), ("0", 0), ("07", "07"), ("r-7", "r-7"), ("9" * 16, "9" * 16)])
def test_an_id_of_digits_is_sent_as_an_integer(text: str, sent: int | str) -> None:
    arguments = parsed("publish", "feedback", "42", "--feedback-id", text, "--rating", "5")
    assert publish.body_of(arguments)["feedback_id"] == sent


def test_objects_are_given_as_json() -> None:
    new = {"herb": "mint", "doses": [1, 2]}
    arguments = parsed("publish", "recommendation", "a", "--new-data", json.dumps(new), "--old-data", "{}")
    assert publish.body_of(arguments) == {"diagnosis_id": "a", "new_data": new, "old_data": {}}


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "http://",
        "http://u:p@host",
        "http://host:x",
        "http://host/?a=b",
        "http://h/a b",
        "unix:",
        "http://h/x",
        "http://h//",
        "https://h/a/",
        "http://h?",
        "http://h#",
    ],
)
def test_what_is_no_url_of_a_server_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        Client(url, Credentials())
    assert "u:p" not in str(refused.value)


def test_a_target_quotes_what_it_is_given() -> None:
    client = Client("https://live.example/", Credentials())
    assert client.target("diagnoses", "../x y") == "/diagnoses/..%2Fx%20y"
    assert client.target("ws", "42", query={"after": "1", "epoch": None}) == "/ws/42?after=1"
    assert Client("unix:/run/live.sock", Credentials()).target("actors", "\udcff") == "/actors/%FF"
