"""The product endpoints with their exact bodies (SYSTEMS C1, C3, C5, D1 to D4, D7, D11)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support import stores
from tests.support.apis import Apis, Reply, apis
from tests.support.processes import free_port
from tests.support.stores import Place

COMMON = """\
version: 1
server: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}", workers: 1}}
storage: {{redis: embedded, database: "{database}"}}
upstreams:
  anthropic: {{dialect: anthropic, url: "http://127.0.0.1:9", keys: ["${{TEST_PROVIDER_KEY}}"]}}
rates: {{}}
models:
  - {{match: "claude-*", ids: [claude-sonnet-4-5], upstreams: [anthropic], output_max: 64000, output_default: 4096}}
"""
FEATURES = """
meters:
  lead_generation: {decimals: 3, name: token}
  goal_generation: {decimals: 3, name: token}
  general: {decimals: 3, name: token}
features:
  import_leads:  {wallet: lead_generation, price: {per_use: 5}}
  generate_goal: {wallet: goal_generation, price: {per_use: 3}}
  general:       {wallet: general, price: {per_use: 1}}
default_feature: general
plans:
  starter: {label: Starter, price: 0, period: 30d, renews: by_itself, allowance: {}, features: []}
  pro:     {label: Pro, price: custom, period: 30d, renews: by_itself, limits: {user: {uses: {max: 5, per: 60s}}},
            allowance: {lead_generation: 50, goal_generation: 20, general: 50}}
  endless: {label: Endless, price: custom, period: 30d, renews: by_itself, allowance: {general: unlimited}}
  dark:    {label: Dark, price: 0, period: 30d, renews: by_itself, allowance: {}, features: [], shadow: true}
default_plan: starter
messages:
  feature_not_in_plan: "Not available on {plan.label} plan"
  limit_exceeded: "You're out of AI tokens"
  insufficient_tokens: "You're out of AI tokens"
"""
CREDITS = """
meters:
  credits: {decimals: 6, tokens_per_unit: 2000, name: credit}
features:
  code_generation: {wallet: credits, price: {per_use: 1}}
  code_review:     {wallet: credits, price: {per_use: 1}}
default_feature: code_generation
plans:
  free: {label: Free, price: 0, period: 30d, renews: by_itself, allowance: {credits: 5}}
  pro:  {label: Pro, price: 0, period: 30d, renews: never, ends: free, allowance: {credits: 100}}
default_plan: free
"""
CHECK = "/api/v1/tokens/check-balance"


@asynccontextmanager
async def system(place: Place, redis_url: str, folder: Path, text: str) -> AsyncIterator[Apis]:
    if place.backend == "sqlite":
        (folder / "data").mkdir()
        stores.copy_sqlite(folder / "data")
    whole = COMMON.format(port=free_port(), admin=free_port(), database=place.url) + text
    async with apis(redis_url, folder, text=whole) as running:
        yield running


@pytest.fixture
async def suite(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    """Wallets per feature."""
    async with system(place, valkey_url, tmp_path, FEATURES) as running:
        yield running


@pytest.fixture
async def coder(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    """Credits."""
    async with system(place, valkey_url, tmp_path, CREDITS) as running:
        yield running


async def ask(running: Apis, key: str, feature: str, action: str = "deduct", **more: Any) -> Reply:
    return await running.call("POST", CHECK, key=key, json={"featureUsed": feature, "action": action, **more})


# --- check and deduct ----------------------------------------------------------------------------------------------


async def test_a_check_says_whether_and_takes_nothing(suite: Apis) -> None:
    key = await suite.gateway.key("pro")
    for _ in range(8):  # a check is no use
        assert (await ask(suite, key, "generate_goal", "check", userId="ann")).body == b'{"hasTokens":true}'
    assert (await ask(suite, await suite.gateway.key("starter"), "generate_goal", "check")).json() == {
        "hasTokens": False
    }


async def test_a_deduction_answers_with_exact_numbers_until_nothing_is_left(suite: Apis) -> None:
    key, account = await suite.gateway.account("pro", external_id="org-7")
    service = await suite.service_key()
    first = await ask(suite, service, "generate_goal", organizationId="org-7", userId="a", metadata={"goal": 1})
    assert (first.status, first.body) == (
        200,
        b'{"success":true,"remainingBalance":17,"message":"Used 3 tokens for generate_goal"}',
    )
    for user, left in (("a", 14), ("b", 11), ("b", 8), ("c", 5), ("c", 2)):
        assert (await ask(suite, key, "generate_goal", userId=user)).json()["remainingBalance"] == left
    refused = await ask(suite, key, "generate_goal", userId="c")
    assert (refused.status, refused.json()) == (
        429,
        {
            "success": False,
            "remainingBalance": 2,
            "message": "You're out of AI tokens",
            "reason": "insufficient_tokens",
        },
    )
    assert refused.headers["x-should-retry"] == "false"
    assert (await ask(suite, key, "generate_goal", "check")).json() == {"hasTokens": False}
    await suite.gateway.settled()
    (oldest,) = (await suite.get("/api/billing/usage?user=a", key=key)).json()["items"][-1:]
    assert (oldest["charged"], oldest["balance_after"], oldest["metadata"]) == ("3", "17", {"goal": 1})
    assert oldest["account"] == account.id


async def test_starter_and_out_of_tokens_are_told_apart(suite: Apis) -> None:
    refused = await ask(suite, await suite.gateway.key("starter"), "general")
    assert (refused.status, refused.json()) == (
        403,
        {
            "success": False,
            "remainingBalance": 0,
            "message": "Not available on Starter plan",
            "reason": "feature_not_in_plan",
        },
    )


async def test_too_many_uses_are_told_how_long_to_wait(suite: Apis) -> None:
    key = await suite.gateway.key("pro")
    for _ in range(5):
        assert (await ask(suite, key, "general", userId="ann")).status == 200
    refused = await ask(suite, key, "general", userId="ann")
    assert (refused.status, refused.json()["reason"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60 and "seconds" in refused.json()["message"]
    assert refused.json()["remainingBalance"] == 45
    assert (await ask(suite, key, "general", userId="bob")).status == 200


async def test_a_repeated_deduction_is_done_once(suite: Apis) -> None:
    key = await suite.gateway.key("pro")
    headers = {"Idempotency-Key": "goal-1"}
    body = {"featureUsed": "generate_goal", "action": "deduct"}
    first, again = [await suite.call("POST", CHECK, key=key, json=body, headers=headers) for _ in range(2)]
    assert first.body == again.body and again.headers["Tollgate-Replayed"] == "true"
    assert (await ask(suite, key, "generate_goal")).json()["remainingBalance"] == 14


async def test_in_shadow_a_use_passes_and_is_recorded(suite: Apis) -> None:
    key = await suite.gateway.key("dark")
    assert (await ask(suite, key, "general", "check")).json() == {"hasTokens": True}
    assert (await ask(suite, key, "general")).json() == {
        "success": True,
        "remainingBalance": 0,
        "message": "Used 1 tokens for general",
    }
    await suite.gateway.settled()
    (record,) = (await suite.get("/api/billing/usage", key=key)).json()["items"]
    assert (record["shadow"], record["waived"], record["charged"]) == ("feature_not_in_plan", "1", "0")


async def test_what_is_no_deduction_is_an_error_as_everywhere(suite: Apis) -> None:
    key = await suite.gateway.key("pro")
    for body, status, code in (
        ({"featureUsed": "nothing", "action": "check"}, 400, "unknown_feature"),
        ({"featureUsed": "general", "action": "take"}, 400, "invalid_parameter"),
        ({"featureUsed": "general"}, 400, "missing_field"),
        ({"featureUsed": "general", "action": "check", "organizationId": "other"}, 404, "account_not_found"),
    ):
        answer = await suite.call("POST", CHECK, key=key, json=body)
        assert (answer.status, answer.code) == (status, code)
        assert code != "unknown_feature" or answer.json()["error"]["param"] == "featureUsed"
    assert (await suite.call("POST", CHECK, json={})).status == 401


# --- stats ---------------------------------------------------------------------------------------------------------


async def test_stats_say_what_each_kind_has_and_when_it_is_refreshed(suite: Apis) -> None:
    key, account = await suite.gateway.account("pro")
    assert (await ask(suite, key, "import_leads")).status == 200
    await suite.gateway.settled()
    answer = await suite.get(f"/api/v1/tokens/stats?organizationId={account.id}", key=key)
    seen = answer.json()
    assert list(seen) == ["totalBalance", "totalAllocated", "totalUsed", "byType"]
    assert (seen["totalBalance"], seen["totalAllocated"], seen["totalUsed"]) == (115, 120, 5)
    ends = (await suite.get("/api/billing/subscription", key=key)).json()["period_ends_at"]
    leads, goals, _ = seen["byType"]
    used_at = leads.pop("lastUsedAt")
    assert used_at > "2026-01-01" and leads == {
        "tokenType": "lead_generation",
        "balance": 45,
        "totalAllocated": 50,
        "totalUsed": 5,
        "refreshDate": ends,
    }
    assert (goals["balance"], goals["lastUsedAt"]) == (20, None)


async def test_a_foreign_organization_is_as_unknown_as_none(suite: Apis) -> None:
    _, other = await suite.gateway.account("pro", external_id="theirs")
    key = await suite.gateway.key("pro")
    answers = [
        await suite.get(f"/api/v1/tokens/stats?organizationId={name}", key=key)
        for name in (other.id, "theirs", "nobody")
    ]
    assert {answer.status for answer in answers} == {404} and len({answer.body for answer in answers}) == 1
    assert (await suite.get("/api/v1/tokens/stats?organizationId=theirs")).status == 401


async def test_what_is_unlimited_has_no_number(suite: Apis) -> None:
    key = await suite.gateway.key("endless")
    assert (await ask(suite, key, "general")).json()["remainingBalance"] is None
    seen = (await suite.get("/api/v1/tokens/stats", key=key)).json()
    assert (seen["totalBalance"], seen["byType"][2]["balance"], seen["totalUsed"]) == (None, None, 1)


# --- credits -------------------------------------------------------------------------------------------------------


async def test_the_usage_of_a_user_is_told_in_credits_and_tokens(coder: Apis) -> None:
    key, account = await coder.gateway.account("free")
    fresh = await coder.get("/api/user/usage", key=key)
    assert fresh.body == (
        b'{"success":true,"data":{"credits":5,"totalTokens":10000,"availableTokens":10000,'
        b'"isSubscribed":false,"subscriptionTier":"free"}}'
    )
    await coder.gateway.worker.store.subscriptions.subscribe(
        account.id, "pro", now_ms=coder.gateway.worker.gateway.quota.clock.now_ms()
    )
    await coder.gateway.worker.gateway.quota.turner.push(account.id)
    data = (await coder.get("/api/user/usage", key=key)).json()["data"]
    assert (data["credits"], data["isSubscribed"], data["subscriptionTier"]) == (100, True, "pro")


async def test_balances_are_told_both_ways(coder: Apis) -> None:
    key = await coder.gateway.key("free")
    body = {"wallet": "credits", "amount": "1.25"}
    assert (await coder.call("POST", "/api/v1/usage", key=key, json=body)).status == 200
    await coder.gateway.settled()
    (wallet,) = (await coder.get("/api/billing/balance", key=key)).json()["wallets"]
    assert (wallet["available"], wallet["unit"], wallet["lifetime_used"]) == ("3.75", "credits", "1.25")
    assert wallet["tokens"] == {
        "available": "7500",
        "granted": "10000",
        "held": "0",
        "used": "2500",
        "lifetime_used": "2500",
        "period_used": "2500",
    }
    exact = orjson.loads((await coder.get("/api/user/usage", key=key)).body)["data"]
    assert (exact["credits"], exact["availableTokens"]) == (3.75, 7500)
