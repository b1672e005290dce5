"""Every database comes to this release's schema the same way, and what is append-only stays so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from gateway.errors import ConfigError, Conflict, StoreUnavailable
from gateway.store import migration
from gateway.store.database import Database, open_database
from gateway.store.schema import APPEND_ONLY, metadata
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import stores
from tests.support.stores import NOW_MS, charge

CHANGES = {
    "usage": ("charged", "account_id"),
    "usage_rejects": ("why", "id"),
    "ledger": ("amount", "id"),
    "audit_log": ("actor", "id"),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A database without any table."""
    url = "embedded" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    yield Place(url, tmp_path, request.param)


async def _execute(database: Database, statement: str) -> None:
    async with database.write() as connection:
        await connection.execute(text(statement))


async def test_an_empty_database_becomes_the_schema_and_nothing_else(empty: Place) -> None:
    database = open_database(empty.url, folder=empty.folder)
    with pytest.raises(ConfigError, match="run 'tollgate migrate'"):
        await migration.check(database)
    await migration.migrate(database)
    await migration.check(database)
    await migration.migrate(database)  # again: nothing to do

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_two_replicas_that_migrate_at_once_both_succeed(empty: Place) -> None:
    databases = [open_database(empty.url, folder=empty.folder) for _ in range(2)]
    await asyncio.gather(*(migration.migrate(database) for database in databases))
    for database in databases:
        await migration.check(database)
        await database.close()


@pytest.mark.own_database
async def test_a_newer_schema_is_refused_and_left_alone(store: Store) -> None:
    await _execute(store.database, "UPDATE alembic_version SET version_num = '9999'")
    for act in (migration.migrate, migration.check):
        with pytest.raises(ConfigError, match="newer Tollgate"):
            await act(store.database)
    async with store.database.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "9999"


async def test_a_failed_migration_leaves_the_database_as_it_was(empty: Place) -> None:
    database = open_database(empty.url, folder=empty.folder)
    await _execute(database, "CREATE TABLE usage (x integer)")  # in the way of the first revision
    with pytest.raises(DBAPIError, match="usage"):
        await migration.migrate(database)
    with pytest.raises(ConfigError, match="empty"):
        await migration.check(database)
    async with database.read() as connection:
        await connection.execute(text("SELECT x FROM usage"))
    await database.close()


async def _fill(store: Store) -> None:
    """A row in every append-only table."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.writer.commit([charge(account, (1, 5)), charge("nobody", (1, 5))])
    async with store.database.read() as connection:
        for table in APPEND_ONLY:
            assert (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() > 0


def _attempts(backend: str, table: str) -> Iterator[str]:
    column, key = CHANGES[table]
    yield f"UPDATE {table} SET {column} = {column}"
    yield f"DELETE FROM {table}"
    if backend == "sqlite":
        yield f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"
        yield f"REPLACE INTO {table} SELECT * FROM {table}"
        yield f"UPDATE OR REPLACE {table} SET {key} = {key}"
    else:
        yield f"TRUNCATE {table}"
        yield f"TRUNCATE {table} CASCADE"
        yield f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT * FROM gone"
        yield f"SET LOCAL session_replication_role = replica; DELETE FROM {table}"
        key = "account_id, seq" if table == "usage" else "id"
        yield (
            f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {table} "
            f"ON CONFLICT ({key}) DO UPDATE SET {column} = EXCLUDED.{column}"
        )


@pytest.mark.parametrize("table", APPEND_ONLY)
async def test_nobody_edits_what_is_append_only(store: Store, place: Place, table: str) -> None:
    await _fill(store)
    count = f"SELECT count(*), min({CHANGES[table][0]}) FROM {table}"
    async with store.database.read() as connection:
        before = (await connection.execute(text(count))).one()
    for attempt in _attempts(place.backend, table):
        with pytest.raises((Conflict, StoreUnavailable)) as refused:
            async with store.database.write() as connection:
                for statement in attempt.split("; "):
                    await connection.exec_driver_sql(statement)
        assert "append-only" in str(refused.value.__cause__), attempt
    async with store.database.read() as connection:
        assert (await connection.execute(text(count))).one() == before


@pytest.mark.own_database
async def test_triggers_are_back_after_every_migration(store: Store, place: Place) -> None:
    """A table rebuilt by a revision has lost them: the next ``migrate`` puts them back."""
    await _fill(store)
    if place.backend == "sqlite":
        await _execute(store.database, "DROP TRIGGER usage_append_only_update")
        await _execute(store.database, "DROP TRIGGER usage_append_only_delete")
    else:
        await _execute(store.database, "DROP TRIGGER usage_append_only ON usage")
    await _execute(store.database, "UPDATE usage SET charged = charged")
    await migration.migrate(store.database)
    with pytest.raises((Conflict, StoreUnavailable)):
        await _execute(store.database, "UPDATE usage SET charged = charged")


async def test_migrating_sqlite_keeps_rows_and_their_foreign_keys(tmp_path: Path) -> None:
    """Foreign keys rest while tables are rebuilt: else dropping accounts would refuse, or take its keys along."""
    stores.copy_sqlite(tmp_path)
    async with stores.opened("embedded", tmp_path) as store:
        account = await store.accounts.create("Acme", now_ms=NOW_MS)
        key = await store.keys.create(digest=b"1", prefix="tg_1", now_ms=NOW_MS, account_id=account.id)
        async with store.database.migrating() as connection:
            await connection.execute(text("CREATE TABLE copy AS SELECT * FROM accounts"))
            await connection.execute(text("DELETE FROM accounts"))
            await connection.execute(text("INSERT INTO accounts SELECT * FROM copy"))
            await connection.execute(text("DROP TABLE copy"))
        assert await store.keys.get(key.id) == key
        async with store.database.write() as connection:
            assert (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar_one() == 1
