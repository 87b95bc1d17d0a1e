"""How long it takes until everybody is live again after `kill -9`, with nothing lost.

Followers connect and get events. Then one more event is published to every diagnosis, and the server is killed as soon
as the last of these is answered: most deliveries are not out, and most receipts are not on disk. A new server starts on
the same directory and port, and the followers come back. A follower is live when it has its `live` frame: whatever it
missed is sent before. At the end everybody gets one more event, and each number that was answered must have arrived.
"""

from __future__ import annotations

import http.client
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.generator import Generator, Target, plan_text
from benchmarks.measuring import IN_FLIGHT, Alone, Effort, Measured, Outcome, room_for
from benchmarks.processes import cores
from benchmarks.publishing import WAIT_SECONDS_MAX, PublishingFailed, bulk_request, update
from benchmarks.servers import BUILT, running

DIAGNOSES: Final = 500
BEFORE_EVENTS: Final = 5
"""Published to every diagnosis before the one that the kill interrupts."""

STEPS: Final = 10
"""In which the followers come back; after each the time is noted."""

LOOK_SECONDS: Final = 0.2
DELIVERED_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came of one kill."""

    listening_seconds: float
    """From the kill until a new server listens."""
    live: tuple[tuple[int, float], ...]
    """How many followers were live again, and when: seconds since the kill."""
    lost: int
    """Deliveries of answered events that never came."""

    @property
    def seconds(self) -> float:
        """From the kill until the last follower was live again."""
        return self.live[-1][1]


def recover(name: str, our_command: str, diagnoses: int, followers: int) -> Recovery:
    """Kill a server with so many followers of each diagnosis, and start it again.

    Raises:
        CannotRun: a process may not open so many files.
    """
    server_core, generator_core = cores()
    everybody = diagnoses * followers
    settings = room_for(everybody)
    with tempfile.TemporaryDirectory(prefix="avicenna-bench-") as directory:
        data, plan = Path(directory) / "data", Path(directory) / "plan"
        with running(name, server_core, our_command, data=data, settings=settings) as server:
            target, names = server.target, [f"bench-{number}" for number in range(diagnoses)]
            plan.write_text(plan_text(target, server.subscribers(diagnoses, followers)))
            generator = Generator(BUILT / "load", plan, generator_core)
            with generator:
                generator.connect(IN_FLIGHT)
                for number in range(BEFORE_EVENTS):
                    publish_to_all(target, names, number + 1)
                delivered = await_delivered(generator, BEFORE_EVENTS * everybody)
                publish_to_all(target, names, BEFORE_EVENTS + 1)
                server.process.kill()
                killed_at = time.perf_counter()
                server.process.wait()
                with running(name, server_core, our_command, data=data, port=target.port, settings=settings):
                    listening = time.perf_counter() - killed_at
                    live = []
                    for step in range(STEPS):
                        count = everybody * (step + 1) // STEPS
                        delivered += generator.connect(IN_FLIGHT, count).delivered
                        live.append((count, time.perf_counter() - killed_at))
                    publish_to_all(target, names, BEFORE_EVENTS + 2)
                    expected = (BEFORE_EVENTS + 2) * everybody
                    delivered += await_delivered(generator, expected - delivered)
    return Recovery(listening, tuple(live), expected - delivered)


def publish_to_all(target: Target, names: Sequence[str], number: int) -> None:
    """Publish the event of this number to every diagnosis; each is answered on return."""
    assert target.publish_token is not None, "our server knows its publishers"
    connection = http.client.HTTPConnection(target.address, target.publish_port, timeout=WAIT_SECONDS_MAX)
    with closing(connection):
        done = bulk_request(connection, target.publish_token, [update(name, number) for name in names])
    if done.refused:
        raise PublishingFailed(f"{done.refused} events were refused")


def await_delivered(generator: Generator, count: int) -> int:
    """How many deliveries have come: so many, unless they do not come in time."""
    until, delivered = time.perf_counter() + DELIVERED_SECONDS_MAX, 0
    while delivered < count and time.perf_counter() < until:
        delivered += generator.rest(LOOK_SECONDS).delivered
    return delivered


def recovery(name: str, our_command: str, effort: Effort) -> tuple[Measured, Outcome]:
    """The situation of the targets: one kill."""
    found = recover(name, our_command, DIAGNOSES, effort.recovery_followers)
    measured = {"recovery_seconds": found.seconds, "listening_seconds": found.listening_seconds}
    return measured, Alone({"lost after kill -9": found.lost} if found.lost else {})
