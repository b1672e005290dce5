"""C: credits, one per request, again every thirty days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.systems.conftest import Opens
from tests.support.processes import wait_until
from tests.support.systems import Customer, System

NONE_LEFT = {"error": "Insufficient credits", "detail": "You have 0 credits remaining (0 tokens)", "status": 429}


@pytest.fixture(scope="module")
def shop(opened: Opens) -> System:
    return opened("credits")


def test_c1_balances_both_ways_and_what_was_used_in_all(shop: System) -> None:
    customer = shop.customer("c1")
    wallet = customer.wallet("credits")
    assert (wallet["available"], wallet["tokens"]["available"]) == ("5", "10000")
    customer.call(feature="code_generation", tokens=(321, 45)).ok()
    customer.post("/api/v1/usage", {"feature": "code_review"}).ok()
    wait_until(lambda: customer.wallet("credits")["tokens"]["lifetime_used"] == "4000", what="both count", within_s=20)
    assert customer.wallet("credits")["tokens"]["period_used"] == "4000"
    totals = customer.get("/api/billing/usage", by="feature").ok()["totals"]
    assert sum(int(total["total_tokens"]) for total in totals) == 366, "the model's real tokens stand beside them"


def test_c2_check_consumes_nothing_and_consume_tells_what_is_left(shop: System) -> None:
    customer = shop.customer("c2")
    checked = customer.post("/api/v1/usage", {"feature": "code_review", "dry_run": True}).ok()
    assert checked["success"] is True and customer.wallet("credits")["available"] == "5"
    used = customer.post("/api/v1/usage", {"feature": "code_review"}).ok()
    assert used["success"] is True
    assert used["creditInfo"] == {"tokensUsed": "2000", "creditsRemaining": "4", "totalTokensUsed": "2000"}
    shop.cli("grant", customer.id, "3", "--wallet", "credits", "--reason", "welcome")
    assert customer.wallet("credits")["available"] == "7"


def test_c2_upgrade_renew_downgrade_by_api_and_by_command(shop: System) -> None:
    for name, do in (("api", _by_api), ("cli", _by_command)):
        customer = shop.customer(f"c2-{name}")
        do(shop, customer, "subscribe")
        assert customer.wallet("credits")["granted"] == "100"
        first_end = customer.get("/api/billing/subscription").ok()["period_ends_at"]
        do(shop, customer, "renew")
        renewed = customer.get("/api/billing/subscription").ok()
        assert datetime.fromisoformat(renewed["paid_until"]) > datetime.fromisoformat(first_end)
        do(shop, customer, "downgrade")
        assert customer.get("/api/billing/subscription").ok()["plan"] == "free"


def _by_api(shop: System, customer: Customer, what: str) -> None:
    path = f"/accounts/{customer.id}/subscription"
    match what:
        case "subscribe":
            shop.admin("POST", path, {"plan": "pro"}).ok()
        case "renew":
            shop.admin("POST", f"{path}/renew", {}).ok()
        case _:
            shop.admin("POST", f"{path}/change", {"plan": "free", "at_end": False}).ok()


def _by_command(shop: System, customer: Customer, what: str) -> None:
    match what:
        case "subscribe":
            shop.cli("subscribe", customer.id, "pro")
        case "renew":
            shop.cli("subscription", "renew", customer.id)
        case _:
            shop.cli("subscription", "downgrade", customer.id, "free", "--now")


def test_c3_the_users_status_has_the_products_own_shape(shop: System) -> None:
    customer = shop.customer("c3")
    assert customer.get("/api/user/usage").ok() == {
        "success": True,
        "data": {
            "credits": 5, "totalTokens": 10000, "availableTokens": 10000, "isSubscribed": False,
            "subscriptionTier": "free",
        },
    }  # fmt: skip
    shop.cli("subscribe", customer.id, "pro")
    data = customer.get("/api/user/usage").ok()["data"]
    assert (data["credits"], data["isSubscribed"], data["subscriptionTier"]) == (100, True, "pro")


def test_c4_a_proxied_call_tells_the_same_in_headers(shop: System) -> None:
    customer = shop.customer("c4")
    answer = customer.call(feature="code_generation", tokens=(5000, 500), max_tokens=4000)
    answer.ok()
    told = {name: answer.headers[f"tollgate-{name}"] for name in ("wallet", "held", "charged", "remaining")}
    assert told == {"wallet": "credits", "held": "1", "charged": "1", "remaining": "4"}


def test_c5_out_of_credits_is_told_in_both_shapes(shop: System) -> None:
    customer = shop.customer("c5")
    for _ in range(5):
        customer.post("/api/v1/usage", {"feature": "code_review"}).ok()
    answer = customer.post("/api/v1/usage", {"feature": "code_review"})
    assert answer.status == 429
    assert {name: answer.json[name] for name in NONE_LEFT} == NONE_LEFT
    error = customer.call(feature="code_review").refused(429, "limit_exceeded")
    assert error["message"] == NONE_LEFT["detail"]


def test_c6_a_lapsed_pro_falls_back_to_free_by_itself(shop: System) -> None:
    customer = shop.customer("c6")
    shop.cli("subscribe", customer.id, "pro")
    ends_at = datetime.now(UTC) + timedelta(seconds=3)
    path = f"/accounts/{customer.id}/subscription/extend"
    shop.admin("POST", path, {"ends_at": ends_at.isoformat(timespec="milliseconds")}).ok()
    wait_until(
        lambda: customer.get("/api/billing/subscription").ok()["plan"] == "free", what="it falls back", within_s=20
    )
    assert customer.wallet("credits")["available"] == "5"
    assert customer.get("/api/user/usage").ok()["data"]["isSubscribed"] is False


def test_c7_consumption_conversion_and_features_are_metrics(shop: System) -> None:
    customer = shop.customer("c7")
    before = shop.metric("tollgate_feature_uses_total", feature="code_review", plan="free")
    charged = shop.metric("tollgate_charged_units_total", wallet="credits", plan="free")
    customer.post("/api/v1/usage", {"feature": "code_review"}).ok()
    wait_until(
        lambda: shop.metric("tollgate_feature_uses_total", feature="code_review", plan="free") == before + 1,
        what="the use is counted", within_s=20,
    )  # fmt: skip
    wait_until(
        lambda: shop.metric("tollgate_charged_units_total", wallet="credits", plan="free") == charged + 1,
        what="the credit is counted",
        within_s=20,
    )
    changes = shop.metric("tollgate_subscription_changes_total", **{"from": "free", "to": "pro"})
    shop.admin("POST", f"/accounts/{customer.id}/subscription", {"plan": "pro"}).ok()
    wait_until(
        lambda: shop.metric("tollgate_subscription_changes_total", **{"from": "free", "to": "pro"}) == changes + 1,
        what="the conversion is counted", within_s=20,
    )  # fmt: skip
    wait_until(lambda: shop.metric("tollgate_accounts", plan="pro") >= 1, what="accounts per plan", within_s=90)


def test_the_books_of_all_these_accounts_agree(shop: System) -> None:
    shop.assert_books_agree()
