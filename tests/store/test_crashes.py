"""kill -9 of workers and of the database: what was answered is there, once, and the books agree."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import postgres, stores
from tests.support.charging_child import BATCH, batch, write
from tests.support.processes import eventually, spawn, wait_until
from tests.support.stores import NOW_MS

COUNT = 400


def _lines(log: Path) -> list[int]:
    """What a child was answered so far, by its log; its last line may be cut."""
    if not log.exists():
        return []
    return [int(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


async def _account(place: Place) -> str:
    async with stores.opened(place.url, place.folder) as store:
        return (await store.accounts.create("Acme", now_ms=NOW_MS)).id


async def _check(store: Store, account_id: str, answered: set[int]) -> None:
    """Everything answered is settled; repeating everything ever asked for changes only what was not written."""
    before = (await store.state.snapshot(account_id)).seq
    for first in answered:
        for committed in await store.writer.commit(batch(account_id, first, "settled")):
            assert committed.state == "settled"
            assert sum(line.amount for change in committed.changes for line in change.lines) == 1
    assert (await store.state.snapshot(account_id)).seq == before
    assert [d async for each in store.ledger.audit(account_id) for d in each.differences] == []


def test_workers_killed_while_writing_the_same_charges_lose_and_double_nothing(place: Place, tmp_path: Path) -> None:
    """Two workers write the same charges, one forwards, one from the middle; the first is killed, then the other."""
    account_id = asyncio.run(_account(place))
    logs = [tmp_path / "log0", tmp_path / "log1"]
    children = [
        spawn(
            (sys.executable, "-m", "tests.support.charging_child", place.url, place.folder, account_id, first, COUNT),
            cwd=Path.cwd(), env={**os.environ, "PYTHONPATH": "."}, log=log,
        )
        for first, log in zip((0, COUNT // 2), logs, strict=True)
    ]  # fmt: skip
    try:
        for child, log in zip(children, logs, strict=True):
            wait_until(lambda log=log: len(_lines(log)) >= 5 or child.poll() is not None, what="writes", within_s=60)  # noqa: B023
            child.kill()
            child.wait(10)
    finally:
        for child in children:
            child.kill()
            child.wait(10)
    answered = {first for log in logs for first in _lines(log)}
    assert len(answered) >= 5

    async def check() -> None:
        async with stores.opened(place.url, place.folder) as store:
            await _check(store, account_id, answered)
            await write(store, account_id, 0, COUNT // 4)  # whoever takes over writes it all again
            await _check(store, account_id, answered | set(range(0, COUNT // 4, BATCH)))

    asyncio.run(check())


def test_a_postgres_killed_while_charges_are_written_loses_none(tmp_path: Path) -> None:
    """With fsync: what was answered before each kill -9 is there after recovery."""

    async def run(server: postgres.Postgres, url: str) -> None:
        async with stores.opened(url, tmp_path, timeout_s=2) as store:
            account = await store.accounts.create("Acme", now_ms=NOW_MS)
            writing = asyncio.create_task(write(store, account.id, 0, COUNT // 4))
            for kills in range(1, 3):
                await eventually(lambda: _reached(store, account.id, kills * 30), what="writes", within_s=60)  # noqa: B023
                server.restart()
            await writing
            assert (await _seq(store, account.id)) == 3 * COUNT // 4
            await _check(store, account.id, set(range(0, COUNT // 4, BATCH)))

    with postgres.postgres(durable=True) as server:
        asyncio.run(run(server, stores.Databases(server).create()))


async def _reached(store: Store, account_id: str, seq: int) -> bool:
    return await _seq(store, account_id) >= seq


async def _seq(store: Store, account_id: str) -> int:
    return (await store.state.snapshot(account_id)).seq
