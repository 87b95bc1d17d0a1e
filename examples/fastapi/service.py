"""A service that takes ratings, publishes each of them, and serves the page that follows.

Environment:
    AVICENNA_URL: the server, such as http://127.0.0.1:8000; it must allow the origin of this service
        (`allowed_origins`).
    AVICENNA_KEY_FILE: the secret that the server knows as `HS256:FILE#service` (`token_keys`).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import jwt
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from avicenna_live import AsyncBroadcaster, BroadcastError

SERVER = os.environ["AVICENNA_URL"]
KEY = Path(os.environ["AVICENNA_KEY_FILE"]).read_bytes().removesuffix(b"\n")
TOKEN_SECONDS = 600

DIAGNOSIS_ID = 42
READER = "amira"
"""Who is logged in. A real service knows that from its session."""


class Rating(BaseModel):
    """What a page sends."""

    feedback_id: int
    rating: int = Field(ge=1, le=5)
    comment: str | None = None


def token_for(sub: str, scope: str = "") -> str:
    """A short-lived token for a person, or for this service with the rights that it needs."""
    now = int(time.time())
    claims = {"sub": sub, "iat": now, "exp": now + TOKEN_SECONDS}
    return jwt.encode(claims | ({"scope": scope} if scope else {}), KEY, "HS256", headers={"kid": "service"})


broadcaster = AsyncBroadcaster(SERVER, token=lambda: token_for("rating-service", "broadcast"))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Say who may follow the diagnosis, and keep connections for publishing as long as the service runs."""
    headers = {"Authorization": f"Bearer {token_for('rating-service', 'register')}"}
    async with httpx.AsyncClient(base_url=SERVER, headers=headers) as http, broadcaster:
        (await http.put(f"/diagnoses/{DIAGNOSIS_ID}", json={"owner": READER})).raise_for_status()
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/", response_class=FileResponse)
def page() -> Path:
    """The page that follows."""
    return Path(__file__).with_name("page.html")


@app.post("/session")
def session() -> dict[str, str | int]:
    """What the page needs: where the server is, what it shows, and a token of whoever is logged in."""
    return {"url": SERVER, "diagnosis_id": DIAGNOSIS_ID, "token": token_for(READER)}


@app.post("/ratings")
async def rate(rating: Rating) -> dict[str, int]:
    """Publish a rating; the number of the update. The same `feedback_id` never makes two."""
    try:
        receipt = await broadcaster.broadcast_feedback_update(
            DIAGNOSIS_ID, **rating.model_dump(), idempotency_key=f"rating-{rating.feedback_id}"
        )
    except BroadcastError as error:
        raise HTTPException(503, "the rating was not published") from error
    return {"seq": receipt.seq}
