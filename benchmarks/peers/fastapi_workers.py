"""The application of `fastapi_manager` as `uvicorn --workers N` serves it; N is the argument.

Each process knows its own followers alone: who follows at another one gets nothing.
"""

from __future__ import annotations

import sys

import uvicorn

from benchmarks.peers.listening import listen

APP = "benchmarks.peers.fastapi_manager:app"


def main() -> None:
    """Serve until a signal."""
    config = uvicorn.Config(
        APP, log_level="error", access_log=False, loop="uvloop", http="httptools", workers=int(sys.argv[1])
    )
    uvicorn.supervisors.Multiprocess(config, [listen()]).run()


if __name__ == "__main__":
    main()
