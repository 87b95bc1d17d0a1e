"""Who else may write the data directory, and what a start says about it."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import pytest
import trio

from storage.disk.database_files import locked, names_of
from storage.disk.trust import Found, check_directory, judge_directory, judge_files
from storage.errors import Untrusted
from tests.server.harness import begin
from tests.server.process import run, served
from web.identity.keyring import load_or_create_key
from web.server.cautions import caution_about_keys, caution_about_listening
from web.server.settings import Settings

DATA = Path("/srv/my data")
WE, SOMEBODY, A_THIRD = 1000, 1001, 1002
NAMES = ("jwt.key", *names_of("avicenna.db"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def directory(mode: int = 0o700, user: int = WE) -> Found:
    return Found(DATA, stat.S_IFDIR | mode, user)


def file(user: int = WE, kind: int = stat.S_IFREG, name: str = "jwt.key") -> Found:
    return Found(DATA / name, kind | 0o600, user)


# The rules


@pytest.mark.parametrize(("mode", "user", "we"), [(0o700, WE, WE), (0o755, 0, WE), (0o2750, WE, WE), (0o700, 0, 0)])
def test_a_directory_of_ours_or_of_root_that_nobody_else_may_write_is_trusted(mode: int, user: int, we: int) -> None:
    assert judge_directory([directory(mode, user)], we) == []


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o2777, 0o702])
@pytest.mark.parametrize(("user", "we"), [(WE, WE), (0, 0), (0, WE), (SOMEBODY, 0)])
def test_a_directory_everybody_may_write_is_refused(mode: int, user: int, we: int) -> None:
    with pytest.raises(Untrusted, match=r"avicenna-live serve --data '/srv/my data/avicenna'$"):
        judge_directory([directory(mode, user)], we)


def test_a_directory_of_somebody_else_is_refused_and_root_is_warned() -> None:
    with pytest.raises(Untrusted, match=r"belongs to user 1001, .*: chown -R 1000 '/srv/my data'$"):
        judge_directory([directory(user=SOMEBODY)], WE)
    (warning,) = judge_directory([directory(user=SOMEBODY)], 0)
    assert warning.endswith("belongs to user 1001, and the server runs as root: chown -R 0 '/srv/my data'")


def test_a_directory_its_group_may_write_is_warned_about() -> None:
    for user, we in ((WE, WE), (0, WE), (0, 0)):
        (warning,) = judge_directory([directory(0o2775, user)], we)
        assert warning.endswith("(mode 2775), and replace what is in it: chmod g-w '/srv/my data'")


def test_whoever_owns_a_link_to_the_directory_can_point_it_elsewhere() -> None:
    link = Found(DATA, stat.S_IFLNK | 0o777, SOMEBODY)
    with pytest.raises(Untrusted, match=r"is a link that belongs to user 1001, .*: chown -h 1000"):
        judge_directory([directory(), link], WE)
    assert len(judge_directory([directory(user=0), link], 0)) == 1
    assert judge_directory([directory(), Found(DATA, stat.S_IFLNK | 0o777, 0)], WE) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_a_link_or_no_file_is_refused(name: str) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFSOCK):
        with pytest.raises(Untrusted, match=f"mv '/srv/my data/{name}' '/srv/my data/{name}.aside'$"):
            judge_files([file(kind=kind, name=name)], directory(), WE)


def test_a_file_of_a_third_user_is_refused() -> None:
    for owner, we in ((WE, WE), (0, WE), (SOMEBODY, 0), (0, 0)):
        with pytest.raises(Untrusted, match=rf"belongs to user 1002, .*: chown {we} '/srv/my data/jwt.key'$"):
            judge_files([file(A_THIRD)], directory(user=owner), we)
        judge_files([file(owner), file(0), file(we)], directory(user=owner), we)


# On a disk


def test_what_is_not_there_yet_is_trusted(tmp_path: Path) -> None:
    assert check_directory(tmp_path / "data", NAMES) == []


def test_what_a_server_makes_is_trusted_also_through_a_link_of_ours(tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "data")
    (tmp_path / "link").symlink_to("data")
    assert check_directory(tmp_path / "data", NAMES) == check_directory(tmp_path / "link", NAMES) == []


async def test_the_command_a_refusal_gives_makes_the_next_start_work(tmp_path: Path) -> None:
    data = tmp_path / "a volume"
    data.mkdir()
    data.chmod(0o777)
    code, _, stderr = await run("serve", "--port", "0", "--data", data)
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"cannot start: everybody can write the data directory {data} (mode 0777)" in stderr
    assert list(data.iterdir()) == []
    command = shlex.split(stderr.partition("below it: ")[2])
    assert command[:3] == ["avicenna-live", "serve", "--data"]
    async with served(Path(command[3])) as (process, _):
        assert await process.stop() == 0
    assert stat.S_IMODE(Path(command[3]).stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["jwt.key", "avicenna.db", "avicenna.db.lock", "avicenna.db-wal"])
async def test_a_planted_link_is_refused_and_what_it_points_to_is_not_touched(tmp_path: Path, name: str) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    begin(data)
    elsewhere.write_bytes(b"k" * 32)
    (data / name).unlink(missing_ok=True)
    (data / name).symlink_to(elsewhere)
    code, _, stderr = await run("serve", "--port", "0", "--data", data)
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"cannot start: {data / name} is a symbolic link" in stderr
    assert elsewhere.read_bytes() == b"k" * 32
    await trio.run_process(stderr.partition("none there: ")[2].strip(), shell=True)
    if name == "avicenna.db":
        (data / "jwt.key").unlink()  # a key without a database is refused, too
    async with served(data) as (process, _):
        assert await process.stop() == 0


def test_no_lock_is_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "avicenna.db.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted, match=r"mv .*avicenna\.db\.lock .*\.aside$"), locked(tmp_path / "avicenna.db"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@needs_root
async def test_a_planted_key_of_somebody_else_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    load_or_create_key(data)
    os.chown(data / "jwt.key", A_THIRD, -1)
    code, _, stderr = await run("serve", "--port", "0", "--data", data)
    assert code == 2
    assert f"cannot start: {data / 'jwt.key'} belongs to user 1002, and the server runs as user 0" in stderr


@needs_root
async def test_root_is_warned_in_a_directory_of_somebody_until_the_command_was_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    begin(data)
    for path in (data, *data.iterdir()):
        os.chown(path, SOMEBODY, SOMEBODY)
    (warning,) = check_directory(data, NAMES)
    async with served(data) as (process, _):
        assert await process.stop() == 0
    await trio.run_process(warning.partition("as root: ")[2], shell=True)
    assert check_directory(data, NAMES) == []


async def test_a_group_that_may_write_is_one_warning_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    load_or_create_key(data)
    data.chmod(0o770)
    (warning,) = check_directory(data, NAMES)
    await trio.run_process(warning.partition("in it: ")[2], shell=True)
    assert check_directory(data, NAMES) == []


# What works and is risky


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (Settings(), None),
        (Settings(token_keys=("HS256:/secret#a",)), None),  # type: ignore[arg-type]
        (Settings(token_keys=("RS256:/key",)), "issuer and audience"),  # type: ignore[arg-type]
        (Settings(token_keys=("HS256:/secret", "EdDSA:/key")), "issuer and audience"),  # type: ignore[arg-type]
        (Settings(jwks="https://idp.example/jwks"), "issuer and audience"),
        (Settings(jwks="/jwks.json", issuer="i"), "audience"),
        (Settings(jwks="/jwks.json", audience="a"), "issuer"),
        (Settings(jwks="/jwks.json", issuer="i", audience="a"), None),
    ],
)
def test_public_keys_without_issuer_and_audience_are_warned_about(settings: Settings, missing: str | None) -> None:
    warning = caution_about_keys(settings)
    assert (warning is None) is (missing is None)
    assert missing is None or f"without {missing}:" in (warning or "")


@pytest.mark.parametrize(
    ("address", "is_warned"),
    [
        ("127.0.0.1", False),
        ("127.0.0.2", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.1", True),
        ("fe80::1%lo", True),
    ],
)
def test_anonymous_followers_from_other_machines_are_warned_about(address: str, is_warned: bool) -> None:
    warning = caution_about_listening(Settings(allow_anonymous=True), address)
    assert (warning is not None) is is_warned
    assert caution_about_listening(Settings(), address) is None


@pytest.mark.by_workers
async def test_a_start_warns_once_about_each(tmp_path: Path) -> None:
    data, document = tmp_path / "data", tmp_path / "jwks.json"
    begin(data)
    document.write_text('{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}')
    data.chmod(0o770)
    code, _, stderr = await run(
        "serve",
        *("--host", "0.0.0.0", "--port", "0", "--data", data),
        AVICENNA_ALLOW_ANONYMOUS="true",
        AVICENNA_JWKS=str(document),
        AVICENNA_UNIX_SOCKET=str(tmp_path / "absent" / "socket"),
    )
    assert code == 2, "the Unix socket cannot be made, which ends it after everything was looked at"
    said = [line for line in stderr.splitlines() if "WARNING" in line]
    for text in ("the group can write", "without issuer and audience", "without a token (allow_anonymous)"):
        assert len([line for line in said if text in line]) == 1
