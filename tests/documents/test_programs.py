"""A test that wants a program skips where it is missing, and fails where `.ci/run` says that it is there."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from tests import programs
from tests.programs import REQUIRED, ROOT

PROGRAMS = ("cc", "node", "npm", "chromium", "nginx", "haproxy", "promtool", "caddy", "systemd-analyze", "zsh", "fish")


def test_a_program_that_is_there_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chromium = tmp_path / "chromium-browser"
    chromium.write_text("#!/bin/sh\n")
    chromium.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.program("chromium") == str(chromium)


def test_a_missing_program_skips_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(REQUIRED, "npm nginx")
    with pytest.raises(pytest.skip.Exception, match=r"^node is not installed"):
        programs.program("node")


def test_a_missing_program_that_ci_has_installed_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(REQUIRED, "npm node")
    with pytest.raises(pytest.fail.Exception, match="node is not installed"):
        programs.program("node")


def test_missing_npm_packages_skip_or_fail_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRED, "npm")
    with pytest.raises(pytest.skip.Exception, match="make node-packages"):
        programs.node_package("no-such-package")
    monkeypatch.setenv(REQUIRED, "npm npm-packages")
    with pytest.raises(pytest.fail.Exception, match="make node-packages"):
        programs.node_package("no-such-package")


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A directory whose programs say what they were asked for, in `said`, and do nothing."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("bash", "cat", "dirname", "mkdir", "timeout", "rm", "chmod", "sh", "env", "tee", "grep"):
        found = next(Path(place, name) for place in ("/bin", "/usr/bin") if Path(place, name).exists())
        (directory / name).symlink_to(found)
    return directory


CACHED = ".pytest_cache/v/cache"


def stand_in(directory: Path, name: str, does: str = "") -> None:
    (directory / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{directory}/said"\n{does}\n')
    (directory / name).chmod(0o755)


def ci(stand_ins: Path, code: int = 0) -> tuple[str, str]:
    """What `.ci/run` prints with nothing but these programs, and what it asked them for; it must exit with this."""
    root = stand_ins.parent / "clone"
    (root / ".ci").mkdir(parents=True)
    (root / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text().replace("/usr/sbin", str(stand_ins)))
    done = subprocess.run(
        [str(stand_ins / "bash"), str(root / ".ci" / "run")],
        env={"PATH": str(stand_ins)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout, (stand_ins / "said").read_text()


def test_ci_with_every_program_allows_no_skip(stand_ins: Path) -> None:
    for name in PROGRAMS:
        stand_in(stand_ins, name)
    stand_in(stand_ins, "make", 'echo "required: $REQUIRED_PROGRAMS"')
    printed, said = ci(stand_ins)
    assert said.splitlines() == ["make -s node-packages", "make -s nats-server", "make check"]
    assert set(printed.split()) == {"required:", "python-client", *PROGRAMS, "npm-packages", "nats-server"}


def test_ci_as_root_installs_what_is_missing_and_starts_nothing(stand_ins: Path) -> None:
    stand_in(stand_ins, "id", "echo 0")
    stand_in(stand_ins, "make", 'echo "required: $REQUIRED_PROGRAMS"')
    installs = f'for name in {" ".join(PROGRAMS)}; do cp "{stand_ins}/id" "{stand_ins}/$name"; done'
    stand_in(
        stand_ins,
        "apt-get",
        f'[ "$2" = update ] || {{ cat "{stand_ins}/policy-rc.d" >>"{stand_ins}/said"; {installs}; }}',
    )
    (stand_ins / "cp").symlink_to("/bin/cp")
    printed, said = ci(stand_ins)
    assert "exit 101" in said, "services may start as they are installed"
    assert not (stand_ins / "policy-rc.d").exists()
    assert set(printed.split()) == {"required:", "python-client", *PROGRAMS, "npm-packages", "nats-server"}


@pytest.mark.parametrize(("user", "reason"), [("0", "apt-get failed"), ("1000", "needs root")])
def test_ci_that_cannot_install_says_so_in_one_line_and_goes_on(stand_ins: Path, user: str, reason: str) -> None:
    stand_in(stand_ins, "id", f"echo {user}")
    stand_in(stand_ins, "apt-get", "exit 100")
    stand_in(stand_ins, "make", 'echo "required: $REQUIRED_PROGRAMS"')
    printed, _ = ci(stand_ins)
    line, required = printed.splitlines()
    assert reason in line
    assert {"build-essential", "nodejs", "npm", "chromium", "nginx", "haproxy", "prometheus"} < set(line.split())
    assert required.split() == ["required:", "python-client", "nats-server"]
    assert not (stand_ins / "policy-rc.d").exists()


def test_ci_without_registries_says_so_in_one_line_each_and_goes_on(stand_ins: Path) -> None:
    for name in PROGRAMS:
        stand_in(stand_ins, name)
    stand_in(stand_ins, "make", '[ "$1" = check ] && echo "required: $REQUIRED_PROGRAMS"')
    printed, _ = ci(stand_ins)
    of_npm, of_pip, required = printed.splitlines()
    assert "npm failed" in of_npm
    assert "pip failed" in of_pip
    assert set(required.split()) == {"required:", "python-client", *PROGRAMS}


@pytest.mark.parametrize("of", ["server", "client", "both"])
@pytest.mark.parametrize(
    ("failed", "printed_beside", "alone", "code"),
    [
        (1, "", "pass", 0),
        (5, "", "pass", 0),
        (1, "", "fail", 1),
        (6, "", None, 2),
        (0, "", None, 2),
        (1, "LEAKED a token", None, 2),
        (1, "ended with 3", None, 2),
    ],
)
def test_ci_runs_few_tests_that_failed_again_alone(
    stand_ins: Path, failed: int, printed_beside: str, alone: str | None, code: int, of: str
) -> None:
    for name in PROGRAMS:
        stand_in(stand_ins, name)
    root = stand_ins.parent / "clone"
    rooms = {"server": [root], "client": [root / "clients" / "python"]}
    failing = rooms["server"] + rooms["client"] if of == "both" else rooms[of]
    codes = [1 if room in failing else 0 for room in (rooms["server"][0], rooms["client"][0])]
    if printed_beside == "ended with 3":
        codes = [3, codes[1]]
    lines = [f"FAILED tests/test_{number}.py::test_it" for number in range(failed)]
    lines += [printed_beside, f"tests ended with {codes[0]} for the server, {codes[1]} for the Python client"]
    does = [f'mkdir -p "{room}/{CACHED}"; echo "{{}}" >"{room}/{CACHED}/lastfailed"' for room in failing]
    says = "; ".join(f"echo {shlex.quote(line)}" for line in lines)
    stand_in(stand_ins, "make", "\n".join(['[ "$1" = check ] || exit 0', *does, f"{says}; exit 2"]))
    for (room,) in rooms.values():
        python = room / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        stand_in(python.parent, "python", "exit 0" if alone == "pass" else "exit 1")
    printed, _ = ci(stand_ins, code)
    ran = [room for (room,) in rooms.values() if (room / ".venv" / "bin" / "said").exists()]
    assert ran == ([] if alone is None else failing)
    assert printed.count("FAILED tests/test_0.py") == (0 if not failed else 1 if alone is None else 2)
