"""What is credited of a plan that Stripe was paid for: what was really paid, net of refunds, and once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from gateway.billing.stripe.reading import event_of
from gateway.domain.plans import Prepay
from gateway.store.renewals import Payment
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import NOW_MS
from tests.support.stripe_month import DAY_S, Body, Shop

START_S = NOW_MS // 1000
MONTH_S = 30 * DAY_S
PREPAY = Prepay(12, Decimal("0.2"), "price_year")
CATALOG = catalogs.catalog(
    catalogs.trial(),
    catalogs.plan("pro", price=Decimal(30), renews="when_paid", stripe_price="price_pro", prepay=PREPAY),
    catalogs.plan("business", price=Decimal(90)),
)


@pytest.fixture
async def store(place: Place, clock: stores.Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, catalog=CATALOG, clock=clock) as opened:
        yield opened


async def told(store: Store, *bodies: Body, accept: bool = False) -> None:
    for body in bodies:
        event = event_of(body)
        taken = await store.stripe.take(event, livemode=False, now_ms=NOW_MS)
        if taken.state == "kept" and accept:
            taken = await store.stripe.retry(event, livemode=False, accept=True, now_ms=NOW_MS, actor="cli")
        assert taken.state == "done"


async def upgraded(store: Store, account_id: str, at_s: int) -> int:
    change = await store.subscriptions.change(account_id, "business", now_ms=(START_S + at_s) * 1000)
    assert change.account.subscription.plan == "business"
    credits = [each for each in (await store.payments.list(account_id)).items if each.kind == "credit"]
    assert sum(each.amount for each in credits) == change.credit
    return change.credit


@pytest.mark.parametrize(
    ("refunded", "after_s", "credit"),
    [
        (0, 6 * MONTH_S, 14_400),
        (0, 9 * MONTH_S, 7_200),
        (0, 12 * MONTH_S - 1, 0),
        (14_400, 6 * MONTH_S, 7_200),  # half of it was given back
        (28_800, 6 * MONTH_S, 0),  # all of it: no list price is credited in its place
    ],
)
async def test_a_prepaid_year_is_credited_for_all_that_is_left_of_it_net_of_refunds(
    store: Store, refunded: int, after_s: int, credit: int
) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS - 1)
    shop = Shop("acme", START_S, account.id, price="price_year", amount=28_800)
    ends_s = START_S + 365 * DAY_S  # as Stripe has it; the plan's own twelve periods are what was bought
    await told(store, shop.invoice(1, START_S, START_S, ends_s, paid=True))
    if 0 < refunded < shop.amount:
        await told(store, shop.refund(START_S, "pi_any", shop.amount, refunded, invoice="in_acme_1"))
    while (await store.subscriptions.turn(account.id, now_ms=(START_S + after_s) * 1000)).outcome != "stay":
        """The clock: period by period, as far as it is paid."""
    if refunded == shop.amount:
        await told(store, shop.refund(START_S, "pi_any", shop.amount, refunded, invoice="in_acme_1"))
    assert await upgraded(store, account.id, after_s) == credit


async def test_a_payment_that_failed_or_is_of_another_currency_is_not_credited(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS - 1)
    shop = Shop("acme", START_S, account.id, amount=3000, currency="eur")
    await told(store, shop.invoice(1, START_S, START_S, START_S + MONTH_S, paid=True), accept=True)
    await told(store, shop.invoice(2, START_S, START_S + MONTH_S, START_S + 2 * MONTH_S, paid=False))
    assert await upgraded(store, account.id, MONTH_S // 2) == 0


async def test_each_payment_is_credited_once_whoever_told_of_it(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS - 1)
    shop = Shop("acme", START_S, account.id, amount=3000)
    first = shop.invoice(1, START_S, START_S, START_S + MONTH_S, paid=True)
    await told(store, first)
    by_hand = Payment("in_acme_2", periods=1, price=2000)
    await store.renewals.renew(account.id, by_hand, now_ms=NOW_MS)
    await told(store, shop.invoice(2, START_S, START_S + MONTH_S, START_S + 2 * MONTH_S, paid=True))
    assert await upgraded(store, account.id, MONTH_S // 2) == 1500 + 3000  # half of the first, all of the second


async def owed(store: Store, account_id: str) -> list[tuple[str, int]]:
    credits = [each for each in (await store.payments.list(account_id)).items if each.kind == "credit"]
    return [(each.state.value, each.amount - each.refunded) for each in credits]


@pytest.mark.parametrize(
    ("refunded", "state", "left"), [(14_400, "due", 7_200), (28_800, "refunded", 0)], ids=["half", "all"]
)
async def test_what_stripe_pays_back_after_an_upgrade_is_not_owed_as_a_credit_too(
    store: Store, refunded: int, state: str, left: int
) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS - 1)
    shop = Shop("acme", START_S, account.id, price="price_year", amount=28_800)
    await told(store, shop.invoice(1, START_S, START_S, START_S + 365 * DAY_S, paid=True))
    while (await store.subscriptions.turn(account.id, now_ms=(START_S + 6 * MONTH_S) * 1000)).outcome != "stay":
        """The clock: period by period, as far as it is paid."""
    assert await upgraded(store, account.id, 6 * MONTH_S) == 14_400
    for _ in range(2):
        await told(store, shop.refund(START_S + 7 * MONTH_S, "pi_any", shop.amount, refunded, invoice="in_acme_1"))
    assert await owed(store, account.id) == [(state, left)]


async def test_what_is_paid_back_by_hand_after_an_upgrade_is_not_owed_as_a_credit_too(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS - 1, plan="pro")
    await store.renewals.renew(account.id, Payment("p1", None, 1, False, None, 3000), now_ms=NOW_MS)
    assert await upgraded(store, account.id, 0) > 0
    for _ in range(2):
        await store.renewals.refund(account.id, "p1", now_ms=NOW_MS + 1000)
    assert await owed(store, account.id) == [("refunded", 0)]
