"""`avicenna-live serve` and `demo`: read the settings and hand them to the composition root.

The server is imported when it is about to run: the other commands start without it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

from web import greeting, keyring, settings
from web.commands.answers import Named, Receipt
from web.commands.client import Client, Credentials
from web.commands.failures import CommandFailed, UsageError
from web.commands.printing import say, say_aside

DEMO_ID: Final = "42"
DEMO_OWNER: Final = "demo"
DEMO_SECONDS: Final = 2.0
"""Time between two sample updates."""

DEMO_HERBS: Final = ("mint", "saffron", "ginger", "chamomile", "fennel")

logger = logging.getLogger("avicenna.server")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both commands."""
    serving = commands.add_parser("serve", help="run the server")
    _add_address(serving)
    serving.add_argument("--data", metavar="DIR", help="directory of the database and the key; default ./data")
    serving.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings")
    serving.set_defaults(run=serve)

    showing = commands.add_parser(
        "demo",
        help="run a server that shows itself",
        description="Run a server on a temporary directory, with a stream of sample updates, until Ctrl-C.",
    )
    _add_address(showing)
    showing.set_defaults(run=demo)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--port", metavar="P", help="TCP port; default 8000, 0 takes any free one")


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    chosen = _settings(arguments.config, {"host": arguments.host, "port": arguments.port, "data": arguments.data})
    from web import composition  # noqa: PLC0415 - see the docstring of this file

    def say_next(_: str) -> None:
        if not (chosen.local_key and (chosen.data / keyring.KEY_FILE).exists()):
            return  # whoever has a token knows where from
        for line in greeting.next_steps(chosen, _own_name()):
            logger.info("%s", line)

    return composition.run(chosen, ready=say_next)


def demo(arguments: argparse.Namespace) -> int:
    """Serve and publish samples until Ctrl-C; nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="avicenna-demo-") as directory:
        options = {
            "host": arguments.host,
            "port": arguments.port,
            "data": directory,
            "tcp": True,
            "allow_anonymous": True,
        }
        chosen = _settings(None, options)
        samples = Samples(chosen.data)
        from web import composition  # noqa: PLC0415 - see the docstring of this file

        try:
            return composition.run(chosen, ready=samples.start)
        finally:
            samples.stop()


class Samples:
    """A thread that publishes to the demo's server as any other service would: over HTTP, with a token."""

    def __init__(self, data: Path) -> None:
        """Publish to the server that keeps its data, and its key, in `data`."""
        self._data = data
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, url: str) -> None:
        """Begin, now that the server accepts connections at `url`; never waits for it."""
        # A daemon: a request that hangs must not keep the process alive after the server has gone.
        self._thread = threading.Thread(target=self._run, args=(url,), name="demo-samples", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End with the current request."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(DEMO_SECONDS)

    def _run(self, url: str) -> None:
        client = Client(url, Credentials(key=keyring.load_key(self._data), scopes=("register", "broadcast")))
        try:
            client.request("PUT", "diagnoses", DEMO_ID, body={"owner": DEMO_OWNER, "viewers": []}, answer=Named)
            say(demo_text(url, self._data))
            for number in itertools.count():
                if self._stopping.wait(DEMO_SECONDS):
                    return
                route, body = sample(number)
                client.request("POST", "ws", route, body={"diagnosis_id": DEMO_ID, **body}, answer=Receipt)
        except CommandFailed as error:
            if not self._stopping.is_set():
                say_aside(f"the samples ended: {error}")


def sample(number: int) -> tuple[str, dict[str, object]]:
    """The route and the fields of the sample with this number; the kinds take turns."""
    herb = DEMO_HERBS[number % len(DEMO_HERBS)]
    before = DEMO_HERBS[(number - 1) % len(DEMO_HERBS)]
    match number % 3:
        case 0:
            states = {"old_data": {"herb": before, "dose": "1 cup"}, "new_data": {"herb": herb, "dose": "1 cup"}}
            return "broadcast-recommendation-update", {**states, "reason": "sample"}
        case 1:
            figures = {"new_effectiveness": round(0.5 + number % 40 / 100, 2), "sample_size": 100 + number}
            return "broadcast-effectiveness-update", {"recommendation_id": 7, "herb": herb, **figures}
        case _:
            return "broadcast-feedback-update", {"feedback_id": number, "rating": 1 + number % 5, "comment": "sample"}


def demo_text(url: str, data: Path) -> str:
    """The lines to paste."""
    command = _own_name()
    return f"""\
Diagnosis {DEMO_ID} gets a sample update every {DEMO_SECONDS:g} s. Watch it from another terminal:

    {command} tail {DEMO_ID} --url {url} --data {data}
    {command} status --url {url} --data {data}
    curl -s {url}/ws/status

Ctrl-C ends the demo; its data is in {data} until then."""


def _own_name() -> str:
    return greeting.own_name(sys.argv[0], Path.cwd())


def _settings(config: Path | None, options: dict[str, object]) -> settings.Settings:
    try:
        return settings.load(os.environ, config=config, options=options)
    except settings.SettingsError as error:
        raise UsageError(str(error)) from None
