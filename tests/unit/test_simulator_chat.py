"""The official OpenAI SDK against the simulated Chat Completions, Completions, Embeddings and models."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.providers.tokens import count_text
from tests.support.simulators import LocalModels, in_process, openai_client

MODEL = "gpt-5-mini"
TOOL = {"type": "function", "function": {"name": "get_forecast", "parameters": {"type": "object"}}}


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


@pytest.fixture
async def client(models: LocalModels) -> AsyncIterator[Any]:
    async with openai_client(models.url) as sdk:
        yield sdk


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


async def served(models: LocalModels) -> dict[str, Any]:
    (entry,) = await models.journal.entries(wait=1)
    return entry


async def streamed(client: Any, text: str, **more: Any) -> list[Any]:
    return [chunk async for chunk in await client.chat.completions.create(**ask(text, **more), stream=True)]


async def test_a_json_answer_reports_the_tokens_of_its_text(client: Any, models: LocalModels) -> None:
    completion = await client.chat.completions.create(**ask("Tell me something.", max_completion_tokens=900))
    (choice,) = completion.choices
    assert completion.usage.completion_tokens == count_text(choice.message.content, "o200k_base") > 20
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    entry = await served(models)
    assert entry["served"] == entry["planned"]
    assert entry["served"]["output"] == completion.usage.completion_tokens
    assert entry["served"]["input"] == completion.usage.prompt_tokens > 0
    assert (entry["max_tokens"], entry["max_tokens_field"]) == (900, "max_completion_tokens")
    assert completion._request_id == entry["request_id"]


async def test_a_stream_adds_up_to_the_json_answer(client: Any) -> None:
    whole = await client.chat.completions.create(**ask("Tell me something."))
    chunks = await streamed(client, "Tell me something.")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1


async def test_the_usage_chunk_comes_last_with_empty_choices_and_only_when_asked(
    client: Any, models: LocalModels
) -> None:
    asked = await streamed(client, "[[simulate output=12]]", stream_options={"include_usage": True})
    assert asked[-1].choices == []
    assert asked[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None and chunk.choices for chunk in asked[:-1])
    assert all("usage" in chunk.model_fields_set for chunk in asked), "the other chunks say null"
    for options in ({}, {"stream_options": {"include_usage": False}}):
        unasked = await streamed(client, "[[simulate output=12]]", **options)
        assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in unasked)
    entries = await models.journal.entries(wait=3)
    assert [entry["include_usage"] for entry in entries] == [True, None, False]
    assert [entry["served"]["output"] for entry in entries] == [12, 12, 12]


async def test_obfuscation_is_there_unless_declined(client: Any) -> None:
    padded = await streamed(client, "Hi")
    plain = await streamed(client, "Hi", stream_options={"include_obfuscation": False})
    assert all(chunk.obfuscation for chunk in padded)
    assert all(chunk.obfuscation is None for chunk in plain)


async def test_several_choices_come_interleaved_and_are_all_billed(client: Any, models: LocalModels) -> None:
    chunks = await streamed(client, "[[simulate output=10 chunk=5]]", n=3, stream_options={"include_usage": True})
    content = [chunk.choices[0].index for chunk in chunks[:-1] if chunk.choices[0].delta.content]
    assert content == [0, 1, 2, 0, 1, 2]
    assert Counter(chunk.choices[0].finish_reason for chunk in chunks[:-1])["stop"] == 3
    assert chunks[-1].usage.completion_tokens == 30
    whole = await client.chat.completions.create(**ask("[[simulate output=10]]", n=3))
    assert ([choice.index for choice in whole.choices], whole.usage.completion_tokens) == ([0, 1, 2], 30)
    assert [entry["served"]["output"] for entry in await models.journal.entries(wait=2)] == [30, 30]


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_and_reasoning_tokens_are_parts_of_their_totals(
    client: Any, models: LocalModels, stream: bool
) -> None:
    text = "[[simulate input=500 cached=400 cache_write=60 output=70 reasoning=50]]"
    if stream:
        usage = (await streamed(client, text, stream_options={"include_usage": True}))[-1].usage
    else:
        completion = await client.chat.completions.create(**ask(text))
        usage = completion.usage
        assert count_text(completion.choices[0].message.content, "o200k_base") == 20
    assert (usage.prompt_tokens, usage.completion_tokens) == (500, 70)
    assert (usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens_details.cache_write_tokens) == (400, 60)
    assert usage.completion_tokens_details.reasoning_tokens == 50
    assert (await served(models))["served"] == {
        "input": 40, "cache_read": 400, "cache_write_5m": 0, "cache_write_1h": 0, "cache_write": 60,
        "output": 70, "reasoning": 50,
    }  # fmt: skip


async def test_the_output_bound_is_kept_and_named_as_the_reason(client: Any) -> None:
    bound = {"max_completion_tokens": 9}
    completion = await client.chat.completions.create(**ask("[[simulate output=500]]", **bound))
    assert (completion.usage.completion_tokens, completion.choices[0].finish_reason) == (9, "length")
    chunks = await streamed(client, "[[simulate output=500]]", **bound)
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_has_arguments_that_parse(client: Any, stream: bool) -> None:
    request = ask("[[simulate output=60]]", tools=[TOOL], tool_choice="required")
    if stream:
        async with client.chat.completions.stream(**request) as events:
            completion = await events.get_final_completion()
    else:
        completion = await client.chat.completions.create(**request)
    (call,) = completion.choices[0].message.tool_calls
    assert (call.function.name, completion.choices[0].finish_reason) == ("get_forecast", "tool_calls")
    assert call.function.arguments.startswith('{"location":"') and call.function.arguments.endswith('"}')


@pytest.mark.parametrize(("mode", "expected"), [("zero", 0), ("missing", None)])
async def test_usage_can_be_zero_or_missing(client: Any, mode: str, expected: int | None) -> None:
    completion = await client.chat.completions.create(**ask(f"[[simulate usage={mode}]]"))
    assert (completion.usage and completion.usage.completion_tokens) == expected
    last = (await streamed(client, f"[[simulate usage={mode}]]", stream_options={"include_usage": True}))[-1]
    assert (last.usage and last.usage.completion_tokens) == expected
    assert bool(last.choices) == (mode == "missing")


async def test_models_are_listed_in_openais_shape(client: Any) -> None:
    assert MODEL in [model.id async for model in await client.models.list()]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-nothing")


async def test_completions_are_billed_for_every_choice(client: Any, models: LocalModels) -> None:
    model = "gpt-3.5-turbo-instruct"
    whole = await client.completions.create(model=model, prompt="Once [[simulate output=8]]", n=2)
    assert [count_text(choice.text, "cl100k_base") for choice in whole.choices] == [8, 8]
    assert whole.usage.completion_tokens == 16
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await client.completions.create(model=model, prompt="Once [[simulate output=8]]", **options)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 8)
    assert [entry["served"]["output"] for entry in await models.journal.entries(wait=2)] == [16, 8]


async def test_completions_without_a_bound_stop_after_sixteen_tokens(client: Any, models: LocalModels) -> None:
    completion = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Go on.")
    assert (completion.usage.completion_tokens, completion.choices[0].finish_reason) == (16, "length")
    assert (await served(models))["max_tokens"] is None


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 5}])
async def test_embeddings_bill_their_input_only(client: Any, models: LocalModels, options: dict[str, Any]) -> None:
    answer = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two words"], **options)
    assert [len(vector.embedding) for vector in answer.data] == [options.get("dimensions", 32)] * 2
    entry = await served(models)
    assert entry["served"]["input"] == answer.usage.prompt_tokens == answer.usage.total_tokens == 3
    assert entry["served"]["output"] == 0


ERRORS = [
    ("status=400", openai.BadRequestError, "invalid_value"),
    ("status=401", openai.AuthenticationError, "invalid_api_key"),
    ("status=403", openai.PermissionDeniedError, "model_not_found"),
    ("status=404", openai.NotFoundError, "model_not_found"),
    ("status=429,retry_after=7", openai.RateLimitError, "rate_limit_exceeded"),
    ("status=429,kind=quota", openai.RateLimitError, "insufficient_quota"),
    ("status=500", openai.InternalServerError, None),
    ("status=503", openai.InternalServerError, "server_overloaded"),
    ("status=400,kind=context", openai.BadRequestError, "context_length_exceeded"),
    ("outptu=3", openai.BadRequestError, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("simulate", "raised", "code"), ERRORS)
async def test_errors_raise_the_sdks_own_types_and_bill_nothing(
    client: Any, models: LocalModels, simulate: str, raised: type[openai.APIStatusError], code: str | None, stream: bool
) -> None:
    with pytest.raises(raised) as caught:
        await client.chat.completions.create(**ask("Hi"), stream=stream, extra_headers={"x-simulate": simulate})
    entry = await served(models)
    assert (caught.value.code, caught.value.request_id) == (code, entry["request_id"])
    assert caught.value.response.headers.get("retry-after") == ("7" if "retry_after" in simulate else None)
    assert entry["served"] == dict.fromkeys(entry["served"], 0)
    assert (entry["end"], entry["status"]) == ("refused", caught.value.status_code)


INVALID = [
    ({"messages": []}, "messages"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"max_tokens": 5}, "max_tokens"),  # reasoning models know max_completion_tokens only
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"n": 0}, "n"),
]


@pytest.mark.parametrize(("change", "param"), INVALID)
async def test_what_the_api_refuses_is_refused(client: Any, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{**ask("Hi"), **change})
    assert caught.value.param == param


async def test_older_models_take_max_tokens(client: Any, models: LocalModels) -> None:
    await client.chat.completions.create(**{**ask("Hi"), "model": "gpt-4.1", "max_tokens": 5})
    entry = await served(models)
    assert (entry["max_tokens"], entry["max_tokens_field"], entry["served"]["output"]) == (5, "max_tokens", 5)


async def test_a_path_that_no_provider_has_is_journaled_and_refused(client: Any, models: LocalModels) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.post("/audio/unknown", cast_to=object, body={})
    assert ((await served(models))["route"], (await served(models))["status"]) == ("/v1/audio/unknown", 404)
