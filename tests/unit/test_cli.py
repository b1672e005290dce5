"""The commands that make and change things, on a real SQLite and a real Valkey."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support import stores
from tests.support.commands import CONFIG, Cli, Result, installation
from tests.support.stores import charge

KEY_CHARACTERS = 52


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return installation(tmp_path, capsys)


def test_an_account_starts_on_the_default_plan_and_is_found_by_each_of_its_names(cli: Cli) -> None:
    made = cli.ok("accounts", "create", "Acme", "--email", "Ops@acme.org", "--external-id", "org-1")
    assert (made["plan"], made["subscription_status"], made["status"]) == ("trial", "trialing", "active")
    unused = {"used": "0", "overage_used": "0", "overage_due": "0.00"}
    wallets = [{"wallet": "tokens", "limit": "6000", **unused}]
    for name in (made["id"], "org-1", "ops@ACME.org"):
        assert cli.ok("accounts", "show", name) == {**made, "wallets": wallets}
    assert cli.ok("accounts", "list") == [made]


def test_a_period_that_ended_is_shown_turned_before_any_call_noticed(cli: Cli) -> None:
    trial, pro = cli.account(), cli.account("Pro", "--plan", "pro")
    _execute(cli, "UPDATE subscriptions SET period_ends_at_ms = 1700000000000, granted_until_ms = 1700000000000")
    _execute(cli, "UPDATE grants SET starts_at_ms = 1690000000000, expires_at_ms = 1700000000000")
    seen = {account["id"]: account["subscription_status"] for account in cli.ok("accounts", "list")}
    assert seen == {trial: "expired", pro: "active"}
    assert cli.ok("accounts", "show", trial)["wallets"] == []
    assert cli.ok("accounts", "show", pro)["wallets"][0]["limit"] == "500000"
    assert _available(cli, pro) == "500000" and _available(cli, trial) == "0"
    assert [row["kind"] for row in cli.ok("transactions", pro)] == ["granted", "granted"]


def test_a_list_goes_on_where_the_last_page_ended(cli: Cli) -> None:
    ids = [cli.account(f"A{number}") for number in range(5)]
    first = cli("accounts", "list", "--limit", "2", "--json")
    assert [account["id"] for account in first.json()] == ids[:2]
    assert f"--after {ids[1]}" in first.err
    assert [account["id"] for account in cli.ok("accounts", "list", "--after", ids[1])] == ids[2:]


def test_suspending_twice_is_as_once_and_resuming_undoes_it(cli: Cli) -> None:
    account = cli.account()
    assert cli.ok("accounts", "suspend", account)["status"] == "suspended"
    assert cli.ok("accounts", "suspend", account)["status"] == "suspended"
    assert cli.ok("accounts", "resume", account, "--reason", "paid")["status"] == "active"
    actions = [line["action"] for line in cli.ok("log", account)]
    assert actions == ["set_status", "set_status", "create_account"]


def test_an_account_is_renamed_and_an_empty_text_takes_a_name_away(cli: Cli) -> None:
    account = cli.account("Acme", "--external-id", "org-1", "--email", "a@acme.org")
    changed = cli.ok("accounts", "set", "org-1", "--name", "Acme Ltd", "--external-id", "")
    assert (changed["id"], changed["name"], changed["external_id"], changed["email"]) == (
        account, "Acme Ltd", None, "a@acme.org",
    )  # fmt: skip


def test_a_subscription_moves_with_its_own_terms(cli: Cli) -> None:
    account = cli.account()
    moved = cli.ok("subscribe", account, "custom", "--allowance", "tokens=1234.5", "--price", "49.90")
    assert (moved["plan"], moved["subscription_status"]) == ("custom", "active")
    (wallet,) = [each for each in cli.ok("balance", account)["wallets"] if each["wallet"] == "tokens"]
    assert (wallet["granted"], wallet["available"]) == ("1234.5", "1234.5")


def test_a_period_begins_at_its_anchor_and_ends_where_it_was_told(cli: Cli) -> None:
    account = cli.account()
    moved = cli.ok("subscribe", account, "pro", "--anchor", "2026-01-01", "--ends-at", "2099-01-01T00:00:00Z")
    assert moved["period_ends_at"] == "2099-01-01T00:00:00Z"
    again = cli.ok("subscribe", account, "pro", "--anchor", "2026-01-01T00:00:00+01:00")
    assert again["period_starts_at"].endswith("T23:00:00Z")


def test_a_trial_is_extended_and_a_subscription_cancelled(cli: Cli) -> None:
    account = cli.account()
    extended = cli.ok("subscription", "extend", account, "--ends-at", "2099-06-01")
    assert extended["trial_ends_at"] == extended["period_ends_at"] == "2099-06-01T00:00:00Z"
    refused = cli("subscription", "cancel", account)
    assert refused.code == 2 and "--yes" in refused.err
    assert cli.ok("subscription", "cancel", account, "--yes")["cancel_at_period_end"] is True


def test_grants_and_adjustments_are_exact_and_end_when_they_should(cli: Cli) -> None:
    account = cli.account()
    gift = cli.ok("grant", account, "500.125", "--wallet", "tokens", "--reason", "hello", "--expires", "2099-01-01")
    assert (gift["amount"], gift["source"], gift["expires_at"]) == ("500.125", "gift", "2099-01-01T00:00:00Z")
    lowered = cli.ok("adjust", account, "-6100", "--wallet", "tokens", "--reason", "oops")
    assert lowered == {"wallet": "tokens", "asked": "-6100", "adjusted": "-6100", "balance": "400.125"}
    raised = cli.ok("adjust", account, "+0.001", "--wallet", "tokens")
    assert raised["balance"] == "400.126"
    short = cli("adjust", account, "-1000", "--wallet", "tokens", "--json")
    assert short.json()["adjusted"] == "-400.126"
    assert "Less was left" in short.err
    trial = cli.ok("accounts", "show", account)
    ends = {grant["source"]: grant["expires_at"] for grant in _grants(cli, account)}
    assert ends["adjustment"] == trial["period_ends_at"]


def test_what_the_plan_does_not_grant_is_adjusted_for_good(cli: Cli) -> None:
    account = cli.account()
    cli.ok("adjust", account, "2.5", "--wallet", "credits")
    (grant,) = [grant for grant in _grants(cli, account) if grant["wallet"] == "credits"]
    assert (grant["available"], grant["expires_at"]) == ("2.5", None)


def test_an_unlimited_allowance_is_shown_by_its_name(cli: Cli) -> None:
    account = cli.account("Big", "--plan", "endless")
    tokens = next(each for each in cli.ok("balance", account)["wallets"] if each["wallet"] == "tokens")
    assert (tokens["available"], tokens["granted"], tokens["used"]) == ("unlimited", "unlimited", "0")


def test_a_change_counts_in_a_running_redis_at_once(cli: Cli) -> None:
    """The next command finds the account loaded as it was left."""
    account = cli.account()
    assert _available(cli, account) == "6000"
    cli.ok("grant", account, "10", "--wallet", "tokens")
    assert _available(cli, account) == "6010"
    cli.ok("subscribe", account, "pro")
    assert _available(cli, account) == "500010"


def test_teams_and_users_are_made_listed_and_found_by_the_apps_names(cli: Cli) -> None:
    account = cli.account("Acme", "--external-id", "org-1")
    team = cli.ok("teams", "create", "org-1", "Core", "--external-id", "core")
    user = cli.ok(
        "users", "create", "org-1", "Bob", "--external-id", "bob", "--team", "core", "--email", "bob@acme.org"
    )
    assert team["account"] == user["account"] == account and user["team"] == team["id"]
    assert cli.ok("teams", "list", account) == [team] and cli.ok("teams", "show", account, "core") == team
    assert cli.ok("users", "list", account) == [user] and cli.ok("users", "show", account, user["id"]) == user


def test_a_budget_is_set_replaced_and_lifted(cli: Cli) -> None:
    account = cli.account()
    team = cli.ok("teams", "create", account, "Core", "--external-id", "core")
    made = cli.ok("budgets", "set", "team", "core", "tokens", "1000.5", "--account", account, "--period", "7d")
    assert (made["id"], made["amount"], made["period"], made["number"]) == (team["id"], "1000.5", "7d", 1)
    same = cli.ok("budgets", "set", "team", team["id"], "tokens", "20", "--period", "7d")
    assert (same["number"], same["amount"]) == (1, "20")
    key = cli.ok("keys", "create", account)
    cli.ok("budgets", "set", "key", key["id"], "credits", "3", "--period", "month")
    assert [(each["scope"], each["used"]) for each in cli.ok("budgets", "list", account)] == [
        ("team", "0"),
        ("key", "0"),
    ]
    cli.ok("budgets", "remove", account, "1")
    assert [budget["scope"] for budget in cli.ok("budgets", "list", account)] == ["key"]


def test_a_key_is_made_for_a_member_listed_rotated_and_revoked(cli: Cli) -> None:
    account = cli.account()
    cli.ok("teams", "create", account, "Core", "--external-id", "core")
    made = cli.ok("keys", "create", account, "--team", "core", "--name", "ci", "--expires", "2099-01-01")
    assert made["key"].startswith("tg_") and len(made["key"]) == KEY_CHARACTERS
    assert made["key"].startswith(made["prefix"]) and made["expires_at"] == "2099-01-01T00:00:00Z"
    (listed,) = cli.ok("keys", "list", account)
    assert "key" not in listed and listed["id"] == made["id"] and listed["status"] == "active"
    new = cli.ok("keys", "rotate", made["id"], "--overlap", "1h")
    assert new["key"] != made["key"] and new["team"] == made["team"] and new["replaces"] == made["id"]
    assert new["old_key_expires_at"] < "2099"
    once = cli.ok("keys", "revoke", made["id"], "--yes")
    assert once["status"] == "revoked" and cli.ok("keys", "revoke", made["id"]) == once
    assert [key["id"] for key in cli.ok("keys", "list", account)] == [new["id"]]
    assert len(cli.ok("keys", "list", account, "--all")) == 2


def test_a_service_key_belongs_to_nobody(cli: Cli) -> None:
    made = cli.ok("keys", "create", "--service", "--name", "backend")
    assert made["service"] is True and made["account"] is None
    assert [key["id"] for key in cli.ok("keys", "list", "--service")] == [made["id"]]


def test_usage_balance_and_transactions_tell_what_was_charged(cli: Cli) -> None:
    account = cli.account()
    _charge(cli, account, 1500, 250)
    report = cli.ok("usage", account, "--by", "model")
    (total,) = report["totals"]
    assert (total["model"], total["wallet"], total["calls"], total["charged"]) == ("gpt-5-mini", "tokens", 2, "1.75")
    assert [record["charged"] for record in report["records"]] == ["0.25", "1.5"]
    assert _available(cli, account) == "5998.25"
    assert [(row["kind"], row["amount"]) for row in cli.ok("transactions", account)] == [
        ("charged", "-1.75"), ("granted", "6000"),
    ]  # fmt: skip
    assert cli.ok("usage", account, "--from", "2099-01-01")["records"] == []
    cli.ok("users", "create", account, "Bob", "--external-id", "bob")
    assert cli.ok("usage", account, "--user", "bob")["records"] == []
    page = cli.ok("usage", account, "--limit", "1")
    assert [record["charged"] for record in cli.ok("usage", account, "--after", page["next"])["records"]] == ["1.5"]


def test_the_audit_finds_nothing_at_rest_and_whatever_was_changed_by_hand(cli: Cli) -> None:
    account = cli.account()
    _charge(cli, account, 1000)
    clean = cli.ok("audit")
    assert (clean["accounts"], clean["charges"], clean["difference"]) == (1, 1, 0)
    _execute(cli, "UPDATE grants SET used = used + 7")
    found = cli("audit", account, "--json")
    assert found.code == 1
    assert '"expected": 1000' in found.out and '"found": 1007' in found.out


def test_a_rebuild_loads_every_account(cli: Cli) -> None:
    for number in range(20):
        cli.account(f"A{number}")
    assert cli.ok("rebuild")["accounts"] == 20


def test_plans_are_shown_as_the_config_has_them(cli: Cli) -> None:
    plans = {plan["name"]: plan for plan in cli.ok("plans", "list")}
    assert plans["pro"]["allowance"] == {"tokens": "500000"} and plans["trial"]["default"] is True
    assert plans["custom"]["price"] == "custom" and plans["endless"]["allowance"] == {"tokens": "unlimited"}
    assert cli.ok("plans", "show", "pro") == plans["pro"]


def test_migrating_again_changes_nothing(cli: Cli) -> None:
    assert cli.ok("migrate") == cli.ok("migrate") == {"schema": "0001", "database": "sqlite"}


def test_check_config_says_yes_or_every_problem(cli: Cli, tmp_path: Path) -> None:
    assert cli.ok("check-config")["valid"] is True
    bad = tmp_path / "bad.yaml"
    bad.write_text(CONFIG.replace("default_plan: trial", "default_plan: trail").replace("period: 7d", "period: 7"))
    told = cli("check-config", str(bad))
    assert (told.code, told.out) == (78, "")
    assert len(told.err.splitlines()) == 2 and all(line.startswith(f"{bad}:") for line in told.err.splitlines())
    assert len(Result(0, cli("check-config", str(bad), "--json").out, "").json()["problems"]) == 2


def test_the_doctor_looks_at_everything(cli: Cli) -> None:
    cli.account()
    found = cli("doctor", "--json")
    results = {finding["check"]: finding["result"] for finding in found.json()}
    assert results["upstream anthropic"] == "warn"
    assert {name for name, result in results.items() if result == "ok"} == {
        "config", "data folder", "redis", "redis policy", "redis persistence", "redis clock", "database",
        "database schema",
    }  # fmt: skip


def test_people_get_an_aligned_table_and_programs_the_same_as_json(cli: Cli) -> None:
    cli.account("Acme", "--external-id", "org-1")
    cli.account("A much longer name")
    lines = cli("accounts", "list").out.splitlines()
    assert lines[0].split()[:2] == ["ID", "NAME"]
    assert len({line.index("active") for line in lines[1:]}) == 1
    assert [account["name"] for account in cli.ok("accounts", "list")] == ["Acme", "A much longer name"]


def _grants(cli: Cli, account: str) -> list[dict[str, str]]:
    return [grant for wallet in cli.ok("balance", account)["wallets"] for grant in wallet["grants"]]


def _available(cli: Cli, account: str) -> str:
    wallets = cli.ok("balance", account)["wallets"]
    return str(next(wallet["available"] for wallet in wallets if wallet["wallet"] == "tokens"))


def _charge(cli: Cli, account: str, *amounts: int) -> None:
    """Charges on the account's first grant, written in one batch."""

    async def write() -> None:
        async with stores.opened("embedded", cli.data) as store:
            await store.writer.commit([charge(account, (1, each), at_ms=1_800_000_000_000 - each) for each in amounts])

    asyncio.run(write())


def _execute(cli: Cli, statement: str) -> None:
    async def run() -> None:
        async with stores.opened("embedded", cli.data) as store, store.database.write() as connection:
            await connection.exec_driver_sql(statement)

    asyncio.run(run())


def test_a_data_folder_that_was_not_there_is_told_once(cli: Cli) -> None:
    """A mistyped ``--data`` would otherwise look like an installation without accounts."""
    first, second = cli("accounts", "list"), cli("accounts", "list")
    assert f"There was no data folder {cli.data}" in first.err
    assert (first.code, second.code, second.err.count("data folder")) == (0, 0, 0)
