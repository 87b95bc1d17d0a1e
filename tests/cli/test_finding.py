"""Which server a command talks to, and with which token. No server runs here."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.cli.strangers import Stranger
from web import cli
from web.commands import line
from web.commands.failures import UsageError
from web.commands.finding import client_of, find
from web.identity.keyring import load_or_create_key
from web.server.listening_file import LISTENING_FILE, announced


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


# The token


def test_the_token_given_wins_over_the_variable_and_the_local_key(monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_create_key(Path("data"))
    Path("mine").write_text("from-file\n")
    monkeypatch.setenv("AVICENNA_TOKEN", "from-environment")
    assert client_of(parsed("status", "--token", "from-option")).credentials.token() == "from-option"
    assert client_of(parsed("status", "--token-file", "mine")).credentials.token() == "from-file"
    assert client_of(parsed("status")).credentials.token() == "from-environment"


def test_a_token_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from-a-pipe\r\n")))
    assert client_of(parsed("tail", "42", "--token-file", "-")).credentials.token() == "from-a-pipe"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_create_key(Path("data"))
    for name in ("TOKEN", "URL", "DATA", "CONFIG"):
        monkeypatch.setenv(f"AVICENNA_{name}", "")
    client = client_of(parsed("status"), "operate")
    assert client.credentials.renewable
    assert client.url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "options",
    [
        ["--token", ""],
        ["--token", "two words"],
        ["--token-file", "absent"],
        ["--token-file", "empty"],
        ["--token-file", "."],
        ["--token", "a", "--token-file", "empty"],
    ],
)
def test_what_is_no_token_is_refused_and_no_other_one_is_taken(options: list[str]) -> None:
    load_or_create_key(Path("data"))
    Path("empty").touch()
    with pytest.raises(UsageError):
        client_of(parsed("status", *options), "operate")


@pytest.mark.parametrize(
    ("argv", "scope"),
    [
        (["status"], "operate"),
        (["actors", "list"], "operate"),
        (["actors", "show", "42"], "operate"),
        (["actors", "restart", "42"], "operate"),
        (["actors", "stop", "42"], "operate"),
        (["diagnoses", "add", "42", "--owner", "o"], "register"),
        (["diagnoses", "list"], "register"),
        (["diagnoses", "remove", "42"], "register"),
        (["publish", "feedback", "42", "--feedback-id", "1", "--rating", "5"], "broadcast"),
        (["tail", "42", "--no-reconnect"], "monitor"),
        (["check"], "operate"),
        (["backup", "copy.db"], "operate"),
    ],
    ids=" ".join,
)
def test_whoever_listens_gets_a_short_token_with_the_one_right_the_command_needs(
    argv: list[str], scope: str, stranger: Stranger
) -> None:
    key, _ = load_or_create_key(Path("data"))
    assert cli.main([*argv, "--url", stranger.url]) == 4
    claims = claims_of(stranger.tokens[0], key)
    assert claims["sub"] == "local-operator"
    assert claims["scope"] == scope
    assert claims["exp"] - claims["iat"] <= 600


def test_who_has_the_key_of_another_directory_is_told_which_key_it_was(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detail = "the token is not valid"
    stranger.answer = lambda: (401, {"status": 401, "code": "unauthenticated", "detail": detail})
    load_or_create_key(Path("data"))
    load_or_create_key(Path("other"))
    for options, key_file in ((["--data", "other"], "other/jwt.key"), ([], "data/jwt.key")):
        assert cli.main(["status", "--url", stranger.url, *options]) == 4
        said = capsys.readouterr().err
        assert said.startswith(f"avicenna-live: unauthenticated: {detail} (the token was made with the key {key_file}:")
        assert "--data" in said
    monkeypatch.setenv("AVICENNA_TOKEN", "given")
    assert cli.main(["status", "--url", stranger.url]) == 4
    assert capsys.readouterr().err == f"avicenna-live: unauthenticated: {detail}\n"


def test_without_a_key_the_commands_are_anonymous_and_make_none() -> None:
    assert client_of(parsed("status"), "operate").credentials.token() is None
    assert not Path("data").exists()


def test_a_key_that_merely_lies_here_makes_no_token_for_another_machine() -> None:
    load_or_create_key(Path("data"))

    def token(*options: str) -> str | None:
        return client_of(parsed("status", *options), "operate").credentials.token()

    assert token("--url", "http://live.example") is None
    assert token("--url", "http://live.example", "--data", "data")
    assert token("--url", "http://localhost:1")
    assert token("--url", "unix:live.sock")


def test_help_names_no_option_that_shows_the_token_to_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["status", "--help"])
    said = capsys.readouterr().out
    assert "--token-file FILE" in said
    assert "AVICENNA_TOKEN" in said
    assert "--token " not in said


# The server


def test_the_url_comes_from_the_option_the_variable_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(parsed("status")).url == "http://127.0.0.1:8000"
    monkeypatch.setenv("AVICENNA_URL", "https://live.example/")
    assert find(parsed("status")).url == "https://live.example"
    assert find(parsed("status", "--url", "http://[::1]:9000")).url == "http://[::1]:9000"
    with pytest.raises(UsageError):
        find(parsed("status", "--url", ""))


@pytest.fixture
def running() -> Iterator[str]:
    """A server listens, as `there/listening.json` says."""
    Path("there").mkdir()
    with announced(Path("there"), ["http://127.0.0.1:9007"]):
        yield "http://127.0.0.1:9007"


def test_the_server_of_a_data_directory_is_found_by_option_variable_and_settings_file(
    running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("live.toml").write_text('data = "there"\n')
    assert find(parsed("status", "--data", "there")).url == running
    assert find(parsed("status", "--config", "live.toml")).url == running
    for name, value in (("DATA", "there"), ("CONFIG", "live.toml")):
        with monkeypatch.context() as changed:
            changed.setenv(f"AVICENNA_{name}", value)
            assert find(parsed("status")).url == running
    Path("there").rename("data")
    assert find(parsed("status")).url == running


def test_a_url_wins_over_what_a_data_directory_says(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(parsed("status", "--data", "there", "--url", "http://localhost:1")).url == "http://localhost:1"
    monkeypatch.setenv("AVICENNA_URL", "http://localhost:2")
    assert find(parsed("status", "--data", "there")).url == "http://localhost:2"


def test_a_unix_socket_is_preferred(tmp_path: Path) -> None:
    with announced(tmp_path, ["http://127.0.0.1:9007", "unix:live.sock"]):
        assert find(parsed("status", "--data", str(tmp_path))).url == f"unix:{tmp_path}/live.sock"


def test_every_interface_is_said_as_a_client_can_use_it(tmp_path: Path) -> None:
    for url, said in (("http://0.0.0.0:80", "http://127.0.0.1:80"), ("http://[::]:80", "http://[::1]:80")):
        with announced(tmp_path, [url]):
            assert find(parsed("status", "--data", str(tmp_path))).url == said


def test_the_key_beside_the_file_makes_the_token_for_the_address_it_names() -> None:
    load_or_create_key(Path("data"))
    with announced(Path("data"), ["http://192.0.2.7:8000"]):
        client = client_of(parsed("status"), "operate")
    assert client.url == "http://192.0.2.7:8000"
    assert client.credentials.token()


def test_the_file_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / LISTENING_FILE
    with announced(tmp_path, ["http://127.0.0.1:1"]):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text()) == {"urls": ["http://127.0.0.1:1"], "pid": os.getpid(), "workers": 1}
        assert list(tmp_path.iterdir()) == [file]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_server_has_put_in_its_place_stays(tmp_path: Path) -> None:
    file = tmp_path / LISTENING_FILE
    with announced(tmp_path, ["http://127.0.0.1:1"]):
        file.unlink()
        file.write_text("other")
    assert file.read_text() == "other"


def left_behind() -> str:
    content = json.dumps({"urls": ["http://192.0.2.7:1"], "pid": 1})
    Path("data", LISTENING_FILE).write_text(content)
    return "was left by a server that has ended"


def linked() -> str:
    Path("data", LISTENING_FILE).symlink_to(Path("elsewhere", LISTENING_FILE).absolute())
    return "it is a symbolic link"


def writable() -> str:
    Path("data", LISTENING_FILE).touch()
    Path("data", LISTENING_FILE).chmod(0o666)
    return "others than its owner can change it"


def a_pipe() -> str:
    os.mkfifo(Path("data", LISTENING_FILE), 0o600)
    return "it is no file"


@pytest.mark.parametrize("make", [left_behind, linked, writable, a_pipe])
def test_a_file_that_cannot_be_relied_on_is_said_to_be_so_and_misleads_nobody(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    Path("elsewhere").mkdir()
    with announced(Path("elsewhere"), ["http://192.0.2.7:1"]):
        why = make()
        assert find(parsed("status")).url == "http://127.0.0.1:8000"
    said = capsys.readouterr().err
    assert "data/listening.json" in said
    assert why in said
    assert said.endswith("; trying http://127.0.0.1:8000\n")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"urls": []}', '{"urls": [1]}', '{"urls": "http://h"}', "[" * 10**5]
)
def test_a_file_that_says_nothing_is_said_to_be_so(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with announced(tmp_path, ["http://192.0.2.7:1"]):
        (tmp_path / LISTENING_FILE).write_text(content)
        assert find(parsed("status", "--data", str(tmp_path))).url == "http://127.0.0.1:8000"
    assert "does not say where the server listens" in capsys.readouterr().err


def test_the_file_of_another_user_counts_only_where_its_directory_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    with announced(Path("data"), ["http://192.0.2.7:1"]):
        if os.geteuid() == 0:
            os.chown(Path("data", LISTENING_FILE), 12345, 12345)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert find(parsed("status")).url == "http://127.0.0.1:8000"
        assert "is another user's" in capsys.readouterr().err
        assert find(parsed("status", "--data", "data")).url == "http://192.0.2.7:1"


def test_who_finds_nobody_is_told_how_the_address_was_found(
    unused_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    with announced(Path("data"), [unused_url]):
        assert cli.main(["status"]) == 3
    assert capsys.readouterr().err == (
        f"avicenna-live: cannot reach {unused_url}: Connection refused (as it says in data)\n"
    )
    monkeypatch.setattr("web.commands.finding.URL_DEFAULT", unused_url)
    assert cli.main(["status"]) == 3
    assert capsys.readouterr().err == (
        f"avicenna-live: cannot reach {unused_url}: Connection refused "
        "(there is no data/listening.json; name the server with --data or --url)\n"
    )
