"""The least a server in Python can do: a loop with one `send` for each subscriber. No tasks, no checks, no queues.

What it needs, any server in Python needs; what another one needs beyond it is its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import selectors
import socket

from benchmarks.peers.listening import frame, listen

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

selector = selectors.DefaultSelector()
followers: dict[str, dict[socket.socket, None]] = {}
following: dict[socket.socket, str] = {}
unread: dict[socket.socket, bytes] = {}


def broadcast(body: bytes) -> None:
    message = json.loads(body)
    payload = frame(message).encode()
    head = b"\x81" + (bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2))
    data = head + payload
    for one in followers.get(message["diagnosis_id"], ()):
        one.send(data)


def serve(peer: socket.socket, head: bytes, behind: bytes) -> bytes | None:
    """Answer one request; what follows it, `None`: its body has not arrived."""
    lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    headers = {name.lower(): value for name, _, value in lines}
    if b"upgrade" in headers:
        diagnosis = head.split(b" ", 2)[1].decode().partition("?")[0].removeprefix("/ws/")
        accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + ACCEPT_SUFFIX).digest())
        followers.setdefault(diagnosis, {})[peer] = None
        following[peer] = diagnosis
        peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        return b""
    length = int(headers[b"content-length"])
    if len(behind) < length:
        return None
    broadcast(behind[:length])
    peer.send(ANSWER)
    return behind[length:]


def leave(peer: socket.socket) -> None:
    selector.unregister(peer)
    if (diagnosis := following.pop(peer, None)) is not None:
        followers[diagnosis].pop(peer, None)
    unread.pop(peer, None)
    peer.close()


def read(peer: socket.socket) -> None:
    try:
        data = peer.recv(65536)
    except ConnectionError:
        data = b""
    if not data:
        leave(peer)
        return
    if peer in following:
        return
    waiting = unread.get(peer, b"") + data
    while b"\r\n\r\n" in waiting:
        head, _, behind = waiting.partition(b"\r\n\r\n")
        rest = serve(peer, head, behind)
        if rest is None:
            break
        waiting = rest
    unread[peer] = waiting


def main() -> None:
    listeners = (listen("publishing on"), listen())
    for listener in listeners:
        selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            ready = key.fileobj
            assert isinstance(ready, socket.socket)
            if ready in listeners:
                peer, _ = ready.accept()
                peer.setblocking(False)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(peer, selectors.EVENT_READ)
            else:
                read(ready)


if __name__ == "__main__":
    main()
