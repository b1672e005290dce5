"""``tollgate subscription``: what support and payments do to an account's place on a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import CONFIG, Cli, installation

PRO = "  pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}}\n"
PLANS = f"""{PRO}\
  lite: {{label: Lite, price: 15, period: 30d, allowance: {{tokens: 200000}}}}
  paid: {{label: Paid, price: 49, period: 30d, renews: when_paid, ends: free, allowance: {{tokens: 1000}},
         entitlements: {{agents: 3, support: email}}, prepay: {{periods: 12, discount: 20%}},
         overage: {{tokens: {{cap: 500, price: 0.01}}}}, rollover: {{tokens: {{max: 50%}}}}}}
  free: {{label: Free, price: 0, period: once, allowance: {{tokens: 100}}, grant_source: trial}}
"""


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    assert PRO in CONFIG
    return installation(tmp_path, capsys, CONFIG.replace(PRO, PLANS))


def test_an_upgrade_is_at_once_and_credits_and_a_downgrade_waits(cli: Cli) -> None:
    account = cli.account("Acme", "--plan", "lite")
    up = cli.ok("subscription", "upgrade", account, "pro")
    assert (up["plan"], up["next_plan"]) == ("pro", None)
    assert 14.9 < float(up["credit"]) <= 15
    down = cli.ok("subscription", "downgrade", account, "lite")
    assert (down["plan"], down["next_plan"], down["credit"]) == ("pro", "lite", "0.00")
    assert down["effective_at"] == down["period_ends_at"]
    assert cli.ok("subscription", "resume", account)["next_plan"] is None
    assert cli.ok("subscription", "downgrade", account, "lite", "--now")["plan"] == "lite"
    assert [line["action"] for line in cli.ok("log", account)][:4] == ["change", "resume", "change", "change"]


def test_a_payment_is_noted_once_and_refunded_once(cli: Cli) -> None:
    account = cli.account("Acme", "--plan", "free")
    bought = cli.ok("subscription", "renew", account, "--plan", "paid", "--key", "in_1", "--paid", "45.50")
    assert (bought["plan"], bought["paid_until"]) == ("paid", bought["period_ends_at"])
    assert cli.ok("subscription", "renew", account, "--key", "in_1") == bought
    refused = cli("subscription", "refund", account, "in_1")
    assert refused.code == 2 and "--yes" in refused.err
    assert cli.ok("subscription", "refund", account, "in_1", "--yes")["plan"] == "free"
    assert cli.ok("subscription", "refund", account, "in_1", "--yes")["plan"] == "free"
    assert cli("subscription", "refund", account, "in_2", "--yes").code == 2


def test_a_year_is_paid_at_once_and_cancelled_at_once(cli: Cli) -> None:
    account = cli.account()
    year = cli.ok("subscription", "renew", account, "--plan", "paid", "--prepaid")
    assert year["paid_until"] > year["period_ends_at"]
    assert cli("subscription", "renew", account, "--plan", "pro", "--prepaid").code == 2
    waiting = cli.ok("subscription", "cancel", account, "--yes")
    assert (waiting["cancel_at_period_end"], waiting["plan"]) == (True, "paid")
    assert cli.ok("subscription", "cancel", account, "--now", "--yes")["plan"] == "free"
    assert cli("subscription", "resume", cli.account("Other"), "--json").code == 0


def test_a_period_is_started_anew_and_checked(cli: Cli) -> None:
    account = cli.account("Acme", "--plan", "pro")
    cli.ok("adjust", account, "-1000", "--wallet", "tokens")
    cli.ok("subscription", "restart", account)
    assert cli.ok("subscription", "check", account)["subscription_status"] == "active"
    assert cli.ok("accounts", "show", account)["wallets"][0]["limit"] == "500000"


def test_a_plan_is_shown_with_all_that_it_promises(cli: Cli) -> None:
    plan = cli.ok("plans", "show", "paid")
    assert plan["overage"] == {"tokens": {"cap": "500", "price": "0.01"}}
    assert plan["rollover"] == {"tokens": "50%"}
    assert plan["prepay"] == {"periods": 12, "discount": "20%", "price": "470.40"}


def test_terms_of_ones_own_stand_before_the_plans(cli: Cli) -> None:
    account = cli.account()
    own = ("--price", "500", "--allowance", "tokens=7000", "--entitlement", "agents=40")
    assert cli.ok("subscribe", account, "paid", *own)["entitlements"] == {"agents": 40, "support": "email"}
    assert cli("subscription", "upgrade", account, "custom", "--price", "1").code == 2  # its allowance is custom, too
    moved = cli.ok("subscription", "upgrade", account, "custom", "--allowance", "tokens=9", "--price", "1")
    assert moved["plan"] == "custom" and 499.9 < float(moved["credit"]) <= 500
