"""A plan in shadow decides and records, and refuses nothing; a reload switches that off and on (SYSTEMS D11)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config.loading import load
from tests.support.bills import assert_settled_to, balance, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, Dialect
from tests.support.gateways import Local, local
from tests.support.scrape import scrape
from tests.support.simulators import LocalModels

DAY_MS = 86_400_000
PLANS = """\
  dark: {label: Dark, price: 9, period: 30d, renews: by_itself, allowance: {tokens: 1000}, shadow: true, clamp: 16,
         limits: {user: {uses: {max: 3, per: 60s}}}}
  bare: {label: Bare, price: 0, period: 30d, renews: by_itself, allowance: {}, features: [], models: [], shadow: true}
  over: {label: Over, price: 0, period: 7d, renews: never, allowance: {tokens: 1000}, shadow: true}
  one: {label: One, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000}, shadow: true,
        limits: {account: {requests_per_minute: 1}}}
"""


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    async with local(models.url, valkey_url, tmp_path, plans=PLANS) as running:
        yield running


async def ask(
    gateway: Local,
    key: str,
    steering: str = "input=50 output=50",
    *,
    dialect: Dialect = CHAT,
    bound: int = 100,
    user: str | None = None,
    stream: bool = False,
) -> tuple[int, Any]:
    """One call, settled; answers (status, headers)."""
    more = {} if user is None else {"Tollgate_User": user}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            gateway.url + dialect.path,
            json=dialect.body(steering, stream=stream, **{dialect.bound: bound}),
            headers=dialect.headers(key, **more),
        ) as answer,
    ):
        await answer.read()
    await gateway.settled()
    return answer.status, answer.headers


@pytest.mark.parametrize("dialect", (ANTHROPIC, CHAT), ids=str)
@pytest.mark.parametrize("stream", (False, True), ids=("whole", "streamed"))
async def test_what_would_be_refused_passes_and_is_recorded_uncharged(
    gateway: Local, models: LocalModels, dialect: Dialect, stream: bool
) -> None:
    key, account = await gateway.account("dark")
    assert (await ask(gateway, key, dialect=dialect, stream=stream))[0] == 200
    status, headers = await ask(gateway, key, bound=5000, dialect=dialect, stream=stream)
    assert (status, "Tollgate-Clamped" in headers) == (200, False)
    fits, passed = await usage_rows(gateway, account.id)
    assert (fits["shadow"], fits["waived"], fits["charged"]) == (None, 0, 100_000)
    assert (passed["shadow"], passed["waived"], passed["charged"], passed["held"]) == (
        "call_too_large",
        100_000,
        0,
        0,
    )
    assert (passed["input"] + passed["output"], passed["lines"]) == (100, "[]")
    told = [headers[f"Tollgate-{name}"] for name in ("Wallet", "Held", "Remaining")]
    assert told == ["tokens", "0", "900"]
    await assert_settled_to(gateway, account.id, 100_000)


async def test_it_is_counted_apart_from_refusals(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("one")
    for _ in range(3):
        assert (await ask(gateway, key))[0] == 200
    page = await scrape(gateway)
    assert page.sum("tollgate_shadow_denials_total", reason="rate_limited", scope="account", plan="one") == 2
    assert page.sum("tollgate_denials_total") == 0


async def test_a_plan_without_any_grant_feature_or_model_works(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("bare")
    assert (await ask(gateway, key))[0] == 200
    (row,) = await usage_rows(gateway, account.id)
    assert (row["shadow"], row["waived"], row["charged"]) == ("feature_not_in_plan", 100_000, 0)
    assert (await balance(gateway, account.id)).holds_open == 0


async def test_a_plan_that_is_over_goes_on(gateway: Local, models: LocalModels) -> None:
    store, now_ms = gateway.worker.store, gateway.worker.gateway.quota.clock.now_ms()
    key, account = await gateway.account("over")
    await store.subscriptions.extend(account.id, ends_at_ms=now_ms + 1, now_ms=now_ms)
    await gateway.worker.gateway.quota.turner.push(account.id)
    assert (await ask(gateway, key))[0] == 200
    (row,) = await usage_rows(gateway, account.id)
    assert (row["shadow"], row["waived"]) == ("trial_expired", 100_000)


async def test_a_wallet_that_owes_lets_pass_too(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("dark")
    assert (await ask(gateway, key, "input=50 output=1500 overrun", bound=900))[0] == 200
    status, headers = await ask(gateway, key)
    assert (status, "Tollgate-Remaining" in headers) == (200, False)
    first, second = await usage_rows(gateway, account.id)
    assert (first["charged"], second["shadow"], second["waived"]) == (1_550_000, "limit_exceeded", 100_000)


async def test_uses_of_a_user_are_counted_as_enforcement_would(gateway: Local, models: LocalModels) -> None:
    """A refused use takes nothing from its window: so does one in shadow."""
    key, account = await gateway.account("dark")
    for _ in range(5):
        assert (await ask(gateway, key, user="ann"))[0] == 200
    assert [row["shadow"] for row in await usage_rows(gateway, account.id)] == [None, None, None, *["rate_limited"] * 2]


async def test_a_reload_switches_it_off_and_on(gateway: Local, models: LocalModels, tmp_path: Path) -> None:
    """And enforcement finds the wallet as it would have left it."""
    path = tmp_path / "config.yaml"
    text = path.read_text()
    key, account = await gateway.account("dark")
    assert (await ask(gateway, key, "input=50 output=950", bound=950))[0] == 200
    seen = []
    for config in (text.replace("shadow: true", "shadow: false"), text, text.replace(", shadow: true", "")):
        path.write_text(config)
        gateway.worker.configure(load(path, os.environ))
        seen.append((await ask(gateway, key))[0])
    assert seen == [429, 200, 429]
    assert [row["shadow"] for row in await usage_rows(gateway, account.id)] == [None, "limit_exceeded"]


async def test_what_a_plan_that_was_left_meanwhile_objected_to_is_forgotten(
    gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker moves the account between our look at it and our reserve: the call is the new plan's."""
    key, account = await gateway.account("bare")
    worker = gateway.worker
    peek = worker.gateway.quota._engine.peek

    async def and_then_it_moves(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(worker.gateway.quota._engine, "peek", peek)
        view = await peek(*args, **options)
        await worker.store.subscriptions.subscribe(account.id, "pro", now_ms=worker.gateway.quota.clock.now_ms())
        await worker.gateway.quota.turner.push(account.id)
        return view

    assert (await ask(gateway, key))[0] == 200
    monkeypatch.setattr(worker.gateway.quota._engine, "peek", and_then_it_moves)
    assert (await ask(gateway, key))[0] == 200
    rows = await usage_rows(gateway, account.id)
    assert [(row["plan"], row["shadow"], row["charged"]) for row in rows] == [
        ("bare", "feature_not_in_plan", 0),
        ("pro", None, 100_000),
    ]
