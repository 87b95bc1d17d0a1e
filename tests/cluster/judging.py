"""What an installation has after a fault, compared with what everybody was told."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import trio

from tests.cluster.clients import OWNER, Ledger, bearer
from tests.cluster.faults import World
from tests.cluster.installation import NODES
from tests.cluster.nodes import COMMAND

CAUGHT_UP_SECONDS_MAX: Final = 60.0
"""Longest wait until followers have all that was published."""


class Operator:
    """Does what leaves rows, and counts what was answered."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.is_wanted = True
        self.done: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    async def run(self) -> None:
        """Go on until nobody wants it any more."""
        async with httpx.AsyncClient(timeout=30) as http:
            number = 0
            while self.is_wanted:
                number += 1
                target = f"{self.name}-{number}"
                await self._act(http, "diagnosis.register", "PUT", f"/diagnoses/{target}", {"owner": OWNER})
                await self._act(http, "outbox.purge", "DELETE", f"/actors/{target}/outbox")
                made = await self._act(http, "revocation.add", "POST", "/revocations", {"jti": target})
                if made:
                    await self._act(http, "revocation.lift", "DELETE", f"/revocations/{made['id']}")
                await self._act(http, "diagnosis.delete", "DELETE", f"/diagnoses/{target}")
                await trio.sleep(0.2)

    async def _act(
        self, http: httpx.AsyncClient, action: str, method: str, path: str, body: object = None
    ) -> Mapping[str, Any] | None:
        its = self._world.its
        headers = bearer(its.key, self.name, "operate register")
        try:
            answer = await http.request(method, its.urls[0] + path, json=body, headers=headers)
        except httpx.TransportError:
            self.unknown[action] += 1
            return None
        if answer.is_success:
            self.done[action] += 1
            found: Mapping[str, Any] = answer.json() if answer.content else {}
            return found
        # 404: what it is about was not registered, as far as anybody was told.
        if answer.status_code not in (404, 502, 503, 504):
            self._world.ledger.wrong.append(f"{action} got {answer.status_code}: {answer.text}")
        self.unknown[action] += 1
        return None


async def judge(world: World, operator: Operator) -> int:
    """Compare what everybody was told with what each server has, and with what followers got; how much is lost."""
    lost = 0
    async with httpx.AsyncClient(timeout=60) as http:
        for diagnosis in world.diagnoses:
            windows = [await _window(world, http, node, diagnosis) for node in range(len(NODES))]
            if any(one != windows[0] for one in windows):
                world.ledger.wrong.append(f"the servers differ in {diagnosis}: {[one[-3:] for one in windows]}")
            lost += judge_window(world.ledger, diagnosis, windows[0])
            lost += await _judge_followers(world, diagnosis, windows[0])
        pages = [await _rows(world, http, node, operator.name) for node in range(len(NODES))]
    if any(one != pages[0] for one in pages):
        world.ledger.wrong.append(f"the servers differ in the acts of {operator.name}")
    rows = Counter(action for _, action, _ in pages[0])
    for action in rows | operator.done | operator.unknown:
        done, unknown = operator.done[action], operator.unknown[action]
        if not done <= rows[action] <= done + unknown:
            world.ledger.wrong.append(f"{action}: {done} answered, {unknown} not, and {rows[action]} rows")
    return lost


def judge_window(ledger: Ledger, diagnosis: str, window: Sequence[tuple[int, int]]) -> int:
    """Compare retained numbers, and the ids of their updates, with what was acknowledged; how much is lost."""
    kept = dict(window)
    numbers = [seq for seq, _ in window]
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        ledger.wrong.append(f"{diagnosis} has numbers with holes: {numbers}")
    if twice := [one for one, count in Counter(kept.values()).items() if count > 1]:
        ledger.doubled += len(twice)
        ledger.wrong.append(f"{diagnosis} has updates {twice} twice")
    newest = {seq: number for seq, number in ledger.of(diagnosis).items() if seq >= numbers[0]}
    missing = {seq: number for seq, number in newest.items() if kept.get(seq) != number}
    if missing:
        ledger.wrong.append(f"{diagnosis} has lost {missing}")
    return len(missing)


async def _judge_followers(world: World, diagnosis: str, window: Sequence[tuple[int, int]]) -> int:
    lost, acknowledged = 0, world.ledger.of(diagnosis)
    for follower in world.followers:
        if follower.diagnosis != diagnosis:
            continue
        with trio.move_on_after(CAUGHT_UP_SECONDS_MAX):
            while follower.position < window[-1][0]:
                await trio.sleep(0.05)
        if follower.position != window[-1][0]:
            world.ledger.wrong.append(f"a follower of {diagnosis} stands at {follower.position} of {window[-1][0]}")
        other = {seq: one for seq, one in follower.got.items() if acknowledged.get(seq, one) != one}
        if other:
            world.ledger.wrong.append(f"a follower of {diagnosis} got other updates than acknowledged: {other}")
        lost += follower.missing + len(other)
    return lost


async def _window(world: World, http: httpx.AsyncClient, node: int, diagnosis: str) -> list[tuple[int, int]]:
    """Numbers that one of ours has, and the ids of their updates."""
    return [
        (item["seq"], item["data"]["feedback_id"])
        for item in await _items(world, http, node, f"/actors/{diagnosis}/outbox?limit=100")
    ]


async def _rows(world: World, http: httpx.AsyncClient, node: int, actor: str) -> list[tuple[int, str, str]]:
    """Rows of the acts of somebody: number, action, target."""
    return [
        (item["id"], item["action"], item["target"])
        for item in await _items(world, http, node, f"/audit?actor={actor}&limit=100")
    ]


async def _items(world: World, http: httpx.AsyncClient, node: int, path: str) -> list[Mapping[str, Any]]:
    url, found, after = world.its.url_of(node), list[Mapping[str, Any]](), ""
    while True:
        headers = bearer(world.its.key, "judge", "operate")
        answer = await http.get(f"{url}{path}{after}", headers=headers)
        page = answer.raise_for_status().json()
        found += page["items"]
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def check(world: World) -> None:
    """Have `avicenna-live cluster check` read everything."""
    done = await trio.run_process(
        [str(COMMAND), "cluster", "check"],
        env=os.environ | dict(world.its.variables[0]),
        check=False,
        capture_stdout=True,
        capture_stderr=True,
    )
    if done.returncode:
        world.ledger.wrong.append(f"cluster check ends with {done.returncode}: {(done.stdout + done.stderr).decode()}")
