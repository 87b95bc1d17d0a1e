"""What `pip install ./clients/python` gives somebody who has no checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

USES = """
from avicenna_live import Ended, FeedbackUpdate, Follower, Gap, Item, RecommendationUpdate

async def ratings() -> list[int]:
    found: list[int] = []
    async with Follower("https://live.example.org", token=lambda: "tkn", get_state=lambda _: {}) as live:
        try:
            async for item in live.follow(42, start="new"):
                if isinstance(item, FeedbackUpdate):
                    found.append(item.data["rating"])
        except Ended as ended:
            found.append(ended.code)
    return found

def names(item: Item) -> str | int:
    match item:
        case Gap(first, last):
            return first + last
        case RecommendationUpdate(data=data):
            return data["changed_fields"][0]
    return item.type
"""

MISUSES = """
from avicenna_live import FeedbackUpdate

def rating(update: FeedbackUpdate) -> str:
    return update.data["rating"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the package installed from the checkout.

    Its dependencies are those of our own environment, so that nothing is downloaded.
    """
    directory = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    python = directory / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    (Path(found) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run(
        [python, "-m", "pip", "-q", "install", "--no-index", "--no-build-isolation", "--ignore-installed", "--no-deps",
         PROJECT],
        check=True, cwd=directory,
    )  # fmt: skip
    return python


def run(python: Path, script: str) -> str:
    """What a script prints, somewhere else."""
    done = subprocess.run([python, "-c", script], check=False, capture_output=True, text=True, cwd=python.parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_package_is_whole(installed: Path) -> None:
    said = run(
        installed,
        "import avicenna_live, pathlib\n"
        "from importlib.metadata import distribution\n"
        "here = pathlib.Path(avicenna_live.__file__).parent\n"
        "found = distribution('avicenna-live-client')\n"
        "said = found.metadata\n"
        "print(here, (here / 'py.typed').exists(), said['License-Expression'], said['Requires-Python'])\n"
        "print([str(file) for file in found.files if file.name == 'LICENSE'])\n"
        "print(said['Description'] or said.get_payload())\n",
    )
    assert said.startswith(f"{installed.parents[1]}/lib/")
    assert "/site-packages/avicenna_live True MIT >=3.11\n" in said
    assert "licenses/LICENSE" in said
    assert (PROJECT / "README.md").read_text().strip() in said


def test_its_dependencies_are_those_of_the_lock(installed: Path) -> None:
    checked = subprocess.run([installed, "-m", "pip", "check"], check=False, capture_output=True, text=True)
    assert "avicenna-live-client" not in checked.stdout


def typed(python: Path, script: str) -> str:
    """What mypy says about an app that uses the installed package."""
    file = python.parents[2] / "app.py"
    file.write_text(script)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, file],
        check=False, capture_output=True, text=True, cwd=python.parents[2],
    )  # fmt: skip
    return checked.stdout


def test_an_app_that_uses_it_is_type_checked(installed: Path) -> None:
    assert typed(installed, USES).startswith("Success")
    assert 'Incompatible return value type (got "int", expected "str")' in typed(installed, MISUSES)


@pytest.mark.parametrize(("library", "other"), [("asyncio", "trio"), ("trio", "asyncio, websockets")])
def test_an_app_of_one_event_loop_does_not_load_the_other(library: str, other: str) -> None:
    run_it = {"asyncio": "asyncio.run(main())", "trio": "trio.run(main)"}
    script = (
        f"import {library}, sys\n"
        "from avicenna_live import Follower\n"
        "async def main():\n"
        "    async with Follower('http://127.0.0.1:1'):\n"
        f"        print(sorted({{{', '.join(map(repr, other.split(', ')))}}} & sys.modules.keys()))\n"
        f"{run_it[library]}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_without_trio_websocket_the_error_names_the_cure() -> None:
    script = (
        "import sys, trio\n"
        "sys.modules['trio_websocket'] = None\n"
        "from avicenna_live import Follower\n"
        "trio.run(Follower('http://127.0.0.1:1').__aenter__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert "pip install 'avicenna-live-client[trio]'" in done.stderr


def test_without_sqlalchemy_the_error_names_the_cure_and_the_rest_works() -> None:
    script = (
        "import sys\n"
        "sys.modules['sqlalchemy'] = None\n"
        "from avicenna_live import Relay, SqliteOutbox\n"
        "print('imported')\n"
        "import avicenna_live.sqlalchemy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.stdout == "imported\n"
    assert "pip install 'avicenna-live-client[sqlalchemy]'" in done.stderr


def test_the_core_knows_no_event_loop_and_no_socket() -> None:
    script = (
        "import sys, types\n"
        "sys.modules['avicenna_live'] = package = types.ModuleType('avicenna_live')\n"
        f"package.__path__ = [{str(PROJECT / 'src' / 'avicenna_live')!r}]\n"
        "import avicenna_live.core\n"
        "print(sorted({'asyncio', 'trio', 'socket', 'time', 'random', 'sniffio'} & sys.modules.keys() - BEFORE))\n"
    ).replace("import avicenna_live.core", "BEFORE = set(sys.modules)\nimport avicenna_live.core")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
