"""The three calls as functions that are awaited, on asyncio or Trio, configured from the environment as in `shared.py`.

Each connects anew: a service that publishes much keeps an `AsyncBroadcaster`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec

from avicenna_live.broadcaster import AsyncBroadcaster
from avicenna_live.publishing import Receipt
from avicenna_live.updates import Update, effectiveness_update, feedback_update, recommendation_update

P = ParamSpec("P")


def _broadcasting(make: Callable[P, Update], what: str) -> Callable[P, Awaitable[Receipt]]:
    @wraps(make)
    async def broadcast(*args: P.args, **kwargs: P.kwargs) -> Receipt:
        async with AsyncBroadcaster() as broadcaster:
            return await broadcaster.broadcast(make(*args, **kwargs))

    broadcast.__name__ = broadcast.__qualname__ = f"broadcast_{make.__name__}"
    broadcast.__doc__ = f"{what} Arguments as for `{make.__name__}`. Raises `BroadcastError`, `ValueError`."
    return broadcast


broadcast_recommendation_update = _broadcasting(
    recommendation_update, "The recommendations of a diagnosis have changed."
)
broadcast_effectiveness_update = _broadcasting(effectiveness_update, "The measured effectiveness has changed.")
broadcast_feedback_update = _broadcasting(feedback_update, "Feedback has arrived.")
