"""`make cluster`, on a terminal: what its keys kill and start, and that nothing is left of it."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal, on_terminal
from tests.programs import program

pytestmark = [pytest.mark.cluster, pytest.mark.one_process]

FOLLOWED = re.compile(r"live: (\d+) events, (\d+) missing, (\d+) doubled")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for temporary files, with a short name."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def until_followed(terminal: Terminal, more: int) -> None:
    """Wait until the follower has got so many more events than now; none of them twice, and none missed."""
    first: list[int] = []

    def fits(new: str) -> bool:
        found = FOLLOWED.findall(new)
        assert all((missing, doubled) == ("0", "0") for _, missing, doubled in found), found
        first.extend(int(events) for events, _, _ in found[:1] if not first)
        return bool(found) and int(found[-1][0]) >= first[0] + more

    terminal.until_fits(fits, f"{more} more events")


def processes_with(word: str) -> list[str]:
    """Commands of this machine that have this word among them."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = one.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in text:
            found.append(text)
    return found


@pytest.mark.guarantee(17)
def test_whoever_is_killed_the_follower_gets_everything_once_and_nothing_is_left(place: Path) -> None:
    program("nats-server")
    program("haproxy")
    command = [sys.executable, "-m", "tests.cluster", "--port", "0"]
    with on_terminal(command, {"TMPDIR": str(place)}, columns=200) as terminal:
        terminal.until("proxy    http://127.0.0.1:", "end all")
        until_followed(terminal, 1)
        terminal.type("a")
        terminal.until("server a is killed", "a dead")
        until_followed(terminal, 2)
        terminal.type("af21")
        terminal.until(
            "server a is started", "NATS server 2 is frozen", "NATS server 1 is killed", "1 dead 2 frozen 3 up"
        )
        terminal.type("12q")
        terminal.until("NATS server 1 is started", "NATS server 2 goes on", "all have ended")
        assert terminal.until_ended() == 0
    assert processes_with(str(place)) == []
    assert list(place.iterdir()) == []
