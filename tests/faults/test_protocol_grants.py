"""Wallets of many grants, and of endless ones, go on through holds, turns and lapses like any other."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from gateway.domain.grants import NewGrant
from gateway.store.common import lock_account
from gateway.store.grants import insert_grants
from tests.support.bills import STEPS, assert_settled_to, balance, usage_rows
from tests.support.calls import ANTHROPIC
from tests.support.gateways import Local, local
from tests.support.simulators import LocalModels

ENDLESS = "  endless: {label: Endless, price: 9, period: 30d, renews: by_itself, allowance: {tokens: unlimited}}\n"
HOUR_MS = 3_600_000


async def call(gateway: Local, key: str, max_tokens: int = 500) -> int:
    body = ANTHROPIC.body("output=30", max_tokens=max_tokens)
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + ANTHROPIC.path, json=body, headers=ANTHROPIC.headers(key)) as answer,
    ):
        await answer.read()
        return answer.status


async def test_an_endless_allowance_stays_usable_while_the_next_one_waits(
    models: LocalModels, valkey_url: str, tmp_path: Path
) -> None:
    """Two of them are more than numbers can say; they are never open together."""
    async with local(models.url, valkey_url, tmp_path, plans=ENDLESS) as gateway:
        key, account = await gateway.account("endless")
        before_end_ms = account.subscription.period_ends_at_ms - HOUR_MS
        assert await gateway.worker.store.subscriptions.ahead(account.id, now_ms=before_end_ms)
        await gateway.worker.gateway.quota.turner.push(account.id)
        assert await call(gateway, key) == 200


async def test_a_call_paid_from_hundreds_of_grants_is_held_charged_and_freed(gateway: Local) -> None:
    """A hold names so many grants at most; the last one bears what the others do not."""
    key, account = await gateway.account("trial")
    quota, store = gateway.worker.gateway.quota, gateway.worker.store
    now_ms = quota.clock.now_ms()
    await store.grants.adjust(account.id, wallet="tokens", amount=-6_000 * STEPS, now_ms=now_ms)
    small = [NewGrant(f"small-{index}", "tokens", 4 * STEPS, "gift", 40, now_ms, 0) for index in range(300)]
    async with store.database.write() as connection:
        await insert_grants(connection, await lock_account(connection, account.id), small, now_ms=now_ms)
    await quota.turner.push(account.id)
    assert await call(gateway, key, max_tokens=1_000) == 200
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    assert row["held"] > 255 * 4 * STEPS and row["charged"] > 0
    await assert_settled_to(gateway, account.id, row["charged"])
    assert (await balance(gateway, account.id)).granted == 1_200 * STEPS
