"""`make chaos`: an installation under load whose parts are killed, frozen, cut off and filled, one fault after another.

Publishers, an operator and followers come through the proxy all the time; only publishers and the operator rest when a
fault is over, so that what they were told can be compared with what each server has, and with what followers got.
A promise that is broken ends the run with 1. A pause that is longer than aimed at is only said.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import trio

from tests.cluster.clients import OWNER, Follower, Ledger, Publisher, bearer
from tests.cluster.faults import FAULTS, Fault, Size, World, blocking, small_disks
from tests.cluster.installation import CannotBegin, Former, Installation, installed, needs
from tests.cluster.judging import Operator, check, judge
from tests.cluster.links import Links
from tests.cluster.nodes import COMMAND

FULL: Final = Size(12, 6, 30, 200, 10.0, 15.0)
QUICK: Final = Size(4, 4, 8, 40, 7.0, 6.0)


@dataclass
class Result:
    """What came of one fault, once or more often."""

    rounds: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    pause_seconds: float = 0.0
    refused: int = 0
    stored: int = 0
    closed: int = 0
    back_seconds: float = 0.0

    def add(self, other: Result) -> None:
        """Take one more into account."""
        for name, value in vars(other).items():
            before = getattr(self, name)
            setattr(self, name, max(before, value) if name.endswith("_seconds") else before + value)


async def run_fault(world: World, fault: Fault, name: str) -> Result:
    """Do it under load, and judge."""
    ledger = world.ledger
    ledger.begin()
    before = len(ledger.acknowledged)
    closed = {id(one): one.closed for one in world.followers}
    seen = {id(one): len(one.back_seconds) for one in world.followers}
    publishers = [
        Publisher(world.its.urls, world.its.key, world.diagnoses, ledger, world.chance, 0.1)
        for _ in range(world.size.publishers)
    ]
    operator = Operator(world, name)
    async with trio.open_nursery() as nursery:
        for publisher in publishers:
            nursery.start_soon(publisher.run)
        nursery.start_soon(operator.run)
        await world.goes_on()
        await fault.do(world)
        await world.goes_on()
        operator.is_wanted = False
        for publisher in publishers:
            publisher.is_wanted = False
    await world.all_serve()
    lost = await judge(world, operator)
    result = Result(
        rounds=1,
        acknowledged=len(ledger.acknowledged) - before,
        lost=lost,
        doubled=ledger.doubled,
        pause_seconds=ledger.pause_seconds,
        refused=ledger.refused,
        stored=ledger.stored_all_the_same,
        closed=sum(one.closed - closed[id(one)] for one in world.followers),
        back_seconds=max((took for one in world.followers for took in one.back_seconds[seen[id(one)] :]), default=0.0),
    )
    if result.closed and not fault.closes:
        ledger.wrong.append(f"{fault.name}: {result.closed} connections ended")
    if result.pause_seconds > fault.pause_seconds:
        world.notes.append(f"the pause of {result.pause_seconds:.1f} s is longer than {fault.pause_seconds:g} s")
    return result


@asynccontextmanager
async def opened(directory: Path, key: bytes, links: Links, former: Former) -> AsyncIterator[Installation]:
    """An installation, started and ended by a thread, as its ways are served here meanwhile."""
    made = installed(directory, key, links, sync="always", former=former)
    installation = await blocking(made.__enter__)
    try:
        yield installation
    finally:
        with trio.CancelScope(shield=True):
            await blocking(made.__exit__, None, None, None)


async def chaos(
    directory: Path,
    disks: Sequence[Path],
    rounds: int,
    faults: Sequence[Fault],
    size: Size,
    seed: int,
    former: Former,
) -> tuple[dict[str, Result], list[str]]:
    """All faults, so often; what came of each, and what was broken."""
    results: dict[str, Result] = {}
    ledger, key, chance = Ledger(), secrets.token_bytes(32), random.Random(seed)
    diagnoses = [f"chaos-{number}" for number in range(size.diagnoses)]
    async with trio.open_nursery() as nursery:
        links = Links(nursery)
        async with opened(directory, key, links, former) as its:
            async with httpx.AsyncClient(timeout=30) as http:
                for one in diagnoses:
                    headers = bearer(key, "registrar", "register")
                    made = await http.put(f"{its.urls[0]}/diagnoses/{one}", json={"owner": OWNER}, headers=headers)
                    made.raise_for_status()
            followers = [
                Follower(its.urls, key, diagnoses[number % len(diagnoses)], ledger.wrong.append)
                for number in range(size.followers)
            ]
            world = World(its, links, size, chance, ledger, diagnoses, followers, disks)
            for follower in followers:
                nursery.start_soon(follower.run)
            while not all(follower.is_live for follower in followers):
                await trio.sleep(0.05)
            for number in range(1, rounds + 1):
                for fault in faults:
                    began, broken = time.monotonic(), len(ledger.wrong)
                    result = await run_fault(world, fault, f"{fault.name}-{number}")
                    results.setdefault(fault.name, Result()).add(result)
                    print(f"round {number}: {fault.name}, {time.monotonic() - began:.0f} s: {line(result)}", flush=True)
                    world.notes.append(f"memory: {its.memory()}")
                    for note in (*world.notes, *(f"BROKEN: {one}" for one in ledger.wrong[broken:])):
                        print(f"    {note}", flush=True)
                    world.notes.clear()
                await check(world)
            nursery.cancel_scope.cancel()
    return results, ledger.wrong


def line(result: Result) -> str:
    """One result in words."""
    back = f", back within {result.back_seconds:.1f} s" if result.closed else ""
    return (
        f"{result.acknowledged} acknowledged, {result.lost} lost, {result.doubled} doubled, "
        f"a pause of {result.pause_seconds:.1f} s, {result.refused} refused, of these {result.stored} stored all the "
        f"same, {result.closed} connections ended{back}"
    )


def table(results: Mapping[str, Result]) -> str:
    """All results, as the documents show them."""
    lines = [
        "| fault | rounds | acknowledged | lost | doubled | longest pause | refused | of these stored | ended | back |",
        f"|{'---|' * 10}",
    ]
    for name, one in results.items():
        back = f"{one.back_seconds:.1f} s" if one.closed else ""
        lines.append(
            f"| {name} | {one.rounds} | {one.acknowledged:,} | {one.lost} | {one.doubled} | {one.pause_seconds:.1f} s "
            f"| {one.refused} | {one.stored} | {one.closed} | {back} |"
        )
    return "\n".join(lines)


def chosen(only: str | None, *, has_former: bool = False) -> list[Fault]:
    """The faults with these names; none given: all that can be done. Raises `ValueError`."""
    names = [one.name for one in FAULTS if has_former or not one.wants_former]
    wanted = only.split(",") if only else names
    if unknown := sorted(set(wanted) - set(names)):
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(names)}")
    return [one for one in FAULTS if one.name in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it: 0, 1 if a promise was broken, 2 if it cannot be run here."""
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="how often each; default %(default)s")
    parser.add_argument("--only", metavar="A,B", help=", ".join(one.name for one in FAULTS))
    parser.add_argument("--former-server", default="", metavar="FILE", help="a nats-server with which upgrade begins")
    parser.add_argument("--former-node", type=Path, metavar="FILE", help="an avicenna-live with which upgrade begins")
    parser.add_argument("--quick", action="store_true", help="less load, shorter faults")
    parser.add_argument("--seed", type=int, help="of what is drawn by lot; default: another each time")
    options = parser.parse_args(argv)
    try:
        former = Former(options.former_server, options.former_node or COMMAND)
        faults = chosen(options.only, has_former=former.is_any)
    except ValueError as problem:
        parser.error(f"--only: {problem}")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        needs("nats-server", "haproxy")
        with (
            tempfile.TemporaryDirectory(prefix="avicenna-chaos-", ignore_cleanup_errors=True) as made,
            small_disks(Path(made)) as disks,
        ):
            if not disks:
                left_out = [one.name for one in faults if one.wants_disks]
                print("".join(f"{name}: skipped: it wants to mount a disk, as root\n" for name in left_out), end="")
                faults = [one for one in faults if not one.wants_disks]
            size = QUICK if options.quick else FULL
            results, wrong = trio.run(chaos, Path(made), disks, options.rounds, faults, size, seed, former)
    except CannotBegin as problem:
        print(f"make chaos: {problem}", file=sys.stderr)
        return 2
    print(table(results))
    for one in wrong:
        print(f"BROKEN: {one}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
