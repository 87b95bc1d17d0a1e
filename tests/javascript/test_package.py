"""The JavaScript client: its own tests, its types, the package that npm makes of it, and the examples of its README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import trio

from tests.contract import ROOT
from tests.javascript.node import CLIENT, RELEASES, Release, installed, node
from tests.programs import node_package
from tests.server.harness import Server, running_server
from web.server.settings import Settings

README = (CLIENT / "README.md").read_text()

PRELUDE = """
const token = TOKEN, said = (value) => console.log(JSON.stringify(value));
const apply = said, show = (id, ...status) => said({ id, status }), replaceWith = (state) => said({ state });
const newToken = async () => token, fetchState = async () => ({ herb: "saffron" });
const database = { position: async () => null, keep: async (id, position) => said({ kept: position.seq }) };
"""
"""What the examples take for granted: it prints what they do, one JSON text a line."""


@pytest.mark.parametrize("release", RELEASES)
def test_the_clients_own_tests_pass(release: Release) -> None:
    command = [
        *node(release),
        "--test",
        "--test-reporter=tap",
        *map(str, sorted((CLIENT / "tests").glob("*.test.mjs"))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^# pass [1-9]", done.stdout, re.MULTILINE)
    assert re.search(r"^# skipped 0$", done.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("package"))


def test_the_package_has_the_client_its_types_licence_and_readme_and_nothing_else(project: Path) -> None:
    package = project / "node_modules" / "avicenna-live-client"
    assert {one.name for one in package.iterdir()} == {
        "client.js",
        "client.d.ts",
        "package.json",
        "README.md",
        "LICENSE",
    }
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "dependencies" not in json.loads((package / "package.json").read_text())


def test_the_types_resolve_and_refuse_what_is_wrong(project: Path) -> None:
    file = project / "use.ts"
    file.write_text((CLIENT / "tests" / "types.ts").read_text())
    compiler = node_package("typescript") / "bin" / "tsc"
    options = "--noEmit --strict --module nodenext --target es2024 --lib es2024,esnext.disposable,dom"
    command = [*node("with WebSocket"), str(compiler), *options.split(), str(file)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout


def test_the_types_want_nothing_of_a_page_but_what_pages_have(project: Path) -> None:
    """A project whose libraries are those of its target: TypeScript checks `.d.ts` files unless it is told not to."""
    file = project / "page.ts"
    file.write_text('import { Follower } from "avicenna-live-client";\nawait new Follower().close();\n')
    compiler = node_package("typescript") / "bin" / "tsc"
    options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022"]
    command = [*node("with WebSocket"), str(compiler), *options, str(file)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout


def test_the_types_name_what_the_module_has(project: Path) -> None:
    script = 'console.log(Object.keys(await import("avicenna-live-client")).join(" "))'
    command = [*node("with WebSocket"), "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=True)
    named = set(re.findall(r"^export class (\w+)", (CLIENT / "client.d.ts").read_text(), re.MULTILINE))
    inner = (
        set(re.findall(r"^export (?:class|function) (\w+)", (CLIENT / "client.js").read_text(), re.MULTILINE)) - named
    )
    assert set(done.stdout.split()) == named | inner
    assert inner == {"Core", "Fault", "afterClose", "jitter", "patience"}, "only the core is exported without a type"


def test_the_wheel_of_the_server_has_the_client_that_it_serves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as files:
        assert files.read("web/server/client.js") == (CLIENT / "client.js").read_bytes()


class Example:
    """A running example."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._said = b""

    async def next(self) -> dict[str, Any]:
        """The next thing it says."""
        assert self._process.stdout is not None
        with trio.fail_after(20):
            while b"\n" not in self._said:
                chunk = await self._process.stdout.receive_some()
                assert chunk, "the example ended"
                self._said += chunk
        line, _, self._said = self._said.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


@asynccontextmanager
async def example(project: Path, server: Server, named: str, release: Release) -> AsyncIterator[Example]:
    """The one example of the README that has `named` in it, as it runs."""
    program = node(release)
    (script,) = [one for one in re.findall(r"```js\n(.*?)```", README, re.DOTALL) if named in one]
    assert "https://updates.example.org" in script
    imports = "".join(re.findall(r"^import .*\n", script, re.MULTILINE))
    rest = script.replace(imports, "").replace("https://updates.example.org", server.url)
    whole = imports + PRELUDE.replace("TOKEN", json.dumps(server.token("amira"))) + rest
    command = [*program, "--input-type=module", "--eval", whole]
    process = await trio.lowlevel.open_process(command, cwd=project, stdout=subprocess.PIPE)
    try:
        yield Example(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running_server(Settings(port=0, data=tmp_path / "data")) as running:
        await running.register()
        yield running


async def test_a_program_that_has_left_ends_by_itself(project: Path) -> None:
    script = """
        import { Follower } from "avicenna-live-client";
        // Nobody listens there, and it would wait for half a minute.
        const onState = (_, { name }) => name === "offline" && live.close();
        const options = { random: () => 1, backoff: { firstMs: 30000 }, onState };
        const live = new Follower("http://127.0.0.1:9", options);
        for await (const item of live.follow(42));
        console.log("left");
    """
    with trio.fail_after(20):
        command = [*node("with WebSocket"), "--input-type=module", "--eval", script]
        done = await trio.run_process(command, cwd=project, capture_stdout=True)
    assert done.stdout == b"left\n"


@pytest.mark.parametrize(
    ("named", "release"),
    [("console.log", "with WebSocket"), ("WebSocket }", "without WebSocket"), ("WebSocket }", "with WebSocket")],
)
async def test_an_example_of_the_readme_gets_what_it_missed_and_then_what_comes(
    project: Path, server: Server, named: str, release: Release
) -> None:
    link = project / "node_modules" / "ws"
    if not link.exists():
        link.symlink_to(node_package("ws"))
    await server.publish(1)
    async with example(project, server, named, release) as running:
        assert (await running.next())["seq"] == 1
        await server.publish(2)
        assert (await running.next())["seq"] == 2


async def test_the_example_with_a_store_and_a_state_loads_and_saves(project: Path, server: Server) -> None:
    await server.publish(1)
    async with example(project, server, "getState", "with WebSocket") as running:
        said = [await running.next() for _ in range(3)]
        assert sorted(said, key=str) == sorted(
            [
                {"id": 42, "status": ["connecting", None]},
                {"id": 42, "status": ["live", None]},
                {"state": {"herb": "saffron"}},
            ],
            key=str,
        )
        assert await running.next() == {"kept": 1}
        await server.publish(2)
        assert (await running.next())["seq"] == 2
        assert await running.next() == {"kept": 2}
