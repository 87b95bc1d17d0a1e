"""`websockets` with its `broadcast` function.

It serves no POST: a dozen lines on a second port do, which flatters it.
"""

from __future__ import annotations

import asyncio
import json

from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.peers.listening import frame, listen

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

followers: dict[str, set[ServerConnection]] = {}


async def follow(websocket: ServerConnection) -> None:
    assert websocket.request is not None, "the handshake is over"
    mine = followers.setdefault(websocket.request.path.removeprefix("/ws/"), set())
    mine.add(websocket)
    try:
        await websocket.wait_closed()
    finally:
        mine.discard(websocket)


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            body = json.loads(await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0])))
            broadcast(followers.get(body["diagnosis_id"], ()), frame(body))
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    publishing, listening = listen("publishing on"), listen()
    async with (
        serve(follow, sock=listening, compression=None, ping_interval=None),
        await asyncio.start_server(post, sock=publishing),
    ):
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main())
