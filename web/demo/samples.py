"""The sample updates of the demo, and the service that publishes them: over HTTP, with a token, as any other would."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any, Final

from web.commands.answers import Actor, Named, Receipt
from web.commands.client import Client, Credentials
from web.identity import keyring

DIAGNOSIS_ID: Final = "42"
OWNER: Final = "demo"

HERBS: Final = (
    {"herb": "saffron", "name": "زعفران", "dose": "30 mg", "diet": "warm"},
    {"herb": "mint", "name": "نعناع", "dose": "1 cup", "diet": "light"},
    {"herb": "ginger", "name": "زنجبیل", "dose": "2 g", "diet": "warm"},
    {"herb": "chamomile", "name": "بابونه", "dose": "1 cup", "diet": "light"},
    {"herb": "fennel", "name": "رازیانه", "dose": "1 cup", "diet": "warm"},
)
REASONS: Final = ("new evidence", "پاسخ بهتر بیماران", "fewer side effects")
OPINIONS: Final = (
    (4, "خوابم بهتر شد"),
    (5, "Slept through the night"),
    (4, "معده‌ام آرام‌تر است"),
    (2, "No change yet"),
    (5, "سردردم کمتر شده است"),
)
"""Ratings and comments."""

KINDS: Final = ("recommendation", "effectiveness", "feedback")
"""They take turns."""


def fields_of(kind: str, turn: int) -> dict[str, object]:
    """The fields of a sample of this kind.

    Args:
        turn: how many of this kind came before.
    """
    herb = HERBS[turn % len(HERBS)]
    match kind:
        case "recommendation":
            states = {"old_data": HERBS[(turn - 1) % len(HERBS)], "new_data": herb}
            return {**states, "reason": REASONS[turn % len(REASONS)]}
        case "effectiveness":
            wave = (0, 3, 5, 4, 7, 9, 8, 6, 4, 2)
            figures = {"new_effectiveness": (24 + wave[turn % len(wave)]) / 40, "sample_size": 100 + turn}
            return {"recommendation_id": 7, "herb": herb["herb"], **figures}
        case _:
            rating, comment = OPINIONS[turn % len(OPINIONS)]
            return {"feedback_id": turn, "rating": rating, "comment": comment}


class Service:
    """The service that publishes. Its methods wait for the server, and may be called from several threads."""

    def __init__(self, url: str, data: Path) -> None:
        """Publish to the server at `url` that keeps its data, and its key, in `data`."""
        key = keyring.load_key(data)
        self._client = Client(url, Credentials(key=key, scopes=("register", "broadcast", "operate")))
        self._turns = {kind: itertools.count() for kind in KINDS}
        self._next = itertools.count()
        self._lock = threading.Lock()

    def register(self) -> None:
        """Have the diagnosis registered."""
        self._client.request("PUT", "diagnoses", DIAGNOSIS_ID, body={"owner": OWNER, "viewers": []}, answer=Named)

    def publish(self, kind: str | None = None) -> int:
        """Publish the next sample, of this kind if one is given; its number.

        Raises:
            CommandFailed: it was not stored, or nobody knows.
        """
        with self._lock:
            kind = kind or KINDS[next(self._next) % len(KINDS)]
            fields = fields_of(kind, next(self._turns[kind]))
        body = {"diagnosis_id": DIAGNOSIS_ID, **fields}
        _, receipt = self._client.request("POST", "ws", f"broadcast-{kind}-update", body=body, answer=Receipt)
        return receipt["seq"]

    def actor(self) -> Any:
        """What operators are shown of the actor. Raises as `publish`."""
        return self._client.request("GET", "actors", DIAGNOSIS_ID, answer=Actor)[1]

    def restart_actor(self) -> None:
        """Restart it as an operator does. Raises as `publish`."""
        self._client.request("POST", "actors", DIAGNOSIS_ID, "restart", answer=Actor)
