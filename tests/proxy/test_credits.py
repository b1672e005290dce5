"""A charged call tells in its headers what the metering API tells in its body (SYSTEMS C4), and so does a refused one
(C5)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import orjson
import pytest

from tests.support.calls import ANTHROPIC, CHAT, Dialect
from tests.support.gateways import Local, local
from tests.support.processes import free_port
from tests.support.simulators import LocalModels

CONFIG = """\
version: 1
server: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}", workers: 1}}
storage: {{redis: embedded, database: embedded}}
upstreams:
  anthropic: {{dialect: anthropic, url: "{models}", keys: ["${{TEST_PROVIDER_KEY}}"]}}
  openai: {{dialect: openai, url: "{models}/v1", keys: ["${{TEST_PROVIDER_KEY}}"]}}
meters:
  credits: {{decimals: 6, tokens_per_unit: 2000, name: credit}}
rates: {{}}
models:
  - {{match: "claude-*", ids: [claude-haiku-4-5], upstreams: [anthropic], output_max: 64000, output_default: 4096}}
  - {{match: "gpt-*", ids: [gpt-5], upstreams: [openai], output_max: 64000, output_default: 4096}}
features:
  code_generation: {{wallet: credits, price: {{per_use: 1}}}}
  code_review: {{wallet: credits, price: {{per_use: 1}}}}
default_feature: code_generation
plans:
  free: {{label: Free, price: 0, period: 30d, renews: by_itself, allowance: {{credits: 5}}}}
default_plan: free
messages:
  limit_exceeded:
    title: "Insufficient credits"
    text: "You have {{available}} credits remaining ({{available.tokens}} tokens)"
"""


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    text = CONFIG.format(port=free_port(), admin=free_port(), models=models.url)
    async with local(models.url, valkey_url, tmp_path, text=text) as running:
        yield running


@pytest.mark.parametrize("dialect", (ANTHROPIC, CHAT), ids=str)
async def test_each_use_costs_a_credit_until_none_is_left(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key = await gateway.key("free")
    headers = dialect.headers(key, Tollgate_Feature="code_review")
    async with aiohttp.ClientSession() as session:
        for used in range(1, 6):
            async with session.post(
                gateway.url + dialect.path, json=dialect.body("output=9"), headers=headers
            ) as answer:
                told = {name: answer.headers[f"Tollgate-{name}"] for name in ("Charged", "Remaining", "Wallet")}
                tokens = [answer.headers[f"Tollgate-{name}-Tokens"] for name in ("Charged", "Used")]
            assert (answer.status, told) == (200, {"Charged": "1", "Remaining": str(5 - used), "Wallet": "credits"})
            assert tokens == ["2000", str(2000 * used)]
        async with session.post(gateway.url + dialect.path, json=dialect.body(), headers=headers) as refused:
            error = orjson.loads(await refused.read())["error"]
        own = {"Authorization": f"Bearer {key}"}
        use = {"feature": "code_review"}
        async with session.post(f"{gateway.url}/api/v1/usage", json=use, headers=own) as metered:
            body = orjson.loads(await metered.read())
    text = "You have 0 credits remaining (0 tokens)"
    assert (refused.status, error["message"], error["tollgate"]["reason"]) == (429, text, "limit_exceeded")
    assert {name: body[name] for name in ("error", "detail", "status")} == {
        "error": "Insufficient credits",
        "detail": text,
        "status": 429,
    }
