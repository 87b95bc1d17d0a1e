"""Positions that are kept."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avicenna_live import FileStore, MemoryStore, Position, Store

POSITION = Position("e1", 7)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_store_keeps_the_last_position_of_each_diagnosis(kind: str, tmp_path: Path) -> None:
    store: Store = MemoryStore() if kind == "memory" else FileStore(tmp_path / "positions.json")

    assert store.load(42) is None
    store.save(42, Position("e1", 6))
    store.save(42, POSITION)
    store.save("b-7", Position("e2", 0))
    assert (store.load(42), store.load("b-7"), store.load(43)) == (POSITION, Position("e2", 0), None)


def test_a_file_is_read_by_the_next_process_and_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "positions.json"
    previous = os.umask(0)
    try:
        FileStore(path).save(42, POSITION)
    finally:
        os.umask(previous)

    assert FileStore(path).load(42) == POSITION
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["positions.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"42": 7}', '{"42": {"epoch": 1, "seq": 7}}', '{"42": {"seq": 7}}', "\xff"]
)
def test_a_file_that_holds_something_else_is_named_and_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "positions.json"
    path.write_text(text, encoding="latin-1")

    with pytest.raises(ValueError, match=r"positions.json holds no positions: move it away"):
        FileStore(path).load(42)
    with pytest.raises(ValueError, match=r"positions.json holds no positions: move it away"):
        FileStore(path).save(42, POSITION)
    assert path.read_text(encoding="latin-1") == text


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing is no directory: make it"):
        FileStore(tmp_path / "missing" / "positions.json")


def test_a_file_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "positions.json"
    script = (
        "import itertools, sys\n"
        "from avicenna_live import FileStore, Position\n"
        "store = FileStore(sys.argv[1])\n"
        "begin = store.load(42).seq if store.load(42) else 0\n"
        "for seq in itertools.count(begin + 1):\n"
        "    store.save(42, Position('e1' * 500, seq))\n"
        "    print(seq, flush=True)\n"
    )
    said = 0
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        said = int(writer.stdout.readline())
        time.sleep(0.02)
        writer.send_signal(signal.SIGKILL)
        said = max([said, *map(int, writer.stdout.read().splitlines())])
        writer.wait()
        writer.stdout.close()
        kept = FileStore(path).load(42)
        assert kept is not None
        assert kept.seq in (said, said + 1)
