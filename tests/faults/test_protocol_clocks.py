"""A clock that runs behind, a charge on its way, a failure in the background: none of them is held against anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gateway.domain.charges import Committed
from gateway.domain.periods import parse_period
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota.scribe import Scribe
from limits.errors import EngineUnavailable
from tests.support.bills import STEPS, assert_settled_to, balance, usage_rows
from tests.support.calls import ANTHROPIC
from tests.support.gateways import Local

HOUR_MS = 3_600_000


async def call(gateway: Local, key: str) -> int:
    request = {"json": ANTHROPIC.body("output=30", max_tokens=100), "headers": ANTHROPIC.headers(key)}
    async with aiohttp.ClientSession() as session, session.post(gateway.url + ANTHROPIC.path, **request) as answer:
        await answer.read()
        return answer.status


async def test_a_worker_whose_clock_is_behind_spends_the_budget_of_the_running_period(gateway: Local) -> None:
    key, account = await gateway.account("drain")
    quota, store = gateway.worker.gateway.quota, gateway.worker.store
    assert await call(gateway, key) == 200
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    now_ms = quota.clock.now_ms()
    await store.members.set_budget(
        "key", row["key_id"], meter="tokens", amount=1_000 * STEPS, period=parse_period("1h"),
        anchor_ms=now_ms - HOUR_MS, now_ms=now_ms,
    )  # fmt: skip
    await quota.turner.push(account.id)
    assert await call(gateway, key) == 200
    quota.clock.saw(now_ms - 200)  # within what a reserve's deadline forgives
    assert await call(gateway, key) == 200
    await gateway.settled()
    async with store.database.read() as connection:
        uses = (await connection.exec_driver_sql("SELECT starts_at_ms FROM budget_uses")).all()
    assert [tuple(row) for row in uses] == [(now_ms,)]


@pytest.mark.parametrize(
    ("told_by", "off_ms"), [("reserve", HOUR_MS), ("a late reserve", -HOUR_MS), ("settle", HOUR_MS)]
)
async def test_every_answer_of_redis_sets_a_worker_s_clock(
    gateway: Local, monkeypatch: pytest.MonkeyPatch, told_by: str, off_ms: int
) -> None:
    key, _ = await gateway.account("drain")
    quota = gateway.worker.gateway.quota
    assert await call(gateway, key) == 200
    await gateway.settled()
    now_ms, settle = quota.clock.now_ms(), quota._engine.settle

    async def settled(*args: Any, **options: Any) -> Any:
        if told_by != "settle":
            raise EngineUnavailable("no answer", sent=False)
        quota.clock.saw(now_ms + off_ms)
        return await settle(*args, **options)

    monkeypatch.setattr(quota._engine, "settle", settled)
    quota.clock.saw(now_ms + off_ms)
    assert await call(gateway, key) == 200
    await gateway.settled()
    assert abs(quota.clock.now_ms() - now_ms) < HOUR_MS // 2


async def test_a_smaller_plan_takes_nothing_back_that_a_charge_on_its_way_has_used(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, account = await gateway.account("drain")
    worker = gateway.worker
    commit = worker.store.writer.commit

    async def away(rows: Sequence[Any]) -> list[Committed]:
        raise StoreUnavailable

    monkeypatch.setattr(worker.store.writer, "commit", away)
    assert await call(gateway, key) == 200
    await worker.gateway.tasks.drained(10)
    pending = (await balance(gateway, account.id)).pending
    assert pending > 0
    config = worker.gateway.config
    plan = replace(config.catalog.plans["drain"], allowance={"tokens": STEPS}, version="smaller")
    catalog = replace(config.catalog, plans={**config.catalog.plans, "drain": plan})
    worker.configure(replace(config, catalog=catalog))
    await worker.gateway.quota._versions.follow(account.id, plan)
    after = await balance(gateway, account.id)
    assert after.granted == after.posted == pending
    monkeypatch.setattr(worker.store.writer, "commit", commit)
    await assert_settled_to(gateway, account.id, pending)
    assert len(await usage_rows(gateway, account.id)) == 1


async def test_charges_in_memory_are_written_after_a_failure_though_no_other_follows() -> None:
    written: list[Any] = []

    class Writer:
        async def commit(self, rows: Sequence[Any]) -> list[Committed]:
            if not written:
                written.append(None)
                raise RuntimeError("a bug")
            written.extend(rows)
            return []

    scribe = Scribe(Writer(), None, Metrics(None))  # type: ignore[arg-type]
    scribe.add("a charge")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        await scribe.run()
    again = asyncio.create_task(scribe.run())
    async with asyncio.timeout(10):
        await scribe.drained()
    again.cancel()
    assert written == [None, "a charge"] and scribe.kept == 0
