"""A large prompt that is next to nothing for its caller is held by its bytes, and charged as exactly as any other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.domain.accounts import Account
from gateway.domain.charges import decode
from gateway.domain.periods import parse_period
from gateway.providers import tokens
from tests.support.bills import STEPS, tokens_served, usage_rows
from tests.support.calls import CHAT, DIALECTS, Dialect
from tests.support.gateways import Local, local
from tests.support.simulators import LocalModels

SENTENCE = "The sea was calm, and nobody on board spoke of the harbour they had left. "
LARGE = SENTENCE * 1_000  # 74 KB, some 17,000 tokens
PLANS = """\
  vast: {label: Vast, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000000}}
  rated: {label: Rated, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000000},
          limits: {key: {tokens_per_minute: 200000}}}
"""


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    async with local(models.url, valkey_url, tmp_path, plans=PLANS) as running:
        yield running


async def ask(gateway: Local, dialect: Dialect, key: str, steering: str) -> Any:
    """The answer's headers, when it was served."""
    body = dialect.body(steering, text=LARGE, **{dialect.bound: 100})
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + dialect.path, json=body, headers=dialect.headers(key)) as answer,
    ):
        assert answer.status == 200, await answer.read()
        assert orjson.loads(await answer.read())
        return answer.headers


async def loaded(gateway: Local, plan: str) -> tuple[str, Account]:
    """(key, account) of a new account that Redis knows: what it does not know is no room."""
    key, account = await gateway.account(plan)
    await ask_small(gateway, key)
    return key, account


async def ask_small(gateway: Local, key: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + CHAT.path, json=CHAT.body("output=0"), headers=CHAT.headers(key)) as answer,
    ):
        assert answer.status == 200


def is_held_by_bytes(headers: Any) -> bool:
    held = float(headers["Tollgate-Held"])
    assert (held > len(LARGE)) or (held < len(LARGE) / 3)
    return held > len(LARGE)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_large_prompt_of_a_rich_account_is_held_by_its_bytes_and_never_counted(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await loaded(gateway, "vast")
    learned = gateway.worker.gateway.counter.cache_bytes
    headers = await ask(gateway, dialect, key, "tag=large output=40")
    assert is_held_by_bytes(headers)
    assert gateway.worker.gateway.counter.cache_bytes == learned, "nothing was counted"
    (entry,) = await models.journal.ended("large")
    assert float(headers["Tollgate-Charged"]) == tokens_served(entry)
    await gateway.settled()
    *_, row = await usage_rows(gateway, account.id)
    assert (row["basis"], row["charged"]) == ("provider", tokens_served(entry) * STEPS)


@pytest.mark.parametrize("plan", ["pro", "rated"])
async def test_a_large_prompt_is_counted_where_it_is_more_than_a_hundredth_of_what_is_left(
    plan: str, gateway: Local, models: LocalModels
) -> None:
    key, _ = await loaded(gateway, plan)
    assert not is_held_by_bytes(await ask(gateway, CHAT, key, "output=40"))


@pytest.mark.parametrize(("left", "by_bytes"), [(9_000_000, True), (900_000, False)])
async def test_a_budget_in_scope_is_looked_at_like_the_wallet(
    left: int, by_bytes: bool, gateway: Local, models: LocalModels
) -> None:
    key, account = await loaded(gateway, "vast")
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    quota, store = gateway.worker.gateway.quota, gateway.worker.store
    await store.members.set_budget(
        "key",
        row["key_id"],
        meter="tokens",
        amount=left * STEPS,
        period=parse_period("1h"),
        now_ms=quota.clock.now_ms(),
    )
    await quota.turner.push(account.id)
    await ask_small(gateway, key)
    assert is_held_by_bytes(await ask(gateway, CHAT, key, "output=40")) == by_bytes


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_an_answer_without_usage_is_charged_on_the_count_of_its_prompt(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """The bytes bound the hold, never the charge."""
    key, account = await loaded(gateway, "vast")
    headers = await ask(gateway, dialect, key, "tag=missing output=50 usage=missing")
    assert is_held_by_bytes(headers)
    of = tokens.family(dialect.model)
    counted = of.scale(tokens.count_text(LARGE, of.encoding))
    assert counted + 50 <= float(headers["Tollgate-Charged"]) < 1.02 * counted + 200
    await gateway.settled()
    *_, row = await usage_rows(gateway, account.id)
    assert row["basis"] == "counted"
    assert row["charged"] == float(headers["Tollgate-Charged"]) * STEPS


async def test_a_large_prompt_refused_on_its_bytes_is_counted_and_asked_again(
    gateway: Local, models: LocalModels
) -> None:
    """What was seen of the account is old: by now it has less than the bytes would need, and enough for the tokens."""
    key, account = await loaded(gateway, "vast")
    assert is_held_by_bytes(await ask(gateway, CHAT, key, "output=40"))
    await gateway.settled()
    quota, store = gateway.worker.gateway.quota, gateway.worker.store
    await store.grants.adjust(
        account.id, wallet="tokens", amount=-99_950_000 * STEPS, now_ms=quota.clock.now_ms(), reason="test"
    )
    await quota.turner.push(account.id)
    assert not is_held_by_bytes(await ask(gateway, CHAT, key, "output=40"))


async def test_a_lapse_would_charge_an_estimate_of_the_prompt_and_not_its_bytes(
    gateway: Local, models: LocalModels
) -> None:
    """What a hold that nobody settles is charged by is noted when it is taken."""
    key, _ = await loaded(gateway, "vast")
    body = CHAT.body("output=40 delay=20", stream=True, text=LARGE, max_completion_tokens=100)
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + CHAT.path, json=body, headers=CHAT.headers(key)) as answer,
    ):
        assert is_held_by_bytes(answer.headers)
        (live,) = gateway.worker.gateway.quota.holds._live.values()
        estimate = decode(live.hold.note).usage.input
        assert len(LARGE) / 4 < estimate < len(LARGE) / 3
        answer.close()
