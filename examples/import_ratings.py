"""Publishes the ratings of a CSV file (`feedback_id,rating,comment`), without an event loop. It may be run twice.

AVICENNA_URL=... AVICENNA_TOKEN=... python import_ratings.py 42 ratings.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from avicenna_live import Broadcaster, BroadcastError, Update, feedback_update


def updates_of(diagnosis_id: str, path: Path) -> list[Update]:
    """An update for each row. Its key is made from the row's id, so that a second run makes no second update."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            feedback_update(
                diagnosis_id,
                row["feedback_id"],
                int(row["rating"]),
                comment=row["comment"] or None,
                idempotency_key=f"import-{row['feedback_id']}",
            )
            for row in csv.DictReader(file)
        ]


def main(diagnosis_id: str, name: str) -> int:
    """Publish, and tell what became of each row; 1 if one was not published."""
    with Broadcaster() as broadcaster:
        outcomes = broadcaster.batch(updates_of(diagnosis_id, Path(name)))
    refused = 0
    for row, outcome in enumerate(outcomes, 1):
        if isinstance(outcome, BroadcastError):
            refused += 1
            print(f"row {row} was not published: {outcome}", file=sys.stderr)
        else:
            print(f"row {row} is update {outcome.seq}{' (as before)' if outcome.replayed else ''}")
    return min(refused, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
