"""D: wallets per feature; each use costs a fixed number of that feature's tokens."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.systems.conftest import Opens
from tests.support.processes import wait_until
from tests.support.systems import Answer, Customer, System

COSTS = {
    "import_leads": ("lead_generation", 5),
    "generate_goal": ("goal_generation", 3),
    "analyze_strategy": ("strategy_analysis", 2),
    "predict_revenue": ("forecast", 4),
    "general": ("general", 1),
}
GRANTED = {"lead_generation": 50, "goal_generation": 20, "strategy_analysis": 100, "forecast": 30, "general": 50}


@pytest.fixture(scope="module")
def shop(opened: Opens) -> System:
    return opened("feature-tokens")


def balance(customer: Customer, feature: str, action: str, **more: object) -> Answer:
    body = {"organizationId": customer.external_id, "featureUsed": feature, "action": action, **more}
    return customer.post("/api/v1/tokens/check-balance", body)


def deduct(customer: Customer, feature: str, **more: object) -> Answer:
    return balance(customer, feature, "deduct", **more)


@pytest.mark.parametrize("feature", COSTS)
def test_d1_a_use_costs_its_feature_s_tokens(shop: System, feature: str) -> None:
    customer = shop.customer(f"d1-{feature}", plan="pro")
    wallet, cost = COSTS[feature]
    assert balance(customer, feature, "check").ok() == {"hasTokens": True}
    left = GRANTED[wallet] - cost
    said = f"Used {cost} token{'s' if cost > 1 else ''} for {feature}"
    answer = deduct(customer, feature, userId="ann", metadata={"batch": 7}).ok()
    assert answer["success"] is True and answer["remainingBalance"] == left
    assert answer["message"] in (said, f"Used {cost} tokens for {feature}")


def test_d1_what_is_left_is_told_with_the_refusal(shop: System) -> None:
    customer = shop.customer("d1-refused", plan="pro")
    for _ in range(6):
        user = {"userId": f"user-{_}"}
        assert deduct(customer, "generate_goal", **user).status == 200
    assert balance(customer, "generate_goal", "check").ok() == {"hasTokens": False}
    answer = deduct(customer, "generate_goal", userId="last")
    assert answer.status == 429
    assert answer.json["success"] is False and answer.json["remainingBalance"] == 2
    assert answer.json["message"] == "You're out of AI tokens" and answer.json["reason"] == "insufficient_tokens"


def test_d2_stats_are_by_type_and_a_foreign_organization_is_unknown(shop: System) -> None:
    ours, theirs = shop.customer("d2-ours", plan="pro"), shop.customer("d2-theirs", plan="pro")
    deduct(ours, "import_leads").ok()
    path = "/api/v1/tokens/stats"

    def leads() -> dict[str, object]:
        by_type: list[dict[str, object]] = ours.get(path, organizationId="d2-ours").ok()["byType"]
        return next(each for each in by_type if each["tokenType"] == "lead_generation")

    wait_until(lambda: leads()["lastUsedAt"] is not None, what="the use is written", within_s=20)
    found = ours.get(path, organizationId="d2-ours").ok()
    assert (found["totalBalance"], found["totalAllocated"], found["totalUsed"]) == (245, 250, 5)
    assert (leads()["balance"], leads()["totalAllocated"], leads()["totalUsed"]) == (45, 50, 5)
    assert leads()["refreshDate"]
    foreign = [ours.get(path, organizationId=name) for name in (theirs.external_id, theirs.id, "nobody-at-all")]
    assert [answer.status for answer in foreign] == [404, 404, 404]
    assert len({answer.text.replace(answer.headers["tollgate-request-id"], "") for answer in foreign}) == 1
    assert shop.request("GET", path, query={"organizationId": "d2-ours"}).status == 401


def test_d3_not_in_the_plan_and_used_up_are_two_codes(shop: System) -> None:
    starter = shop.customer("d3")
    answer = deduct(starter, "generate_goal")
    assert answer.status == 403
    assert (answer.json["message"], answer.json["reason"]) == ("Not available on Starter plan", "feature_not_in_plan")
    empty = shop.customer("d3-empty", plan="pro")
    for number in range(6):
        deduct(empty, "generate_goal", userId=f"user-{number}").ok()
    answer = deduct(empty, "generate_goal", userId="last")
    assert (answer.status, answer.json["message"]) == (429, "You're out of AI tokens")


def test_d4_the_next_refresh_is_always_shown(shop: System) -> None:
    customer = shop.customer("d4", plan="pro")
    account = shop.admin("GET", f"/accounts/{customer.id}").ok()
    for each in customer.get("/api/v1/tokens/stats", organizationId="d4").ok()["byType"]:
        due = datetime.fromisoformat(each["refreshDate"]) - datetime.fromisoformat(account["created_at"])
        assert abs(due - timedelta(days=30)) < timedelta(seconds=2)


def test_d5_every_use_leaves_a_line_by_user_and_by_feature(shop: System) -> None:
    customer = shop.customer("d5", plan="pro")
    for number in range(22):
        feature = "general" if number % 2 else "analyze_strategy"
        deduct(customer, feature, userId=f"user-{number % 6}", metadata={"number": number}).ok()
    records = lambda **query: customer.get("/api/billing/usage", **query).ok()["items"]  # noqa: E731
    wait_until(lambda: len(records(limit="100")) == 22, what="every line", within_s=20)
    newest = records(limit="20")
    assert len(newest) == 20
    assert newest[0]["metadata"] == {"number": 21} and newest[0]["feature"] == "general"
    assert newest[0]["charged"] == "1"
    general = records(feature="general", limit="100")  # two workers write: in the ledger's order, which is seq's
    assert sorted(int(each["balance_after"]) for each in general) == list(range(39, 50))
    assert len(records(user="user-0", limit="100")) == 4


def test_d7_six_uses_in_a_minute_are_one_too_many(shop: System) -> None:
    customer = shop.customer("d7", plan="pro")
    for _ in range(5):
        deduct(customer, "general", userId="hasty").ok()
    answer = deduct(customer, "general", userId="hasty")
    assert answer.status == 429 and answer.json["reason"] == "rate_limited"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    deduct(customer, "general", userId="calm").ok()


def test_d8_a_plan_change_brings_its_wallets_and_a_file_its_organizations(shop: System, tmp_path: Path) -> None:
    customer = shop.customer("d8")
    shop.cli("subscribe", customer.id, "enterprise")
    assert customer.wallet("lead_generation")["available"] == "500"
    rows = [f"Org {number},pro,org{number}@example.com,d8-org-{number}" for number in range(300)]
    (tmp_path / "orgs.csv").write_text("\n".join(["name,plan,email,external_id", *rows]) + "\n")
    shop.cli("accounts", "import", str(tmp_path / "orgs.csv"))
    found = shop.admin("GET", "/accounts/d8-org-299").ok()
    assert found["plan"] == "pro"


def test_d9_a_model_call_can_name_a_feature_and_costs_its_tokens(shop: System) -> None:
    customer = shop.customer("d9", plan="pro")
    answer = customer.call(feature="generate_goal", tokens=(3000, 400), max_tokens=1000)
    answer.ok()
    assert (answer.headers["tollgate-wallet"], answer.headers["tollgate-charged"]) == ("goal_generation", "3")
    customer.call(feature="no_such_feature").refused(400, "unknown_feature")


def test_d11_enforcement_is_switched_off_and_on_by_a_reload(shop: System) -> None:
    customer = shop.customer("d11")
    path, plain = shop.served.config, shop.served.config.read_text()
    refused = lambda: deduct(customer, "generate_goal", userId="x").status == 403  # noqa: E731
    assert refused()
    path.write_text(plain.replace("starter:    {label: Starter,", "starter:    {label: Starter, shadow: true,"))
    try:
        wait_until(lambda: not refused(), what="enforcement is off", within_s=30)
        wait_until(
            lambda: any(row["feature"] == "generate_goal" for row in customer.get("/api/billing/usage").ok()["items"]),
            what="the use is recorded", within_s=20,
        )  # fmt: skip
    finally:
        path.write_text(plain)
    wait_until(refused, what="enforcement is on again", within_s=30)


def test_the_books_of_all_these_accounts_agree(shop: System) -> None:
    shop.assert_books_agree()
