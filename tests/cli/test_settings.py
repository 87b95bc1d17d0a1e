"""Settings: where they come from, and how a wrong one is refused."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from web import cli
from web.server.settings import Settings, SettingsError, load, settings_page

ROOT = Path(__file__).parents[2]


def test_a_server_starts_without_any_setting() -> None:
    settings = load({})
    assert (settings.host, settings.port, settings.data) == ("127.0.0.1", 8000, Path("data"))
    assert not settings.allow_anonymous
    assert settings.durability == "full"


def test_the_environment_wins_over_the_file_and_an_option_over_both(tmp_path: Path) -> None:
    file = tmp_path / "live.toml"
    file.write_text('host = "::1"\nport = 9001\nquarantine_seconds = 5\nallowed_origins = ["https://a.example"]\n')
    settings = load({"AVICENNA_CONFIG": str(file), "AVICENNA_PORT": "9002"}, options={"host": "0.0.0.0", "data": None})
    assert (settings.host, settings.port, settings.quarantine_seconds) == ("0.0.0.0", 9002, 5.0)
    assert settings.allowed_origins == ("https://a.example",)


def test_a_file_named_by_option_wins_over_the_one_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "live.toml"
    file.write_text("port = 9001\n")
    assert load({"AVICENNA_CONFIG": "absent.toml"}, config=file).port == 9001


def test_a_list_in_a_variable_is_separated_by_commas() -> None:
    settings = load({"AVICENNA_ALLOWED_ORIGINS": "https://a.example, http://b.example:8080/"})
    assert settings.allowed_origins == ("https://a.example", "http://b.example:8080")


def test_an_empty_variable_counts_as_unset() -> None:
    assert load({"AVICENNA_PORT": "", "AVICENNA_ISSUER": ""}) == load({})


def test_variables_of_other_programs_and_of_the_client_commands_are_no_settings() -> None:
    assert load({"PORT": "x", "AVICENNA_URL": "http://example.org", "AVICENNA_TOKEN": "t"}) == load({})


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("AVICENNA_PORT", "65536", "AVICENNA_PORT must be an integer 0-65535; it is '65536'"),
        ("AVICENNA_PORT", "1_0", "AVICENNA_PORT must be an integer 0-65535"),
        ("AVICENNA_PORT", "-1", "AVICENNA_PORT must be an integer 0-65535"),
        ("AVICENNA_QUARANTINE_SECONDS", "nan", "AVICENNA_QUARANTINE_SECONDS must be a number 0.01-86400 (seconds)"),
        ("AVICENNA_ALLOW_ANONYMOUS", "maybe", "AVICENNA_ALLOW_ANONYMOUS must be true or false"),
        ("AVICENNA_DURABILITY", "none", "AVICENNA_DURABILITY must be full or normal"),
        ("AVICENNA_LOG_LEVEL", "loud", "AVICENNA_LOG_LEVEL must be debug, info, warning or error"),
        ("AVICENNA_PUBLIC_URL", "https://a.example/path", "AVICENNA_PUBLIC_URL must be an origin"),
        ("AVICENNA_PUBLIC_URL", "https://user:word@a.example", "AVICENNA_PUBLIC_URL must be an origin"),
        ("AVICENNA_ALLOWED_ORIGINS", "https://a.example,*", "AVICENNA_ALLOWED_ORIGINS must be a list of at most 100"),
        ("AVICENNA_ISSUER", "a\nb", "AVICENNA_ISSUER must be 1-1000 printable characters"),
        ("AVICENNA_PROT", "1", "AVICENNA_PROT is not a setting; is AVICENNA_PORT meant?"),
        ("AVICENNA_DATA", __file__, "AVICENNA_DATA must be the path of a directory"),
    ],
)
def test_a_wrong_variable_is_named_with_its_limit_on_one_line(variable: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({variable: text})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("port = '8000'", "port in {file} must be an integer 0-65535; it is '8000'"),
        ("port = true", "port in {file} must be an integer"),
        ("prt = 1", "prt in {file} is not a setting; is port meant?"),
        ("allowed_origins = 'https://a.example'", "allowed_origins in {file} must be a list"),
        ("port = ", "the settings file {file} is not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "live.toml"
    file.write_text(content)
    with pytest.raises(SettingsError) as refused:
        load({}, config=file)
    assert said.format(file=file) in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        load({}, config=tmp_path / "absent.toml")


def test_a_wrong_option_is_named_as_an_option() -> None:
    with pytest.raises(SettingsError, match=r"^--port must be an integer"):
        load({}, options={"port": "http"})


def test_settings_made_in_code_are_checked_too() -> None:
    assert Settings(port=0, quarantine_seconds=1).quarantine_seconds == 1.0
    with pytest.raises(SettingsError, match="port must be"):
        Settings(port=-1)


def test_settings_do_not_change_after_start() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load({}).port = 1  # type: ignore[misc]


def test_the_page_of_settings_is_the_one_the_declarations_make() -> None:
    page = (ROOT / "docs" / "SETTINGS.md").read_text()
    assert page == settings_page(), "docs/SETTINGS.md is out of date: run `make settings`"


def test_several_workers_have_more_patience_with_storage_unless_it_is_set() -> None:
    assert load({}).storage_seconds_max == load({}, options={"workers": 1}).storage_seconds_max == 5.0
    assert load({}, options={"workers": "2"}).storage_seconds_max == 10.0
    assert load({"AVICENNA_STORAGE_SECONDS_MAX": "5"}, options={"workers": 2}).storage_seconds_max == 5.0


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("DURABILITY", "normal", "durability must be full with engine = nats"),
        ("DAMAGED_DATABASE", "set_aside", "damaged_database must be refuse with engine = nats"),
        ("WORKERS", "2", "workers must be 1 with engine = nats: start more servers"),
        ("NATS_CERTIFICATE", "own.pem", "nats_certificate and nats_certificate_key must be given together"),
        ("NATS_URL", "nats://user:word@a.example", "AVICENNA_NATS_URL must be a list of at most 16, each HOST:PORT"),
        ("NATS_URL", "http://a.example", "AVICENNA_NATS_URL must be a list"),
        ("NATS_NAME", "two words", "AVICENNA_NATS_NAME must be 1-32 characters of A-Z a-z 0-9 _ -"),
    ],
)
def test_what_has_no_meaning_with_nats_is_refused_with_what_helps(variable: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({"AVICENNA_ENGINE": "nats", f"AVICENNA_{variable}": text})
    assert str(refused.value).startswith(said)


def test_nats_servers_are_named_by_address_with_or_without_scheme_and_port() -> None:
    given = "nats://a.example:4222, tls://[::1]:4223, b.example, [::2]"
    found = load({"AVICENNA_ENGINE": "nats", "AVICENNA_NATS_URL": given})
    assert found.nats_url == ("nats://a.example:4222", "tls://[::1]:4223", "b.example", "[::2]")


def test_several_servers_on_one_engine_are_given_their_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    line = ["serve", "--check", "--engine", "nats", "--data", str(data)]
    assert cli.main(line) == 2
    help_ = capsys.readouterr().err.rpartition("made once: ")[2].strip().removesuffix(")") + ")"
    assert subprocess.run(["sh", "-c", help_], check=False).returncode == 0
    assert (data / "jwt.key").stat().st_mode & 0o777 == 0o600
    assert cli.main(line) == 0
