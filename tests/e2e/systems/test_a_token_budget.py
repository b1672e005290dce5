"""A: a token budget, strict. Every job is checked before a model is called; what is charged is what was used."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.systems.conftest import Opens
from tests.support.processes import wait_until
from tests.support.systems import Customer, System

EXPIRED = "Your 7-day free trial has expired. Please upgrade to Lite, Pro, or Business plan to continue."
WORD = "word "


@pytest.fixture(scope="module")
def shop(opened: Opens) -> System:
    return opened("token-budget")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a1_a_new_account_starts_on_trial_for_seven_days(shop: System) -> None:
    customer = shop.customer("a1")
    account = shop.admin("GET", f"/accounts/{customer.id}").ok()
    found = customer.get("/api/billing/subscription").ok()
    assert (found["plan"], found["status"]) == ("trial", "trialing")
    assert at(found["trial_ends_at"]) - at(account["created_at"]) == timedelta(days=7)


def test_a2_after_the_trial_a_call_is_refused_before_the_model_sees_it(shop: System) -> None:
    customer = shop.customer("a2")
    ends_at = datetime.now(UTC) + timedelta(seconds=3)
    path = f"/accounts/{customer.id}/subscription/extend"
    shop.admin("POST", path, {"ends_at": ends_at.isoformat(timespec="milliseconds")}).ok()
    wait_until(lambda: customer.call().status == 402, what="the trial has ended", within_s=20)
    seen = shop.served_by_models()
    error = customer.call().refused(402, "trial_expired")
    assert error["message"] == EXPIRED
    assert error["tollgate"]["plans"] == ["Lite", "Pro", "Business"]
    assert shop.served_by_models() == seen
    assert customer.get("/api/billing/subscription").ok()["status"] == "expired"


def test_a3_nothing_left_and_too_little_are_told_apart(shop: System) -> None:
    customer = shop.customer("a3")
    customer.call(tokens=(5000, 500), max_tokens=5500).ok()
    seen = shop.served_by_models()
    error = customer.call(text=WORD * 1244).refused(429, "insufficient_tokens")
    told = re.fullmatch(
        r"Insufficient tokens\. You have 500 tokens remaining, but this request needs ~(\d+) tokens\.", error["message"]
    )
    assert told is not None and int(told[1]) % 100 == 0, error["message"]
    needed = int(error["tollgate"]["needed"])
    assert int(told[1]) - 100 < needed <= int(told[1])
    assert shop.served_by_models() == seen
    customer.call(tokens=(200, 300), max_tokens=300).ok()
    error = customer.call().refused(429, "limit_exceeded")
    assert error["tollgate"]["plans"] == ["Lite", "Pro", "Business"]
    shop.cli("subscribe", customer.id, "lite")
    customer.call(tokens=(199_000, 1000), max_tokens=1000, text=WORD).ok()
    error = customer.call().refused(429, "limit_exceeded")
    assert at(error["tollgate"]["resets_at"]) - datetime.now(UTC) > timedelta(days=29)
    assert error["tollgate"]["plans"] == ["Pro", "Business"]


def test_a4_at_ninety_percent_a_call_succeeds_and_says_so(shop: System) -> None:
    customer = shop.customer("a4")
    customer.call(tokens=(5000, 500), max_tokens=5500).ok()
    answer = customer.call(tokens=(10, 10), max_tokens=256)
    answer.ok()
    assert "at 9" in answer.headers["tollgate-warning"] and "% of quota" in answer.headers["tollgate-warning"]
    customer.call(tokens=(10, 10), max_tokens=256).ok()
    wait_until(lambda: _alerts(shop, customer.id, "threshold"), what="the alert", within_s=20)
    assert len(_alerts(shop, customer.id, "threshold")) == 1


def _alerts(shop: System, account: str, kind: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = shop.cli("alerts", "list", account)
    return [alert for alert in found if alert["kind"] == kind]


@pytest.mark.parametrize("steering", ["", "cached=700", "cache_write=300", "reasoning=50"])
def test_a5_the_charge_is_the_actual_usage_never_the_estimate(shop: System, steering: str) -> None:
    customer = shop.customer(f"a5-{steering or 'plain'}")
    answer = customer.call(tokens=(1000, 200), max_tokens=900, steering=steering)
    usage = answer.ok()["usage"]
    total = sum(usage.get(kind) or 0 for kind in (
        "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"))  # fmt: skip
    assert answer.headers["tollgate-charged"] == str(total)
    assert customer.wallet("tokens")["available"] == str(6000 - total)


def test_a6_each_call_leaves_a_record(shop: System) -> None:
    customer = shop.customer("a6")
    for job, kind in (("job-1", "review"), ("job-2", "debug"), ("job-3", "anything else")):
        customer.call(tokens=(100, 20), tollgate_job=job, tollgate_job_type=kind, tollgate_user="ann").ok()
    wait_until(lambda: len(_records(customer)) == 3, what="the records", within_s=20)
    newest = _records(customer)[0]
    assert (newest["job"], newest["job_type"]) == ("job-3", "anything else")
    assert (newest["input_tokens"], newest["output_tokens"], newest["total_tokens"]) == (100, 20, 120)
    assert newest["month"] == datetime.now(UTC).strftime("%Y-%m") and newest["model"] == "claude-sonnet-4-5"
    assert newest["account"] == customer.id and newest["user"]
    assert datetime.now(UTC) - at(newest["at"]) < timedelta(minutes=5)
    assert len(customer.get("/api/billing/usage", month=str(newest["month"])).ok()["items"]) == 3
    assert customer.get("/api/billing/usage", month="2020-01").ok()["items"] == []


def _records(customer: Customer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = customer.get("/api/billing/usage").ok()["items"]
    return found


def test_a8_an_admin_moves_an_account_to_another_plan_with_one_command(shop: System) -> None:
    customer = shop.customer("a8")
    customer.call(tokens=(5000, 500), max_tokens=5500).ok()
    shop.cli("subscribe", customer.id, "pro")
    found = customer.get("/api/billing/subscription").ok()
    assert (found["plan"], found["status"]) == ("pro", "active")
    assert datetime.now(UTC) - at(found["period_starts_at"]) < timedelta(minutes=1)
    wallet = customer.wallet("tokens")
    assert (wallet["used"], wallet["granted"]) == ("0", "500000")


def test_a9_everything_about_a_subscription_is_visible(shop: System) -> None:
    customer = shop.customer("a9")
    customer.call(tokens=(100, 20)).ok()
    found = customer.get("/api/billing/subscription").ok()
    [wallet] = found["wallets"]
    assert (wallet["wallet"], wallet["used"], wallet["limit"]) == ("tokens", "120", "6000")
    for name in ("trial_starts_at", "trial_ends_at", "period_starts_at", "period_ends_at"):
        assert at(found[name])
    assert found["status"] == "trialing"


def test_a13_support_finds_an_account_by_email_and_moves_its_trial_and_its_use(shop: System) -> None:
    customer = shop.customer("a13", email="ann@example.com")
    customer.call(tokens=(1000, 500), max_tokens=2000).ok()
    assert shop.cli("accounts", "show", "ann@example.com")["id"] == customer.id
    ends_at = (datetime.now(UTC) + timedelta(days=20)).isoformat(timespec="seconds").replace("+00:00", "Z")
    shop.cli("subscription", "extend", "ann@example.com", "--ends-at", ends_at)
    assert customer.get("/api/billing/subscription").ok()["trial_ends_at"] == ends_at
    shop.cli("adjust", "ann@example.com", "+1500", "--reason", "a slow day of ours")
    assert customer.wallet("tokens")["available"] == "6000"
    actions = [line["action"] for line in shop.cli("log", customer.id)]
    assert {"extend", "adjust"} <= set(actions)


def test_the_books_of_all_these_accounts_agree(shop: System) -> None:
    shop.assert_books_agree()
