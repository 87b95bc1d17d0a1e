"""Quart-Trio on Hypercorn as they come: every connection has a memory channel and a handler that sends from it."""

from __future__ import annotations

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request, websocket
from quart_trio import QuartTrio

from benchmarks.peers.listening import POST_PATH, frame, listen

WAITING_MAX = 100
"""Messages that wait for one connection. Beyond: the publisher waits."""

followers: dict[str, set[trio.MemorySendChannel[str]]] = {}
app = QuartTrio(__name__)


@app.websocket("/ws/<diagnosis_id>")
async def follow(diagnosis_id: str) -> None:
    await websocket.accept()
    send, receive = trio.open_memory_channel[str](WAITING_MAX)
    mine = followers.setdefault(diagnosis_id, set())
    mine.add(send)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_notice_disconnect)
            async for text in receive:
                await websocket.send(text)
    finally:
        mine.discard(send)


async def _notice_disconnect() -> None:
    while True:
        await websocket.receive()


@app.post(POST_PATH)
async def broadcast() -> dict[str, object]:
    body = await request.get_json()
    text, mine = frame(body), list(followers.get(body["diagnosis_id"], ()))
    for send in mine:
        await send.send(text)
    return {"status": "broadcasted", "clients_notified": len(mine)}


if __name__ == "__main__":
    listener = listen()
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.backlog = 4096
    config.errorlog = None
    trio.run(serve, app, config)
