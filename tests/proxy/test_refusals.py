"""A call that cannot be paid for never reaches the model, and the client is told why in its SDK's own words."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.proxy.test_metering import CLAUDE, GPT, prompt
from tests.support.bills import balance
from tests.support.gateways import Local
from tests.support.simulators import LocalModels, anthropic_client, openai_client


async def spend(gateway: Local, account_id: str, tokens: int) -> None:
    """Put the account at ``tokens`` left by an adjustment."""
    store = gateway.worker.store
    await store.grants.adjust(
        account_id,
        wallet="tokens",
        amount=(tokens - 6000) * 1000,
        reason="test",
        now_ms=gateway.worker.gateway.quota.clock.now_ms(),
    )


class Counting:
    """Counts the HTTP requests that an SDK sends."""

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(self, _: Any) -> None:
        self.requests += 1


async def test_anthropics_sdk_gives_up_at_once_on_an_empty_quota(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("trial")
    async with anthropic_client(gateway.url, key=key, max_retries=2) as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(model=CLAUDE, max_tokens=20_000, messages=prompt("never"))
    error = caught.value.body["error"]  # type: ignore[index]
    assert error["details"]["error_code"] == "enforced_spend_limit_reached"
    assert error["tollgate"]["reason"] == "call_too_large"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers
    assert not await models.journal.entries(tag="never")
    assert (await balance(gateway, account.id)).held == 0


async def test_openais_sdk_gives_up_at_once_on_an_empty_quota(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("trial")
    async with openai_client(gateway.url, key=key, max_retries=2) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=GPT, max_completion_tokens=60_000, messages=prompt("never"))
    assert caught.value.code == "insufficient_quota"
    assert not await models.journal.entries(tag="never")


WITHOUT_A_CALL = [
    # (key, expected status, code in OpenAI's shape)
    ("tg_nonsense", 401, "invalid_api_key"),
    ("sk-someone-elses", 401, "invalid_api_key"),
]


@pytest.mark.parametrize(("key", "status", "code"), WITHOUT_A_CALL)
async def test_a_bad_key_is_a_401_that_both_sdks_understand(
    key: str, status: int, code: str, gateway: Local, models: LocalModels
) -> None:
    async with openai_client(gateway.url, key=key) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model=GPT, messages=prompt("never"))
    assert (caught.value.status_code, caught.value.code) == (status, code)
    async with anthropic_client(gateway.url, key=key) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model=CLAUDE, max_tokens=10, messages=prompt("never"))
    assert not await models.journal.entries(tag="never")


async def test_an_unknown_model_is_not_found(gateway: Local) -> None:
    key = await gateway.key("pro")
    async with openai_client(gateway.url, key=key) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="mystery-1", messages=prompt("never"))
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions", "/v1/files", "/v1/messages/batches"])
async def test_what_is_not_metered_is_not_served(path: str, gateway: Local) -> None:
    key = await gateway.key("pro")
    async with openai_client(gateway.url, key=key) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.post(path.removeprefix("/v1"), body={}, cast_to=object)
    assert caught.value.code == "route_not_metered"


async def test_both_sdks_list_the_models_of_the_plan(gateway: Local) -> None:
    key = await gateway.key("pro")
    async with openai_client(gateway.url, key=key) as client:
        assert [model.id async for model in client.models.list()] == [CLAUDE, GPT, "gpt-5-mini"]
        assert (await client.models.retrieve(GPT)).id == GPT
    async with anthropic_client(gateway.url, key=key) as client:
        assert [model.id async for model in client.models.list()] == [CLAUDE, GPT, "gpt-5-mini"]
        assert (await client.models.retrieve(CLAUDE)).id == CLAUDE
