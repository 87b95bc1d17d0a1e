"""A service that is killed again and again: FastAPI, SQLAlchemy and a relay under uvicorn, in a process of its own.

`python -m tests.relay_service DATABASE URL TOKEN_FILE` prints its port, and then a line for each process that a signal
has ended. The next process comes at once, as under any supervisor.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from avicenna_live import Broadcaster, Relay, feedback_update
from avicenna_live.sqlalchemy import SqlalchemyOutbox


class Base(DeclarativeBase):
    """The service's own tables."""


class Rating(Base):
    """A row that the service has committed: its ledger."""

    __tablename__ = "ratings"
    number: Mapped[int] = mapped_column(primary_key=True)
    diagnosis_id: Mapped[int]


class MortalOutbox(SqlalchemyOutbox):
    """An outbox whose process may die before rows that the server has stored are deleted."""

    dies = False

    def published(self, ids: Collection[int]) -> None:
        """Delete, or die first."""
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        super().published(ids)


def service(database: str, url: str, token: str) -> FastAPI:
    """The service."""
    engine = create_engine(f"sqlite:///{database}")
    outbox = MortalOutbox(engine)
    relays: list[Relay] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        Base.metadata.create_all(engine)
        with Broadcaster(url, token=token) as broadcaster, Relay(outbox, broadcaster, poll_seconds=0.1) as relay:
            relays.append(relay)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/diagnoses/{diagnosis_id}/ratings/{number}")
    def rate(diagnosis_id: int, number: int, dies: Literal["no", "after the commit", "before the deletion"]) -> None:
        outbox.dies = dies == "before the deletion"
        with Session(engine) as session, session.begin():
            session.add(Rating(number=number, diagnosis_id=diagnosis_id))
            outbox.add(session, feedback_update(diagnosis_id, feedback_id=number, rating=5))
        if dies == "after the commit":
            os.kill(os.getpid(), signal.SIGKILL)
        relays[0].wake()

    return app


def main() -> None:
    """Fork a process that serves, and another one when it has died."""
    database, url, token_file = sys.argv[1:]
    token = Path(token_file).read_text()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)  # noqa: T201 - to the test
        while True:
            child = os.fork()
            if child == 0:
                config = uvicorn.Config(service(database, url, token), log_level="warning", lifespan="on")
                uvicorn.Server(config).run(sockets=[listening])
                os._exit(0)
            Path(f"{database}.pid").write_text(str(child))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code != -signal.SIGKILL:
                sys.exit(code)
            print("killed", flush=True)  # noqa: T201 - to the test


if __name__ == "__main__":
    main()
