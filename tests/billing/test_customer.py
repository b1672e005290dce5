"""``/api/billing``: what a customer sees with its own key (SYSTEMS A9, A11, B2, C1, D5, E4)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.accounts import Account
from gateway.domain.charges import ChargeRow
from gateway.domain.usage import Usage
from gateway.store.common import new_id
from tests.support import stores
from tests.support.apis import Apis, Reply, apis
from tests.support.stores import Place, charge

DAY_MS = 86_400_000


def now_ms(running: Apis) -> int:
    return running.gateway.worker.gateway.quota.clock.now_ms()


async def charged(running: Apis, account: Account, *rows: ChargeRow) -> None:
    """Written as the worker would, and told to Redis."""
    await running.gateway.worker.store.writer.commit(list(rows))
    await running.gateway.worker.gateway.quota.turner.push(account.id)


def use(running: Apis, account: Account, steps: int, *, days_ago: float = 0, grant: int = 1, **more: Any) -> ChargeRow:
    at_ms = now_ms(running) - int(days_ago * DAY_MS)
    return charge(account, (grant, steps), at_ms=at_ms, usage=Usage(input=steps // 1000), **more)


async def show(running: Apis, path: str, key: str) -> Any:
    answer = await running.get(f"/api/billing/{path}", key=key)
    assert answer.status == 200, answer.body
    return answer.json()


# --- balance and subscription -------------------------------------------------------------------------------------


async def test_a_balance_says_what_is_left_and_what_was_ever_used(running: Apis) -> None:
    key, account = await running.gateway.account("pro")
    await charged(running, account, use(running, account, 1_500), use(running, account, 2_000))
    balance = await show(running, "balance", key)
    tokens = next(each for each in balance["wallets"] if each["wallet"] == "tokens")
    assert (tokens["available"], tokens["used"], tokens["granted"]) == ("499996.5", "3.5", "500000")
    assert (tokens["period_used"], tokens["lifetime_used"], tokens["unit"], tokens["tokens"]) == (
        "3.5", "3.5", "tokens", None,
    )  # fmt: skip
    assert (balance["plan"], balance["subscription_status"], balance["holds_open"]) == ("pro", "active", 0)
    assert balance["next_refresh_at"] == balance["period_ends_at"]


async def test_lifetime_use_outlasts_the_period(running: Apis) -> None:
    key, account = await running.gateway.account("pro")
    await charged(running, account, use(running, account, 7_000))
    await running.gateway.worker.store.subscriptions.subscribe(account.id, "pro", now_ms=now_ms(running) + 1)
    await running.gateway.worker.gateway.quota.turner.push(account.id)
    tokens = next(each for each in (await show(running, "balance", key))["wallets"] if each["wallet"] == "tokens")
    assert (tokens["used"], tokens["lifetime_used"]) == ("0", "7")


async def test_the_plan_is_shown_with_its_terms_limits_and_times(running: Apis) -> None:
    key = await running.gateway.key("trial")
    seen = await show(running, "subscription", key)
    assert (seen["plan"], seen["label"], seen["status"], seen["renews"]) == ("trial", "Trial", "trialing", "never")
    assert seen["trial_ends_at"] == seen["period_ends_at"] and seen["next_refresh_at"] is None
    assert seen["trial_starts_at"] == seen["period_starts_at"]
    trial_s = datetime.fromisoformat(seen["trial_ends_at"]) - datetime.fromisoformat(seen["trial_starts_at"])
    assert trial_s.days == 7
    assert [(each["wallet"], each["limit"], each["used"]) for each in seen["wallets"]] == [
        ("tokens", "6000", "0"),
        ("uses", "0", "0"),
    ]
    assert (seen["entitlements"], seen["terms"]) == ({}, {"price": None, "allowance": {}})


# --- what was used -------------------------------------------------------------------------------------------------


async def _history(running: Apis) -> tuple[str, Account]:
    key, account = await running.gateway.account("pro")
    made = [
        await running.admin("POST", f"/admin/v1/accounts/{account.id}/users", json={"name": name, "external_id": name})
        for name in ("ann", "bob")
    ]
    ann, bob = (answer.json()["id"] for answer in made)
    rows = [
        use(running, account, 1_000, days_ago=2, feature="general", user_id=ann, metadata={"pr": 5}),
        use(running, account, 2_000, days_ago=1, feature="job", user_id=ann, model="claude-haiku-4-5"),
        use(running, account, 4_000, feature="general", user_id=bob),
    ]
    await charged(running, account, *rows)
    return key, account


async def test_records_are_newest_first_by_feature_by_user_and_in_sums(running: Apis) -> None:
    key, _ = await _history(running)
    seen = await show(running, "usage?limit=20", key)
    assert [each["charged"] for each in seen["items"]] == ["4", "2", "1"]
    assert (seen["totals"], seen["next"]) == ([], None)
    assert seen["items"][2]["metadata"] == {"pr": 5}
    assert seen["items"][0]["balance_after"] == "499993"
    for which, amounts in (
        ("feature=general", ["4", "1"]),
        ("user=ann", ["2", "1"]),
        ("user=ann&feature=job", ["2"]),
        ("model=claude-haiku-4-5", ["2"]),
        ("wallet=uses", []),
    ):
        assert [each["charged"] for each in (await show(running, f"usage?{which}", key))["items"]] == amounts, which
    totals = (await show(running, "usage?by=feature", key))["totals"]
    assert [(each["feature"], each["calls"], each["charged"]) for each in totals] == [
        ("general", 2, "5"),
        ("job", 1, "2"),
    ]
    days = (await show(running, "usage?by=day", key))["totals"]
    assert [each["charged"] for each in days] == ["1", "2", "4"]
    assert days == sorted(days, key=lambda each: str(each["day"]))
    users = (await show(running, "usage?by=user", key))["totals"]
    assert {each["user"] for each in users} == {each["user"] for each in seen["items"]}
    assert (await running.get("/api/billing/usage?month=2026-13", key=key)).code == "invalid_parameter"
    assert (await running.get("/api/billing/usage?user=carl", key=key)).status == 404
    assert (await running.get("/api/billing/usage?by=metadata", key=key)).code == "invalid_group"


async def test_lists_go_on_where_the_page_ended(running: Apis) -> None:
    key, _ = await _history(running)
    for path, field in (("usage", "charged"), ("transactions", "amount")):
        whole = [each[field] for each in (await show(running, path, key))["items"]]
        pages, cursor = [], ""
        while cursor is not None:
            page = await show(running, f"{path}?limit=1{cursor and f'&cursor={cursor}'}", key)
            pages += [each[field] for each in page["items"]]
            cursor = page["next"]
        assert pages == whole and len(whole) >= 2


async def test_transactions_are_what_moved_the_balance(running: Apis) -> None:
    key, _ = await _history(running)
    seen = (await show(running, "transactions?wallet=tokens", key))["items"]
    assert [(each["kind"], each["amount"]) for each in seen] == [("charged", "-7"), ("granted", "500000")]
    later = datetime.fromisoformat(seen[0]["at"]).timestamp() + 60
    stamp = datetime.utcfromtimestamp(later).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (await show(running, f"transactions?from={stamp}", key))["items"] == []
    assert len((await show(running, f"transactions?to={stamp}", key))["items"]) >= 2


# --- files ---------------------------------------------------------------------------------------------------------


async def test_usage_comes_as_a_file_for_spreadsheets(running: Apis) -> None:
    key, account = await running.gateway.account("pro")
    evil = '=cmd|"/c calc"!A1'
    await charged(
        running,
        account,
        use(running, account, 1_000, job=evil, metadata={"note": 'a "quoted", one\nand more'}),
        use(running, account, 2_000, days_ago=1, job="-5", job_type="+review"),
    )
    answer = await running.get("/api/billing/usage.csv", key=key)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="usage.csv"'
    text = answer.body.decode()
    assert text.endswith("\r\n") and "\n" not in re.sub(r"\r\n", "", text)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["charged"] for row in rows] == ["1", "2"]
    assert [(row["job"], row["job_type"]) for row in rows] == [(f"'{evil}", ""), ("-5", "'+review")]
    assert rows[0]["metadata"] == '{"note":"a \\"quoted\\", one\\nand more"}'
    nothing = await running.get("/api/billing/usage.csv?month=2001-01", key=key)
    assert nothing.body.decode() == text.partition("\r\n")[0] + "\r\n"


async def test_transactions_come_as_a_file_and_amounts_stay_numbers(running: Apis) -> None:
    key, _ = await _history(running)
    rows = list(
        csv.DictReader(io.StringIO((await running.get("/api/billing/transactions.csv", key=key)).body.decode()))
    )
    assert [(row["kind"], row["amount"]) for row in rows if row["wallet"] == "tokens"] == [
        ("charged", "-7"),
        ("granted", "500000"),
    ]


async def test_a_file_of_many_pages_is_whole(one: Apis) -> None:
    key, account = await one.gateway.account("pro")
    for start in range(0, 2500, 1000):
        rows = [use(one, account, 1, hold_id=new_id()) for _ in range(min(1000, 2500 - start))]
        await one.gateway.worker.store.writer.commit(rows)
    body = (await one.get("/api/billing/usage.csv", key=key)).body.decode()
    seqs = [int(row["seq"]) for row in csv.DictReader(io.StringIO(body))]
    assert sorted(seqs) == list(range(1, 2501))


# --- what there is, what it costs, how long it lasts ----------------------------------------------------------------


async def test_a_forecast_says_when_each_wallet_runs_out(running: Apis) -> None:
    key, account = await running.gateway.account("trial")
    seen = await show(running, "forecast", key)
    assert [(each["wallet"], each["per_day"], each["runs_out_at"]) for each in seen["wallets"]] == [
        ("tokens", "0", None),
        ("uses", "0", None),
    ]
    await charged(running, account, use(running, account, 3_000_000, days_ago=1.5))
    tokens = (await show(running, "forecast", key))["wallets"][0]
    assert (tokens["used_recently"], tokens["available"]) == ("3000", "3000")
    assert 1999 < float(tokens["per_day"]) <= 2000
    left_s = datetime.fromisoformat(tokens["runs_out_at"]).timestamp() - now_ms(running) / 1000
    assert abs(left_s - 1.5 * 86_400) < 60


async def test_rates_tell_exact_prices(running: Apis) -> None:
    seen = await show(running, "rates", await running.gateway.key("pro"))
    (card,) = seen["cards"]
    assert (card["name"], card["meter"], card["per"], card["output"]) == ("default", "tokens", 1_000_000, "1000000")
    assert {each["name"]: (each["per_use"], each["rates"]) for each in seen["features"]} == {
        "general": (None, True),
        "job": ("1", False),
    }
    assert [each["name"] for each in seen["meters"]] == ["tokens", "uses"]


async def test_own_keys_are_listed_by_their_beginning_only(running: Apis) -> None:
    key, account = await running.gateway.account("pro")
    await running.gateway.account("pro")
    answer = await running.get("/api/billing/keys", key=key)
    (own,) = answer.json()["items"]
    assert own["account"] == account.id and key.startswith(own["prefix"]) and len(own["prefix"]) < 16
    assert key.encode() not in answer.body


@pytest.mark.parametrize("path", ["plans", "packages"])
async def test_prices_are_public_when_the_config_says_so(one: Apis, path: str) -> None:
    assert (await one.get(f"/api/billing/{path}")).status == 401
    worker = one.gateway.worker
    config = worker.installation.config
    worker.configure(replace(config, settings=replace(config.settings, public_pricing=True)))
    assert (await one.get(f"/api/billing/{path}")).status == 200
    assert (await one.get("/api/billing/balance")).status == 401


# --- explain -------------------------------------------------------------------------------------------------------


async def test_explain_takes_nothing_and_says_how_each_limit_stands(running: Apis) -> None:
    key, _ = await running.gateway.account("trial")
    body = {"model": "claude-haiku-4-5", "input_tokens": 1000, "output_tokens": 4000}
    for _ in range(2):
        seen = (await running.call("POST", "/api/v1/explain", key=key, json=body)).json()
        assert (seen["decision"], seen["status"], seen["cost"]) == (
            "admitted",
            200,
            {"wallet": "tokens", "needed": "5000"},
        )
        (wallet,) = seen["limits"]
        assert (wallet["limit"], wallet["used"], wallet["held"], wallet["available"]) == ("6000", "0", "0", "6000")
    more = (await running.call("POST", "/api/v1/explain", key=key, json={**body, "input_tokens": 5000})).json()
    assert (more["decision"], more["reason"], more["status"]) == ("refused", "call_too_large", 429)
    assert more["limits"][0]["fits"] is False


async def test_explain_of_a_request_counts_it_as_the_call_would_be(running: Apis) -> None:
    key, _ = await running.gateway.account("trial")
    body = {"model": "gpt-5", "messages": [{"role": "user", "content": "Tell me of the sea."}], "n": 2}
    asked = {"route": "/v1/chat/completions", "body": body}
    seen = (await running.call("POST", "/api/v1/explain", key=key, json=asked)).json()
    assert (seen["decision"], seen["reason"]) == ("refused", "call_too_large")  # the model's default of 4,096, twice
    assert (seen["tokens"]["choices"], seen["tokens"]["counted"]) == (2, True)
    for wrong, param in (
        ({"route": "/v1/nothing", "body": {}}, "route"),
        ({"route": "/v1/messages", "body": body, "model": "gpt-5"}, "model"),
        ({"model": "nobody"}, "model"),
        ({}, "model"),
        ({"feature": "nothing"}, "feature"),
    ):
        answer = await running.call("POST", "/api/v1/explain", key=key, json=wrong)
        assert (answer.status in (400, 404), answer.param) == (True, param), wrong


# --- choosing a plan -----------------------------------------------------------------------------------------------

FREE = """\
  free: {label: Free, price: 0, period: 30d, renews: by_itself, allowance: {tokens: 1000}}
  more: {label: More, price: 0, period: 30d, renews: by_itself, allowance: {tokens: 7000}}
  talk: {label: Talk, price: custom, period: 30d, renews: by_itself, allowance: {tokens: custom}}
"""


@pytest.fixture
async def plans(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    if place.backend == "sqlite":
        (tmp_path / "data").mkdir()
        stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, database=place.url, plans=FREE) as started:
        yield started


async def choose(running: Apis, key: str, plan: str, **more: Any) -> Reply:
    return await running.call("POST", "/api/billing/subscribe", key=key, json={"plan": plan, **more})


async def test_a_larger_free_plan_begins_at_once_and_a_smaller_one_at_the_end(plans: Apis) -> None:
    key = await plans.gateway.key("free")
    larger = (await choose(plans, key, "more")).json()
    assert (larger["url"], larger["subscription"]["plan"], larger["subscription"]["status"]) == (None, "more", "active")
    smaller = (await choose(plans, key, "free")).json()
    subscription = smaller["subscription"]
    assert (subscription["plan"], subscription["next_plan"]) == ("more", "free")
    assert smaller["takes_effect_at"] == subscription["period_ends_at"]
    back = (await choose(plans, key, "more")).json()["subscription"]
    assert (back["plan"], back["next_plan"], back["period_starts_at"]) == (
        "more",
        None,
        subscription["period_starts_at"],
    )


async def test_a_plan_with_a_price_begins_with_its_payment_only(plans: Apis) -> None:
    key = await plans.gateway.key("free")
    for path, body in (("subscribe", {"plan": "pro"}), ("purchase", {"plan": "pro"})):
        answer = await plans.call("POST", f"/api/billing/{path}", key=key, json=body)
        assert (answer.status, answer.code) == (409, "payments_not_configured")
    for plan, code in (("talk", "not_for_sale"), ("trial", "trial_used"), ("none", "invalid_request")):
        again = await plans.gateway.key("trial") if plan == "trial" else key
        if plan == "trial":
            assert (await choose(plans, again, "more")).status == 200
        answer = await choose(plans, again, plan)
        assert (answer.status, answer.code, answer.param) == (400, code, "plan")
    assert (await show(plans, "subscription", key))["plan"] == "free"


async def test_leaving_is_at_the_end_or_now_and_can_be_taken_back(plans: Apis) -> None:
    key = await plans.gateway.key("more")
    leaving = (await plans.call("DELETE", "/api/billing/subscription", key=key)).json()
    assert (leaving["status"], leaving["cancel_at_period_end"]) == ("active", True)
    assert leaving["next_refresh_at"] is None
    assert (await choose(plans, key, "more")).json()["subscription"]["cancel_at_period_end"] is False
    paying = await plans.gateway.key("pro")
    gone = (await plans.call("DELETE", "/api/billing/subscription?now=true", key=paying)).json()
    assert gone["status"] == "cancelled"
    assert [each["available"] for each in gone["wallets"]] == ["0", "0"]


async def test_leaving_a_free_plan_and_taking_it_again_fills_no_wallet_twice(plans: Apis) -> None:
    key, account = await plans.gateway.account("more")
    await charged(plans, account, use(plans, account, 6_999_000))
    leaving = (await plans.call("DELETE", "/api/billing/subscription?now=true", key=key)).json()
    assert (leaving["status"], leaving["cancel_at_period_end"]) == ("active", True)
    assert (await choose(plans, key, "more")).json()["subscription"]["cancel_at_period_end"] is False
    left = next(each for each in (await show(plans, "balance", key))["wallets"] if each["wallet"] == "tokens")
    assert left["available"] == "1"
