"""picows, a WebSocket library in Cython, on uvloop as it recommends. It serves no POST: `posting` does."""

from __future__ import annotations

from typing import Any

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from benchmarks.peers.listening import frame, listen
from benchmarks.peers.posting import serve_posts

followers: dict[str, set[WSTransport]] = {}


class Follower(WSListener):
    """One connection; what it sends is not looked at."""

    def __init__(self, request: WSUpgradeRequest) -> None:
        self._mine = followers.setdefault(request.path.decode().removeprefix("/ws/"), set())

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._mine.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._mine.discard(transport)


def publish(body: dict[str, Any]) -> None:
    payload = frame(body).encode()
    for transport in followers.get(body["diagnosis_id"], ()):
        transport.send(WSMsgType.TEXT, payload)


async def main() -> None:
    publishing, listening = listen("publishing on"), listen()
    await serve_posts(publishing, publish)
    server = await ws_create_server(Follower, sock=listening, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
