"""The gateway in front of a mock of the providers that nobody here wrote: metered to the same numbers."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.support.aimock import INPUT_TOKENS, OUTPUT_TOKENS, TEXT, Aimock, aimock
from tests.support.bills import STEPS, assert_settled_to, usage_rows
from tests.support.gateways import Local, local
from tests.support.simulators import anthropic_client, openai_client

CLAUDE, GPT = "claude-haiku-4-5", "gpt-5"
CHARGE = (INPUT_TOKENS + OUTPUT_TOKENS) * STEPS


@pytest.fixture(scope="module")
def aimock_server() -> Iterator[Aimock]:
    with tempfile.TemporaryDirectory() as folder, aimock(Path(folder)) as running:
        yield running


@pytest.fixture
async def gateway(aimock_server: Aimock, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    async with local(aimock_server.url, valkey_url, tmp_path) as running:
        yield running


def asking(words: str) -> list[Any]:
    return [{"role": "user", "content": words}]


async def messages(url: str, key: str) -> str:
    async with anthropic_client(url, key=key) as client:
        answer = await client.messages.create(model=CLAUDE, max_tokens=200, messages=asking("say hello"))
        return str(answer.content[0].text)


async def messages_streamed(url: str, key: str) -> str:
    async with (
        anthropic_client(url, key=key) as client,
        client.messages.stream(model=CLAUDE, max_tokens=200, messages=asking("say hello")) as stream,
    ):
        return str(await stream.get_final_text())


async def chat(url: str, key: str) -> str:
    async with openai_client(url, key=key) as client:
        answer = await client.chat.completions.create(model=GPT, messages=asking("say hello"))
        return str(answer.choices[0].message.content)


async def chat_streamed(url: str, key: str) -> str:
    async with openai_client(url, key=key) as client:
        stream = await client.chat.completions.create(model=GPT, messages=asking("say hello"), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def responses(url: str, key: str) -> str:
    async with openai_client(url, key=key) as client:
        return str((await client.responses.create(model=GPT, input="say hello")).output_text)


async def responses_streamed(url: str, key: str) -> str:
    async with openai_client(url, key=key) as client:
        stream = await client.responses.create(model=GPT, input="say hello", stream=True)
        return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])


CALLS = [messages, messages_streamed, chat, chat_streamed, responses, responses_streamed]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_a_foreign_models_answer_arrives_whole_and_is_charged_what_it_reports(call: Any, gateway: Local) -> None:
    key, account = await gateway.account("pro")
    assert await call(gateway.url, key) == TEXT
    await assert_settled_to(gateway, account.id, CHARGE)
    (row,) = await usage_rows(gateway, account.id)
    assert row["basis"] == "provider"


async def test_a_foreign_models_refusal_arrives_as_it_is_and_costs_nothing(gateway: Local) -> None:
    key, account = await gateway.account("pro")
    async with openai_client(gateway.url, key=key) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model=GPT, messages=asking("refuse me"))
    assert refused.value.response.headers["retry-after"] == "3"
    async with anthropic_client(gateway.url, key=key) as client:
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.create(model=CLAUDE, max_tokens=200, messages=asking("fail now"))
    await assert_settled_to(gateway, account.id, 0)


async def test_a_foreign_models_broken_stream_is_charged_for_what_came(gateway: Local) -> None:
    key, account = await gateway.account("pro")
    async with openai_client(gateway.url, key=key) as client:
        stream = await client.chat.completions.create(model=GPT, messages=asking("break off"), stream=True)
        with pytest.raises(openai.APIError):
            [chunk async for chunk in stream]
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    assert row["basis"] == "counted"
    assert 0 < row["charged"] < CHARGE + 200 * STEPS
