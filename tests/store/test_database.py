"""Three ways in: no lost updates, consistent snapshots, no wait without end, no driver's exception outside."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from gateway.errors import AccountNotFound, ConfigError, Conflict, StoreUnavailable
from gateway.store.common import lock_account, new_id
from gateway.store.database import open_database
from gateway.store.schema import accounts, pushes, teams
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import postgres, stores
from tests.support.stores import NOW_MS


async def test_concurrent_read_then_write_transactions_lose_no_update(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)

    async def add_one() -> None:
        async with store.database.write() as connection:
            row = await lock_account(connection, account.id)
            await connection.execute(
                update(accounts).where(accounts.c.id == account.id).values(users_seen=row.users_seen + 1)
            )

    await asyncio.gather(*(add_one() for _ in range(50)))
    async with store.database.read() as connection:
        assert (await connection.execute(select(accounts.c.users_seen))).scalar_one() == 50


async def test_a_snapshot_does_not_see_what_is_written_meanwhile(store: Store) -> None:
    count = text("SELECT count(*) FROM pushes")
    async with store.database.snapshot() as reading:
        before = (await reading.execute(count)).scalar_one()
        async with store.database.write() as writing:
            await writing.execute(insert(pushes).values(account_id=new_id(), cause="test", created_at_ms=NOW_MS))
        assert (await reading.execute(count)).scalar_one() == before
    async with store.database.read() as connection:
        assert (await connection.execute(count)).scalar_one() == before + 1


async def test_an_exception_rolls_the_transaction_back(store: Store) -> None:
    with pytest.raises(AccountNotFound):
        async with store.database.write() as connection:
            await connection.execute(insert(pushes).values(account_id=new_id(), cause="test", created_at_ms=NOW_MS))
            await lock_account(connection, new_id())
    assert await store.state.pushes() == ()


async def test_a_taken_unique_value_is_a_conflict(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    with pytest.raises(Conflict):
        async with store.database.write() as connection:
            await connection.execute(
                insert(accounts).values(id=account.id, name="Other", status="active", created_at_ms=NOW_MS)
            )


async def test_foreign_keys_are_kept(store: Store) -> None:
    with pytest.raises(Conflict):
        async with store.database.write() as connection:
            await connection.execute(
                insert(teams).values(id=new_id(), account_id=new_id(), name="of nobody", created_at_ms=NOW_MS)
            )


async def test_a_cancelled_transaction_leaves_nothing_and_the_pool_whole(store: Store) -> None:
    inside = asyncio.Event()

    async def hang() -> None:
        async with store.database.write() as connection:
            await connection.execute(insert(pushes).values(account_id=new_id(), cause="test", created_at_ms=NOW_MS))
            inside.set()
            await asyncio.Event().wait()

    for _ in range(12):  # more than the pool holds
        task = asyncio.create_task(hang())
        await inside.wait()
        inside.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await store.state.pushes() == ()
    await store.accounts.create("Acme", now_ms=NOW_MS)


async def test_a_block_past_its_deadline_is_store_unavailable(place: Place) -> None:
    async with stores.opened(place.url, place.folder, timeout_s=0.05) as store:
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            async with store.database.write():
                await asyncio.Event().wait()
        assert time.monotonic() - started_s < 5


async def test_a_locked_account_is_store_unavailable_after_the_deadline(place: Place) -> None:
    """Another process keeps the lock for ever: the second one must not wait for ever."""
    async with (
        stores.opened(place.url, place.folder) as other,
        stores.opened(place.url, place.folder, timeout_s=1) as store,
    ):
        account = await other.accounts.create("Acme", now_ms=NOW_MS)
        async with other.database.write() as connection:
            await lock_account(connection, account.id)
            with pytest.raises(StoreUnavailable):
                await store.grants.add(account.id, wallet="tokens", amount=1, now_ms=NOW_MS)
            with pytest.raises(StoreUnavailable):
                await store.writer.commit([stores.charge(account, (1, 1))])
            assert await store.accounts.by_ref(account.id)  # readers go on
        await store.grants.add(account.id, wallet="tokens", amount=1, now_ms=NOW_MS)
        await store.writer.commit([stores.charge(account, (1, 1))])


async def test_a_cancelled_commit_leaves_the_writer_whole(store: Store) -> None:
    """Cancelled at any moment, charges are booked or not; repeated, they are there once."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    batches = [[stores.charge(account, (1, 1)) for _ in range(20)] for _ in range(12)]
    for turns, batch in enumerate(batches):
        task = asyncio.create_task(store.writer.commit(batch))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    for batch in batches:
        assert all(answer.state == "settled" for answer in await store.writer.commit(batch))
    assert (await store.state.snapshot(account.id)).seq == 240
    assert [each.differences async for each in store.ledger.audit(account.id)] == [()]


async def test_a_full_pool_waits_its_turn(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    found = await asyncio.gather(*(store.accounts.by_ref(account.id) for _ in range(100)))
    assert found == [account] * 100


def test_sqlite_is_durable_and_keeps_its_rules(tmp_path: Path) -> None:
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "recursive_triggers": 1,
        "busy_timeout": 10_000,
    }

    async def ask() -> dict[str, object]:
        database = open_database("embedded", folder=tmp_path)
        async with database.read() as connection:
            found = {name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in expected}
        await database.close()
        return found

    assert asyncio.run(ask()) == expected


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("embedded", "tollgate.db"),
        ("sqlite:///other.db", "other.db"),
        ("sqlite:///sub/other.db", "sub/other.db"),
    ],
)
async def test_relative_paths_are_in_the_data_folder(tmp_path: Path, url: str, file: str) -> None:
    (tmp_path / "sub").mkdir()
    await stores.migrated(url, tmp_path)
    assert (tmp_path / file).exists()


async def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    await stores.migrated(f"sqlite:///{tmp_path / 'here.db'}", Path("/nowhere"))
    assert (tmp_path / "here.db").exists()


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "sqlite://x.db", "sqlite:///", "sqlite:///:memory:", "", "tollgate.db"]
)
def test_another_url_is_a_config_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError):
        open_database(url, folder=tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////nowhere/at/all.db",
        "postgresql://nobody@/none?host=/nowhere",
        "postgresql://nobody@127.0.0.1:1/none",
        "postgresql://nobody@127.0.0.1:1/none?sslmode=require",
    ],
)
async def test_a_database_that_is_not_there_is_store_unavailable(tmp_path: Path, url: str) -> None:
    database = open_database(url, folder=tmp_path)
    with pytest.raises(StoreUnavailable):
        async with database.read():
            pass
    await database.close()


async def test_a_file_that_is_no_database_is_store_unavailable(tmp_path: Path) -> None:
    (tmp_path / "tollgate.db").write_bytes(b"no database at all" * 1000)
    database = open_database("embedded", folder=tmp_path)
    with pytest.raises(StoreUnavailable):
        async with database.read() as connection:
            await connection.execute(text("SELECT 1 FROM accounts"))
    await database.close()


def test_a_postgres_that_hangs_and_comes_back(tmp_path: Path) -> None:
    """SIGSTOP: connections stay open and nothing answers. Then kill -9: connections break."""

    async def talk(server: postgres.Postgres, url: str) -> None:
        async with stores.opened(url, tmp_path, timeout_s=2) as store:
            account = await store.accounts.create("Acme", now_ms=NOW_MS)
            server.suspend()
            started_s = time.monotonic()
            answers = await asyncio.gather(
                *(store.accounts.by_ref(account.id) for _ in range(20)),
                store.writer.commit([stores.charge(account, (1, 1))]),
                return_exceptions=True,
            )
            assert {type(answer) for answer in answers} == {StoreUnavailable}
            assert time.monotonic() - started_s < 15
            server.resume()
            assert await store.accounts.by_ref(account.id) == account
            server.restart()
            assert await store.accounts.by_ref(account.id) == account

    with postgres.postgres() as server:
        asyncio.run(talk(server, stores.Databases(server).create()))


def test_replace_is_refused_by_recursive_triggers_only(tmp_path: Path) -> None:
    """Why the pragma is there: without it REPLACE deletes a row and no trigger hears of it."""
    stores.copy_sqlite(tmp_path)
    connection = sqlite3.connect(tmp_path / "tollgate.db")
    connection.execute("INSERT INTO audit_log VALUES (1, NULL, 'a', 'b', '{}', 1)")
    connection.execute("REPLACE INTO audit_log VALUES (1, NULL, 'a', 'c', '{}', 1)")
    connection.execute("PRAGMA recursive_triggers=ON")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("REPLACE INTO audit_log VALUES (1, NULL, 'a', 'd', '{}', 1)")
    connection.close()
