"""The three calls as functions, for a service that imports and calls: a `Broadcaster` made from the environment.

`AVICENNA_URL` and `AVICENNA_TOKEN` (or `AVICENNA_TOKEN_FILE`) are read at the first call of a process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from avicenna_live.broadcaster import Broadcaster
from avicenna_live.publishing import Receipt
from avicenna_live.updates import Update, effectiveness_update, feedback_update, recommendation_update

P = ParamSpec("P")


class _Shared:
    """One broadcaster for all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: Broadcaster | None = None

    def broadcast(self, update: Update) -> Receipt:
        with self._lock:
            if self._made is None:
                self._made = Broadcaster()
        return self._made.broadcast(update)

    def forget(self) -> None:
        """In a child process: the sockets are the parent's, and so may be the lock."""
        self.__init__()  # type: ignore[misc]


_shared = _Shared()
os.register_at_fork(after_in_child=_shared.forget)


def _broadcasting(make: Callable[P, Update], what: str) -> Callable[P, Receipt]:
    @wraps(make)
    def broadcast(*args: P.args, **kwargs: P.kwargs) -> Receipt:
        return _shared.broadcast(make(*args, **kwargs))

    broadcast.__name__ = broadcast.__qualname__ = f"broadcast_{make.__name__}"
    broadcast.__doc__ = f"{what} Arguments as for `{make.__name__}`. Raises `BroadcastError`, `ValueError`."
    return broadcast


broadcast_recommendation_update = _broadcasting(
    recommendation_update, "The recommendations of a diagnosis have changed."
)
broadcast_effectiveness_update = _broadcasting(effectiveness_update, "The measured effectiveness has changed.")
broadcast_feedback_update = _broadcasting(feedback_update, "Feedback has arrived.")
