"""Payments of plans: each counts once, in whatever order it is told, and grants the period that it pays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.domain.accounts import Account, SubscriptionStatus
from gateway.domain.periods import Period
from gateway.errors import BadRequest, Conflict
from gateway.store.renewals import Payment
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import DAY_MS, NOW_MS

MONTH_MS = 30 * DAY_MS
GRACE_MS = 7 * DAY_MS
PLANS = replace(
    catalogs.catalog(
        catalogs.trial(),
        catalogs.plan("paid", renews="when_paid", ends="free", allowance={"tokens": 1000}),
        catalogs.plan("monthly", renews="when_paid", period=Period("month"), allowance={"tokens": 2000}),
        catalogs.plan("free", period=Period("once"), allowance={"tokens": 100}, grant_source="trial"),
        catalogs.plan("bought", renews="never", ends="free", allowance={"tokens": 300}),
    ),
    grace_ms=GRACE_MS,
)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, catalog=PLANS) as opened:
        yield opened


async def _now(store: Store, account: Account) -> Account:
    found = await store.accounts.by_ref(account.id)
    assert found is not None
    return found


async def _grants(store: Store, account: Account) -> list[tuple[int, int]]:
    """(amount, start) of all that the account was granted, in order."""
    return [(grant.amount, grant.starts_at_ms) for grant in await store.grants.list(account.id)]


async def test_a_payment_grants_the_next_period_when_it_begins(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    end_ms = NOW_MS + MONTH_MS
    renewed = await store.renewals.renew(account.id, Payment("in_1"), now_ms=end_ms - DAY_MS)
    assert renewed.subscription.paid_until_ms == end_ms + MONTH_MS
    assert await _grants(store, account) == [(1000, NOW_MS)]  # paid early: granted by its turn
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms)).outcome == "next_period"
    assert await _grants(store, account) == [(1000, NOW_MS), (1000, end_ms)]


async def test_a_late_payment_ends_past_due_and_grants_the_running_period(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    end_ms = NOW_MS + MONTH_MS
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms)).outcome == "past_due"
    renewed = await store.renewals.renew(account.id, Payment("in_1"), now_ms=end_ms + 3 * DAY_MS)
    assert renewed.subscription.status is SubscriptionStatus.ACTIVE
    assert renewed.subscription.period_ends_at_ms == renewed.subscription.paid_until_ms == end_ms + MONTH_MS
    assert await _grants(store, account) == [(1000, NOW_MS), (1000, end_ms)]


async def test_the_same_payment_counts_once_however_often_and_by_however_many_it_is_told(place: Place) -> None:
    async with (
        stores.opened(place.url, place.folder, catalog=PLANS) as first,
        stores.opened(place.url, place.folder, catalog=PLANS) as second,
    ):
        account = await first.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
        at_ms = NOW_MS + MONTH_MS
        told = [store.renewals.renew(account.id, Payment("in_1"), now_ms=at_ms) for store in (first, second) * 4]
        await asyncio.gather(*told)
        found = await _now(first, account)
        assert found.subscription.paid_until_ms == at_ms + MONTH_MS
        assert await _grants(first, account) == [(1000, NOW_MS), (1000, at_ms)]


async def test_a_payment_of_many_periods_is_granted_period_by_period(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.renewals.renew(account.id, Payment("in_1", plan="paid", periods=12), now_ms=NOW_MS)
    for month in range(1, 12):
        assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + month * MONTH_MS)).outcome == "next_period"
    assert [start for _, start in (await _grants(store, account))[1:]] == [NOW_MS + m * MONTH_MS for m in range(12)]
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + 12 * MONTH_MS)).outcome == "past_due"


async def test_a_payment_for_another_plan_moves_the_account_to_it(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    renewed = await store.renewals.renew(account.id, Payment("in_1", plan="paid"), now_ms=NOW_MS + 5)
    assert (renewed.subscription.plan, renewed.subscription.status) == ("paid", SubscriptionStatus.ACTIVE)
    assert await _grants(store, account) == [(100, NOW_MS), (1000, NOW_MS + 5)]


async def test_a_payment_after_the_end_starts_the_plan_anew(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    at_ms = NOW_MS + MONTH_MS + GRACE_MS + DAY_MS  # nobody has noticed the end yet
    renewed = await store.renewals.renew(account.id, Payment("in_1"), now_ms=at_ms)
    assert (renewed.subscription.plan, renewed.subscription.period_starts_at_ms) == ("paid", at_ms)
    assert await _grants(store, account) == [(1000, NOW_MS), (100, NOW_MS + MONTH_MS), (1000, at_ms)]


async def test_the_end_that_a_payment_names_is_the_periods_end(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    first_ms, second_ms = NOW_MS + MONTH_MS, NOW_MS + 61 * DAY_MS
    await store.renewals.renew(account.id, Payment("in_1", until_ms=second_ms), now_ms=first_ms - 1000)
    await store.subscriptions.turn(account.id, now_ms=first_ms)
    found = await _now(store, account)
    assert (found.subscription.period_starts_at_ms, found.subscription.period_ends_at_ms) == (first_ms, second_ms)
    assert (await store.subscriptions.turn(account.id, now_ms=second_ms - 1)).outcome == "stay"
    assert (await store.subscriptions.turn(account.id, now_ms=second_ms)).outcome == "past_due"


async def test_a_plan_that_would_end_goes_on_when_it_is_renewed(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="bought")
    await store.renewals.renew(account.id, Payment("by hand"), now_ms=NOW_MS + DAY_MS)
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS)).outcome == "next_period"
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + 2 * MONTH_MS)).outcome == "fallback"
    assert (await _now(store, account)).subscription.plan == "free"


async def test_what_is_granted_once_for_ever_cannot_be_renewed(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    with pytest.raises(BadRequest):
        await store.renewals.renew(account.id, Payment("in_1"), now_ms=NOW_MS)
    assert await _now(store, account) == account


async def test_a_failed_payment_is_past_due_until_the_grace_is_over(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    end_ms = NOW_MS + MONTH_MS
    failed = await store.renewals.payment_failed(account.id, now_ms=end_ms - 1000, key="in_1")
    assert failed.subscription.status is SubscriptionStatus.PAST_DUE
    (told,) = (await store.alerts.list()).items
    assert (told.alert.kind, told.alert.detail["reference"]) == ("payment_failed", "in_1")
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms + GRACE_MS - 1)).outcome == "stay"
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms + GRACE_MS)).outcome == "fallback"


async def test_a_failure_told_after_its_payments_success_changes_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    renewed = await store.renewals.renew(account.id, Payment("in_1"), now_ms=NOW_MS + MONTH_MS)
    assert await store.renewals.payment_failed(account.id, now_ms=NOW_MS + MONTH_MS + 5, key="in_1") == renewed


async def test_cancelling_waits_for_the_end_of_what_is_paid(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.renewals.renew(account.id, Payment("in_1", plan="paid", periods=3), now_ms=NOW_MS)
    await store.subscriptions.cancel(account.id, now_ms=NOW_MS + DAY_MS)
    outcomes = [await store.subscriptions.turn(account.id, now_ms=NOW_MS + month * MONTH_MS) for month in (1, 2, 3)]
    assert [turned.outcome for turned in outcomes] == ["next_period", "next_period", "fallback"]


async def test_cancelling_at_once_ends_what_the_plan_granted_and_falls_back(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    await store.grants.add(account.id, wallet="tokens", amount=7, now_ms=NOW_MS, source="package")
    cancelled = await store.subscriptions.cancel(account.id, now_ms=NOW_MS + DAY_MS, immediately=True)
    assert cancelled.subscription.plan == "free"
    left = await store.grants.list(account.id, open_at_ms=NOW_MS + DAY_MS)
    assert [(grant.amount, grant.source) for grant in left] == [(7, "package"), (100, "trial")]
    assert await store.subscriptions.cancel(account.id, now_ms=NOW_MS + DAY_MS) is not None


async def test_a_cancellation_can_be_taken_back_until_it_comes(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="monthly")
    await store.subscriptions.cancel(account.id, now_ms=NOW_MS + 1)
    resumed = await store.subscriptions.resume(account.id, now_ms=NOW_MS + 2)
    assert not resumed.subscription.cancel_at_period_end
    assert await store.subscriptions.resume(account.id, now_ms=NOW_MS + 3) == resumed
    await store.subscriptions.cancel(account.id, now_ms=NOW_MS + 4, immediately=True)
    with pytest.raises(Conflict):
        await store.subscriptions.resume(account.id, now_ms=NOW_MS + 5)


async def test_the_audit_log_says_what_a_move_changed(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    await store.subscriptions.cancel(account.id, now_ms=NOW_MS + 1, actor="support")
    line = (await store.ledger.audit_log(account_id=account.id)).items[0]
    assert (line.actor, line.action) == ("support", "cancel")
    assert line.detail["before"] == {"cancel_at_period_end": 0}
    assert line.detail["after"] == {"cancel_at_period_end": 1}


async def test_ends_are_found_though_nobody_calls(store: Store) -> None:
    end_ms = NOW_MS + MONTH_MS
    unpaid = await store.accounts.create("Unpaid", now_ms=NOW_MS, plan="paid")
    await store.accounts.create("Free", now_ms=NOW_MS, plan="free")
    ends = await store.accounts.create("Ends", now_ms=NOW_MS, plan="bought")
    assert await store.subscriptions.over(now_ms=end_ms - 1) == ()
    every = await store.subscriptions.over(now_ms=end_ms)
    assert set(every) == {unpaid.id, ends.id}
    assert await store.subscriptions.over(now_ms=end_ms, limit=1, skip=1) == every[1:]
    outcomes = [(await store.subscriptions.turn(each.id, now_ms=end_ms)).outcome for each in (unpaid, ends)]
    assert outcomes == ["past_due", "fallback"]
    assert await store.subscriptions.over(now_ms=end_ms + GRACE_MS - 1) == ()
    assert await store.subscriptions.over(now_ms=end_ms + GRACE_MS) == (unpaid.id,)
    assert (await store.subscriptions.turn(unpaid.id, now_ms=end_ms + GRACE_MS)).outcome == "fallback"
    assert await store.subscriptions.over(now_ms=end_ms + GRACE_MS) == ()


async def test_what_was_paid_later_pays_for_the_periods_that_a_refund_leaves_unpaid(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    for number in (1, 2, 3):
        await store.renewals.renew(account.id, Payment(f"in_{number}"), now_ms=NOW_MS + number)
    left = []
    for key in ("in_2", "in_1", "in_3", "in_2"):
        refunded = await store.renewals.refund(account.id, key, now_ms=NOW_MS + DAY_MS)
        left.append((refunded.subscription.paid_until_ms - NOW_MS) // MONTH_MS)
    assert left == [3, 2, 1, 1]
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS)).outcome == "past_due"
    assert await _grants(store, account) == [(1000, NOW_MS)]


async def test_a_period_granted_ahead_is_still_granted_when_another_payment_pays_for_it(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
    for number in (1, 2):
        await store.renewals.renew(account.id, Payment(f"in_{number}"), now_ms=NOW_MS + number)
    end_ms = NOW_MS + MONTH_MS
    assert await store.subscriptions.ahead(account.id, now_ms=end_ms - 3_600_000) is not None
    await store.renewals.refund(account.id, "in_1", now_ms=end_ms - 60_000)
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms)).outcome == "next_period"
    assert [grant.amount for grant in await store.grants.list(account.id, open_at_ms=end_ms)] == [1000]
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms + MONTH_MS)).outcome == "past_due"
    [audited] = [each async for each in store.ledger.audit(account.id)]
    assert audited.differences == ()


async def test_a_refund_in_a_prepaid_year_leaves_the_year_that_was_paid_after_it(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.renewals.renew(account.id, Payment("in_1", plan="paid", periods=12), now_ms=NOW_MS)
    await store.renewals.renew(account.id, Payment("in_2", periods=12), now_ms=NOW_MS + 1)
    refunded = await store.renewals.refund(account.id, "in_1", now_ms=NOW_MS + DAY_MS)
    assert refunded.subscription.paid_until_ms == NOW_MS + 13 * MONTH_MS
    ended = await store.renewals.refund(account.id, "in_2", now_ms=NOW_MS + 2 * DAY_MS)
    assert ended.subscription.paid_until_ms == NOW_MS + MONTH_MS


async def test_a_refund_of_the_only_payment_ends_the_plan_also_when_its_end_was_moved(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    await store.renewals.renew(account.id, Payment("in_1", plan="paid", periods=12), now_ms=NOW_MS)
    await store.subscriptions.extend(account.id, ends_at_ms=NOW_MS + MONTH_MS + DAY_MS, now_ms=NOW_MS + 1)
    refunded = await store.renewals.refund(account.id, "in_1", now_ms=NOW_MS + DAY_MS)
    assert refunded.subscription.plan == "free"
