"""What a server says of itself when it starts, line by line: what it is, its limits, and what to try next. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from storage.records import OUTBOX_EVENTS_MAX
from web.server.settings import DATA_DEFAULT, Settings

SAMPLE_ID: Final = 42
SAMPLE_DATA: Final = '{"herb":"saffron"}'


def facts(settings: Settings, release: str, connections_max: int, address_connections_max: int) -> tuple[str, str]:
    """What runs, on which data, and within which limits.

    Args:
        connections_max: connections it accepts; the system may allow fewer than the setting.
        address_connections_max: of them, for one address.
    """
    survives = "power loss" if settings.durability == "full" else "a crash, not power loss"
    runs = (
        f"avicenna-live {release}, data in {settings.data.absolute()}, durability {settings.durability}: "
        f"an accepted event survives {survives}"
    )
    limits = (
        f"limits: {connections_max} connections, {address_connections_max} of one address; "
        f"the newest {OUTBOX_EVENTS_MAX} events of each diagnosis; {settings.idempotency_keys_max} idempotency keys; "
        f"{settings.ring_bytes_max // 2**20} MiB of events in memory"
    )
    return runs, limits


def next_steps(settings: Settings, command: str) -> tuple[str, str]:
    """How to follow a diagnosis and publish to it with the commands, which make their tokens with the local key.

    Args:
        command: how the command line was called.
    """
    data = "" if settings.data == DATA_DEFAULT else f" --data {shlex.quote(str(settings.data))}"
    register = f"{command} diagnoses add {SAMPLE_ID} --owner doctor-1{data}"
    publish = f"{command} publish recommendation {SAMPLE_ID} --new-data '{SAMPLE_DATA}'{data}"
    return (
        f"follow a diagnosis: {register} && {command} tail {SAMPLE_ID}{data}",
        f"publish to it, from another terminal: {publish}",
    )


def own_name(called: str, directory: Path) -> str:
    """How a command was called, as short as it can be pasted in `directory`."""
    path = Path(called)
    return str(path.relative_to(directory) if path.is_relative_to(directory) else path)
