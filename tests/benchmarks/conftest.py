"""What is compiled for the benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import programs


@pytest.fixture(scope="session")
def load_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The load generator; skips where it cannot be compiled."""
    for needed in ("cc", "make"):
        programs.program(needed)
    built = tmp_path_factory.mktemp("built")
    subprocess.run(["make", "-s", f"NATIVE={built}", f"{built}/load"], cwd=programs.ROOT, check=True, timeout=60)
    return built / "load"
