"""What other processes have in memory, for consoles: each is asked once a second while somebody looks, and tells what
has changed since it was asked last.

As a console is the number of a turn (`web.console.rows`), so is a process that asks: it names the last turn of each
other that it was told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Final, NoReturn

import msgspec
import trio

from actors.registry import Registry
from actors.statistics import Glance
from actors.turns import LOOKED_AT_ONCE_MAX, Share
from storage.bus import Bus
from web.console.rows import Rows

TOPIC: Final = "glances"

ASK_SECONDS_MAX: Final = 1.0
"""Longest wait for what others tell. Beyond: as they told before."""

LOOK_SECONDS_MIN: Final = 0.5
"""Between two looks for whoever asks. Reason: there may be a console at each of the others."""

SILENT_SECONDS_MAX: Final = 10.0
"""After so long without a question what was told is forgotten: whoever asks then begins anew."""

GLANCES_AT_ONCE: Final = 200
"""Actors looked at between two checkpoints: half a millisecond."""

logger = logging.getLogger("avicenna.web")


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """What one process tells another."""

    turn: int
    is_all: bool
    """What was told before is void."""
    glances: Sequence[msgspec.Raw]
    """Of actors in memory that have changed, each with its id."""
    gone: Sequence[str]
    """Actors that are not in memory any more."""


_given: Final = msgspec.msgpack.Decoder(dict[str, int])
_told: Final = msgspec.msgpack.Decoder(_Told)
_glance: Final = msgspec.msgpack.Decoder(tuple[str, Glance])
_encode: Final = msgspec.msgpack.encode


async def spend_glance(share: Share, glance: Glance) -> None:
    """Count a look at an actor. Where a subscriber has moved, its roster may have looked at all it knows."""
    await share.spend(max(1, GLANCES_AT_ONCE * LOOKED_AT_ONCE_MAX // (LOOKED_AT_ONCE_MAX + glance.known)))


class Elsewhere:
    """Asks other processes, and answers them. One per server."""

    def __init__(self, bus: Bus, registry: Registry) -> None:
        """Answer with the actors of `registry` from now on."""
        self._bus = bus
        self._registry = registry
        self._nodes: dict[str, dict[str, Glance]] = {}
        """What others have told, by their names."""
        self._turns: dict[str, int] = {}
        """The last turn of each that was told."""
        self._looking = trio.Lock()
        self._looked_at = -inf
        self._asked_at = -inf
        self._turn = 0
        self._forget_told()
        bus.answer(TOPIC, self._answer)

    # Asking

    async def renew(self) -> set[str]:
        """Ask the others; ids of diagnoses whose actors have changed there."""
        others, changed = set(self._bus.others()), set[str]()
        for node in [one for one in self._nodes if one not in others]:
            changed.update(self._nodes.pop(node))
            self._turns.pop(node, None)
        if others:
            answers = await self._bus.ask(TOPIC, _encode(self._turns), ASK_SECONDS_MAX)
            for node, answer in answers.items():
                with suppress(msgspec.DecodeError):  # another version
                    changed |= self._take(node, _told.decode(answer))
        return changed

    def glances_at(self, diagnosis_id: str) -> list[Glance]:
        """An actor at each of the others that has it in memory."""
        return [found for node in self._nodes.values() if (found := node.get(diagnosis_id)) is not None]

    def forget(self) -> None:
        """Nobody looks any more."""
        self._nodes.clear()
        self._turns.clear()

    def _take(self, node: str, told: _Told) -> set[str]:
        known = self._nodes.setdefault(node, {})
        changed = set(told.gone)
        if told.is_all:
            changed.update(known)
            known.clear()
        for name in told.gone:
            known.pop(name, None)
        for one in told.glances:
            name, known[name] = _glance.decode(one)
            changed.add(name)
        self._turns[node] = told.turn
        return changed

    # Answering

    async def run(self) -> NoReturn:
        """Forget what was told to those that ask no more; until cancelled."""
        while True:
            await trio.sleep(SILENT_SECONDS_MAX)
            if trio.current_time() - self._asked_at > SILENT_SECONDS_MAX:
                self._forget_told()

    def _forget_told(self) -> None:
        self._rows = Rows(self._turn)
        self._were_in_memory: set[str] = set()

    async def _answer(self, node: str, data: bytes) -> bytes:
        self._asked_at = trio.current_time()
        try:
            given = _given.decode(data).get(self._bus.node)
        except msgspec.DecodeError:
            return b""
        async with self._looking:
            if trio.current_time() - self._looked_at >= LOOK_SECONDS_MIN:
                await self._look()
            is_all = given is None or not self._rows.knows(given)
            rows, gone = self._rows.since(-1 if given is None or is_all else given)
            told = _Told(self._turn, is_all, [msgspec.Raw(one) for one in rows], () if is_all else gone)
            return _encode(told)

    async def _look(self) -> None:
        turn, share, rows = self._turn + 1, Share(), self._rows
        in_memory = self._registry.in_memory
        for name in self._were_in_memory.difference(in_memory):
            rows.drop(name, turn)
        self._were_in_memory = set(in_memory)
        for name in in_memory:
            glance = self._registry.glance_at(name)
            if rows.differs(name, glance):
                rows.put(name, glance, _encode((name, glance)), turn)
            await spend_glance(share, glance)
        self._turn, self._looked_at = turn, trio.current_time()
