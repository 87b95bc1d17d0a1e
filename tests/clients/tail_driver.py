"""The driver of `avicenna-live tail`, which it runs as anybody would (`clients/scenarios.yaml` has the JSON lines)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import trio

COMMAND: Final = Path(sys.executable).with_name("avicenna-live")

WRONG_CLOCK: Final = Path(__file__).with_name("wrong_clock")

INTERRUPTED: Final = 130


class TailDriver:
    """One command, from `follow` to `stop`."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self._nursery = nursery
        self._token_file = directory / "token"
        self._process: trio.Process | None = None
        self._takes = trio.Event()
        """Set while the consumer takes what is printed."""
        self._takes.set()

    async def obey(self, command: dict[str, Any]) -> None:
        """Do what the runner asks."""
        match command:
            case {"do": "follow", "get_state": True}:
                report({"cannot": "get_state"})
            case {"do": "follow"}:
                await self._follow(command)
            case {"do": "token", "token": str(token)} if self._token_file.exists():
                newer = self._token_file.with_suffix(".new")
                newer.write_text(token)
                newer.rename(self._token_file)
            case {"do": "pause"}:
                self._takes = trio.Event()
            case {"do": "resume"}:
                self._takes.set()
            case _:
                report({"cannot": command["do"]})

    async def stop(self) -> None:
        """Interrupt it, as Ctrl-C does."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
            await self._process.wait()

    async def _follow(self, wanted: dict[str, Any]) -> None:
        arguments = ["--url", wanted["url"], "--heartbeat", str(wanted["heartbeat"])]
        variables = {}
        if wanted["renewable"]:
            self._token_file.write_text(wanted["token"])
            arguments += ["--token-file", str(self._token_file)]
        elif wanted["token"] is not None:
            variables["AVICENNA_TOKEN"] = wanted["token"]
        for name in ("device", "start"):
            arguments += [f"--{name}", wanted[name]] if wanted[name] is not None else []
        if wanted["clock_offset_s"]:
            variables |= {"PYTHONPATH": str(WRONG_CLOCK), "CLOCK_OFFSET_SECONDS": str(wanted["clock_offset_s"])}
        self._process = await trio.lowlevel.open_process(
            [COMMAND, "tail", str(wanted["diagnosis_id"]), "--json", *arguments],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._nursery.start_soon(self._read, self._process)

    async def _read(self, process: trio.Process) -> None:
        assert process.stdout is not None
        end: dict[str, Any] | None = None
        epoch, rest = "", b""
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                await self._takes.wait()
                frame = json.loads(line)
                if frame["type"] == "connect":
                    epoch = frame["data"]["epoch"]
                if (told := told_by(frame, epoch)) is not None:
                    report(told)
                    end = told if told.get("status") == "ended" else end
        code = await process.wait()
        if end is not None:
            report({"ended": {"code": end["code"], "reason": end["reason"]}})
        elif code != INTERRUPTED:
            report({"failed": f"the command has exited {code}"})


def told_by(frame: dict[str, Any], epoch: str) -> dict[str, Any] | None:
    """The report that a line of the command is; `None`: none."""
    data = frame.get("data") or {}
    match frame["type"]:
        case "status":
            return {name: data[name] for name in ("status", "reason", "code")}
        case "gap":
            return {"gap": {"first": data["from"], "last": data["to"], "reason": data["reason"]}}
        case "connect" if data["resume"] == "reset":
            return {"reset": {"epoch": epoch, "floor": data["floor"]}}
        case kind if "seq" in frame:
            return {"event": kind, "seq": frame["seq"], "epoch": epoch, "data": data}
    return None


def report(told: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(told), flush=True)  # noqa: T201 - its stdout is what it is for


async def main() -> None:
    """Obey until `stop`, or the end of stdin."""
    with tempfile.TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            driver = TailDriver(nursery, Path(directory))
            report({"ready": True})
            rest = b""
            async for chunk in trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())):
                *lines, rest = (rest + bytes(chunk)).split(b"\n")
                commands = [json.loads(line) for line in lines]
                for command in commands:
                    if command["do"] == "stop":
                        break
                    await driver.obey(command)
                else:
                    continue
                break
            await driver.stop()
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
