"""A period that was granted ahead begins by itself; from then on it is the running one, whoever looks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.domain.accounts import Account, SubscriptionStatus
from gateway.domain.plans import CUSTOM
from tests.support import stores
from tests.support.gateways import Local

DAY_MS = 86_400_000


async def begun(gateway: Local) -> tuple[Account, int, int]:
    """An account a day after its second period began, which nobody noticed: (account, that period's end, now)."""
    _, account = await gateway.account("drain")
    end_ms = account.subscription.period_ends_at_ms
    assert await gateway.worker.store.subscriptions.ahead(account.id, now_ms=end_ms - 1_000)
    return account, end_ms + 30 * DAY_MS, end_ms + DAY_MS


async def open_grants(gateway: Local, account: Account, at_ms: int) -> list[tuple[int, int]]:
    found = await gateway.worker.store.grants.list(account.id, open_at_ms=at_ms)
    return [(grant.number, grant.expires_at_ms) for grant in found]


async def test_cancelling_lets_a_period_that_began_by_itself_run_to_its_end(gateway: Local) -> None:
    account, end_ms, now_ms = await begun(gateway)
    subscriptions = gateway.worker.store.subscriptions
    cancelled = await subscriptions.cancel(account.id, now_ms=now_ms)
    assert (cancelled.subscription.status, cancelled.subscription.period_ends_at_ms) == (
        SubscriptionStatus.ACTIVE,
        end_ms,
    )
    await subscriptions.turn(account.id, now_ms=now_ms)
    assert await open_grants(gateway, account, end_ms - 1) == [(2, end_ms)]
    await subscriptions.turn(account.id, now_ms=end_ms)
    ended = await gateway.worker.store.accounts.by_ref(account.id)
    assert ended is not None and ended.subscription.status is SubscriptionStatus.CANCELLED


async def test_moving_the_end_of_a_period_that_began_by_itself_revives_no_ended_grant(gateway: Local) -> None:
    account, _, now_ms = await begun(gateway)
    moved_ms = now_ms + 5 * DAY_MS
    await gateway.worker.store.subscriptions.extend(account.id, ends_at_ms=moved_ms, now_ms=now_ms)
    assert await open_grants(gateway, account, now_ms) == [(2, moved_ms)]


async def test_somebody_notices_a_period_that_began_by_itself(gateway: Local) -> None:
    """Else its refusals would name the old period's end, and its warnings would not be told."""
    account, end_ms, now_ms = await begun(gateway)
    reaper = gateway.worker.reaper
    await reaper._begun.go(now_ms)
    found = await gateway.worker.store.accounts.by_ref(account.id)
    assert found is not None and found.subscription.period_ends_at_ms == end_ms
    assert await open_grants(gateway, account, now_ms) == [(2, end_ms)]


async def test_an_account_without_the_terms_of_its_plan_keeps_no_other_from_its_period(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config made an allowance custom after both had subscribed."""
    worker, store = gateway.worker, gateway.worker.store
    _, first = await gateway.account("cut")
    _, second = await gateway.account("drain")
    end_ms = max(each.subscription.period_ends_at_ms for each in (first, second))
    for each in (first, second):
        await store.writer.commit([stores.charge(each, (1, 5), at_ms=end_ms - DAY_MS)])
    plans = dict(worker.gateway.config.catalog.plans)
    plans["cut"] = replace(plans["cut"], allowance={"tokens": CUSTOM})
    worker.configure(replace(worker.gateway.config, catalog=replace(worker.gateway.config.catalog, plans=plans)))
    now_ms = first.subscription.period_ends_at_ms - 1_000
    assert await store.subscriptions.due_ahead(now_ms=now_ms) == (first.id, second.id)
    await worker.reaper._ahead.go(now_ms)
    assert await store.subscriptions.due_ahead(now_ms=now_ms) == (first.id,)
    assert await open_grants(gateway, second, end_ms) == [(2, second.subscription.period_ends_at_ms + 30 * DAY_MS)]
