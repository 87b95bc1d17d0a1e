"""POST for the peers that serve none: a dozen lines of asyncio on a port of their own, which flatters them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def serve_posts(listener: socket.socket, broadcast: Callable[[dict[str, Any]], None]) -> asyncio.Server:
    """Take requests at a listening socket, and hand the decoded body of each to `broadcast`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                broadcast(json.loads(await reader.readexactly(length)))
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return await asyncio.start_server(serve, sock=listener)
