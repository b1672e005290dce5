"""What a period has besides its allowance: overage that is due afterwards, and the last period's rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from sqlalchemy import select

from gateway.domain.accounts import Account
from gateway.domain.plans import Overage, Prepay, Rollover
from gateway.store.moves import Taken
from gateway.store.renewals import Payment
from gateway.store.schema import payments, renewals
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import DAY_MS, NOW_MS, charge

MONTH_MS = 30 * DAY_MS
TURN_MS = NOW_MS + MONTH_MS
NOTHING = Taken({})
PLANS = catalogs.catalog(
    catalogs.plan("over", overage={"tokens": Overage(500, Fraction(1, 10))}),  # 10 steps a cent
    catalogs.plan("rolls", rollover={"tokens": Rollover(share=Decimal("0.5"))}),
    catalogs.plan("rolls_some", rollover={"tokens": Rollover(amount=300)}),
    catalogs.plan("custom", allowance={"tokens": "custom"}, rollover={"tokens": Rollover(share=Decimal(1))}),
    catalogs.plan("yearly", renews="when_paid", price=Decimal("49"), prepay=Prepay(12, Decimal("0.2"))),
)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, catalog=PLANS) as opened:
        yield opened


async def _rows(store: Store, table: Any, account: Account) -> list[dict[str, Any]]:
    query = select(table).where(table.c.account_id == account.id).order_by(table.c.created_at_ms)
    async with store.database.read() as connection:
        return [dict(row._mapping) for row in await connection.execute(query)]


async def _open(store: Store, account: Account, at_ms: int) -> list[tuple[str, int]]:
    return [(grant.source, grant.amount) for grant in await store.grants.list(account.id, open_at_ms=at_ms)]


async def test_overage_burns_last_and_what_was_used_is_due_at_the_periods_end(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="over")
    granted = await store.grants.list(account.id, open_at_ms=NOW_MS)
    assert [(grant.source, grant.amount) for grant in sorted(granted, key=lambda grant: grant.priority)] == [
        ("plan", 1000), ("overage", 500),
    ]  # fmt: skip
    await store.writer.commit([charge(account, (1, 1000), (2, 234))])
    await store.subscriptions.turn(account.id, now_ms=TURN_MS)
    due = await _rows(store, payments, account)
    assert [(row["kind"], row["state"], row["what"], row["amount"]) for row in due] == [
        ("overage", "due", "tokens", 23)
    ]
    assert (due[0]["starts_at_ms"], due[0]["ends_at_ms"], due[0]["currency"]) == (NOW_MS, TURN_MS, "usd")
    assert await _open(store, account, TURN_MS) == [("plan", 1000), ("overage", 500)]


async def test_a_late_charge_on_overage_is_due_with_the_next_turn_and_nothing_twice(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="over")
    await store.writer.commit([charge(account, (2, 234))])
    await store.subscriptions.turn(account.id, now_ms=TURN_MS)
    await store.writer.commit([charge(account, (2, 16))])  # held before the turn, settled after it
    for month in (1, 2, 3):
        await store.subscriptions.turn(account.id, now_ms=TURN_MS + month * MONTH_MS)
    assert [row["amount"] for row in await _rows(store, payments, account)] == [23, 2]  # 250 steps are 25 cents


async def test_leaving_a_plan_makes_its_overage_due(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="over")
    await store.writer.commit([charge(account, (2, 500))])
    await store.subscriptions.subscribe(account.id, "rolls", now_ms=NOW_MS + DAY_MS)
    assert [row["amount"] for row in await _rows(store, payments, account)] == [50]


async def test_overage_is_due_though_nobody_calls_again(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="over")
    idle = await store.accounts.create("Idle", now_ms=NOW_MS, plan="over")
    await store.writer.commit([charge(account, (2, 100))])
    assert await store.subscriptions.over(now_ms=TURN_MS - 1) == ()
    assert await store.subscriptions.over(now_ms=TURN_MS) == (account.id,)
    await store.subscriptions.turn(account.id, now_ms=TURN_MS)
    assert await store.subscriptions.over(now_ms=TURN_MS) == ()
    assert await store.subscriptions.over(now_ms=TURN_MS + 9 * MONTH_MS) == ()  # the next one was not used
    assert await _rows(store, payments, idle) == []


async def test_unused_overage_costs_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="over")
    await store.writer.commit([charge(account, (1, 900))])
    await store.subscriptions.turn(account.id, now_ms=TURN_MS)
    assert await _rows(store, payments, account) == []


@pytest.mark.parametrize(
    ("plan", "used", "taken", "rest"),
    [
        ("rolls", 0, NOTHING, 500),  # at most half of the allowance
        ("rolls", 800, NOTHING, 200),
        ("rolls", 1000, NOTHING, 0),
        ("rolls_some", 100, NOTHING, 300),
        ("rolls_some", 800, NOTHING, 200),
        ("rolls", 700, Taken({1: (700, 100)}), 200),  # what is held counts as used
        ("rolls", 700, Taken({1: (850, 0)}), 150),  # what has not reached the database yet, too
        ("rolls", 1200, NOTHING, 0),  # overrun
    ],
)
async def test_the_last_periods_rest_rolls_over(store: Store, plan: str, used: int, taken: Taken, rest: int) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan=plan)
    if used:
        await store.writer.commit([charge(account, (1, used))])
    assert (await store.subscriptions.turn(account.id, now_ms=TURN_MS, taken=taken)).outcome == "next_period"
    expected = [("plan", 1000)] + ([("rollover", rest)] if rest else [])
    assert await _open(store, account, TURN_MS) == expected


async def test_what_rolled_over_once_does_not_roll_over_again(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="rolls_some")
    for month in (1, 2, 3):
        await store.subscriptions.turn(account.id, now_ms=NOW_MS + month * MONTH_MS, taken=NOTHING)
        assert await _open(store, account, NOW_MS + month * MONTH_MS) == [("plan", 1000), ("rollover", 300)]


async def test_a_late_settle_does_not_change_what_rolled_over(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="rolls")
    await store.writer.commit([charge(account, (1, 700))])
    await store.subscriptions.turn(account.id, now_ms=TURN_MS, taken=Taken({1: (700, 100)}))
    await store.writer.commit([charge(account, (1, 100))])
    assert await _open(store, account, TURN_MS) == [("plan", 1000), ("rollover", 200)]
    async for audited in store.ledger.audit():
        assert audited.differences == ()


async def test_a_rest_that_nobody_can_tell_waits_for_somebody_who_can(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="rolls")
    assert (await store.subscriptions.turn(account.id, now_ms=TURN_MS)).outcome == "stay"
    assert (await store.subscriptions.turn(account.id, now_ms=TURN_MS, taken=NOTHING)).outcome == "next_period"


async def test_of_periods_that_nobody_used_only_the_last_rolls_over(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="rolls")
    later_ms = NOW_MS + 5 * MONTH_MS
    await store.subscriptions.turn(account.id, now_ms=later_ms, taken=NOTHING)
    assert await _open(store, account, later_ms) == [("plan", 1000), ("rollover", 500)]


async def test_a_rest_comes_to_a_period_that_was_granted_ahead(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="rolls")
    assert await store.subscriptions.ahead(account.id, now_ms=TURN_MS - DAY_MS) is not None
    assert await store.subscriptions.begun_ahead(now_ms=TURN_MS) == (account.id,)
    assert await store.subscriptions.begun_ahead(now_ms=TURN_MS, skip=1) == ()
    await store.subscriptions.turn(account.id, now_ms=TURN_MS, taken=NOTHING)
    assert await _open(store, account, TURN_MS) == [("plan", 1000), ("rollover", 500)]
    assert await store.subscriptions.begun_ahead(now_ms=TURN_MS) == ()


async def test_a_share_is_of_the_accounts_own_allowance(store: Store) -> None:
    terms = {"allowance": {"tokens": 9000}}
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="custom", terms=terms)
    await store.subscriptions.turn(account.id, now_ms=TURN_MS, taken=NOTHING)
    assert await _open(store, account, TURN_MS) == [("plan", 9000), ("rollover", 9000)]


async def test_prepay_pays_many_periods_at_its_own_price(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="over")
    payment = Payment("in_1", plan="yearly", prepaid=True)
    renewed = await store.renewals.renew(account.id, payment, now_ms=NOW_MS)
    assert renewed.subscription.paid_until_ms == NOW_MS + 12 * MONTH_MS
    noted = await _rows(store, renewals, account)
    assert [(row["periods"], row["price"], row["from_ms"]) for row in noted] == [(12, 47_040, NOW_MS)]
