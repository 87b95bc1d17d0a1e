"""FastAPI on uvicorn[standard] with the connection manager of its tutorial: the kind of server ours replaces."""

from __future__ import annotations

import asyncio

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from benchmarks.peers.listening import POST_PATH, frame, listen


class Feedback(BaseModel):
    """The body of a broadcast."""

    diagnosis_id: str
    feedback_id: int
    rating: int
    comment: str


class ConnectionManager:
    """Who follows what."""

    def __init__(self) -> None:
        self._active: dict[str, set[WebSocket]] = {}

    async def connect(self, diagnosis_id: str, websocket: WebSocket) -> None:
        await websocket.accept()
        self._active.setdefault(diagnosis_id, set()).add(websocket)

    def disconnect(self, diagnosis_id: str, websocket: WebSocket) -> None:
        self._active[diagnosis_id].discard(websocket)

    async def broadcast(self, diagnosis_id: str, text: str) -> int:
        sent = 0
        for websocket in list(self._active.get(diagnosis_id, ())):
            try:
                await websocket.send_text(text)
                sent += 1
            except (RuntimeError, WebSocketDisconnect):
                self.disconnect(diagnosis_id, websocket)
        return sent


manager = ConnectionManager()
app = FastAPI()


@app.websocket("/ws/{diagnosis_id}")
async def follow(websocket: WebSocket, diagnosis_id: str) -> None:
    await manager.connect(diagnosis_id, websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.disconnect(diagnosis_id, websocket)


@app.post(POST_PATH)
async def broadcast(feedback: Feedback) -> dict[str, object]:
    sent = await manager.broadcast(feedback.diagnosis_id, frame(feedback.model_dump()))
    return {"status": "broadcasted", "clients_notified": sent}


if __name__ == "__main__":
    config = uvicorn.Config(app, log_level="error", access_log=False, loop="uvloop", http="httptools", backlog=4096)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listen()]))
