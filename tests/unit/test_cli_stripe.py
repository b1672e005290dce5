"""What an operator does with Stripe's events, by command, on a real SQLite and a real Valkey."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.billing.stripe.reading import event_of
from gateway.config.loading import load
from tests.support import commands, stores
from tests.support.commands import CONFIG, Cli
from tests.support.stripe_month import DAY_S, Body, Shop

STRIPE = """
packages:
  growth: {label: Growth, price: 18, stripe_price: price_growth, grants: [{wallet: tokens, amount: 2000}]}
stripe: {secret_key: "${TEST_CLI_STRIPE:-}", webhook_secret: "${TEST_CLI_HOOK:-}", success_url: "https://a.example/paid"}
"""


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("TEST_CLI_STRIPE", "sk_test_1")
    monkeypatch.setenv("TEST_CLI_HOOK", "whsec_1")
    installed = commands.installation(tmp_path, capsys)
    installed.config.write_text(CONFIG + STRIPE)
    return installed


def tell(cli: Cli, *bodies: Body) -> None:
    """As a webhook would have brought them."""

    async def take() -> None:
        catalog = load(cli.config, {"TEST_CLI_STRIPE": "sk_test_1", "TEST_CLI_HOOK": "w"}).catalog
        async with stores.opened("embedded", cli.data, catalog=catalog) as store:
            for body in bodies:
                await store.stripe.take(event_of(body), livemode=False, now_ms=time.time_ns() // 1_000_000)

    asyncio.run(take())


def available(cli: Cli, account: str) -> str:
    wallets: list[dict[str, Any]] = cli.ok("balance", account)["wallets"]
    return str(next(each["available"] for each in wallets if each["wallet"] == "tokens"))


def test_an_unknown_customer_is_linked_and_what_waited_goes_on(cli: Cli) -> None:
    account = cli.account()
    stranger = Shop("stranger", int(time.time()) - DAY_S, None)
    bought = stranger.package(stranger.start_s, "growth", 1800, metadata={"tollgate_package": "growth"})
    tell(cli, bought)
    [kept] = cli.ok("stripe", "events", "--kept")
    assert (kept["why"], kept["customer"], kept["waits_for"]) == ("unknown_customer", "cus_stranger", "cus_stranger")
    assert cli("stripe", "link", "nobody", account).code == 2
    [resumed] = cli.ok("stripe", "link", "cus_stranger", account)
    assert (resumed["id"], resumed["state"]) == (bought["id"], "done")
    assert available(cli, account) == "8000"
    assert cli.ok("stripe", "events", "--kept") == []
    assert [each["state"] for each in cli.ok("stripe", "events")] == ["done"]
    other = cli.account("Other")
    refused = cli("stripe", "link", "cus_stranger", other)
    assert refused.code == 2 and "another account" in refused.err
    assert [line["action"] for line in cli.ok("log", account)][:2] == ["package", "stripe_link"]


def test_a_wrong_amount_stays_kept_until_an_operator_accepts_it(cli: Cli) -> None:
    account = cli.account()
    acme = Shop("acme", int(time.time()) - DAY_S, account)
    discounted = acme.package(acme.start_s, "growth", 900)
    tell(cli, discounted)
    again = cli("stripe", "retry", discounted["id"], "--json")
    assert again.code == 1 and '"other_amount"' in again.out
    assert available(cli, account) == "6000"
    assert cli.ok("stripe", "retry", discounted["id"], "--accept")["state"] == "done"
    assert available(cli, account) == "8000"
    [payment] = cli.ok("payments", "list", account)
    assert (payment["amount"], payment["provider"], payment["state"]) == ("9.00", "stripe", "paid")
    done = cli("stripe", "retry", discounted["id"])
    assert done.code == 2 and "is done already" in done.err
    refund = cli("payments", "refund", payment["id"])
    assert refund.code == 2 and "refund it there" in refund.err
    assert cli("audit").code == 0


def test_what_nobody_wants_is_put_aside(cli: Cli) -> None:
    assert cli.ok("stripe", "events") == []
    stranger = Shop("stranger", int(time.time()) - DAY_S, None)
    tell(cli, stranger.updated(stranger.start_s), stranger.package(stranger.start_s, "growth", 1, metadata={
        "tollgate_package": "growth",
    }))  # fmt: skip
    [kept] = cli.ok("stripe", "events", "--kept")
    assert cli.ok("stripe", "ignore", kept["id"], "--reason", "a test of ours")["state"] == "ignored"
    assert cli.ok("stripe", "events", "--kept") == []
    whys = {each["why"] for each in cli.ok("stripe", "events")}
    assert whys == {"a test of ours", "price_not_sold_here"}
    for command in (("retry", "evt_none"), ("ignore", "evt_none"), ("events", "--after", "x")):
        refused = cli("stripe", *command)
        assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_without_payments_their_commands_say_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    account = cli.account()
    monkeypatch.delenv("TEST_CLI_STRIPE")
    monkeypatch.delenv("TEST_CLI_HOOK")
    for command in (("link", "cus_1", account), ("sync",)):
        refused = cli("stripe", *command)
        assert refused.code == 2 and "Payments are not configured" in refused.err
    checked = cli("check-config")
    assert checked.code == 0 and "stripe is off, because both its secrets are empty" in checked.err
    assert cli.ok("stripe", "events") == []
