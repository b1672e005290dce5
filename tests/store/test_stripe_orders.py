"""Stripe's events in any order, any number of times, end in one state: law 12, and the ledger adds up."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select

from gateway.billing.stripe.reading import event_of
from gateway.domain.periods import Period
from gateway.domain.plans import Package, PackageGrant
from gateway.store.schema import grants, payments, pushes, stripe_events, stripe_subscriptions, subscriptions
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import NOW_MS
from tests.support.stripe_month import DAY_S, WEEK_S, Body, Shop, month

START_S = NOW_MS // 1000
ORDERS = 500
CHUNKS = 20
WEEK = Period("fixed", WEEK_S)
CATALOG = catalogs.catalog(
    catalogs.trial(),
    catalogs.plan("free", allowance={"tokens": 5000}),
    catalogs.plan(
        "pro", price=Decimal(29), period=WEEK, renews="when_paid", ends="free", stripe_price="price_pro",
        allowance={"tokens": 1_000_000},
    ),
    catalogs.plan("growth", price=Decimal(5), stripe_price="price_plan"),  # a package has the same name
    catalogs.plan("blocked", price=Decimal(29), period=WEEK, renews="when_paid", stripe_price="price_blocked"),
    grace_ms=3 * DAY_S * 1000,
    packages={
        "growth": Package(
            "growth", "Growth", Decimal(18),
            (PackageGrant("tokens", 2_000_000), PackageGrant("tokens", 200_000, "bonus", 365 * DAY_S)),
            stripe_price="price_growth",
        )
    },
)  # fmt: skip


@pytest.fixture
async def store(place: Place, clock: stores.Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, catalog=CATALOG, clock=clock) as opened:
        yield opened


async def deliver(store: Store, bodies: Sequence[Body], now_s: int) -> None:
    for body in bodies:
        await store.stripe.take(event_of(body), livemode=False, now_ms=now_s * 1000)


async def state_of(store: Store, account_id: str, name: str) -> dict[str, Any]:
    """All that the events made of the account, without the ids and times that are never the same twice."""

    def plain(row: Any, *without: str) -> tuple[Any, ...]:
        values = row._asdict()
        return tuple(
            (key, str(value).replace(name, "NAME"))
            for key, value in values.items()
            if key not in (*without, "id", "account_id", "subscription_id", "created_at_ms", "changed_at_ms")
        )

    async with store.database.snapshot() as connection:
        current = select(subscriptions).where(
            subscriptions.c.account_id == account_id, subscriptions.c.ended_at_ms == 0
        )
        mine = {
            "subscription": await connection.execute(current),
            "grants": await connection.execute(select(grants).where(grants.c.account_id == account_id)),
            "payments": await connection.execute(select(payments).where(payments.c.account_id == account_id)),
            "stripe": await connection.execute(
                select(stripe_subscriptions).where(stripe_subscriptions.c.account_id == account_id)
            ),
        }
        state = {what: sorted(plain(row, "number", "key") for row in rows) for what, rows in mine.items()}
        events = await connection.execute(select(stripe_events).where(stripe_events.c.id.contains(f"_{name}_")))
        state["events"] = sorted((row.id.replace(name, "NAME"), row.state, row.why) for row in events)
    [audited] = [each async for each in store.ledger.audit(account_id)]
    assert audited.differences == ()
    return state


async def opened(store: Store, name: str, **changes: Any) -> tuple[str, Shop]:
    """An account that signed up a while before, and its customer at Stripe."""
    account = await store.accounts.create(name, now_ms=NOW_MS - 3_600_000)
    return account.id, Shop(name, START_S, account.id, **changes)


async def through(store: Store, name: str, now_s: int, order: random.Random | None, **changes: Any) -> dict[str, Any]:
    """What a month makes of a new account: told in order, or in a random one with some of it told again."""
    ends = changes.pop("ends", "cancelled")
    account_id, shop = await opened(store, name, **changes)
    bodies = month(shop, ends=ends)
    if order is not None:
        bodies = [*bodies, *order.choices(bodies, k=len(bodies) // 3)]
        order.shuffle(bodies)
    await deliver(store, bodies, now_s)
    while (await store.subscriptions.turn(account_id, now_ms=now_s * 1000)).outcome != "stay":
        """The clock, as the next call would see it."""
    return await state_of(store, account_id, name)


def difference(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Per part, what only one of the two states has."""
    parts = {what: (set(found[what]) - set(expected[what]), set(expected[what]) - set(found[what])) for what in found}
    same_counts = all(len(found[what]) == len(expected[what]) for what in found)
    return {what: part for what, part in parts.items() if any(part)} or ({} if same_counts else {"counts": found})


SHAPES: tuple[tuple[int, dict[str, Any]], ...] = (
    (4 * WEEK_S + 3600, {"ends": "cancelled"}),
    (4 * WEEK_S + 3600, {"ends": "cancelled", "is_named": False}),  # only the checkout names the account
    (3 * WEEK_S + 3 * DAY_S, {"ends": "deleted", "old_api": True}),
    (3 * WEEK_S + 3 * DAY_S, {"ends": "runs", "is_named": False}),
    (4 * WEEK_S + 7200, {"ends": "past_due"}),
    (4 * WEEK_S + 4 * DAY_S, {"ends": "past_due"}),  # its grace time is over
    (4 * WEEK_S + 4 * DAY_S, {"ends": "deleted", "price": "price_blocked"}),
    (60 * DAY_S, {"ends": "past_due"}),  # all of it came late
)


@pytest.mark.parametrize("chunk", range(CHUNKS))
async def test_a_months_events_end_in_one_state_in_every_order(store: Store, place: Place, chunk: int) -> None:
    """500 seeded orders with duplicates, in chunks, over every shape of a month; a fifth of them on PostgreSQL too."""
    in_order: dict[int, dict[str, Any]] = {}
    orders = ORDERS if place.backend == "sqlite" else ORDERS // 5
    for seed in range(chunk, orders, CHUNKS):
        shape = seed % len(SHAPES)
        after_s, changes = SHAPES[shape]
        now_s = START_S + after_s
        if shape not in in_order:
            in_order[shape] = await through(store, f"o{seed}", now_s, None, **changes)
        expected = in_order[shape]
        found = await through(store, f"s{seed}", now_s, random.Random(seed), **changes)
        assert difference(found, expected) == {}, (seed, changes)


def column(state: dict[str, Any], what: str, name: str) -> list[str]:
    return [dict(row)[name] for row in state[what]]


@pytest.mark.parametrize(
    ("after_s", "changes", "plan", "status", "cancels"),
    [
        (*SHAPES[0], "free", "active", "0"),
        (*SHAPES[2], "free", "active", "0"),
        (*SHAPES[3], "pro", "active", "0"),
        (*SHAPES[4], "pro", "past_due", "0"),
        (*SHAPES[5], "free", "active", "0"),
        (*SHAPES[6], "blocked", "cancelled", "0"),
    ],
)
async def test_a_month_in_order_ends_where_it_should(
    store: Store, after_s: int, changes: dict[str, Any], plan: str, status: str, cancels: str
) -> None:
    state = await through(store, "acme", START_S + after_s, None, **changes)
    assert column(state, "subscription", "plan") == [plan]
    assert column(state, "subscription", "status") == [status]
    assert column(state, "subscription", "cancel_at_period_end") == [cancels]
    assert {each[1:] for each in state["events"]} == {("done", "")}
    by_source = {source: [] for source in ("plan", "package", "bonus")}  # type: ignore[var-annotated]
    for row in state["grants"]:
        by_source.setdefault(dict(row)["source"], []).append(int(dict(row)["amount"]))
    granted = 1_000_000 if changes.get("price") is None else 1000
    paid_weeks = [amount for amount in by_source["plan"] if amount in (granted, granted // 2)]
    assert sorted(paid_weeks)[:4] == [granted // 2, granted, granted, granted]
    assert sorted(by_source["package"]) == [0, 2_000_000] and sorted(by_source["bonus"]) == [0, 200_000]
    states = sorted(column(state, "payments", "state"))
    assert states.count("paid") == 5 and states.count("refunded") == 1
    assert states.count("failed") == (1 if changes["ends"] == "past_due" else 0)


async def test_told_again_nothing_is_written_and_nothing_pushed(store: Store) -> None:
    now_s = START_S + 3 * WEEK_S + 3 * DAY_S
    account_id, shop = await opened(store, "acme")
    bodies = month(shop, ends="runs")
    await deliver(store, bodies, now_s)
    before = await state_of(store, account_id, "acme")

    async def count() -> int:
        async with store.database.read() as connection:
            return len((await connection.execute(select(pushes.c.id))).all())

    pushed = await count()
    for _ in range(5):
        await deliver(store, bodies[::-1], now_s + 3 * DAY_S)
    assert await state_of(store, account_id, "acme") == before
    assert await count() == pushed
