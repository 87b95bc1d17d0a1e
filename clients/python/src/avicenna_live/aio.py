"""The three calls as functions that are awaited, on asyncio or Trio, configured from the environment as in `shared.py`.

Each connects anew: a service that publishes much keeps an `AsyncBroadcaster`.
"""

from __future__ import annotations

from avicenna_live.broadcaster import AsyncBroadcaster
from avicenna_live.publishing import Receipt
from avicenna_live.shared import EFFECTIVENESS, FEEDBACK, RECOMMENDATION, broadcasting
from avicenna_live.updates import Update


async def _broadcast(update: Update) -> Receipt:
    async with AsyncBroadcaster() as broadcaster:
        return await broadcaster.broadcast(update)


broadcast_recommendation_update = broadcasting(*RECOMMENDATION, _broadcast)
broadcast_effectiveness_update = broadcasting(*EFFECTIVENESS, _broadcast)
broadcast_feedback_update = broadcasting(*FEEDBACK, _broadcast)
