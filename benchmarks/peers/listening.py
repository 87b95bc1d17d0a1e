"""What the peers share: a listening socket that is announced, and the frame of a message."""

from __future__ import annotations

import json
import resource
import socket
import sys
from datetime import UTC, datetime
from typing import Any

POST_PATH = "/ws/broadcast-feedback-update"


def listen(purpose: str = "listening on") -> socket.socket:
    """A socket on a free port of 127.0.0.1, announced as open for this purpose."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"{purpose} http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    return listener


def frame(body: dict[str, Any]) -> str:
    """The frame of a broadcast: the envelope of our own server without its number."""
    data = {name: value for name, value in body.items() if name != "diagnosis_id"}
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    envelope = {"type": "feedback_update", "diagnosis_id": body["diagnosis_id"], "timestamp": now, "data": data}
    return json.dumps(envelope)
