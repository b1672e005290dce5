"""Lives of accounts through HTTP: periods that turn on the real clock, changes, gifts, refunds; all of it adds up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gateway.domain.accounts import Account
from gateway.store.schema import payments
from tests.support import stores
from tests.support.apis import Apis, apis
from tests.support.metering import adds_up
from tests.support.processes import eventually
from tests.support.stores import Place

PLANS = """
  quick: {label: Quick, price: 10, period: 2s, allowance: {uses: 4}, rollover: {uses: {max: 50%}},
          overage: {uses: {cap: 2, price: 0.50}}}
  carries: {label: Carries, price: 10, period: 2s, allowance: {uses: 4}, debt: carry}
  paid: {label: Paid, price: 9, period: 30d, renews: when_paid, ends: free, allowance: {uses: 10, tokens: 10}}
  larger: {label: Larger, price: 90, period: 30d, allowance: {uses: 100}}
  lapses: {label: Lapses, price: 0, period: 2s, renews: never, ends: free, allowance: {uses: 9}}
  free: {label: Free, price: 0, period: once, allowance: {uses: 3}, grant_source: trial}"""


@pytest.fixture
async def shop(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    if place.backend == "sqlite":
        (tmp_path / "data").mkdir()
        stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, database=place.url, plans=PLANS.strip("\n")) as started:
        yield started


async def use(shop: Apis, key: str, **more: str) -> int:
    """The status of one use."""
    return (await shop.call("POST", "/api/v1/usage", key=key, json={"feature": "job", **more})).status


async def operate(shop: Apis, account: Account, path: str, body: Any = None) -> Any:
    answer = await shop.admin("POST", f"/admin/v1/accounts/{account.id}/{path}", json={} if body is None else body)
    assert answer.status in (200, 201), answer.body
    return answer.json()


async def shown(shop: Apis, account: Account) -> Any:
    return (await shop.admin("GET", f"/admin/v1/accounts/{account.id}")).json()


async def wallet(shop: Apis, account: Account) -> dict[str, Any]:
    balance = (await shop.admin("GET", f"/admin/v1/accounts/{account.id}/balance")).json()
    return next(each for each in balance["wallets"] if each["wallet"] == "uses")


async def turned(shop: Apis, account: Account, period: str | None) -> dict[str, Any]:
    """The wallet once the period after ``period`` has begun."""

    async def next_one() -> Any:
        found = await wallet(shop, account)
        return found if found["resets_at"] != period else None

    found: dict[str, Any] = await eventually(next_one, what="the period turns")
    return found


async def owed(shop: Apis, account: Account) -> list[tuple[str, int]]:
    query = select(payments).where(payments.c.account_id == account.id).order_by(payments.c.created_at_ms)
    async with shop.gateway.worker.store.database.read() as connection:
        return [(row.kind, row.amount) for row in await connection.execute(query)]


async def test_overage_is_due_and_a_rest_rolls_over_when_a_period_turns(shop: Apis) -> None:
    key, account = await shop.gateway.account("quick")
    period = (await wallet(shop, account))["resets_at"]
    assert [await use(shop, key) for _ in range(7)] == [200] * 6 + [429]
    await shop.gateway.settled()
    second = await turned(shop, account, period)
    assert (second["available"], await owed(shop, account)) == ("6", [("overage", 100)])
    assert await use(shop, key) == 200
    third = await turned(shop, account, second["resets_at"])
    assert {(grant["source"], grant["amount"]) for grant in third["grants"]} == {
        ("plan", "4"), ("rollover", "2"), ("overage", "2"),
    }  # fmt: skip
    await adds_up(shop, account)


async def test_a_plan_that_lapses_falls_back_and_its_free_grant_comes_once(shop: Apis) -> None:
    key, account = await shop.gateway.account("free")
    assert await use(shop, key) == 200
    for _ in range(2):
        await operate(shop, account, "subscription", {"plan": "lapses"})
        assert await use(shop, key) == 200

        async def fell_back() -> bool:
            return bool((await operate(shop, account, "subscription/check"))["plan"] == "free")

        await eventually(fell_back, what="the plan ends")
    assert await use(shop, key) == 429  # the three free ones burn first, and there were never more of them
    grants = (await shop.admin("GET", f"/admin/v1/accounts/{account.id}/grants")).json()["items"]
    assert [grant["source"] for grant in grants] == ["trial", "plan", "plan"]
    await adds_up(shop, account)


async def test_a_payment_an_upgrade_a_downgrade_and_a_refund(shop: Apis) -> None:
    key, account = await shop.gateway.account("free")
    bought = await operate(shop, account, "subscription/renew", {"plan": "paid", "key": "in_1"})
    assert (bought["plan"], bought["paid_until"]) == ("paid", bought["period_ends_at"])
    assert await operate(shop, account, "subscription/renew", {"plan": "paid", "key": "in_1"}) == bought
    assert await use(shop, key) == 200
    up = await operate(shop, account, "subscription/change", {"plan": "larger"})
    assert up["plan"] == "larger" and 8.9 < float(up["credit"]) <= 9
    assert (await wallet(shop, account))["available"] == "102"  # what was granted once stays
    down = await operate(shop, account, "subscription/change", {"plan": "free"})
    assert (down["plan"], down["next_plan"], down["effective_at"]) == ("larger", "free", down["period_ends_at"])
    assert (await operate(shop, account, "subscription/resume"))["next_plan"] is None
    await operate(shop, account, "subscription/renew", {"plan": "paid", "key": "in_2"})
    await shop.held(account, 4_000)
    refunded = await operate(shop, account, "subscription/refund", {"key": "in_2"})
    assert refunded["plan"] == "free"
    grants = (await shop.admin("GET", f"/admin/v1/accounts/{account.id}/grants")).json()["items"]
    assert [grant["amount"] for grant in grants if grant["wallet"] == "tokens"][-1] == "4"  # what is held stays
    kinds = [kind for kind, _ in await owed(shop, account)]
    assert kinds == ["credit"]


async def test_e6_a_gift_to_a_user_raises_what_they_may_use(shop: Apis) -> None:
    key, account = await shop.gateway.account("larger")
    await operate(shop, account, "users", {"name": "Ann", "external_id": "ann"})
    await operate(shop, account, "budgets", {"scope": "user", "id": "ann", "meter": "uses", "amount": "2"})
    assert [await use(shop, key, user="ann") for _ in range(3)] == [200, 200, 429]
    gift = {"amount": "2", "wallet": "uses", "user": "ann", "reason": "a good month", "key": "gift-1"}
    for _ in range(2):
        await operate(shop, account, "grants", gift)
    assert [await use(shop, key, user="ann") for _ in range(3)] == [200, 200, 429]
    assert (await wallet(shop, account))["available"] == "98"
    await adds_up(shop, account)


async def test_a13_support_moves_a_used_amount_and_a_trials_end(shop: Apis) -> None:
    key, account = await shop.gateway.account("larger")
    await operate(shop, account, "used", {"used": "99", "wallet": "uses", "reason": "moved from elsewhere"})
    assert [await use(shop, key) for _ in range(2)] == [200, 429]
    await shop.gateway.settled()
    await operate(shop, account, "used", {"used": "0", "wallet": "uses"})
    assert (await wallet(shop, account))["available"] == "100"
    await adds_up(shop, account)
    _, trial = await shop.gateway.account("trial")
    moved = await operate(shop, trial, "subscription/extend", {"ends_at": "2100-01-01"})
    assert moved["trial_ends_at"] == "2100-01-01T00:00:00Z"
    assert (await wallet(shop, account))["resets_at"] is not None
    balance = (await shop.admin("GET", f"/admin/v1/accounts/{trial.id}/balance")).json()
    assert all(each["resets_at"] is None for each in balance["wallets"])  # a trial's end is no reset


async def test_an_account_that_was_suspended_works_again_with_its_next_call(shop: Apis) -> None:
    key, account = await shop.gateway.account("larger")
    for _ in range(3):
        assert await use(shop, key) == 200
        await operate(shop, account, "suspend")
        assert await use(shop, key) == 403
        await operate(shop, account, "resume")


async def test_what_moves_a_plan_is_counted(shop: Apis) -> None:
    _, account = await shop.gateway.account("larger")
    await operate(shop, account, "subscription/change", {"plan": "paid", "at_end": False})
    await operate(shop, account, "subscription/cancel", {"now": True})
    counted = shop.gateway.worker.metrics.render().decode()
    assert 'tollgate_subscription_changes_total{cause="change",from="larger",to="paid"} 1.0' in counted
    assert 'tollgate_subscription_changes_total{cause="cancel",from="paid",to="free"} 1.0' in counted


async def test_a_plans_payments_that_are_told_by_hand_are_counted_once_each(shop: Apis) -> None:
    _, account = await shop.gateway.account("larger")
    for path in ("renew", "renew", "refund", "refund"):
        body = {"key": "transfer 7"} | ({"plan": "paid"} if path == "renew" else {})
        await operate(shop, account, f"subscription/{path}", body)
    lines = shop.gateway.worker.metrics.render().decode().splitlines()
    counted = {line for line in lines if line.startswith("tollgate_payments_total{")}
    assert counted == {
        'tollgate_payments_total{kind="plan",outcome="given"} 1.0',
        'tollgate_payments_total{kind="plan",outcome="refunded"} 1.0',
    }


async def test_a_payment_that_would_buy_nothing_is_refused_and_not_used_up(shop: Apis) -> None:
    _, account = await shop.gateway.account("free")
    path = f"/admin/v1/accounts/{account.id}/subscription/renew"
    past = {"key": "in_1", "plan": "paid", "until": "2001-01-01T00:00:00Z"}
    refused = await shop.admin("POST", path, json=past)
    assert (refused.status, refused.param) == (400, "until")
    assert (await shown(shop, account))["plan"] == "free"
    await operate(shop, account, "subscription/renew", {"key": "in_1", "plan": "paid"})
    assert (await shown(shop, account))["plan"] == "paid"
