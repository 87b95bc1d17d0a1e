"""What the benchmarks ask of Linux."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import crowd, growth, targets
from benchmarks.disk import sync_times
from benchmarks.processes import CannotRun, allow_files
from benchmarks.publishing import on_core


def test_a_limit_of_open_files_that_is_too_low_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    with pytest.raises(
        CannotRun, match="10000 connections need 10300 open files in one process, and the limit is 4096"
    ):
        allow_files(10_000)


@pytest.mark.parametrize("main", [crowd.main, growth.main, targets.main])
def test_a_benchmark_that_may_not_open_enough_files_says_so_and_does_not_begin(
    main: Callable[[Sequence[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))

    assert main([]) == 2

    assert "the limit is 4096: raise it (ulimit -Hn)" in capsys.readouterr().err


def test_the_soft_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 20_000))
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: raised.append(limits))

    allow_files(10_000)

    assert raised == [(20_000, 20_000)]


def test_each_sync_of_a_disk_is_timed(tmp_path: Path) -> None:
    times = sync_times(tmp_path, 0.05, 100)
    assert len(times) == 5
    assert all(seconds > 0 for seconds in times)
    assert list(tmp_path.iterdir()) == []


def test_a_thread_has_its_cores_back_after_the_block() -> None:
    before = os.sched_getaffinity(0)
    with on_core(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
