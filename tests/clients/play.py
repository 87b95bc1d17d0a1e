"""Plays one scenario of the table with several drivers side by side.

They share the server, and wait for each other before something happens to it; each has its own user, diagnosis and
network. A driver that fails leaves, and the others go on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import trio

from tests.clients.drivers import Driver
from tests.clients.part import Part
from tests.clients.stage import stage
from tests.clients.table import Scenario
from tests.server.forged import Forge


async def play(scenario: Scenario, players: Sequence[Driver], forge: Forge, directory: Path) -> dict[str, str]:
    """What went wrong, by the name of the driver; drivers that succeeded have no entry.

    Args:
        directory: an empty one.
    """
    wrong: dict[str, str] = {}
    async with stage(forge, directory, scenario.server) as shared, trio.open_nursery() as parts_nursery:
        parts: list[Part] = []
        for number, driver in enumerate(players, start=1):
            own = directory / driver.name
            own.mkdir()
            parts.append(Part(driver, number, shared, parts_nursery, own))

        async def each(act: Callable[[Part], Awaitable[None]]) -> None:
            async with trio.open_nursery() as acts_nursery:
                for part in parts:
                    if part.driver.name not in wrong:
                        acts_nursery.start_soon(_act, part, act, wrong)

        try:
            await each(Part.begin)
            for is_shared, steps in groupby(scenario.steps, lambda step: hasattr(shared, step.name)):
                if is_shared:
                    for step in steps:
                        await getattr(shared, step.name)()
                else:
                    await each(partial(Part.do, steps=[*steps]))
            await each(Part.end)
        finally:
            with trio.CancelScope(shield=True):
                for part in parts:
                    await part.leave()
        parts_nursery.cancel_scope.cancel()
    return wrong


async def _act(part: Part, act: Callable[[Part], Awaitable[None]], wrong: dict[str, str]) -> None:
    """Have one part do something; if it fails, note why, and what came before."""
    try:
        await act(part)
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - the failure of one driver is not that of others
        told = "\n".join([*part.transcript, f"{type(error).__name__}: {error}", "stderr of the driver:", part.said])
        wrong[part.driver.name] = told
        await part.leave()
