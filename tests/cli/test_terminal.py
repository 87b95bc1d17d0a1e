"""Commands on a terminal: questions, colours, bars, and `top`."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from tests.cli.terminal import Terminal, on_terminal
from tests.server.harness import Server
from tests.server.process import COMMAND, Process, run, served

Outcome = TypeVar("Outcome")

COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?3[0-7]m")
"""A colour of the foreground."""

LEFT = "\x1b[?1049l"
"""The escape that puts back what was on the screen before (xterm)."""


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Process, Server]]:
    async with served(tmp_path / "data") as found:
        yield found


async def typed(server: Server, *words: object, use: Callable[[Terminal], Outcome], **variables: str) -> Outcome:
    """What somebody does at the terminal of a command; in a thread, beside the server's own."""

    def work() -> Outcome:
        with on_terminal([COMMAND, *words, "--url", server.url, "--data", server.data], variables) as terminal:
            return use(terminal)

    return await trio.to_thread.run_sync(work)


async def acts(server: Server) -> list[str]:
    answer = await server.http.get("/audit", headers=server.bearer("op", "operate"))
    return [one["action"] for one in answer.json()["items"]]


QUESTIONS = [
    (("purge", "42"), "Drop the 1 retained event of diagnosis 42? ", "outbox.purge"),
    (
        ("erase", "bo"),
        "Erase bo from connections, positions, viewers and both trails, for good? [y/N]",
        "subject.erase",
    ),
    (
        ("disconnect", "42", "--sub", "bo", "--forget"),
        "Disconnect bo from diagnosis 42, and forget what they have received? ",
        "subscriber.disconnect",
    ),
    (("drain",), "End the server at http://127.0.0.1:", "server.drain"),
]


@pytest.mark.parametrize(("words", "question", "act"), QUESTIONS, ids=[one[2] for one in QUESTIONS])
async def test_what_destroys_asks_first(
    words: tuple[str, ...], question: str, act: str, pair: tuple[Process, Server]
) -> None:
    _, server = pair
    await server.register()
    await server.publish()

    def answer(keys: str, terminal: Terminal) -> tuple[int, str]:
        terminal.until(question, "[y/N] ")
        terminal.type(keys)
        return terminal.until_ended(), terminal.written

    code, said = await typed(server, *words, use=partial(answer, "\r"))
    assert (code, "avicenna-live: nothing was done" in said) == (1, True)
    code, said = await typed(server, *words, use=partial(answer, "\x04"))
    assert (code, "avicenna-live: nothing was done" in said) == (1, True)
    assert act not in await acts(server)
    assert (await typed(server, *words, use=partial(answer, "yes\r")))[0] == 0
    if act != "server.drain":
        assert act in await acts(server)
        assert (await run(*words, "--yes", "--url", server.url, "--data", server.data))[0] == 0


async def test_ctrl_c_at_a_question_does_nothing(pair: tuple[Process, Server]) -> None:
    _, server = pair
    await server.register()

    def interrupt(terminal: Terminal) -> int:
        terminal.until("[y/N]")
        terminal.type("\x03")
        return terminal.until_ended()

    assert await typed(server, "drain", use=interrupt) == 130
    assert await acts(server) == ["diagnosis.register"]


async def test_colours_are_for_terminals_and_can_be_refused(pair: tuple[Process, Server]) -> None:
    _, server = pair
    await server.register()
    await server.publish()

    def written(terminal: Terminal) -> str:
        assert terminal.until_ended() == 0
        return terminal.written

    list_actors = ("actors", "list")
    assert COLOUR.search(await typed(server, *list_actors, use=written))
    assert "\x1b" not in await typed(server, *list_actors, use=written, NO_COLOR="1")
    assert "\x1b" not in await typed(server, *list_actors, "--color", "never", use=written)
    assert "\x1b" not in await typed(server, *list_actors, use=written, TERM="dumb")
    at = ("--url", server.url, "--data", server.data)
    assert "\x1b" not in (await run(*list_actors, *at))[1]
    assert COLOUR.search((await run(*list_actors, *at, CLICOLOR_FORCE="1"))[1])
    assert COLOUR.search((await run(*list_actors, *at, "--color", "always"))[1])


async def test_top_draws_sorts_searches_takes_a_new_size_and_leaves_the_terminal_as_it_was(
    pair: tuple[Process, Server],
) -> None:
    _, server = pair
    for number in range(60):
        await server.register(f"ward-{number:02}")
    await server.publish(1, "ward-07")

    def work(terminal: Terminal) -> None:
        before = terminal.modes()
        terminal.until_seen("60 diagnoses", "0 followers", "CONNv", "ward-00", "q quit", "1-18 of 60")
        assert terminal.modes() != before
        terminal.type("s")
        terminal.until_seen("QUEUEDv", "ward-07")
        assert terminal.screen.display[5].startswith("ward-07")
        terminal.type("/-3")
        terminal.until_seen("search: -3", "ward-30", "1-10 of 10 (60)", "enter: done")
        terminal.type("\r")
        terminal.until_seen("q quit", "search: -3")
        terminal.type("\x1b")
        terminal.until_seen("1-18 of 60")
        terminal.type("G")
        terminal.until_seen("43-60 of 60")
        terminal.resize(160, 50)
        terminal.until_seen("17-60 of 60")
        terminal.resize(60, 8)
        terminal.until_seen("17-18 of 60", "DIAGNOSIS", "ward-17", "q quit")
        terminal.type("q")
        assert terminal.until_ended() == 0
        assert terminal.modes() == before

    await typed(server, "top", use=work, TERM="linux")


async def test_top_shows_what_changes_and_that_the_server_has_gone(pair: tuple[Process, Server]) -> None:
    process, server = pair
    await server.register()

    async with trio.open_nursery() as nursery:
        shown, seen = trio.Event(), trio.Event()

        def work(terminal: Terminal) -> None:
            terminal.until_seen("1 diagnoses", "0 followers")
            trio.from_thread.run_sync(shown.set)
            terminal.until_seen("1 followers", "1 running")
            trio.from_thread.run_sync(seen.set)
            terminal.until_seen("cannot reach")
            terminal.type("q")
            assert terminal.until_ended() == 0

        nursery.start_soon(partial(typed, server, "top", use=work, TERM="linux"))
        await shown.wait()
        async with server.live():
            await server.publish()
            await seen.wait()
        await process.stop()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda terminal: terminal.type("\x03"), 130),
        (lambda terminal: terminal.signal(signal.SIGTERM), 143),
        (lambda terminal: terminal.signal(signal.SIGHUP), 129),
        (lambda terminal: terminal.signal(signal.SIGINT), 130),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP", "SIGINT"],
)
async def test_top_leaves_the_terminal_as_it_was_however_it_ends(
    end: Callable[[Terminal], None], code: int, pair: tuple[Process, Server]
) -> None:
    def work(terminal: Terminal) -> None:
        before = terminal.modes()
        terminal.until("q quit")
        end(terminal)
        assert terminal.until_ended() == code
        assert terminal.modes() == before
        assert LEFT in terminal.written
        assert "Traceback" not in terminal.written

    await typed(pair[1], "top", use=work)


async def test_top_has_colours_only_where_they_are_wanted(pair: tuple[Process, Server]) -> None:
    _, server = pair
    await server.register()
    await server.publish()

    def written(terminal: Terminal) -> str:
        terminal.until("1 running", "q quit")
        terminal.type("q")
        assert terminal.until_ended() == 0
        return terminal.written

    assert COLOUR.search(await typed(server, "top", use=written))
    assert not COLOUR.search(await typed(server, "top", use=written, NO_COLOR="1"))


async def test_top_without_a_terminal_that_can_be_drawn_on_says_so(pair: tuple[Process, Server]) -> None:
    _, server = pair
    code, out, aside = await run("top", "--url", server.url, "--data", server.data)
    assert (code, out) == (2, "")
    assert aside.startswith("avicenna-live: top needs a terminal")

    def said(terminal: Terminal) -> tuple[int, str]:
        return terminal.until_ended(), terminal.written

    for name in ("dumb", "no-such-terminal"):
        code, written = await typed(server, "top", use=said, TERM=name)
        assert code == 1
        assert f"cannot draw on this terminal (TERM='{name}')" in written


async def test_top_of_a_server_that_refuses_ends_before_it_draws(pair: tuple[Process, Server]) -> None:
    def said(terminal: Terminal) -> tuple[int, str]:
        return terminal.until_ended(), terminal.written

    _, server = pair
    code, written = await typed(server, "top", use=said, AVICENNA_TOKEN=server.token("amira"))
    assert (code, "forbidden" in written, "\x1b" in written) == (4, True, False)


BAR = """
import sys
from web.commands.progress import progress
written = [None]
with progress("copying", lambda: written[0], lambda: 1000):
    for line in sys.stdin:
        written[0] = int(line)
        if written[0] > 1000:
            break
print("over")
"""


def test_a_bar_follows_the_file_and_leaves_no_trace() -> None:
    with on_terminal([sys.executable, "-c", BAR]) as terminal:
        terminal.until("copying ... 00:00:0")
        terminal.type("250\n")
        terminal.until(" 25%  250 B of 1000 B")
        terminal.type("1000\n")
        terminal.until("100%  1000 B written, to be checked")
        terminal.type("2000\n")
        assert terminal.until_ended() == 0
        assert re.search(r"\r\x1b\[Kover\r\n$", terminal.written)


@pytest.mark.parametrize(
    "words", [("backup", "copy.db"), ("check",), ("restore", "copy.db"), ("restore", "copy.db", "--dry-run")]
)
async def test_long_work_shows_a_bar_on_a_terminal_and_nothing_in_a_pipe(
    words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    async with served(data) as (process, server):
        await server.register()
        assert await process.stop() == 0
    if words[0] == "restore":
        assert (await run("backup", "copy.db"))[0] == 0

    def written() -> str:
        with on_terminal([COMMAND, *words]) as terminal:
            assert terminal.until_ended() == 0
            return terminal.written

    assert "\r\x1b[K" in await trio.to_thread.run_sync(written)
    Path("copy.db").unlink(missing_ok=words[0] != "backup")
    if words[0] != "restore":
        assert "\r" not in (await run(*words))[2]
