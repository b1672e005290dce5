"""Served calls are charged exactly what the provider reports, streamed or not, in every dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.bills import STEPS, assert_settled_to, tokens_served, usage_rows
from tests.support.calls import ANTHROPIC
from tests.support.gateways import Local, config_text, local
from tests.support.processes import free_port
from tests.support.simulators import LocalModels, anthropic_client, openai_client
from tests.support.tuning import tune

CLAUDE, GPT = "claude-haiku-4-5", "gpt-5"
VERSION = {"anthropic-version": "2023-06-01"}


def prompt(tag: str, steering: str = "output=40") -> list[Any]:
    return [{"role": "user", "content": f"Tell me of the sea. [[simulate tag={tag} {steering}]]"}]


async def anthropic_whole(url: str, key: str, tag: str) -> None:
    async with anthropic_client(url, key=key) as client:
        answer = await client.messages.create(model=CLAUDE, max_tokens=500, messages=prompt(tag))
        assert answer.usage.output_tokens == 40


async def anthropic_stream(url: str, key: str, tag: str) -> None:
    async with (
        anthropic_client(url, key=key) as client,
        client.messages.stream(model=CLAUDE, max_tokens=500, messages=prompt(tag)) as stream,
    ):
        assert (await stream.get_final_message()).usage.output_tokens == 40


async def chat_whole(url: str, key: str, tag: str) -> None:
    async with openai_client(url, key=key) as client:
        answer = await client.chat.completions.create(model=GPT, messages=prompt(tag))
        assert answer.usage is not None and answer.usage.completion_tokens == 40


async def chat_stream(url: str, key: str, tag: str) -> None:
    async with openai_client(url, key=key) as client:
        chunks = [
            chunk async for chunk in await client.chat.completions.create(model=GPT, messages=prompt(tag), stream=True)
        ]
        assert all(chunk.usage is None for chunk in chunks), "the usage chunk that we asked for stays hidden"
        assert all(chunk.choices for chunk in chunks)


async def chat_stream_with_usage(url: str, key: str, tag: str) -> None:
    async with openai_client(url, key=key) as client:
        stream = await client.chat.completions.create(
            model=GPT, messages=prompt(tag), stream=True, stream_options={"include_usage": True}
        )
        usages = [chunk.usage async for chunk in stream if chunk.usage is not None]
        assert [usage.completion_tokens for usage in usages] == [40]


async def responses_whole(url: str, key: str, tag: str) -> None:
    async with openai_client(url, key=key) as client:
        answer = await client.responses.create(model=GPT, input=prompt(tag)[0]["content"])
        assert answer.usage is not None and answer.usage.output_tokens == 40


async def responses_stream(url: str, key: str, tag: str) -> None:
    async with openai_client(url, key=key) as client:
        stream = await client.responses.create(model=GPT, input=prompt(tag)[0]["content"], stream=True)
        kinds = [event.type async for event in stream]
        assert kinds[-1] == "response.completed"


CALLS = [
    anthropic_whole,
    anthropic_stream,
    chat_whole,
    chat_stream,
    chat_stream_with_usage,
    responses_whole,
    responses_stream,
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_a_served_call_is_charged_exactly_what_the_journal_served(
    call: Any, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("pro")
    await call(gateway.url, key, "one")
    (entry,) = await models.journal.ended("one")
    await assert_settled_to(gateway, account.id, tokens_served(entry) * STEPS)
    (row,) = await usage_rows(gateway, account.id)
    assert (row["state"], row["basis"]) == ("settled", "provider")


async def test_the_client_gets_the_bytes_that_the_model_sent(gateway: Local, models: LocalModels) -> None:
    """Byte for byte, but for the usage chunk that we asked for ourselves."""
    key = await gateway.key("pro")
    body = {"model": CLAUDE, "max_tokens": 300, "stream": True, "messages": prompt("bytes")}
    async with aiohttp.ClientSession() as session:
        async with session.post(
            f"{gateway.url}/v1/messages", json=body, headers={"x-api-key": key, **VERSION}
        ) as answer:
            through = await answer.read()
            assert answer.headers["Tollgate-Wallet"] == "tokens"
            assert answer.headers["Content-Type"].startswith("text/event-stream")
        async with session.post(
            f"{models.url}/v1/messages", json=body, headers={"x-api-key": "x", **VERSION}
        ) as answer:
            direct = await answer.read()
    assert len(through) == len(direct)


async def test_a_whole_answer_says_what_it_cost_and_what_is_left(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("pro")
    body = {"model": CLAUDE, "max_tokens": 300, "messages": prompt("cost")}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/v1/messages", json=body, headers={"x-api-key": key, **VERSION}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        told = answer.headers
    (entry,) = await models.journal.ended("cost")
    charged = tokens_served(entry)
    assert told["Tollgate-Charged"] == str(charged)
    assert told["Tollgate-Remaining"] == str(500_000 - charged)
    assert "Tollgate-Resets-At" in told and "Tollgate-Request-Id" in told
    await assert_settled_to(gateway, account.id, charged * STEPS)


async def test_a_trials_end_is_told_as_no_reset(gateway: Local, models: LocalModels) -> None:
    """Not by an answer, nor by a refusal that passes, nor by explain: nothing comes when a trial is over."""
    tune(gateway, drain_s=0.2)
    key, _ = await gateway.account("trial")
    headers = {"x-api-key": key, **VERSION}
    everything = {"model": CLAUDE, "max_tokens": 5_000, "stream": True, "messages": prompt("all", "stall=8")}
    another = {"model": CLAUDE, "max_tokens": 2_000, "messages": prompt("another")}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{gateway.url}/v1/messages", json=everything, headers=headers) as answer:
            assert answer.status == 200 and "Tollgate-Resets-At" not in answer.headers
            async with session.post(f"{gateway.url}/v1/messages", json=another, headers=headers) as refused:
                told = (await refused.json())["error"]["tollgate"]
                assert (told["reason"], told["resets_at"]) == ("held_elsewhere", None)
                assert "Tollgate-Resets-At" not in refused.headers
        asked = {"model": CLAUDE, "input_tokens": 1, "output_tokens": 1}
        async with session.post(f"{gateway.url}/api/v1/explain", json=asked, headers=headers) as explained:
            assert [each["resets_at"] for each in (await explained.json())["limits"]] == [None]


async def test_what_is_left_is_never_told_as_less_than_nothing(gateway: Local, models: LocalModels) -> None:
    """A trial of 6,000, and an answer that became longer than that."""
    key = await gateway.key("trial")
    body = ANTHROPIC.body("output=6500 overrun", max_tokens=100)
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + ANTHROPIC.path, json=body, headers=ANTHROPIC.headers(key)) as answer,
    ):
        assert answer.status == 200 and int(answer.headers["Tollgate-Charged"]) > 6_000
    assert answer.headers["Tollgate-Remaining"] == "0"


async def test_where_a_unit_is_so_many_tokens_cost_and_use_are_told_in_tokens_too(
    models: LocalModels, valkey_url: str, tmp_path: Path
) -> None:
    """Used is what this call and all before it came to; of a stream neither is known when it begins."""
    plain = config_text(models.url, port=free_port(), admin=free_port())
    text = plain.replace("tokens: {decimals: 3}", "tokens: {decimals: 3, tokens_per_unit: 4}")
    async with local(models.url, valkey_url, tmp_path, text=text) as gateway:
        key = await gateway.key("pro")
        used = 0
        for turn, stream in enumerate((False, True, False)):
            body = ANTHROPIC.body(f"tag=turn-{turn} output=40", stream=stream)
            async with (
                aiohttp.ClientSession() as session,
                session.post(gateway.url + ANTHROPIC.path, json=body, headers=ANTHROPIC.headers(key)) as answer,
            ):
                await answer.read()
            (entry,) = await models.journal.ended(f"turn-{turn}")
            await gateway.settled()
            charged = tokens_served(entry)
            used += charged
            told = [answer.headers.get(f"Tollgate-{name}-Tokens") for name in ("Charged", "Used")]
            assert told == ([None, None] if stream else [str(4 * charged), str(4 * used)])


async def test_cached_tokens_are_counted_once(gateway: Local, models: LocalModels) -> None:
    """Anthropic's input excludes cached tokens, OpenAI's includes them: both are charged their total."""
    key, account = await gateway.account("pro")
    steering = "output=10 cached=70 cache_write=30"
    async with anthropic_client(gateway.url, key=key) as client:
        await client.messages.create(model=CLAUDE, max_tokens=100, messages=prompt("anthropic", steering))
    async with openai_client(gateway.url, key=key) as client:
        await client.chat.completions.create(model=GPT, messages=prompt("openai", "output=10 cached=20"))
    entries = [*await models.journal.ended("anthropic"), *await models.journal.ended("openai")]
    await assert_settled_to(gateway, account.id, sum(tokens_served(entry) for entry in entries) * STEPS)


async def test_a_call_without_usage_is_charged_what_was_counted(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("pro")
    async with openai_client(gateway.url, key=key) as client:
        await client.chat.completions.create(model=GPT, messages=prompt("missing", "output=50 usage=missing"))
    await models.journal.ended("missing")
    await gateway.settled()
    (row,) = await usage_rows(gateway, account.id)
    assert row["basis"] == "counted"
    assert row["charged"] >= 50 * STEPS


async def test_a_feature_with_a_fixed_price_costs_that(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("pro")
    async with openai_client(gateway.url, key=key, default_headers={"Tollgate-Feature": "job"}) as client:
        await client.chat.completions.create(model=GPT, messages=prompt("job"))
    await assert_settled_to(gateway, account.id, 1, wallet="uses")
    await assert_settled_to(gateway, account.id, 0)


async def test_a_conversation_that_only_the_provider_knows_is_held_as_large_as_an_answer(
    gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    async with openai_client(gateway.url, key=key) as client:
        answer = await client.responses.with_raw_response.create(
            model=GPT, input=prompt("stored")[0]["content"], max_output_tokens=100, previous_response_id="resp_1"
        )
    (entry,) = await models.journal.ended("stored")
    assert int(answer.headers["Tollgate-Held"]) > 128_000
    await assert_settled_to(gateway, account.id, tokens_served(entry) * STEPS)
