"""B: a wallet of tokens spent by services, most of which do not pass through the proxy; paid by Stripe."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from tests.e2e.systems.conftest import Opens
from tests.support.processes import wait_until
from tests.support.systems import STRIPE, Customer, System

PRICES = {f"STRIPE_PRICE_{plan}": f"price_{plan.lower()}" for plan in ("STARTER", "PRO", "BUSINESS")}
PACKS = {f"STRIPE_PACK_{pack}": f"price_pack_{pack.lower()}" for pack in ("STARTER", "GROWTH", "SCALE", "ENTERPRISE")}


@pytest.fixture(scope="module")
def shop(opened: Opens) -> System:
    return opened("token-wallet", env={**STRIPE, **PRICES, **PACKS})


def use(customer: Customer, service: str, quantity: str | float, **more: object) -> object:
    return customer.post("/api/v1/usage", {"service": service, "quantity": quantity, **more}).ok()


def available(customer: Customer) -> str:
    return str(customer.wallet("tokens")["available"])


def test_b1_fractions_are_exact(shop: System) -> None:
    customer = shop.customer("b1")
    for _ in range(7):
        use(customer, "sms", 1)
    assert available(customer) == "96.5"
    use(customer, "transcription", 0.5)
    assert available(customer) == "96.45"


@pytest.mark.parametrize(
    "path", ["balance", "plans", "packages", "subscription", "transactions", "usage", "rates", "forecast", "keys"]
)
def test_b2_a_business_reads_its_own_billing(shop: System, path: str) -> None:
    customer = shop.customer(f"b2-{path}")
    customer.get(f"/api/billing/{path}").ok()
    assert shop.request("GET", f"/api/billing/{path}").status == 401
    foreign = shop.request(
        "GET", f"/api/billing/{path}", key=customer.key, headers={"tollgate_account": "somebody-else"}
    )
    assert foreign.status == 404


def test_b2_the_subscription_tells_entitlements_and_terms(shop: System) -> None:
    customer = shop.customer("b2-terms")
    found = customer.get("/api/billing/subscription").ok()
    assert found["entitlements"] == {"agents": 1, "support": "community"}
    assert customer.get("/api/billing/rates").ok()


def test_b3_a_call_needs_ten_tokens_and_is_settled_at_its_end(shop: System) -> None:
    customer = shop.customer("b3")
    hold = customer.post("/api/v1/holds", {"service": "outbound_call", "quantity": 1, "ttl": "60s"}).ok()
    assert hold["held"] == "2", "ten must be there, a minute is set aside"
    customer.post(f"/api/v1/holds/{hold['id']}/extend", {"quantity": 20}).ok()
    ended = customer.post(f"/api/v1/holds/{hold['id']}/settle", {"quantity": 15.5}).ok()
    assert ended["charged"] == "31" and available(customer) == "69"
    use(customer, "sms", 120)
    assert available(customer) == "9"
    customer.post("/api/v1/holds", {"service": "inbound_call", "quantity": 1}).refused(429, "insufficient_tokens")
    use(customer, "sms", 1)


def test_b3_a_call_that_dies_unreported_is_settled_by_its_lease(shop: System) -> None:
    customer = shop.customer("b3-dies")
    hold = customer.post("/api/v1/holds", {"service": "outbound_call", "quantity": 6, "ttl": "2s"}).ok()

    def charged() -> str:
        found = customer.get(f"/api/v1/holds/{hold['id']}").ok()
        return str(found["charged"]) if found["basis"] == "estimated" else "nothing yet"

    wait_until(lambda: charged() == "12", what="its lease charges it", within_s=90)
    late = customer.post(f"/api/v1/holds/{hold['id']}/settle", {"quantity": 3}).ok()
    assert late["charged"] == "6"
    wait_until(lambda: available(customer) == "94", what="the late report counts", within_s=20)


def test_b4_the_free_tokens_come_once_whatever_is_retried(shop: System) -> None:
    customer = shop.customer("b4")
    use(customer, "sms", 40)
    for plan in ("pro", "free", "pro", "free"):
        shop.cli("subscribe", customer.id, plan)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: customer.get("/api/billing/balance").ok(), range(8)))
    granted = [row for row in customer.get("/api/billing/transactions").ok()["items"] if row["kind"] == "granted"]
    assert sum(row["amount"] == "100" for row in granted) == 1


def test_b5_package_tokens_stay_and_come_once_per_payment(shop: System) -> None:
    customer = shop.customer("b5")
    for _ in range(2):
        shop.cli("packages", "give", customer.id, "growth_pack", "--payment", "invoice-77")
    grants = {grant["source"]: grant for grant in customer.wallet("tokens")["grants"]}
    assert grants["package"]["amount"] == "2000" and grants["bonus"]["amount"] == "200"
    assert grants["package"]["expires_at"] is None
    assert available(customer) == "2300"


def test_b7_nobody_edits_a_balance_and_a_business_sees_only_its_own(shop: System) -> None:
    ours, theirs = shop.customer("b7-ours"), shop.customer("b7-theirs")
    use(theirs, "sms", 3)
    assert all(row["account"] == ours.id for row in ours.get("/api/billing/usage").ok()["items"])
    for method in ("PUT", "PATCH", "DELETE", "POST"):
        assert shop.request(method, "/api/billing/balance", key=ours.key, body={}).status in (404, 405)
    with ThreadPoolExecutor(8) as pool:
        body = {"service": "sms", "quantity": 1}
        answers = list(pool.map(lambda _: ours.post("/api/v1/usage", body, idempotency_key="once").status, range(8)))
    assert set(answers) <= {200, 409} and 200 in answers
    assert available(ours) == "99.5"


def test_b8_usage_goes_out_as_csv(shop: System) -> None:
    customer = shop.customer("b8")
    use(customer, "sms", 3)
    wait_until(lambda: "sms" in customer.get("/api/billing/usage.csv").text, what="the line", within_s=20)
    answer = customer.get("/api/billing/usage.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert customer.get("/api/billing/transactions.csv").text.count("\n") >= 2


def test_b10_an_enterprise_gets_its_own_terms(shop: System) -> None:
    customer = shop.customer("b10")
    shop.cli("subscribe", customer.id, "enterprise", "--price", "777.50", "--allowance", "tokens=123456")
    found = customer.get("/api/billing/subscription").ok()
    assert found["plan"] == "enterprise" and found["price"] == "777.50"
    assert customer.wallet("tokens")["granted"] in ("123456", "123556")
    assert datetime.fromisoformat(found["period_ends_at"]) > datetime.now(UTC)


def test_the_books_of_all_these_accounts_agree(shop: System) -> None:
    shop.assert_books_agree()
