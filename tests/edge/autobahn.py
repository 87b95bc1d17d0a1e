"""`make autobahn`: the Autobahn test suite against an echo on our edge. It needs Python 2.7; without one it is skipped.

Two echoes are asked: handshakes take the short way of plain requests to one, and the long way to the other.
Compression (groups 12 and 13) is left out: it is never negotiated. Exit code: 0, or 1 if a case failed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import trio

from tests.edge.echo import echo_server
from web.http.short_way import Ways

PLACE: Final = Path("build/autobahn")
"""Where the suite is installed and reports."""

SUITE: Final = "autobahntestsuite==25.10.1"

SECONDS_MAX: Final = 1200

SHORT: Final = "short way"
LONG: Final = "long way"

FINE: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
"""NON-STRICT: right, but not in the way the suite likes best; INFORMATIONAL: there is no right or wrong."""


def main() -> int:
    """Run the suite and say what came of it."""
    python = python27()
    if python is None:
        print("autobahn: skipped, as the suite needs Python 2.7, and there is none on the PATH nor in pyenv")
        return 0
    suite = PLACE / "site"
    if not (suite / "autobahntestsuite").is_dir():
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            str(suite),
            SUITE,
        ]
        subprocess.run(install, check=True)
    ways = Ways()
    trio.run(_run, python, suite, ways)
    report = json.loads((PLACE / "reports" / "index.json").read_text())
    is_wrong = ways.long > 0 or ways.short < len(report[SHORT])
    print(f"handshakes to the echo of the short way: {ways.short} took it, {ways.long} did not")
    return max(judge(agent, cases) for agent, cases in report.items()) | is_wrong


def python27() -> str | None:
    """A Python 2.7 that can install packages, `None` if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which("python2.7"), *map(str, sorted(pyenv.glob("versions/2.7*/bin/python2.7")))]
    for python in candidates:
        # A name on the PATH may be a shim that fails: try it.
        if python is not None and _works(python):
            return python
    return None


def _works(python: str) -> bool:
    return subprocess.run([python, "-c", "import pip"], check=False, capture_output=True).returncode == 0


async def _run(python: str, suite: Path, ways: Ways) -> None:
    async with echo_server(ways=ways) as (short, _), echo_server() as (long, _):
        servers = {SHORT: short, LONG: long}
        spec = {
            "outdir": str(PLACE / "reports"),
            "servers": [{"agent": agent, "url": f"ws://127.0.0.1:{port}/echo"} for agent, port in servers.items()],
            "cases": sys.argv[1:] or ["*"],
            "exclude-cases": ["12.*", "13.*"],
            "exclude-agent-cases": {},
        }
        (PLACE / "spec.json").write_text(json.dumps(spec))
        start = f"import site; site.addsitedir({str(suite)!r}); from autobahntestsuite.wstest import run; run()"
        command = [python, "-c", start, "--mode", "fuzzingclient", "--spec", str(PLACE / "spec.json")]
        with trio.fail_after(SECONDS_MAX):
            await trio.run_process(command, stdout=subprocess.DEVNULL)


def judge(agent: str, cases: dict[str, dict[str, Any]]) -> int:
    """Print the figures of one echo; the exit code."""
    verdicts = Counter(one["behavior"] for one in cases.values()).most_common()
    print(f"{agent}: {len(cases)} cases: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts))
    wrong = {name: one for name, one in cases.items() if not {one["behavior"], one["behaviorClose"]} <= FINE}
    for name, one in wrong.items():
        print(
            f"{name}: {one['behavior']}, close {one['behaviorClose']} (report: {PLACE / 'reports' / one['reportfile']})"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
