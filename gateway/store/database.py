"""The database: one engine per process on SQLite or PostgreSQL, the ways to use it, and its exceptions mapped once.

Rules
1. ``write`` is one transaction that reads what it writes: SQLite takes its write lock at BEGIN (else concurrent
   read-then-write transactions lose updates without an error); on PostgreSQL the callers lock the account's row first.
2. ``read`` is for one statement, ``snapshot`` for several that must agree with each other.
3. Nothing waits without end: every block has a deadline, after which the connection is thrown away.
4. No driver's exception leaves this module: StoreUnavailable (try again later, outcome unknown if it was a write) or
   Conflict (a unique or check constraint said no). Programming errors pass as they are.

Not here: tables (``schema``) and their migrations.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import asyncpg
from sqlalchemy import event, exc, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from gateway.errors import ConfigError, Conflict, StoreUnavailable
from gateway.store.script import Script, run_postgres, run_sqlite

EMBEDDED: Final = "embedded"
EMBEDDED_FILE: Final = "tollgate.db"
READ_TIMEOUT_S: Final = 3.0
WRITE_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 3.0
CLOSE_TIMEOUT_S: Final = 0.25
MIGRATE_TIMEOUT_S: Final = 3600.0
_POOL_SIZE: Final = {"sqlite": 4, "postgresql": 8}
_BEGIN: Final = "tollgate_begin"  # execution option: how SQLite begins; "" = not at all
_SQLITE_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",  # a commit that was answered survives a power cut
    "foreign_keys=ON",
    "recursive_triggers=ON",  # else REPLACE deletes rows without the append-only triggers noticing
)
_POSTGRES_SETTINGS: Final = {
    "application_name": "tollgate",
    "synchronous_commit": "on",
    "statement_timeout": f"{int(WRITE_TIMEOUT_S * 1000)}",
    "lock_timeout": f"{int(WRITE_TIMEOUT_S * 1000)}",
    "idle_in_transaction_session_timeout": f"{int(WRITE_TIMEOUT_S * 1000)}",  # a stopped worker must not keep row locks
    "timezone": "UTC",
    "jit": "off",
}

_BROKEN: Final = (
    exc.DBAPIError,
    exc.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # "another operation is in progress", when the server dies between two messages
)

Dialect = Literal["sqlite", "postgresql"]
T = TypeVar("T")


class Database:
    """An engine and the ways in. Made by ``open_database``; belongs to one event loop."""

    def __init__(
        self,
        engine: AsyncEngine,
        dialect: Dialect,
        *,
        thread: SqliteThread | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.engine = engine
        self.dialect = dialect
        self._thread = thread
        self._read_s = timeout_s or READ_TIMEOUT_S
        self._write_s = timeout_s or WRITE_TIMEOUT_S
        self._one_writer = asyncio.Lock()  # SQLite has one writer: queue fairly here instead of polling its lock
        if dialect == "sqlite":
            self._reads = engine.execution_options(**{_BEGIN: ""})
            self._snapshots = engine.execution_options(**{_BEGIN: "BEGIN"})
        else:
            self._reads = engine.execution_options(isolation_level="AUTOCOMMIT")
            self._snapshots = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection without a transaction, for single statements that read. Raises StoreUnavailable."""
        async with _mapped(), asyncio.timeout(self._read_s), self._reads.connect() as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self, *, timeout_s: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A read transaction: all its statements see one and the same instant. Raises StoreUnavailable."""
        async with _mapped(), asyncio.timeout(timeout_s or self._read_s), self._snapshots.begin() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed at the end of the block, rolled back by an exception.

        Raises StoreUnavailable: whether the commit took place is then unknown. Conflict: nothing was written.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_mapped())
            await stack.enter_async_context(asyncio.timeout(self._write_s))
            if self.dialect == "sqlite":
                await stack.enter_async_context(self._one_writer)
            yield await stack.enter_async_context(self.engine.begin())

    async def run(self, script: Script[T]) -> T:
        """One transaction as ``write``, given as a script: the cheap way, for what is done all the time."""
        async with _mapped(), asyncio.timeout(self._write_s):
            if self._thread is not None:
                async with self._one_writer:
                    return await self._thread.run(script)
            async with self._reads.connect() as connection:
                raw = (await connection.get_raw_connection()).driver_connection
                try:
                    return await run_postgres(raw, script)
                except BaseException:
                    await connection.invalidate()
                    raise

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may change tables and take long. SQLite's foreign keys rest meanwhile: rebuilding a table
        drops the old one, which would delete the rows that refer to it. Raises as ``write``."""
        async with _mapped(), asyncio.timeout(MIGRATE_TIMEOUT_S):
            if self.dialect == "postgresql":
                async with self.engine.begin() as connection:
                    for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                        await connection.execute(text(f"SET LOCAL {setting} = 0"))
                    yield connection
                return
            async with self._one_writer, self._reads.connect() as connection:
                await connection.exec_driver_sql("PRAGMA foreign_keys=OFF")  # without effect inside a transaction
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                    await connection.exec_driver_sql("COMMIT")
                finally:
                    await connection.rollback()  # nothing is left to roll back after the COMMIT
                    await connection.exec_driver_sql("PRAGMA foreign_keys=ON")

    async def close(self) -> None:
        if self._thread is not None:
            await self._thread.close()
        await self.engine.dispose()


def open_database(url: str, *, folder: Path, timeout_s: float | None = None) -> Database:
    """The database of ``storage.database``: ``embedded``, ``sqlite:///PATH`` (relative to ``folder``) or
    ``postgresql://…`` (everything that libpq's URLs can say). Connects lazily.

    Raises ConfigError for any other URL.
    """
    if url == EMBEDDED:
        return _open_sqlite(folder / EMBEDDED_FILE, timeout_s)
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite":
        path = rest.removeprefix("/")
        if not path or path == ":memory:" or not rest.startswith("/"):
            raise ConfigError(["storage.database: sqlite needs a file: sqlite:///tollgate.db"])
        return _open_sqlite(folder / path, timeout_s)
    if separator and scheme in ("postgresql", "postgres"):
        return _open_postgres(url, timeout_s)
    raise ConfigError(["storage.database: expected embedded, sqlite:///PATH or postgresql://…"])


class SqliteThread:
    """A connection with a thread of its own, for scripts: one change of threads for a whole transaction."""

    def __init__(self, path: Path, wait_s: float) -> None:
        self._path = path
        self._wait_s = wait_s
        self._thread = ThreadPoolExecutor(1, "sqlite")
        self._connection: sqlite3.Connection | None = None

    async def run(self, script: Script[T]) -> T:
        """Raises sqlite3.Error. Cancelled, it interrupts what runs, and waits for the thread to be free again."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._run, script)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if self._connection is not None:
                self._connection.interrupt()
            work.add_done_callback(lambda done: done.exception())  # nobody else will look
            await asyncio.wait([work], timeout=CLOSE_TIMEOUT_S)
            raise

    def _run(self, script: Script[T]) -> T:
        if self._connection is None:
            connection = sqlite3.connect(
                self._path, timeout=self._wait_s, isolation_level=None, check_same_thread=False
            )
            for pragma in _SQLITE_PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            self._connection = connection
        return run_sqlite(self._connection, script)

    async def close(self) -> None:
        def close() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()


def _open_sqlite(path: Path, timeout_s: float | None) -> Database:
    wait_s = timeout_s or WRITE_TIMEOUT_S
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        pool_size=_POOL_SIZE["sqlite"],
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        connect_args={"timeout": wait_s},
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def exists(_dialect: object, _entry: object, _args: object, _options: object) -> None:
        if not path.parent.is_dir():  # the driver would leave a thread behind
            raise sqlite3.OperationalError(f"there is no folder {path.parent}")

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself: see rule 1
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={int(wait_s * 1000)}", *_SQLITE_PRAGMAS):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        statement = connection.get_execution_options().get(_BEGIN, "BEGIN IMMEDIATE")
        if statement:
            connection.exec_driver_sql(statement)

    return Database(engine, "sqlite", thread=SqliteThread(path, wait_s), timeout_s=timeout_s)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # the driver has no types
    """Says goodbye quickly: after a deadline the server is probably hanging, and a request is waiting for us."""

    async def close(self, *, timeout: float | None = None) -> None:
        await super().close(timeout=CLOSE_TIMEOUT_S)


def _open_postgres(url: str, timeout_s: float | None) -> Database:
    async def connect() -> asyncpg.Connection:
        # asyncpg reads the URL itself, so that sslmode, several hosts and socket folders work as libpq documents them.
        return await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT_S, server_settings=_POSTGRES_SETTINGS, connection_class=_Connection
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=_POOL_SIZE["postgresql"],
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_recycle=1800,
        pool_pre_ping=True,  # a restart of the server costs nobody an error
    )
    return Database(engine, "postgresql", timeout_s=timeout_s)


@asynccontextmanager
async def _mapped() -> AsyncIterator[None]:
    """Driver exceptions become ours; what is a bug here stays what it is."""
    try:
        yield
    except (exc.IntegrityError, sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError) as error:
        raise Conflict from error
    except (exc.ProgrammingError, exc.DataError, asyncpg.SyntaxOrAccessError, asyncpg.DataError):
        raise
    except _BROKEN as error:
        if _is_bug(getattr(error, "orig", None)):
            raise
        raise StoreUnavailable from error
    except sqlite3.DatabaseError as error:
        if _is_bug(error):
            raise
        raise StoreUnavailable from error
    except (OSError, TimeoutError) as error:
        raise StoreUnavailable from error


def _is_bug(error: object) -> bool:
    """SQLite's own way to say: no such table, bad syntax."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
