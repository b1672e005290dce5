"""Buying: a page to pay on, what follows when it is paid, and stopping the payments again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.billing.office import Office, office_at
from tests.support import stores
from tests.support.apis import Apis
from tests.support.checkout import Checkout, checkout
from tests.support.stripe_apis import SECRET_KEY, Paid, paid
from tests.support.stripe_month import DAY_S, Shop

WHERE = "/api/billing/purchase"


@pytest.fixture
async def stripe() -> AsyncIterator[Checkout]:
    async with checkout(SECRET_KEY) as server:
        yield server


@pytest.fixture
async def shop(stripe: Checkout, valkey_url: str, tmp_path: Path) -> AsyncIterator[Paid]:
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with paid(valkey_url, tmp_path, url=stripe.url) as running:
        yield running


def office(running: Paid) -> Office:
    return office_at(running.apis.gateway.worker.frame.desk)


async def test_a_package_is_paid_on_a_page_and_granted_by_the_webhook(shop: Paid, stripe: Checkout) -> None:
    """E1 and B5: what the page was opened with is what the payment says."""
    key, acme = await shop.customer()
    answer = await shop.apis.call("POST", WHERE, key=key, json={"package": "growth"})
    assert (answer.status, answer.json()) == (
        200, {"url": "https://checkout.test/pay/1", "session": "cs_test_1", "what": "growth"},
    )  # fmt: skip
    [asked] = stripe.sessions
    assert (asked["mode"], asked["line_items[0][price]"]) == ("payment", "price_growth")
    assert (asked["success_url"], asked["cancel_url"]) == (
        "https://app.example.com/paid?x=1", "https://app.example.com/billing",
    )  # fmt: skip
    named = {name.split("[")[-1][:-1]: value for name, value in asked.items() if "payment_intent_data[meta" in name}
    assert named == {"tollgate_account": acme.account, "tollgate_package": "growth"}
    assert stripe.customers == [
        {"name": "acme", "email": "acme@example.com", "metadata[tollgate_account]": acme.account}
    ]
    assert await shop.standing(key) == ("trial", "trialing", "6000")
    paid_for = acme.package(acme.start_s, "growth", 1800, metadata=named, customer=asked["customer"])
    assert await shop.tell(paid_for) == ["done"]
    assert await shop.standing(key) == ("trial", "trialing", "8200")


async def test_an_account_is_one_customer_however_often_and_at_once_it_buys(shop: Paid, stripe: Checkout) -> None:
    key, _ = await shop.customer()
    bodies: list[dict[str, Any]] = [{"package": "growth"}, {"plan": "starter"}, {"plan": "plus"}]
    answers = await asyncio.gather(*(shop.apis.call("POST", WHERE, key=key, json=body) for body in bodies))
    assert {answer.status for answer in answers} == {200}
    assert (await shop.apis.call("POST", WHERE, key=key, json={"plan": "starter", "periods": 12})).status == 200
    assert len(stripe.customers) == 1 and len({asked["customer"] for asked in stripe.sessions}) == 1
    prices = {asked["line_items[0][price]"]: asked["mode"] for asked in stripe.sessions}
    assert prices == {
        "price_growth": "payment", "price_pro": "subscription", "price_plus": "subscription",
        "price_pro_year": "subscription",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"plan": "starter", "package": "growth"}, 400, "invalid_request"),
        ({"plan": "nothing"}, 400, "unknown_plan"),
        ({"package": "nothing"}, 400, "unknown_package"),
        ({"plan": "silent"}, 400, "not_for_sale"),
        ({"plan": "trial"}, 400, "not_for_sale"),
        ({"package": "private"}, 400, "not_for_sale"),
        ({"package": "pros"}, 400, "package_not_in_plan"),
        ({"plan": "plus", "periods": 12}, 400, "no_prepay"),
        ({"plan": "starter", "periods": 3}, 400, "no_prepay"),
        ({"plan": "starter", "price": "0"}, 400, "unknown_field"),
    ],
)
async def test_what_is_not_for_sale_opens_no_page(
    shop: Paid, stripe: Checkout, body: dict[str, Any], status: int, code: str
) -> None:
    key, _ = await shop.customer()
    answer = await shop.apis.call("POST", WHERE, key=key, json=body)
    assert (answer.status, answer.code) == (status, code)
    assert stripe.sessions == []


async def test_who_pays_for_a_plan_already_is_not_sold_a_second_one(shop: Paid, stripe: Checkout) -> None:
    key, acme = await shop.customer()
    stripe.once["made before"] = {"id": acme.customer}
    await subscribed(shop, acme)
    answer = await shop.apis.call("POST", WHERE, key=key, json={"plan": "plus"})
    assert (answer.status, answer.code) == (409, "conflict")
    assert (await shop.apis.call("POST", WHERE, key=key, json={"package": "growth"})).status == 200
    await shop.tell(acme.updated(acme.start_s + 9, gone=True))
    assert (await shop.apis.call("POST", WHERE, key=key, json={"plan": "plus"})).status == 200


async def test_without_payments_buying_says_so_and_an_operator_can_give(one: Apis) -> None:
    key, account = await one.gateway.account("pro")
    for body in ({"plan": "pro"}, {"package": "small"}):
        answer = await one.call("POST", WHERE, key=key, json=body)
        assert (answer.status, answer.code) == (409, "payments_not_configured")
    desk = one.gateway.worker.frame.desk
    _, given = await office_at(desk).packages.give(account.id, "small")
    assert given.is_new


async def test_stripe_away_or_refusing_is_told_apart_and_no_secret_is_logged(
    shop: Paid, stripe: Checkout, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, _ = await shop.customer()
    stripe.broken = 500
    answer = await shop.apis.call("POST", WHERE, key=key, json={"package": "growth"})
    assert (answer.status, answer.code) == (502, "payment_provider_unavailable")
    stripe.broken, stripe.key = 0, "sk_test_another"
    answer = await shop.apis.call("POST", WHERE, key=key, json={"package": "growth"})
    assert (answer.status, answer.code) == (502, "payment_provider_refused")
    assert SECRET_KEY not in caplog.text and SECRET_KEY.encode() not in answer.body


async def subscribed(running: Paid, acme: Shop) -> None:
    month = acme.invoice(1, acme.start_s + 2, acme.start_s, acme.start_s + 30 * DAY_S, paid=True)
    assert await running.tell(month, acme.updated(acme.start_s + 3)) == ["done", "done"]


def at_stripe(acme: Shop) -> dict[str, Any]:
    found: dict[str, Any] = acme.updated(acme.start_s + 3)["data"]["object"]
    return {**found, "livemode": False}


async def test_a_plan_that_stripe_is_paid_for_is_cancelled_there_and_taken_back_there(
    shop: Paid, stripe: Checkout
) -> None:
    key, acme = await shop.customer()
    await subscribed(shop, acme)
    stripe.subscriptions[acme.subscription] = at_stripe(acme)
    assert acme.account is not None
    cancelled = await office(shop).subscriptions.cancel(acme.account)
    assert cancelled.subscription.cancel_at_period_end
    assert stripe.subscriptions[acme.subscription]["cancel_at_period_end"] is True
    resumed = await office(shop).subscriptions.resume(acme.account)
    assert not resumed.subscription.cancel_at_period_end
    assert stripe.subscriptions[acme.subscription]["cancel_at_period_end"] is False
    ended = await office(shop).subscriptions.cancel(acme.account, now=True)
    assert ended.subscription.plan == "free"
    assert stripe.subscriptions[acme.subscription]["status"] == "canceled"
    assert await shop.standing(key) == ("free", "active", "100")


async def test_a_cancellation_stops_the_payments_of_a_plan_that_support_moved_it_away_from(
    shop: Paid, stripe: Checkout
) -> None:
    _, acme = await shop.customer()
    await subscribed(shop, acme)
    stripe.subscriptions[acme.subscription] = at_stripe(acme)
    assert acme.account is not None
    moved = await office(shop).subscriptions.subscribe(acme.account, "plus")
    cancelled = await office(shop).subscriptions.cancel(acme.account)
    assert (cancelled.subscription.id, cancelled.subscription.plan) == (moved.subscription.id, "plus")
    assert cancelled.subscription.cancel_at_period_end
    assert stripe.subscriptions[acme.subscription]["cancel_at_period_end"] is True


async def test_while_stripe_is_away_nothing_is_cancelled_here(shop: Paid, stripe: Checkout) -> None:
    """Else the account would lose its plan and go on paying for it."""
    key, acme = await shop.customer()
    await subscribed(shop, acme)
    stripe.broken = 503
    answer = await shop.apis.admin("POST", f"/admin/v1/accounts/{acme.account}/subscription/cancel", json={})
    assert (answer.status, answer.code) == (502, "payment_provider_unavailable")
    assert await shop.standing(key) == ("starter", "active", "1000")


async def test_a_refund_that_names_no_invoice_finds_it_at_stripe(shop: Paid, stripe: Checkout) -> None:
    """Newer versions of the API link a charge to its invoice by neither of the two."""
    key, acme = await shop.customer()
    await subscribed(shop, acme)
    refund = acme.refund(acme.start_s + 9, "pi_hidden", 2900, 1450)
    assert await shop.tell(refund) == ["kept"]
    stripe.invoices["pi_hidden"] = "in_acme_1"
    taken = await office(shop).stripe.retry(refund["id"])
    assert (taken.state, await shop.standing(key)) == ("done", ("starter", "active", "500"))
    again = acme.refund(acme.start_s + 10, "pi_hidden", 2900, 2900)
    assert await shop.tell(again) == ["done"]
    assert await shop.standing(key) == ("starter", "active", "0")


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "1e0", " 1 ", "1_0", "-1", "0", "99", "0.001"])
async def test_what_is_no_amount_of_the_payment_refunds_nothing(one: Apis, amount: str) -> None:
    _, account = await one.gateway.account("trial")
    desk = office_at(one.gateway.worker.frame.desk)
    _, given = await desk.packages.give(account.id, "small")
    answer = await one.admin("POST", f"/admin/v1/payments/{given.payment.id}/refund", json={"amount": amount})
    assert answer.status in (400, 409), answer.body
    (payment,) = (await desk.packages.payments(account.id)).items
    assert (payment.state, payment.refunded) == ("paid", 0)
