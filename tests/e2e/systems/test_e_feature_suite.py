"""E: what a feature suite's owners wished for: packs, prices by size and in bulk, forecasts, quotas, gifts, prepay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.systems.conftest import Opens
from tests.support.processes import wait_until
from tests.support.systems import STRIPE, Customer, System

PRICES = {
    "STRIPE_PRICE_PRO": "price_pro", "STRIPE_PRICE_PRO_YEAR": "price_pro_year", "STRIPE_PRICE_ENT": "price_ent",
    "STRIPE_PRICE_ENT_YEAR": "price_ent_year", "STRIPE_PACK_LEADS": "price_leads", "STRIPE_PACK_GOALS": "price_goals",
}  # fmt: skip


@pytest.fixture(scope="module")
def shop(opened: Opens) -> System:
    return opened("feature-suite", env={**STRIPE, **PRICES})


def available(customer: Customer, wallet: str) -> str:
    return str(customer.wallet(wallet)["available"])


def test_e1_more_tokens_of_a_type_are_bought_on_demand(shop: System) -> None:
    customer = shop.customer("e1", plan="pro")
    shop.cli("packages", "give", customer.id, "goals_50", "--payment", "pi_1")
    assert available(customer, "goal_generation") == "70"
    grant = next(each for each in customer.wallet("goal_generation")["grants"] if each["source"] == "package")
    expires_in = datetime.fromisoformat(grant["expires_at"]) - datetime.now(UTC)
    assert abs(expires_in - timedelta(days=365)) < timedelta(minutes=5)


@pytest.mark.parametrize(("tokens", "cost"), [((100, 20), "2"), ((3000, 1000), "2"), ((9000, 1001), "5.001")])
def test_e2_a_price_by_size_has_a_floor(shop: System, tokens: tuple[int, int], cost: str) -> None:
    customer = shop.customer(f"e2-{cost}-{tokens[0]}", plan="pro")
    answer = customer.call(feature="analyze_strategy", tokens=tokens, max_tokens=20_000)
    answer.ok()
    assert answer.headers["tollgate-charged"] == cost


@pytest.mark.parametrize(("quantity", "left"), [(1, "45"), (9, "5"), (10, "10"), (12, "2")])
def test_e3_several_operations_in_one_call_cost_less(shop: System, quantity: int, left: str) -> None:
    customer = shop.customer(f"e3-{quantity}", plan="enterprise" if quantity == 12 else "pro")
    customer.post("/api/v1/usage", {"feature": "import_leads", "quantity": quantity}).ok()
    start = 500 if quantity == 12 else 50
    price = 4 if quantity >= 10 else 5
    assert available(customer, "lead_generation") == str(start - quantity * price)
    assert start == 500 or left == str(start - quantity * price)


def test_e4_a_forecast_names_the_day_a_wallet_runs_out(shop: System) -> None:
    customer = shop.customer("e4", plan="pro")
    customer.post("/api/v1/usage", {"feature": "general", "quantity": 40}).ok()

    def runs_out() -> object:
        wallets = customer.get("/api/billing/forecast").ok()["wallets"]
        return next(each for each in wallets if each["wallet"] == "general")["runs_out_at"]

    wait_until(lambda: runs_out() is not None, what="there is a date", within_s=20)
    assert datetime.fromisoformat(str(runs_out())) > datetime.now(UTC)


def test_e5_a_team_stays_within_its_quota(shop: System) -> None:
    customer = shop.customer("e5", plan="pro")
    team = shop.cli("teams", "create", customer.id, "Sales", "--external-id", "sales")
    shop.cli("budgets", "set", "team", team["id"], "general", "3", "--period", "month")
    body = {"feature": "general", "team": "sales"}
    for _ in range(3):
        customer.post("/api/v1/usage", body).ok()
    customer.post("/api/v1/usage", body).refused(429, "budget_exceeded")
    customer.post("/api/v1/usage", {"feature": "general"}).ok()


def test_e6_an_admin_gives_to_an_account_or_a_user(shop: System) -> None:
    customer = shop.customer("e6", plan="pro")
    user = shop.cli("users", "create", customer.id, "Ann", "--external-id", "ann")
    shop.cli("budgets", "set", "user", user["id"], "general", "1", "--period", "month")
    use = {"feature": "general", "user": "ann"}
    customer.post("/api/v1/usage", use).ok()
    customer.post("/api/v1/usage", use).refused(429, "budget_exceeded")
    shop.cli(
        "grant", customer.id, "2", "--wallet", "general", "--user", user["id"], "--reason", "a good idea",
        "--expires", "2030-01-01",
    )  # fmt: skip
    customer.post("/api/v1/usage", use).ok()
    gift = next(each for each in customer.wallet("general")["grants"] if each["source"] == "gift")
    assert gift["amount"] == "2" and gift["expires_at"] == "2030-01-01T00:00:00Z"
    log = shop.cli("log", customer.id)
    assert any("a good idea" in str(line["detail"]) for line in log)


def test_e7_a_year_paid_at_once_is_granted_month_by_month(shop: System) -> None:
    customer = shop.customer("e7")
    shop.cli("subscribe", customer.id, "pro")
    shop.cli("subscription", "renew", customer.id, "--periods", "11")
    found = customer.get("/api/billing/subscription").ok()
    paid = datetime.fromisoformat(found["paid_until"]) - datetime.fromisoformat(found["period_starts_at"])
    assert paid == timedelta(days=360)
    assert available(customer, "general") == "50", "one period's allowance, not twelve"
    plans = {plan["name"]: plan for plan in customer.get("/api/billing/plans").ok()["items"]}
    assert plans["pro"]["prepay"]["price"] == "470.40"


def test_e8_operators_see_who_is_at_risk(shop: System) -> None:
    customer = shop.customer("e8", plan="pro")
    customer.post("/api/v1/usage", {"feature": "general", "quantity": 45}).ok()

    def at_risk() -> bool:
        return customer.id in {each["account"] for each in shop.admin("GET", "/insight").ok()["at_risk"]}

    wait_until(at_risk, what="the account is at risk", within_s=30)


def test_the_books_of_all_these_accounts_agree(shop: System) -> None:
    shop.assert_books_agree()
