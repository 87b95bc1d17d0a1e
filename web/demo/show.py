"""The demo's server: it runs, is restarted at the push of a button, and gets samples until it is told to stop."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio

from storage.records import Event
from web.commands.client import Client, Credentials
from web.commands.failures import CommandFailed, Unreachable
from web.commands.following import Position
from web.commands.printing import say, say_aside
from web.commands.tail import Tail
from web.contract.wire import render_event
from web.demo.pages import pages
from web.demo.samples import DIAGNOSIS_ID, Service
from web.server import composition
from web.server.app import Extra
from web.server.settings import Settings

SAMPLE_SECONDS: Final = 2.0
"""Time between two sample updates."""

RETRY_SECONDS: Final = 0.2
"""Until the next try while the server restarts."""


class ActorCrash(Exception):
    """The exception of a crash that was asked for."""


class Demo:
    """One server, as often as it is restarted, and what runs beside it."""

    def __init__(self, settings: Settings, command: str) -> None:
        """Serve on `settings`.

        Args:
            command: how the command line was called.
        """
        self._settings = settings
        self._command = command
        self._stop: trio.Event | None = None
        """Ends the server that runs."""
        self._service: Service | None = None
        self._stopping = threading.Event()
        self._is_restarting = False
        self._crash_is_due = False

    def run(self) -> int:
        """Serve until a signal; the exit code."""
        try:
            while True:
                self._is_restarting = False
                code = composition.run(self._settings, ready=self._ready, render=self._render, extras=self._extras)
                if not self._is_restarting:
                    return code
        finally:
            self._stopping.set()

    @property
    def service(self) -> Service:
        """The service that publishes. Raises `Unreachable` before the server accepts connections."""
        if self._service is None:
            raise Unreachable("the server is not ready yet")
        return self._service

    def crash_next(self) -> None:
        """Have the actor crash once, over the next update."""
        self._crash_is_due = True

    def restart_server(self) -> None:
        """Begin the end of the server; another takes its place."""
        self._is_restarting = True
        if self._stop is not None:
            self._stop.set()

    def _ready(self, url: str) -> None:
        """The server accepts connections at `url`."""
        if self._service is not None:
            return
        self._settings = replace(self._settings, port=urlsplit(url).port or 0)  # it comes back where it was
        self._service = Service(url, self._settings.data)
        # A daemon: a request that hangs must not keep the process alive after the server has gone.
        threading.Thread(target=self._show, args=(url, self._service), name="demo", daemon=True).start()

    def _extras(self, stop: trio.Event) -> Sequence[Extra]:
        self._stop = stop
        return pages(self)

    def _render(self, diagnosis_id: str, event: Event) -> bytes:
        """Render an event as the server does, but for the crash that is due."""
        if self._crash_is_due:
            self._crash_is_due = False
            raise ActorCrash
        return render_event(diagnosis_id, event)

    def _show(self, url: str, service: Service) -> None:
        try:
            service.register()
            say(text(url, self._settings.data, self._command))
            threading.Thread(target=_print_updates, args=(url,), name="demo-terminal", daemon=True).start()
            wait_seconds = SAMPLE_SECONDS
            while not self._stopping.wait(wait_seconds):
                try:
                    service.publish()
                    wait_seconds = SAMPLE_SECONDS
                except Unreachable:
                    wait_seconds = RETRY_SECONDS
        except CommandFailed as error:
            if not self._stopping.is_set():
                say_aside(f"the samples ended: {error}")


def _print_updates(url: str) -> None:
    """Print the updates, as `tail` does."""
    tail = Tail(
        Client(url, Credentials()), DIAGNOSIS_ID, Position(None, None), jitter=random.random, peek=True, start="new"
    )
    try:
        trio.run(tail.follow, True)
    except* (CommandFailed, BrokenPipeError):
        pass  # nobody reads any more, or the server is gone


def text(url: str, data: Path, command: str) -> str:
    """What a person reads at the start."""
    return f"""\
Open {url}/demo: diagnosis {DIAGNOSIS_ID} gets a sample update every {SAMPLE_SECONDS:g} s.
The updates come here, too. From another terminal:

    {command} tail {DIAGNOSIS_ID} --url {url} --data {data}
    {command} status --url {url} --data {data}

Ctrl-C ends the demo; its data is in {data} until then.
"""
