"""What a diagnosis that crashes in a loop costs the others: `make bench-isolation`.

One process, the durable store, publishers of calm diagnoses one after the other. Rounds with and without a neighbour
whose actor crashes over every event (and is released from its quarantine at once, to crash again) take turns.
"""

from __future__ import annotations

import logging
import random
import secrets
import statistics
import tempfile
from pathlib import Path
from typing import Final

import trio

from actors.errors import ActorError
from actors.messages import Publish
from actors.registry import Registry
from actors.slot import ActorLimits
from storage.clock import SystemClock
from storage.errors import StorageError
from storage.records import Event, NewEvent
from storage.sqlite.opening import open_store
from web.contract.wire import render_event

ROUNDS: Final = 10
PUBLISHES: Final = 400
"""Publishes of a round."""

CALM: Final = [f"calm-{number}" for number in range(10)]
PUBLISH: Final = Publish(NewEvent("feedback_update", b'{"feedback_id":1,"rating":5}'), lambda diagnosis: None)
"""What everybody publishes, and may."""


class Neighbour:
    """The diagnosis that crashes, while it is told to."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.crashes = 0

    async def crash_in_a_loop(self) -> None:
        """Until cancelled: publish, crash, and start again."""
        while True:
            try:
                await self._registry.ask("wild", PUBLISH)
            except (ActorError, StorageError):
                self.crashes += 1
            await self._registry.restart("wild")


def render(diagnosis_id: str, event: Event) -> bytes:
    """As the server does, except for one."""
    if diagnosis_id == "wild":
        raise ZeroDivisionError
    return render_event(diagnosis_id, event)


async def measure(registry: Registry) -> list[float]:
    """Milliseconds each of the calm publishes took."""
    took = []
    for number in range(PUBLISHES):
        began = trio.current_time()
        await registry.ask(CALM[number % len(CALM)], PUBLISH)
        took.append((trio.current_time() - began) * 1000)
    return took


async def main() -> None:
    """Take turns, and print both distributions."""
    logging.disable()
    quiet: list[float] = []
    disturbed: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        async with (
            open_store(
                Path(directory) / "bench.db", clock=SystemClock(), new_epoch=lambda: secrets.token_hex(8)
            ) as store,
            trio.open_nursery() as actors_nursery,
        ):
            for name in (*CALM, "wild"):
                await store.register(name, "owner", [])
            registry = Registry(
                store, actors_nursery, render=render, clock=SystemClock(), jitter=random.random, limits=ActorLimits()
            )
            await actors_nursery.start(registry.run)
            neighbour = Neighbour(registry)
            await measure(registry)
            for _ in range(ROUNDS):
                quiet += await measure(registry)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(neighbour.crash_in_a_loop)
                    disturbed += await measure(registry)
                    nursery.cancel_scope.cancel()
            crashes = registry.statistics_of("wild").restarts
            actors_nursery.cancel_scope.cancel()
    report(quiet, disturbed, crashes)


def report(quiet: list[float], disturbed: list[float], crashes: int) -> None:
    """Both distributions, and their ratio."""
    print(f"{len(quiet)} publishes each; the neighbour crashed {crashes} times")
    for name, percent in (("p50", 50), ("p99", 99)):
        alone, beside = (statistics.quantiles(took, n=100)[percent - 1] for took in (quiet, disturbed))
        print(f"{name}  alone {alone:.2f} ms  beside a crash loop {beside:.2f} ms  ratio {beside / alone:.2f}")


if __name__ == "__main__":
    trio.run(main)
