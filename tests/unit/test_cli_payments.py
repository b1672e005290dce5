"""Packages and payments by command, on a real SQLite and a real Valkey."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import commands
from tests.support.commands import CONFIG, Cli

PACKAGES = """
packages:
  growth:
    {label: Growth, price: 18, grants: [{wallet: tokens, amount: 2000}, {wallet: tokens, amount: 200, source: bonus}]}
  leads: {label: Leads, price: 20.50, plans: [pro], grants: [{wallet: credits, amount: 1.5, expires: 365d}]}
"""


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    installed = commands.installation(tmp_path, capsys)
    installed.config.write_text(CONFIG + PACKAGES)
    return installed


def test_packages_are_listed_for_everybody_and_for_one_account(cli: Cli) -> None:
    growth, leads = cli.ok("packages", "list")
    assert (growth["name"], growth["price"], growth["currency"], growth["plans"]) == ("growth", "18.00", "usd", None)
    assert growth["grants"] == [
        {"wallet": "tokens", "amount": "2000", "source": "package", "expires": None},
        {"wallet": "tokens", "amount": "200", "source": "bonus", "expires": None},
    ]
    assert leads["price"] == "20.50" and leads["grants"][0]["expires"] == "365d"
    assert [each["name"] for each in cli.ok("packages", "list", "--account", cli.account())] == ["growth"]


def test_a_package_is_given_once_per_payment_and_taken_back(cli: Cli) -> None:
    account = cli.account("Acme", "--plan", "pro")
    given = cli.ok("packages", "give", account, "growth", "--payment", "transfer 7", "--reason", "paid by bank")
    assert given["new"] and [grant["amount"] for grant in given["grants"]] == ["2000", "200"]
    again = cli("packages", "give", account, "growth", "--payment", "transfer 7", "--json")
    assert again.json() == {**given, "new": False} and "nothing was done" in again.err
    tokens = {grant["source"]: grant["available"] for grant in _grants(cli, account)}
    assert tokens["package"] == "2000" and tokens["bonus"] == "200"
    [payment] = cli.ok("payments", "list", account)
    assert (payment["amount"], payment["state"], payment["reason"]) == ("18.00", "paid", "paid by bank")
    part = cli.ok("payments", "refund", payment["id"], "--amount", "9.00")
    assert (part["refunded"], part["state"]) == ("9.00", "paid")
    assert {grant["source"]: grant["available"] for grant in _grants(cli, account)}["package"] == "1000"
    assert cli.ok("payments", "refund", payment["id"])["state"] == "refunded"
    assert [grant["source"] for grant in _grants(cli, account)] == ["plan"] * len(_grants(cli, account))
    assert [line["action"] for line in cli.ok("log", account)][:3] == ["refund", "refund", "package"]
    assert cli("audit").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("give", "ACCOUNT", "nothing"), "There is no package nothing; there is: growth, leads."),
        (("give", "ACCOUNT", "leads"), "for the plans pro; the account is on trial"),
        (("give", "nobody", "growth"), "There is no account nobody"),
        (("give", "ACCOUNT", "growth", "--payment", " "), "payment: expected a name"),
    ],
)
def test_what_cannot_be_given_is_refused_in_a_line(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    account = cli.account()
    refused = cli("packages", *(account if each == "ACCOUNT" else each for each in arguments))
    assert (refused.code, refused.err.count("\n")) == (2, 1) and said in refused.err
    assert cli.ok("payments", "list") == []


def _grants(cli: Cli, account: str) -> list[dict[str, str]]:
    wallets = cli.ok("balance", account)["wallets"]
    return [grant for wallet in wallets for grant in wallet["grants"]]
