"""The forge of the tests leaves nothing running, however a test run ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.server.forged import forge


async def test_no_server_outlives_its_forge(tmp_path: Path) -> None:
    with forge(tmp_path) as forged:
        server, _ = await forged.serve(tmp_path / "data")
        os.kill(forged.process_id, signal.SIGKILL)
        await server.ended()
