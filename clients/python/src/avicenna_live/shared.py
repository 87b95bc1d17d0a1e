"""The three calls as functions, for a service that imports and calls: a `Broadcaster` made from the environment.

`AVICENNA_URL` and `AVICENNA_TOKEN` (or `AVICENNA_TOKEN_FILE`) are read at the first call of a process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from avicenna_live.broadcaster import Broadcaster
from avicenna_live.publishing import Receipt
from avicenna_live.updates import Update, effectiveness_update, feedback_update, recommendation_update

P = ParamSpec("P")
R = TypeVar("R")


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


_shared = _Shared()


def _begin_anew() -> None:
    """In a child process: the sockets are the parent's, and so may be the lock."""
    global _shared  # noqa: PLW0603 - one for a process
    _shared = _Shared()


os.register_at_fork(after_in_child=_begin_anew)


def _broadcast(update: Update) -> Receipt:
    return _shared.broadcast(update)


def broadcasting(make: Callable[P, Update], what: str, broadcast: Callable[[Update], R]) -> Callable[P, R]:
    """A function that makes an update and broadcasts it.

    Args:
        what: the first sentence of its docstring.
    """

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return broadcast(make(*args, **kwargs))

    call.__name__ = call.__qualname__ = f"broadcast_{make.__name__}"
    call.__doc__ = f"{what} Arguments as for `{make.__name__}`. Raises `BroadcastError`, `ValueError`."
    return call


RECOMMENDATION = recommendation_update, "The recommendations of a diagnosis have changed."
EFFECTIVENESS = effectiveness_update, "The measured effectiveness has changed."
FEEDBACK = feedback_update, "Feedback has arrived."

broadcast_recommendation_update = broadcasting(*RECOMMENDATION, _broadcast)
broadcast_effectiveness_update = broadcasting(*EFFECTIVENESS, _broadcast)
broadcast_feedback_update = broadcasting(*FEEDBACK, _broadcast)
