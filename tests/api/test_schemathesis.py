"""Requests nobody thought of, made from `/openapi.json`, against the real server process: no failure in any phase."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.server.process import served

pytestmark = pytest.mark.timeout(700)

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")

EXAMPLES = os.environ.get("API_TEST_EXAMPLES", "25")
"""Generated cases for each operation and phase; `make api-test` asks for more."""

CASES_MIN = 1000
SCOPES = "operate register broadcast monitor"


async def test_generated_requests_are_answered_as_documented(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        await server.register()
        await server.publish()
        token = server.token("tester", SCOPES)
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
            *("--exclude-path", "/drain"),  # it ends the server that all others ask
            *("--exclude-path", "/console/events"),  # its answer has no end
            *("--max-examples", EXAMPLES, "--seed", "1", "--no-color", "--output-truncate", "true"),
        ]
        with trio.fail_after(600):
            done = await trio.run_process(
                command,
                check=False,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env=_environment(tmp_path),
            )
        assert (await server.http.get("/healthz")).status_code == 200
        assert await process.stop() == 0
    report = "\n".join(line[:1000] for line in done.stdout.decode(errors="replace").splitlines())
    assert done.returncode == 0, report
    generated = re.search(r"(\d+) generated", report)
    assert generated is not None, report
    assert int(generated[1]) >= CASES_MIN, report


def _environment(directory: Path) -> dict[str, str]:
    # Its caches and Hypothesis's database belong to this run only: the same seed makes the same cases.
    return os.environ | {"PYTHONPATH": str(ROOT), "HYPOTHESIS_STORAGE_DIRECTORY": str(directory / "hypothesis")}
