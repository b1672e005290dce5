"""Explain says what the call then meets, in both dialects, and takes nothing before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.support.bills import balance, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, Dialect
from tests.support.gateways import Local, local
from tests.support.simulators import LocalModels

PLANS = """\
  few: {label: Few, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 2000}}
  low: {label: Low, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 900}, clamp: 16}
  narrow: {label: Narrow, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 6000}, models: [gpt-5-mini]}
  bare: {label: Bare, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 6000}, features: [job]}
  empty: {label: Empty, price: 1, period: 30d, renews: by_itself, allowance: {}}
  tpm: {label: Tpm, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 90000},
        limits: {key: {tokens_per_minute: 500}}}
  dark: {label: Dark, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 10}, shadow: true}
"""


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    async with local(models.url, valkey_url, tmp_path, plans=PLANS) as running:
        yield running


async def post(gateway: Local, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + path, json=body, headers=headers) as answer,
    ):
        return answer.status, orjson.loads(await answer.read())


@pytest.mark.parametrize("dialect", (ANTHROPIC, CHAT), ids=str)
@pytest.mark.parametrize(
    ("plan", "decision"),
    [
        ("few", "admitted"),
        ("low", "admitted"),  # clamped
        ("narrow", "refused"),
        ("bare", "refused"),
        ("empty", "refused"),
        ("tpm", "refused"),
        ("dark", "admitted_in_shadow"),
    ],
)
async def test_explain_says_what_the_call_then_meets(
    gateway: Local, models: LocalModels, dialect: Dialect, plan: str, decision: str
) -> None:
    key, account = await gateway.account(plan)
    body, headers = dialect.body("output=5", **{dialect.bound: 1000}), dialect.headers(key)
    asked = {"route": dialect.path, "body": body}
    status, seen = await post(gateway, "/api/v1/explain", asked, headers)
    assert (status, seen["decision"]) == (200, decision)
    assert (seen["tokens"]["clamped_to"] is not None) == (plan == "low")
    assert not await usage_rows(gateway, account.id)
    assert (await balance(gateway, account.id)).held == 0
    met, answer = await post(gateway, dialect.path, body, headers)
    assert met == seen["status"]
    if decision == "refused":
        told = answer["error"]["tollgate"]
        assert (told["reason"], told["scope"], answer["error"]["message"]) == (
            seen["reason"],
            seen["scope"],
            seen["message"],
        )
        assert told["needed"] is None or told["needed"] in [each["needed"] for each in seen["limits"]]
