"""Both official SDKs against a mock that nobody here wrote, and our simulated models measured by it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import anthropic
import openai
import pytest

from tests.support.aimock import INPUT_TOKENS, OUTPUT_TOKENS, TEXT, TOOL_ARGUMENTS, Aimock, aimock
from tests.support.simulators import anthropic_client, in_process, openai_client

pytestmark = pytest.mark.npm

CLAUDE = "claude-haiku-4-5"
GPT = "gpt-5-mini"
USAGE = {"include_usage": True}


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aimock]:
    with aimock(tmp_path_factory.mktemp("aimock")) as running:
        yield running


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"model": CLAUDE, "max_tokens": 900, "messages": [{"role": "user", "content": text}], **more}


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": GPT, "messages": [{"role": "user", "content": text}], **more}


async def test_anthropics_sdk_reads_text_and_usage(mock: Aimock) -> None:
    async with anthropic_client(mock.url) as client:
        whole = await client.messages.create(**message("say hello"))
        async with client.messages.stream(**message("say hello")) as stream:
            streamed = await stream.get_final_message()
    for answer in (whole, streamed):
        assert answer.content[0].text == TEXT
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


async def test_openais_sdk_reads_text_and_usage_of_chat(mock: Aimock) -> None:
    async with openai_client(mock.url) as client:
        whole = await client.chat.completions.create(**chat("say hello"))
        stream = await client.chat.completions.create(**chat("say hello", stream=True, stream_options=USAGE))
        chunks = [chunk async for chunk in stream]
        unasked = [chunk async for chunk in await client.chat.completions.create(**chat("say hello", stream=True))]
    assert whole.choices[0].message.content == TEXT
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    for usage in (whole.usage, chunks[-1].usage):
        assert (usage.prompt_tokens, usage.completion_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)
    assert chunks[-1].choices == []
    assert all(chunk.choices and chunk.usage is None for chunk in unasked)


async def test_openais_sdk_reads_text_and_usage_of_responses(mock: Aimock) -> None:
    async with openai_client(mock.url) as client:
        whole = await client.responses.create(model=GPT, input="say hello")
        events = [event async for event in await client.responses.create(model=GPT, input="say hello", stream=True)]
    for response in (whole, events[-1].response):
        assert response.output_text == TEXT
        assert (response.usage.input_tokens, response.usage.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


async def test_tool_calls_arrive_whole(mock: Aimock) -> None:
    async with anthropic_client(mock.url) as client, openai_client(mock.url) as other:
        async with client.messages.stream(**message("call a tool")) as stream:
            call = (await stream.get_final_message()).content[-1]
        completion = await other.chat.completions.create(**chat("call a tool"))
    assert (call.name, call.input) == ("get_forecast", TOOL_ARGUMENTS)
    assert completion.choices[0].message.tool_calls[0].function.name == "get_forecast"


async def test_errors_raise_what_the_simulated_models_make_the_sdks_raise(mock: Aimock) -> None:
    async with in_process() as models:
        for url, limited, failing in (
            (mock.url, "refuse me", "fail now"),
            (models.url, "[[simulate status=429 retry_after=3]]", "[[simulate status=500]]"),
        ):
            async with anthropic_client(url) as client, openai_client(url) as other:
                with pytest.raises(anthropic.RateLimitError) as limit:
                    await client.messages.create(**message(limited))
                assert (limit.value.type, limit.value.response.headers["retry-after"]) == ("rate_limit_error", "3")
                with pytest.raises(openai.RateLimitError) as refused:
                    await other.chat.completions.create(**chat(limited))
                assert (refused.value.code, refused.value.response.headers["retry-after"]) == (
                    "rate_limit_exceeded",
                    "3",
                )
                with pytest.raises(anthropic.InternalServerError):
                    await client.messages.create(**message(failing))
                with pytest.raises(openai.InternalServerError):
                    await other.chat.completions.create(**chat(failing))


async def test_a_stream_that_breaks_off_raises(mock: Aimock) -> None:
    async with openai_client(mock.url) as client:
        stream = await client.chat.completions.create(**chat("break off", stream=True))
        with pytest.raises(openai.APIConnectionError):
            _ = [chunk async for chunk in stream]


@pytest.mark.parametrize("api", ["messages", "chat", "responses"])
async def test_the_simulated_models_send_the_same_kinds_of_events_in_the_same_order(mock: Aimock, api: str) -> None:
    """Repeated deltas counted once. Ours has pings besides, which the SDK swallows."""
    async with in_process() as models:
        theirs = await event_kinds(mock.url, api, "say hello")
        ours = await event_kinds(models.url, api, "[[simulate output=40]]")
    assert ours == theirs


async def event_kinds(url: str, api: str, text: str) -> list[str]:
    kinds: list[str] = []
    if api == "messages":
        async with anthropic_client(url) as client:
            kinds = [event.type async for event in await client.messages.create(**message(text, stream=True))]
    elif api == "responses":
        async with openai_client(url) as client:
            kinds = [event.type async for event in await client.responses.create(model=GPT, input=text, stream=True)]
    else:
        async with openai_client(url) as client:
            stream = await client.chat.completions.create(**chat(text, stream=True, stream_options=USAGE))
            async for chunk in stream:
                choice = chunk.choices[0] if chunk.choices else None
                kinds.append(
                    "usage" if choice is None
                    else choice.finish_reason or ("role" if choice.delta.role else "content")
                )  # fmt: skip
    return [kind for kind, _ in groupby(kinds)]


async def test_the_mock_keeps_a_journal_of_what_it_received(mock: Aimock) -> None:
    async with openai_client(mock.url) as client:
        await client.chat.completions.create(**chat("say hello", max_completion_tokens=77))
    entries = await mock.journal(path="/v1/chat/completions")
    assert 77 in [entry["body"].get("max_completion_tokens") for entry in entries]
