"""A log that nobody reads stops nothing, and says afterwards what is missing."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import shlex
import signal
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from tests.server.process import COMMAND
from web.contract.log_fields import current_request
from web.server import log_writer
from web.server.listening_file import LISTENING_FILE
from web.server.log_writer import HELD_BYTES_MAX, LogWriter
from web.server.logs import Formatter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe that holds a page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def writer_to(fd: int) -> LogWriter:
    writer = LogWriter(fd, lambda count: f"dropped {count}")
    writer.setFormatter(logging.Formatter("%(message)s"))
    return writer


def record(text: str, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("test", level, __file__, 1, text, args, None)


def say(writer: LogWriter, text: str) -> None:
    writer.emit(record(text))


def test_lines_are_written_in_order_and_a_flush_waits_for_them(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = writer_to(file.fileno())
        for number in range(1000):
            say(writer, f"line {number}")
        writer.flush()
    assert (tmp_path / "log").read_text().splitlines() == [f"line {number}" for number in range(1000)]


class Changing:
    """Says something else each time."""

    def __init__(self) -> None:
        self.said = 0

    def __str__(self) -> str:
        self.said += 1
        return f"said {self.said}"


def test_a_line_says_what_was_so_when_it_was_logged(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = writer_to(file.fileno())
        names, one = ["first"], Changing()
        writer.emit(record("%s %s %s", names, one, True))
        names.append("second")
        str(one)
        writer.flush()
    assert (tmp_path / "log").read_text() == "['first'] said 1 True\n"
    assert one.said == 2


def test_a_line_has_the_id_of_the_request_that_logged_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno(), str)
        writer.setFormatter(Formatter(json=False))
        for name in ("one", "two"):
            outside = current_request.set(name)
            writer.emit(record("said in %s", name))
            current_request.reset(outside)
        writer.emit(record("said in none"))
        writer.flush()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("test: ")[2] for line in lines] == ["said in one [one]", "said in two [two]", "said in none"]


def test_a_line_does_not_keep_what_an_exception_knows(tmp_path: Path) -> None:
    class Payload:
        pass

    def fail(payload: Payload) -> None:
        raise ValueError

    reading, writing = os.pipe()
    writer = writer_to(writing)
    payload = Payload()
    seen = weakref.ref(payload)
    try:
        fail(payload)
    except ValueError as error:
        writer.emit(logging.LogRecord("test", logging.INFO, __file__, 1, "failed", (), (ValueError, error, None)))
    del payload
    gc.collect()
    assert seen() is None
    writer.flush()
    os.close(reading)
    os.close(writing)


def test_a_warning_is_written_at_once_behind_what_was_logged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "LINGER_SECONDS", 60.0)
    reading, writing = os.pipe()
    writer = writer_to(writing)
    for number in range(3):
        say(writer, f"line {number}")
    writer.emit(record("careful", level=logging.WARNING))
    assert os.read(reading, 4096) == b"line 0\nline 1\nline 2\ncareful\n"
    os.close(reading)
    os.close(writing)


def test_what_does_not_fit_is_dropped_and_counted_when_the_log_flows_again(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = writer_to(writing)
    given = 2 * HELD_BYTES_MAX // 1000
    for _ in range(given):
        say(writer, "x" * 999)
    written = dropped = 0
    said = b""
    while written + dropped < given:
        said += os.read(reading, 1 << 20)
        *lines, said = said.split(b"\n")
        written += lines.count(b"x" * 999)
        dropped += sum(int(line.removeprefix(b"dropped ")) for line in lines if line.startswith(b"dropped "))
    assert written + dropped == given
    assert dropped >= given // 2 - 1000, "as many fit as may wait, and as were being written"


def test_a_flush_that_nobody_reads_ends(pipe: tuple[int, int]) -> None:
    writer = writer_to(pipe[1])
    say(writer, "x" * 10_000)
    writer.flush()
    said = b""
    while not said.endswith(b"\n"):
        said += os.read(pipe[0], 1 << 20)
    assert said == b"x" * 10_000 + b"\n"


def test_a_line_that_cannot_be_formatted_fails_nobody(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = writer_to(file.fileno())
        writer.emit(logging.LogRecord("test", logging.INFO, __file__, 1, "%d", ("no number",), None))
        say(writer, "half \ud800")
        writer.flush()
    assert (tmp_path / "log").read_text() == "a log line could not be formatted\nhalf \\ud800\n"


def test_a_closed_log_is_no_fault(pipe: tuple[int, int]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = writer_to(writing)
    for _ in range(3):
        say(writer, "nobody hears this")
        writer.flush()
    os.close(writing)


async def announced(reading: int) -> str:
    """The URL of a server that begins to write to a pipe."""
    with trio.fail_after(20):
        said = b""
        while b"listening on " not in said:
            said += await trio.to_thread.run_sync(os.read, reading, 4096)
    return said.partition(b"listening on ")[2].split()[0].decode()


def fill(writing: int) -> None:
    """Have no byte more fit into a pipe."""
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("signals", [1, 2])
async def test_a_server_whose_log_nobody_reads_answers_and_stops(
    tmp_path: Path, pipe: tuple[int, int], signals: int
) -> None:
    reading, writing = pipe
    process = await trio.lowlevel.open_process(
        [str(COMMAND), "serve", "--port", "0", "--data", str(tmp_path / "data")], stderr=writing
    )
    try:
        url = await announced(reading)
        async with httpx.AsyncClient(base_url=url, timeout=5) as client:
            for _ in range(150):  # a line each: the pipe is full long before
                assert (await client.get("/healthz")).status_code == 200
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await process.wait() in ((0,) if signals == 1 else (0, 128 + signal.SIGTERM))
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_ends_a_server_that_waits_for_its_log_and_nothing_else(
    tmp_path: Path, pipe: tuple[int, int], number: signal.Signals
) -> None:
    reading, writing = pipe
    log = tmp_path / "data" / "avicenna.db-wal"
    process = await trio.lowlevel.open_process(
        [str(COMMAND), "serve", "--port", "0", "--data", str(tmp_path / "data")], stderr=writing
    )
    try:
        await announced(reading)
        fill(writing)
        process.send_signal(number)
        with trio.fail_after(10):
            while log.exists():  # it goes when the database is closed; then the lines that wait are waited for
                await trio.sleep(0.001)
        with trio.fail_after(5):
            while process.returncode is None:
                process.send_signal(number)
                await trio.sleep(0.01)
        assert process.returncode == 128 + number
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_signal_ends_a_server_that_could_not_start_and_waits_for_its_log(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    fill(pipe[1])
    (tmp_path / "file").touch()
    process = await trio.lowlevel.open_process(
        [str(COMMAND), "serve", "--port", "0", "--data", str(tmp_path / "data")],
        stderr=pipe[1],
        env=os.environ | {"AVICENNA_UNIX_SOCKET": str(tmp_path / "file" / "socket")},
    )
    try:
        with trio.fail_after(10):
            while len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 2:  # one writes the log
                await trio.sleep(0.001)
            while process.returncode is None:
                process.send_signal(signal.SIGINT)
                await trio.sleep(0.01)
        assert process.returncode == 128 + signal.SIGINT
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_wrong_setting_ends_a_command_whose_last_line_nobody_reads(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    fill(pipe[1])
    process = await trio.lowlevel.open_process(
        [str(COMMAND), "serve", "--data", str(tmp_path), "--port", "no number"], stderr=pipe[1]
    )
    try:
        with trio.fail_after(10):
            assert await process.wait() == 2
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.by_workers
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
async def test_a_server_without_standard_descriptors_starts_and_writes_its_log_to_nobody(
    tmp_path: Path, closed: str
) -> None:
    data = tmp_path / "data"
    serve = shlex.join([str(COMMAND), "serve", "--port", "0", "--data", str(data)])
    process = await trio.lowlevel.open_process(["sh", "-c", f"exec {serve} {closed}"])
    try:
        with trio.fail_after(20):
            while not (data / LISTENING_FILE).exists():
                assert process.poll() is None
                await trio.sleep(0.01)
        url = json.loads((data / LISTENING_FILE).read_text())["urls"][0]
        async with httpx.AsyncClient(base_url=url, timeout=5) as client:
            assert (await client.get("/healthz")).status_code == 200
        opened = [Path(f"/proc/{process.pid}/fd/{number}").readlink() for number in range(3)]
        assert opened[2] == Path(os.devnull)
        assert not [one for one in opened if "socket" in str(one) or one.is_relative_to(data)]
        process.terminate()
        with trio.fail_after(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


async def test_what_was_said_last_is_in_the_log_of_a_server_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = await trio.run_process(
        [str(COMMAND), "serve", "--data", str(tmp_path / "data"), "--port", "0"],
        check=False,
        capture_stderr=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"AVICENNA_UNIX_SOCKET": str(tmp_path / "file" / "socket")},
    )
    assert done.returncode == 2
    assert b"cannot start" in done.stderr
