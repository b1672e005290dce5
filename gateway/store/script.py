"""A transaction as a script: statements prepared once, run one after the other with as little around them as can be.

The hot path's way into the database. A script is a generator: it yields (statement, parameters), gets the rows back,
and returns its result; so the same script runs in SQLite's own thread and over asyncpg, and does not know which.
One dictionary of parameters runs a statement once and answers its rows; a list runs it for each and answers none. Where
each one counts, the list is of tuples: a value for each of the statement's ``names``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Final, Literal, TypeVar

import asyncpg
from sqlalchemy import Executable, Insert
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

T = TypeVar("T")
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any] | tuple[Any, ...]]
Rows = Sequence[Sequence[Any]]
CHUNKS: Final = (256, 64, 16, 4)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement as its driver takes it, with the parameters' names in their places and those that never change."""

    sql: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]
    chunks: tuple[tuple[int, str], ...] = ()  # SQLite's INSERTs: the same for so many rows at once, largest first

    def rows(self, parameters: Sequence[Mapping[str, Any] | tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Each one's values in their places."""
        values = itemgetter(*self.names)
        return [each if isinstance(each, tuple) else values(each) for each in parameters]


Script = Generator[tuple[Prepared, Parameters], Rows, T]


def prepare(dialect: Literal["sqlite", "postgresql"], statement: Executable, *columns: str) -> Prepared:
    """Compile a statement. ``columns``: of an INSERT, those that it gives; none = all."""
    engine = sqlite.dialect(paramstyle="qmark") if dialect == "sqlite" else PGDialect_asyncpg()  # type: ignore[no-untyped-call]
    compiled = statement.compile(dialect=engine, column_keys=list(columns) or None)  # type: ignore[attr-defined]
    constants = {
        name: bind.value for name, bind in compiled.binds.items() if not bind.required and bind.value is not None
    }
    sql, names = str(compiled), tuple(compiled.positiontup or ())
    chunks: tuple[tuple[int, str], ...] = ()
    if dialect == "sqlite" and isinstance(statement, Insert):
        row = f"({', '.join('?' * len(names))})"
        head, _, tail = sql.partition(f" VALUES {row}")
        chunks = tuple((size, f"{head} VALUES {', '.join([row] * size)}{tail}") for size in CHUNKS)
    return Prepared(sql, names, constants, chunks)


def run_sqlite(connection: sqlite3.Connection, script: Script[T]) -> T:
    """Run a script in one transaction that has the write lock from its beginning. Blocks: call it in a thread."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = _drive_sqlite(connection, script)
        connection.execute("COMMIT")
        return result
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _drive_sqlite(connection: sqlite3.Connection, script: Script[T]) -> T:
    try:
        statement, parameters = next(script)
        while True:
            rows: Rows = ()
            if isinstance(parameters, Mapping):
                given = {**statement.constants, **parameters}
                rows = connection.execute(
                    statement.sql, [_sqlite_value(given[name]) for name in statement.names]
                ).fetchall()
            else:
                _insert_sqlite(connection, statement, statement.rows(parameters))
            statement, parameters = script.send(rows)
    except StopIteration as done:
        result: T = done.value
        return result


def _insert_sqlite(connection: sqlite3.Connection, statement: Prepared, rows: Sequence[Sequence[Any]]) -> None:
    """In chunks where it can be: each step gives the interpreter's lock away and waits to have it back."""
    start = 0
    for size, sql in statement.chunks:
        while len(rows) - start >= size:
            connection.execute(sql, list(chain.from_iterable(rows[start : start + size])))
            start += size
    connection.executemany(statement.sql, rows[start:])


def _sqlite_value(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


async def run_postgres(connection: asyncpg.Connection, script: Script[T]) -> T:
    """Run a script in one transaction. After any exception the connection must be thrown away."""
    await connection.execute("BEGIN")
    try:
        statement, parameters = next(script)
        while True:
            rows: Rows = ()
            names = statement.names
            if isinstance(parameters, Mapping):
                given = {**statement.constants, **parameters}
                rows = await connection.fetch(statement.sql, *[given[name] for name in names])
            else:
                await connection.executemany(statement.sql, statement.rows(parameters))
            statement, parameters = script.send(rows)
    except StopIteration as done:
        await connection.execute("COMMIT")
        result: T = done.value
        return result
