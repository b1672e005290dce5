"""How much output a call may produce: what the client asked, what the model gives, and what can be paid."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.support.bills import STEPS, assert_settled_to, tokens_served, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, Dialect
from tests.support.gateways import ROOT, Local, local
from tests.support.scrape import scrape
from tests.support.simulators import LocalModels, anthropic_client, openai_client
from tests.support.tuning import set_upstream, tune_models

PLANS = """\
  small: {label: Small, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 3000}, clamp: 256}
  rated: {label: Rated, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 300000}, clamp: 256,
          limits: {account: {requests_per_minute: 9, tokens_per_minute: 20000}, key: {requests_per_minute: 5}}}
"""


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    async with local(models.url, valkey_url, tmp_path, plans=PLANS) as running:
        yield running


async def ask(gateway: Local, dialect: Dialect, key: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + dialect.path, json=body, headers=dialect.headers(key, **headers)) as answer,
    ):
        return answer.status, answer.headers, orjson.loads(await answer.read())


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_call_that_asks_for_more_than_can_be_paid_gets_what_can_be_paid(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """``clamp: 256``. The bound is lowered in the field that the client sent, and the answer says so."""
    key, account = await gateway.account("small")
    body = dialect.body("tag=clamped output=2000", **{dialect.bound: 32_000})
    status, headers, _ = await ask(gateway, dialect, key, body)
    (entry,) = await models.journal.ended("clamped")
    assert status == 200
    assert entry["max_tokens_field"] == dialect.bound
    assert int(headers["Tollgate-Clamped"]) == entry["max_tokens"]
    assert 2_900 <= entry["max_tokens"] < 3_000
    assert headers["Tollgate-Remaining"] == str(3_000 - tokens_served(entry))
    await assert_settled_to(gateway, account.id, tokens_served(entry) * STEPS)


async def test_no_clamp_goes_below_its_floor(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("small")
    status, _, _ = await ask(gateway, CHAT, key, CHAT.body("output=2800", max_completion_tokens=2800))
    assert status == 200
    await gateway.settled()
    status, headers, answer = await ask(gateway, CHAT, key, CHAT.body("tag=no", max_completion_tokens=2000))
    assert (status, CHAT.error_code(answer)) == (429, "insufficient_tokens")
    assert headers["x-should-retry"] == "false"
    told = answer["error"]["tollgate"]
    assert 256 <= float(told["needed"]) < 320, "measured at the floor, not at what was asked"
    assert float(told["available"]) < 256
    assert not await models.journal.entries(tag="no")


async def test_who_asks_for_less_than_the_floor_is_measured_at_what_was_asked(gateway: Local) -> None:
    key = await gateway.key("small")
    assert (await ask(gateway, CHAT, key, CHAT.body("output=2880", max_completion_tokens=2880)))[0] == 200
    await gateway.settled()
    status, _, answer = await ask(gateway, CHAT, key, CHAT.body(max_completion_tokens=150))
    assert (status, CHAT.error_code(answer)) == (429, "insufficient_tokens")
    told = answer["error"]["tollgate"]
    assert float(told["available"]) < 150 <= float(told["needed"]) < 256


async def test_a_clamp_leaves_one_token_above_the_thinking_budget(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("small")
    store, quota = gateway.worker.store, gateway.worker.gateway.quota
    thinking = {"type": "enabled", "budget_tokens": 5_000}
    body = ANTHROPIC.body("tag=above output=30", max_tokens=32_000, thinking=thinking)
    for missing in (1, 0):  # tokens, after the next grant
        status, _, answer = await ask(gateway, ANTHROPIC, key, body)
        assert status == 429
        told = answer["error"]["tollgate"]
        needed, available = (round(float(told[name]) * STEPS) for name in ("needed", "available"))
        amount, now_ms = needed - available - missing * STEPS, quota.clock.now_ms()
        await store.grants.add(account.id, wallet="tokens", amount=amount, now_ms=now_ms)
        await quota.turner.push(account.id)
    status, headers, _ = await ask(gateway, ANTHROPIC, key, body)
    assert (status, headers["Tollgate-Clamped"]) == (200, "5001")


async def test_what_a_model_writes_beyond_its_bound_is_charged_and_called_an_overrun(
    gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("pro")
    body = CHAT.body("tag=over output=500 overrun", max_completion_tokens=50)
    assert (await ask(gateway, CHAT, key, body))[0] == 200
    assert (await ask(gateway, CHAT, key, CHAT.body("output=5", max_completion_tokens=50)))[0] == 200
    await gateway.settled()
    over, within = await usage_rows(gateway, account.id)
    (entry,) = await models.journal.ended("over")
    assert over["charged"] == tokens_served(entry) * STEPS
    assert over["overrun"] == over["charged"] - over["held"] > 0 == within["overrun"]
    page = await scrape(gateway)
    assert page.sum("tollgate_overrun_units_total", wallet="tokens") * STEPS == over["overrun"]


async def test_no_clamp_goes_to_the_thinking_budget_or_below(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("small")
    for budget, expected in ((1024, 200), (2960, 429), (5000, 429)):
        thinking = {"type": "enabled", "budget_tokens": budget}
        body = ANTHROPIC.body(f"tag=think-{budget} output=30", max_tokens=32_000, thinking=thinking)
        status, _, answer = await ask(gateway, ANTHROPIC, key, body)
        assert status == expected, answer
        entries = await models.journal.entries(tag=f"think-{budget}")
        assert len(entries) == (expected == 200)
        assert all(entry["max_tokens"] > budget for entry in entries)
        await gateway.settled()
    tune_models(gateway, output_max=1024)
    key = await gateway.key("pro")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    status, _, answer = await ask(gateway, ANTHROPIC, key, ANTHROPIC.body(max_tokens=2048, thinking=thinking))
    assert (status, ANTHROPIC.error_code(answer)) == (400, "invalid_max_tokens")


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_call_that_names_no_bound_gets_the_models_default(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """So that the bound is real; chat's field can be named for upstreams that know only the old one."""
    key = await gateway.key("pro")
    tune_models(gateway, output_default=333)

    async def sent(tag: str) -> tuple[int, str]:
        body = dialect.body(f"tag={tag} output=2000")
        if dialect is CHAT and tag == "named":
            body["model"] = "gpt-4o"  # which still takes the old field
        body.pop(dialect.bound, None)
        status, headers, _ = await ask(gateway, dialect, key, body)
        assert status == 200 and "Tollgate-Clamped" not in headers
        (entry,) = await models.journal.ended(tag)
        return entry["max_tokens"], entry["max_tokens_field"]

    assert await sent("default") == (333, dialect.bound)
    set_upstream(gateway, dialect.dialect, output_field="max_tokens")
    assert await sent("named") == (333, "max_tokens" if dialect is CHAT else dialect.bound)


async def test_several_choices_are_held_and_charged_all(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("pro")
    body = CHAT.body("tag=three output=100", n=3, max_completion_tokens=200)
    status, headers, answer = await ask(gateway, CHAT, key, body)
    assert status == 200 and len(answer["choices"]) == 3
    assert 600 <= float(headers["Tollgate-Held"]) < 700
    (entry,) = await models.journal.ended("three")
    assert entry["served"]["output"] == 300
    await assert_settled_to(gateway, account.id, tokens_served(entry) * STEPS)


async def test_several_choices_are_clamped_each(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("small")
    status, headers, _ = await ask(gateway, CHAT, key, CHAT.body("tag=four output=9", n=4, max_completion_tokens=2000))
    assert status == 200
    (entry,) = await models.journal.ended("four")
    assert int(headers["Tollgate-Clamped"]) == entry["max_tokens"] and 4 * entry["max_tokens"] <= 3000


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_an_alias_is_what_the_upstream_is_asked_for(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("pro")
    tune_models(gateway, of=dialect.dialect, match="house-*", ids=("house-model",), rename=dialect.model)
    status, _, _ = await ask(gateway, dialect, key, dialect.body("tag=alias output=9", model="house-model"))
    assert status == 200
    (entry,) = await models.journal.ended("alias")
    assert entry["model"] == dialect.model
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    assert row["model"] == "house-model"


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_an_answer_tells_the_tightest_limit_in_the_dialects_own_headers(dialect: Dialect, gateway: Local) -> None:
    key = await gateway.key("rated")
    for _ in range(2):
        status, headers, _ = await ask(gateway, dialect, key, dialect.body("output=5", **{dialect.bound: 1000}))
        assert status == 200
        await gateway.settled()
    if dialect is ANTHROPIC:
        names = ("anthropic-ratelimit-{}-limit", "anthropic-ratelimit-{}-remaining", "anthropic-ratelimit-{}-reset")
    else:
        names = ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}")
    requests = [headers[name.format("requests")] for name in names]
    tokens = [headers[name.format("tokens")] for name in names]
    assert requests[:2] == ["5", "3"], "the key's limit is tighter than the account's"
    assert tokens[0] == "20000" and 18_000 < int(tokens[1]) < 20_000
    now_s = gateway.worker.gateway.quota.clock.now_ms() / 1000
    for reset in (requests[2], tokens[2]):
        if dialect is ANTHROPIC:
            until_s = datetime.fromisoformat(reset).timestamp() - now_s
        else:
            minutes, _, seconds = reset[:-1].rpartition("m")
            until_s = 60 * int(minutes or 0) + float(seconds)
        assert 0 < until_s <= 61, "in whole seconds"


async def test_agents_with_default_settings_get_an_answer_on_the_shipped_config(
    models: LocalModels, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claude Code asks for 32,000 output tokens, LangChain for 64,000: on ``pro`` by its size, on trial by clamp."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-shipped")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-shipped")
    shipped = (ROOT / "config.yaml").read_text()
    async with local(models.url, valkey_url, tmp_path, text=shipped) as gateway:
        set_upstream(gateway, "anthropic", url=models.url)
        set_upstream(gateway, "openai", url=f"{models.url}/v1")
        for plan in ("pro", "trial"):
            key = await gateway.key(plan)
            message = [{"role": "user", "content": "Fix the tests. [[simulate output=20]]"}]
            async with anthropic_client(gateway.url, key=key) as client:
                for wanted in (32_000, 64_000):
                    async with client.messages.stream(
                        model=ANTHROPIC.model, max_tokens=wanted, messages=message
                    ) as stream:
                        assert (await stream.get_final_message()).usage.output_tokens == 20
                    await gateway.settled()
            async with openai_client(gateway.url, key=key) as client:
                answer = await client.chat.completions.create(
                    model="gpt-5", max_completion_tokens=64_000, messages=message
                )
                assert answer.usage.completion_tokens == 20
                await gateway.settled()
