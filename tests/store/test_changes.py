"""Changes of plan, and refunds: up at once with a credit, down at the end of what is paid, each its own way back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select

from gateway.domain.accounts import Account, SubscriptionStatus
from gateway.domain.periods import Period
from gateway.errors import BadRequest, NotFound
from gateway.store.renewals import Payment
from gateway.store.schema import payments
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import DAY_MS, NOW_MS, charge

MONTH_MS = 30 * DAY_MS
HALF_MS = NOW_MS + 15 * DAY_MS
PLANS = replace(
    catalogs.catalog(
        catalogs.trial(),
        catalogs.plan("free", period=Period("once"), allowance={"tokens": 100}, grant_source="trial"),
        catalogs.plan("lite", price=Decimal(15), allowance={"tokens": 200}),
        catalogs.plan("pro", price=Decimal(30), allowance={"tokens": 500}),
        catalogs.plan("paid", price=Decimal(9), renews="when_paid", ends="free", allowance={"tokens": 1000}),
        catalogs.plan("paid_more", price=Decimal(29), renews="when_paid", ends="free", allowance={"tokens": 5000}),
        catalogs.plan("own", price="custom", allowance={"tokens": "custom"}),
    ),
    grace_ms=7 * DAY_MS,
)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, catalog=PLANS) as opened:
        yield opened


async def _now(store: Store, account: Account) -> Account:
    found = await store.accounts.by_ref(account.id)
    assert found is not None
    return found


async def _credits(store: Store, account: Account) -> list[tuple[str, str, int]]:
    query = select(payments).where(payments.c.account_id == account.id, payments.c.kind == "credit")
    async with store.database.read() as connection:
        return [(row.what, row.state, row.amount) for row in await connection.execute(query)]


async def _open(store: Store, account: Account, at_ms: int) -> list[tuple[str, int, int]]:
    found = await store.grants.list(account.id, open_at_ms=at_ms)
    return [(grant.source, grant.amount, grant.used) for grant in found]


async def _audited(store: Store) -> None:
    async for audited in store.ledger.audit():
        assert audited.differences == ()


async def test_an_upgrade_starts_now_with_the_whole_allowance_and_credits_the_unused_time(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="lite")
    await store.writer.commit([charge(account, (1, 150))])
    change = await store.subscriptions.change(account.id, "pro", now_ms=HALF_MS)
    assert (change.at_ms, change.credit) == (HALF_MS, 750)
    subscription = change.account.subscription
    assert (subscription.plan, subscription.period_starts_at_ms) == ("pro", HALF_MS)
    assert await _open(store, account, HALF_MS) == [("plan", 500, 0)]
    assert await _credits(store, account) == [("lite", "due", 750)]
    await _audited(store)


async def test_what_was_adjusted_ends_with_its_plan_and_gifts_and_adjustments_without_an_end_stay(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="lite")
    give: dict[str, Any] = {"wallet": "tokens", "now_ms": NOW_MS}
    ends_ms = account.subscription.period_ends_at_ms
    await store.grants.adjust(account.id, amount=10, expires_at_ms=ends_ms, **give)
    await store.grants.adjust(account.id, amount=20, **give)
    await store.grants.add(account.id, amount=30, expires_at_ms=ends_ms, **give)
    await store.subscriptions.change(account.id, "pro", now_ms=HALF_MS)
    assert await _open(store, account, HALF_MS) == [("adjustment", 20, 0), ("gift", 30, 0), ("plan", 500, 0)]
    await _audited(store)


async def test_a_downgrade_waits_for_the_periods_end(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    change = await store.subscriptions.change(account.id, "lite", now_ms=HALF_MS)
    assert (change.at_ms, change.credit) == (NOW_MS + MONTH_MS, 0)
    assert (change.account.subscription.plan, change.account.subscription.next_plan) == ("pro", "lite")
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS - 1)).outcome == "stay"
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS)).outcome == "changed"
    found = await _now(store, account)
    assert (found.subscription.plan, found.subscription.next_plan) == ("lite", None)
    assert await _open(store, account, NOW_MS + MONTH_MS) == [("plan", 200, 0)]
    assert await _credits(store, account) == []


async def test_a_downgrade_at_once_credits_like_an_upgrade(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    change = await store.subscriptions.change(account.id, "lite", now_ms=HALF_MS, at_end=False)
    assert (change.account.subscription.plan, change.credit) == ("lite", 1500)


async def test_a_downgrade_takes_back_what_was_granted_ahead(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    end_ms = NOW_MS + MONTH_MS
    assert await store.subscriptions.ahead(account.id, now_ms=end_ms - 1000)
    await store.subscriptions.change(account.id, "lite", now_ms=end_ms - 500)
    assert await _open(store, account, end_ms) == []
    await store.subscriptions.turn(account.id, now_ms=end_ms)
    assert await _open(store, account, end_ms) == [("plan", 200, 0)]
    await _audited(store)


async def test_choosing_the_own_plan_takes_a_change_back(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    await store.subscriptions.change(account.id, "lite", now_ms=NOW_MS + 1)
    again = await store.subscriptions.change(account.id, "pro", now_ms=NOW_MS + 2)
    assert again.account.subscription.next_plan is None
    assert (await store.subscriptions.change(account.id, "pro", now_ms=NOW_MS + 3)).account == again.account
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS)).outcome == "next_period"


async def test_a_downgrade_waits_for_the_end_of_all_that_is_paid(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.renewals.renew(account.id, Payment("in_1", plan="paid_more", periods=2), now_ms=NOW_MS)
    change = await store.subscriptions.change(account.id, "paid", now_ms=NOW_MS + 1)
    assert change.at_ms == NOW_MS + 2 * MONTH_MS
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS)).outcome == "next_period"
    assert (await store.subscriptions.turn(account.id, now_ms=change.at_ms)).outcome == "changed"
    waiting = (await _now(store, account)).subscription
    assert (waiting.plan, waiting.status) == ("paid", SubscriptionStatus.PAST_DUE)
    assert await _open(store, account, change.at_ms) == []  # what renews when paid is granted when it is paid
    await store.renewals.renew(account.id, Payment("in_2"), now_ms=change.at_ms + DAY_MS)
    assert await _open(store, account, change.at_ms + DAY_MS) == [("plan", 1000, 0)]


async def test_an_upgrade_credits_what_was_really_paid(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.renewals.renew(account.id, Payment("in_1", plan="paid", periods=2, price=1600), now_ms=NOW_MS)
    change = await store.subscriptions.change(account.id, "paid_more", now_ms=NOW_MS + MONTH_MS)
    assert change.credit == 800


async def test_a_payment_provider_that_prorates_is_not_credited_again(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="lite")
    assert (await store.subscriptions.change(account.id, "pro", now_ms=HALF_MS, prorate=False)).credit == 0


async def test_a_plan_without_an_end_is_left_at_once(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    with pytest.raises(BadRequest):
        await store.subscriptions.change(account.id, "lite", now_ms=NOW_MS, at_end=True)
    change = await store.subscriptions.change(account.id, "lite", now_ms=NOW_MS + 1)
    assert (change.account.subscription.plan, change.credit) == ("lite", 0)


async def test_what_was_granted_once_is_not_granted_again_by_a_downgrade(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    await store.writer.commit([charge(account, (1, 60))])
    for plan in ("pro", "free", "pro", "free"):
        await store.subscriptions.change(account.id, plan, now_ms=NOW_MS + 1, at_end=False)
    assert await _open(store, account, NOW_MS + 2) == [("trial", 100, 60)]


async def test_a_trial_is_had_once(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.subscriptions.change(account.id, "pro", now_ms=NOW_MS + 1)
    with pytest.raises(BadRequest, match="has had its Trial"):
        await store.subscriptions.change(account.id, "trial", now_ms=NOW_MS + 2)


@pytest.mark.parametrize("terms", [{}, {"price": "499"}])
async def test_custom_plans_need_their_terms(store: Store, terms: dict[str, Any]) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    with pytest.raises(BadRequest, match="has a custom"):
        await store.subscriptions.change(account.id, "own", now_ms=NOW_MS, terms=terms)
    both = {"price": "499", "allowance": {"tokens": 7000}}
    change = await store.subscriptions.change(account.id, "own", now_ms=NOW_MS, terms=both)
    assert await _open(store, change.account, NOW_MS) == [("plan", 7000, 0)]
    assert (await store.subscriptions.change(account.id, "pro", now_ms=HALF_MS, at_end=False)).credit == 24_950


async def test_a_refund_takes_back_what_is_neither_used_nor_held_and_ends_the_plan_once(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    await store.renewals.renew(account.id, Payment("in_1", plan="paid"), now_ms=NOW_MS)
    await store.writer.commit([charge(account, (2, 300))])
    refunded = await store.renewals.refund(account.id, "in_1", now_ms=HALF_MS, held={2: 200})
    assert refunded.subscription.plan == "free"
    assert [(g.amount, g.used) for g in await store.grants.list(account.id)] == [(100, 0), (500, 300)]
    assert await store.renewals.refund(account.id, "in_1", now_ms=HALF_MS + 5) == refunded
    await _audited(store)


async def test_a_refund_of_what_was_paid_ahead_ends_the_plan_with_its_period(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    await store.renewals.renew(account.id, Payment("in_1"), now_ms=HALF_MS)
    refunded = await store.renewals.refund(account.id, "in_1", now_ms=HALF_MS + 1)
    assert refunded.subscription.paid_until_ms == NOW_MS + MONTH_MS
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS)).outcome == "past_due"


async def test_a_refund_of_an_older_period_ends_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    await store.renewals.renew(account.id, Payment("in_1", plan="paid"), now_ms=NOW_MS)
    running = await store.renewals.renew(account.id, Payment("in_2"), now_ms=NOW_MS + MONTH_MS)
    refunded = await store.renewals.refund(account.id, "in_1", now_ms=NOW_MS + MONTH_MS + 1)
    assert refunded.subscription == running.subscription
    assert (await _open(store, account, NOW_MS + MONTH_MS + 1))[-1] == ("plan", 1000, 0)


async def test_a_refund_of_an_unknown_payment_is_refused(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    with pytest.raises(NotFound):
        await store.renewals.refund(account.id, "in_9", now_ms=NOW_MS)


async def test_a_refunded_payment_told_again_stays_refunded(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    await store.renewals.renew(account.id, Payment("in_1", plan="paid"), now_ms=NOW_MS)
    refunded = await store.renewals.refund(account.id, "in_1", now_ms=NOW_MS + 1)
    assert await store.renewals.renew(account.id, Payment("in_1", plan="paid"), now_ms=NOW_MS + 2) == refunded
