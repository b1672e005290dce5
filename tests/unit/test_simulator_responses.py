"""The official OpenAI SDK against the simulated Responses API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import groupby
from typing import Any

import openai
import pytest

from gateway.providers.tokens import count_text
from tests.support.simulators import LocalModels, in_process, openai_client

MODEL = "gpt-5"
TOOL = {"type": "function", "name": "get_forecast", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


@pytest.fixture
async def client(models: LocalModels) -> AsyncIterator[Any]:
    async with openai_client(models.url) as sdk:
        yield sdk


async def served(models: LocalModels) -> dict[str, Any]:
    (entry,) = await models.journal.entries(wait=1)
    return entry


async def streamed(client: Any, text: str, **more: Any) -> list[Any]:
    return [event async for event in await client.responses.create(model=MODEL, input=text, stream=True, **more)]


async def test_a_json_answer_reports_the_tokens_of_its_text(client: Any, models: LocalModels) -> None:
    response = await client.responses.create(model=MODEL, input="Tell me something.", max_output_tokens=900)
    assert response.usage.output_tokens == count_text(response.output_text, "o200k_base") > 20
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert (response.status, response.max_output_tokens, response.error) == ("completed", 900, None)
    entry = await served(models)
    assert entry["served"] == entry["planned"]
    assert entry["served"]["input"] == response.usage.input_tokens > 0
    assert entry["served"]["output"] == response.usage.output_tokens
    assert (entry["max_tokens"], entry["max_tokens_field"]) == (900, "max_output_tokens")


async def test_the_events_come_in_the_documented_order_and_are_numbered(client: Any) -> None:
    events = await streamed(client, "[[simulate output=30 chunk=10]]")
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.status == events[1].response.status == "in_progress"
    assert events[0].response.usage is None
    final = events[-1].response
    assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == final.output_text
    assert (final.usage.output_tokens, final.status) == (30, "completed")


async def test_the_sdks_stream_helper_adds_up_to_the_json_answer(client: Any) -> None:
    whole = await client.responses.create(model=MODEL, input="Tell me something.")
    async with client.responses.stream(model=MODEL, input="Tell me something.") as stream:
        final = await stream.get_final_response()
    assert (final.output_text, final.usage) == (whole.output_text, whole.usage)


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_and_reasoning_tokens_are_parts_of_their_totals(
    client: Any, models: LocalModels, stream: bool
) -> None:
    text = "[[simulate input=500 cached=400 cache_write=60 output=70 reasoning=50]]"
    if stream:
        events = await streamed(client, text)
        kinds = [kind for kind, _ in groupby(getattr(event, "output_index", None) for event in events)]
        assert kinds == [None, 0, 1, None], "the thinking's item comes before the message's"
        response = events[-1].response
    else:
        response = await client.responses.create(model=MODEL, input=text)
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens) == (500, 70)
    assert (usage.input_tokens_details.cached_tokens, usage.input_tokens_details.cache_write_tokens) == (400, 60)
    assert usage.output_tokens_details.reasoning_tokens == 50
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert count_text(response.output_text, "o200k_base") == 20
    assert (await served(models))["served"] == {
        "input": 40, "cache_read": 400, "cache_write_5m": 0, "cache_write_1h": 0, "cache_write": 60,
        "output": 70, "reasoning": 50,
    }  # fmt: skip


async def test_the_output_bound_makes_the_answer_incomplete(client: Any) -> None:
    bound = {"max_output_tokens": 20}
    response = await client.responses.create(model=MODEL, input="[[simulate output=500]]", **bound)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == 20
    last = (await streamed(client, "[[simulate output=500]]", **bound))[-1]
    assert (last.type, last.response.usage.output_tokens) == ("response.incomplete", 20)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_has_arguments_that_parse(client: Any, stream: bool) -> None:
    request = {"model": MODEL, "input": "[[simulate output=60]]", "tools": [TOOL], "tool_choice": "required"}
    if stream:
        events = [event async for event in await client.responses.create(**request, stream=True)]
        response = events[-1].response
        pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == response.output[-1].arguments
    else:
        response = await client.responses.create(**request)
    call = response.output[-1]
    assert (call.type, call.name, call.status) == ("function_call", "get_forecast", "completed")
    assert call.arguments.startswith('{"location":"')
    assert response.usage.output_tokens == 60


@pytest.mark.parametrize(("mode", "expected"), [("zero", 0), ("missing", None)])
async def test_usage_can_be_zero_or_missing(client: Any, mode: str, expected: int | None) -> None:
    response = await client.responses.create(model=MODEL, input=f"[[simulate usage={mode}]]")
    assert (response.usage and response.usage.output_tokens) == expected
    last = (await streamed(client, f"[[simulate usage={mode}]]"))[-1]
    assert (last.response.usage and last.response.usage.output_tokens) == expected


async def test_a_conversation_of_items_is_counted_whole(client: Any, models: LocalModels) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is the weather like?"}]},
        {"type": "function_call", "call_id": "call_1", "name": "get_forecast", "arguments": '{"location":"Oslo"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "Rain, as ever."},
    ]
    short = await client.responses.create(model=MODEL, input=items[:1])
    long = await client.responses.create(model=MODEL, input=items, instructions="Be brief.")
    assert long.usage.input_tokens > short.usage.input_tokens + 10


async def test_an_error_in_the_stream_is_raised(client: Any, models: LocalModels) -> None:
    seen = []
    with pytest.raises(openai.APIError):
        async for event in await client.responses.create(
            model=MODEL, input="[[simulate error_event=5 chunk=5 output=50]]", stream=True
        ):
            seen.append(event)
    assert len(seen) == 5
    entry = await served(models)
    assert (entry["end"], entry["events_served"], entry["served"]["output"]) == ("error_event", 6, 5)


@pytest.mark.parametrize(
    ("change", "param"), [({"input": ""}, "input"), ({"max_output_tokens": 3}, "max_output_tokens")]
)
async def test_what_the_api_refuses_is_refused(client: Any, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(**{"model": MODEL, "input": "Hi", **change})
    assert caught.value.param == param
