"""`websockets` with its `broadcast` function. It serves no POST: `posting` does."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.peers.listening import frame, listen
from benchmarks.peers.posting import serve_posts

followers: dict[str, set[ServerConnection]] = {}


async def follow(websocket: ServerConnection) -> None:
    assert websocket.request is not None, "the handshake is over"
    mine = followers.setdefault(websocket.request.path.removeprefix("/ws/"), set())
    mine.add(websocket)
    try:
        await websocket.wait_closed()
    finally:
        mine.discard(websocket)


def publish(body: dict[str, Any]) -> None:
    broadcast(followers.get(body["diagnosis_id"], ()), frame(body))


async def main() -> None:
    publishing, listening = listen("publishing on"), listen()
    async with (
        serve(follow, sock=listening, compression=None, ping_interval=None),
        await serve_posts(publishing, publish),
    ):
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main())
