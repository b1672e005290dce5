"""A customer's whole life in each of the five systems, in seconds: the books agree at every step.

Sign-up, free use, a warning, a refusal, a purchase, more use, a period turned on the real clock, a downgrade, money
back. What a row promises in detail is tested beside this file; here the parts meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.simulator.child import Simulator
from tests.e2e.systems.conftest import Opens, a_database, opening
from tests.support.processes import wait_until
from tests.support.scheduling import DATABASES
from tests.support.stripe_month import Shop
from tests.support.systems import STRIPE, Answer, Customer

SPAN_S = 15


@pytest.fixture(params=DATABASES)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: Simulator
) -> Iterator[Opens]:
    """Each life has a database of its own, and is waited for beside the others."""
    with a_database(request) as database, opening(tmp_path_factory, models, database) as serve:
        yield serve


def subscription(customer: Customer) -> dict[str, object]:
    found: dict[str, object] = customer.get("/api/billing/subscription").ok()
    return found


def granted(customer: Customer, wallet: str) -> str:
    return str(customer.wallet(wallet)["granted"])


def available(customer: Customer, wallet: str) -> str:
    return str(customer.wallet(wallet)["available"])


def turned(customer: Customer, before: dict[str, object]) -> Callable[[], bool]:
    """Whether another period than ``before``'s has begun."""
    return lambda: subscription(customer)["period_starts_at"] != before["period_starts_at"]


def test_a_the_life_of_a_token_budget(opened: Opens) -> None:
    shop = opened(
        "token-budget",
        edits={
            "price: 15,  period: 30d": "price: 15,  period: 8s",
            "price: 30,  period: 30d": "price: 30,  period: 9s",
        },
    )
    customer = shop.customer("acme-a")
    customer.call(tokens=(4000, 600), max_tokens=5000).ok()
    shop.assert_books_agree()
    customer.call(tokens=(700, 100), max_tokens=1000).ok()
    warned = customer.call(tokens=(100, 100), max_tokens=300)
    assert warned.status == 200 and "% of quota" in warned.headers["tollgate-warning"]
    customer.call(tokens=(100, 300), max_tokens=2000).ok()
    customer.call(max_tokens=1000).refused(429, "limit_exceeded")
    shop.assert_books_agree()
    shop.admin("POST", f"/accounts/{customer.id}/subscription", {"plan": "pro"}).ok()
    customer.call(tokens=(3000, 500), max_tokens=4000).ok()
    before = subscription(customer)
    wait_until(turned(customer, before), what="the period turns", within_s=30)
    customer.call(tokens=(2000, 500), max_tokens=4000).ok()
    assert granted(customer, "tokens") == "500000"
    shop.assert_books_agree()
    shop.admin("POST", f"/accounts/{customer.id}/subscription/change", {"plan": "lite"}).ok()
    wait_until(lambda: subscription(customer)["plan"] == "lite", what="the downgrade", within_s=30)
    customer.call(tokens=(100, 50)).ok()
    assert granted(customer, "tokens") == "200000"
    shop.admin("POST", f"/accounts/{customer.id}/adjustments", {"amount": "-1000", "reason": "paid back"}).ok()
    shop.assert_books_agree()


def test_c_the_life_of_credits(opened: Opens) -> None:
    shop = opened(
        "credits",
        edits={
            "price: 0, period: 30d, renews: by_itself": "price: 0, period: 20s, renews: by_itself",
            "price: 0, period: 30d, renews: never": "price: 0, period: 8s, renews: never",
        },
    )
    customer = shop.customer("acme-c")
    for _ in range(4):
        customer.post("/api/v1/usage", {"feature": "code_review"}).ok()
    warned = customer.call(feature="code_generation", tokens=(500, 90))
    assert warned.status == 200 and warned.headers["tollgate-remaining"] == "0"
    customer.call(feature="code_generation").refused(429, "limit_exceeded")
    shop.assert_books_agree()
    shop.admin("POST", f"/accounts/{customer.id}/subscription", {"plan": "pro"}).ok()
    customer.post("/api/v1/usage", {"feature": "code_review", "quantity": 7}).ok()
    assert customer.wallet("credits")["available"] == "93"
    shop.assert_books_agree()
    wait_until(lambda: subscription(customer)["plan"] == "free", what="pro has lapsed", within_s=30)
    before = subscription(customer)
    assert customer.wallet("credits")["available"] == "5"
    customer.post("/api/v1/usage", {"feature": "code_review"}).ok()
    wait_until(turned(customer, before), what="five credits again", within_s=40)
    assert customer.wallet("credits")["available"] == "5"
    shop.admin("POST", f"/accounts/{customer.id}/grants", {"amount": "2", "wallet": "credits", "reason": "sorry"}).ok()
    shop.assert_books_agree()


def test_d_the_life_of_feature_tokens(opened: Opens, tmp_path: Path) -> None:
    shop = opened(
        "feature-tokens",
        edits={
            "pro:        {label: Pro, price: custom, period: 30d": "pro:        {label: Pro, price: custom, period: 9s"
        },
    )

    def deduct(user: str) -> int:
        body = {"organizationId": "acme-d", "featureUsed": "generate_goal", "action": "deduct", "userId": user}
        return customer.post("/api/v1/tokens/check-balance", body).status

    customer = shop.customer("acme-d")
    assert deduct("ann") == 403
    shop.assert_books_agree()
    shop.admin("POST", f"/accounts/{customer.id}/subscription", {"plan": "pro"}).ok()
    before = subscription(customer)
    assert [deduct(f"user-{number}") for number in range(7)] == [200] * 6 + [429]
    shop.assert_books_agree()
    wait_until(turned(customer, before), what="the wallets refresh", within_s=30)
    assert deduct("ann") == 200
    assert customer.wallet("goal_generation")["granted"] == "20"
    shop.assert_books_agree()
    shop.admin("POST", f"/accounts/{customer.id}/subscription", {"plan": "enterprise"}).ok()
    assert customer.wallet("goal_generation")["available"] == "200"
    shop.admin("POST", f"/accounts/{customer.id}/subscription", {"plan": "starter"}).ok()
    assert deduct("ann") == 403
    shop.assert_books_agree()


def test_b_the_life_of_a_token_wallet(opened: Opens) -> None:
    """Plans are paid by Stripe's invoices, packages by its payments; most work does not pass through the proxy."""
    prices = {"STRIPE_PRICE_STARTER": "price_starter", "STRIPE_PACK_GROWTH": "price_growth"}
    shop = opened(
        "token-wallet", env={**STRIPE, **prices}, edits={"price: 9,  period: month": f"price: 9,  period: {SPAN_S}s"}
    )
    customer = shop.customer("acme-b")
    bank = Shop("acme-b", int(time.time()), customer.id, price="price_starter", amount=900)

    def sms(count: int) -> Answer:
        return customer.post("/api/v1/usage", {"service": "sms", "quantity": count})

    sms(170).ok()
    assert "% of quota" in str(sms(10).ok()["warning"])
    sms(30).refused(429, "insufficient_tokens")
    sms(20).ok()
    customer.call(feature="ai_agent").refused(429, "limit_exceeded")
    shop.assert_books_agree()
    start_s = int(time.time())
    shop.stripe(bank.checkout(start_s), bank.invoice(1, start_s, start_s, start_s + SPAN_S, paid=True))
    assert (subscription(customer)["plan"], available(customer, "tokens")) == ("starter", "1000")
    shop.stripe(bank.package(start_s, "growth_pack", 1800))
    assert available(customer, "tokens") == "3200"
    hold = customer.post("/api/v1/holds", {"service": "outbound_call", "quantity": 5}).ok()
    customer.post(f"/api/v1/holds/{hold['id']}/settle", {"quantity": 7}).ok()
    customer.call(feature="ai_agent", tokens=(900, 80)).ok()
    shop.assert_books_agree()
    before = subscription(customer)
    shop.stripe(bank.invoice(2, start_s + 1, start_s + SPAN_S, start_s + 2 * SPAN_S, paid=True))
    wait_until(turned(customer, before), what="the paid period begins", within_s=60)
    wait_until(lambda: available(customer, "tokens") == "3200", what="its tokens, and the package's", within_s=20)
    sms(1).ok()
    shop.assert_books_agree()
    shop.stripe(bank.refund(start_s + 2, "pi_acme-b_1", 1800, 1800), bank.updated(start_s + 3, gone=True))
    assert subscription(customer)["plan"] == "free"
    sms(10).refused(429, "limit_exceeded")
    shop.assert_books_agree()


def test_e_the_life_of_a_feature_suite(opened: Opens) -> None:
    """A year is paid at once and granted period by period; packs are bought and given back."""
    prices = {
        "STRIPE_PRICE_PRO": "price_pro",
        "STRIPE_PRICE_PRO_YEAR": "price_year",
        "STRIPE_PACK_LEADS": "price_leads",
    }
    shop = opened(
        "feature-suite",
        env={**STRIPE, **prices},
        edits={"label: Pro, price: 49, period: 30d": f"label: Pro, price: 49, period: {SPAN_S}s"},
    )
    customer = shop.customer("acme-e")
    bank = Shop("acme-e", int(time.time()), customer.id, price="price_year", amount=47040)

    def leads(count: int) -> Answer:
        return customer.post("/api/v1/usage", {"feature": "import_leads", "quantity": count})

    error = leads(1).refused(403, "feature_not_in_plan")
    assert error["message"] == "Not available on Starter plan"
    shop.assert_books_agree()
    start_s = int(time.time())
    shop.stripe(bank.checkout(start_s), bank.invoice(1, start_s, start_s, start_s + 12 * SPAN_S, paid=True))
    assert granted(customer, "lead_generation") == "50"
    assert leads(10).ok()["charged"] == "40"
    leads(3).refused(429, "insufficient_tokens")
    shop.stripe(bank.package(start_s, "leads_100", 2000))
    leads(3).ok()
    assert customer.wallet("lead_generation")["available"] == "95"
    shop.assert_books_agree()
    before = subscription(customer)
    wait_until(turned(customer, before), what="the next of twelve periods", within_s=60)
    leads(1).ok()
    shop.assert_books_agree()
    shop.stripe(bank.refund(start_s + 1, "pi_acme-e_1", 2000, 2000), bank.updated(start_s + 2, gone=True))
    assert subscription(customer)["plan"] == "starter"
    leads(1).refused(403, "feature_not_in_plan")
    shop.assert_books_agree()
