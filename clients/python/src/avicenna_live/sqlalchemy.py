"""The outbox of a `Relay` in a database of SQLAlchemy, Core or ORM; needs the extra `sqlalchemy`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

try:
    from sqlalchemy import (
        BigInteger,
        Column,
        Connection,
        Engine,
        Float,
        Integer,
        MetaData,
        String,
        Table,
        Text,
        delete,
        insert,
        select,
        update,
    )
    from sqlalchemy.dialects.mysql import MEDIUMTEXT
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.orm import Session, scoped_session
except ImportError as error:
    raise ImportError("SqlalchemyOutbox needs SQLAlchemy: pip install 'avicenna-live-client[sqlalchemy]'") from error

from avicenna_live.relay import AVICENNA_OUTBOX, Row, diagnosis_of
from avicenna_live.updates import Update

METADATA: Final = MetaData()
"""The table. A service that makes its tables by migrations makes this one by them, too."""

ROWS: Final = Table(
    AVICENNA_OUTBOX,
    METADATA,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("diagnosis_id", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    # Up to 64 KiB, and TEXT of MySQL ends one byte before.
    Column("body", Text().with_variant(MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
    Column("idempotency_key", String(128), nullable=False),
    Column("first_tried_at", Float(53)),
    Column("error", Text),
    sqlite_autoincrement=True,  # the id of a deleted row never comes again, so a second relay deletes no other row
)


class SqlalchemyOutbox:
    """The table in the database of an engine."""

    def __init__(self, engine: Engine) -> None:
        """Use this database; the relay takes one connection of the engine at a time."""
        self._engine = engine

    @staticmethod
    def add(connection: Connection | Session | scoped_session[Any], made: Update) -> None:
        """Store an update in the transaction of the service's connection or session. The table is there: see `prepare`.

        With an `AsyncSession` or `AsyncConnection`: `await session.run_sync(SqlalchemyOutbox.add, update)`.

        Raises:
            TypeError: it is neither connection nor session.
            ValueError: it commits by itself after each statement.
            sqlalchemy.exc.SQLAlchemyError: of the database.
        """
        if not isinstance(connection, Connection | Session | scoped_session):
            raise TypeError(
                f"add takes a Connection or a Session, not {type(connection).__name__};"
                " if that is an async one: await session.run_sync(SqlalchemyOutbox.add, update)"
            )
        used = connection if isinstance(connection, Connection) else connection.connection()
        if used.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            raise ValueError("this connection is in AUTOCOMMIT: the update belongs to a transaction")
        row = {"diagnosis_id": diagnosis_of(made), "kind": made.kind, "body": made.body}
        used.execute(insert(ROWS).values(**row, idempotency_key=made.idempotency_key))

    def prepare(self) -> None:
        """Make the table where it is missing."""
        try:
            METADATA.create_all(self._engine)
        except DBAPIError:  # another process has made it in the same moment
            METADATA.create_all(self._engine)

    def waiting(self, after: int, limit: int, except_for: Collection[str]) -> Sequence[Row]:
        """See `Outbox`."""
        names = ("id", "diagnosis_id", "kind", "body", "idempotency_key", "first_tried_at")
        query = select(*(ROWS.c[name] for name in names)).order_by(ROWS.c.id).limit(limit)
        query = query.where(ROWS.c.id > after, ROWS.c.error.is_(None), ROWS.c.diagnosis_id.not_in(except_for))
        with self._engine.connect() as db:
            return [Row(*row) for row in db.execute(query)]

    def tried(self, ids: Collection[int], now: float) -> None:
        """See `Outbox`."""
        with self._engine.begin() as db:
            db.execute(
                update(ROWS).where(ROWS.c.id.in_(ids), ROWS.c.first_tried_at.is_(None)).values(first_tried_at=now)
            )

    def untried(self, ids: Collection[int], then: float) -> None:
        """See `Outbox`."""
        with self._engine.begin() as db:
            db.execute(
                update(ROWS).where(ROWS.c.id.in_(ids), ROWS.c.first_tried_at == then).values(first_tried_at=None)
            )

    def published(self, ids: Collection[int]) -> None:
        """See `Outbox`."""
        with self._engine.begin() as db:
            db.execute(delete(ROWS).where(ROWS.c.id.in_(ids)))

    def set_aside(self, row_id: int, error: str) -> None:
        """See `Outbox`."""
        with self._engine.begin() as db:
            db.execute(update(ROWS).where(ROWS.c.id == row_id).values(error=error))
