"""The official Anthropic SDK against the simulated Messages API: what it parses, what it adds up, what it raises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from gateway.providers.tokens import count_text, family
from tests.support.simulators import LocalModels, anthropic_client, in_process

MODEL = "claude-haiku-4-5"
WEATHER = {
    "name": "get_forecast",
    "description": "The weather of a place",
    "input_schema": {"type": "object", "properties": {"location": {"type": "string"}}},
}


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


@pytest.fixture
async def client(models: LocalModels) -> AsyncIterator[Any]:
    async with anthropic_client(models.url) as sdk:
        yield sdk


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 2048, "messages": [{"role": "user", "content": text}], **more}


def counted(text: str) -> int:
    of = family(MODEL)
    return of.scale(count_text(text, of.encoding))


async def served(models: LocalModels) -> dict[str, Any]:
    (entry,) = await models.journal.entries(wait=1)
    return entry


async def test_a_json_answer_reports_the_tokens_of_its_text(client: Any, models: LocalModels) -> None:
    message = await client.messages.create(**ask("Tell me something."))
    (block,) = message.content
    assert message.usage.output_tokens == counted(block.text) > 20
    assert (message.stop_reason, message.model, message.role) == ("end_turn", MODEL, "assistant")
    entry = await served(models)
    assert entry["served"] == entry["planned"]
    assert entry["served"]["output"] == message.usage.output_tokens
    assert entry["served"]["input"] == message.usage.input_tokens > 0
    assert (entry["end"], entry["status"], entry["max_tokens"]) == ("finished", 200, 2048)
    assert message._request_id == entry["request_id"]


async def test_the_same_request_gets_the_same_text_and_another_one_another(client: Any) -> None:
    texts = [(await client.messages.create(**ask(text))).content[0].text for text in ("One", "One", "Two")]
    assert texts[0] == texts[1] != texts[2]


async def test_a_stream_adds_up_to_the_json_answer(client: Any, models: LocalModels) -> None:
    whole = await client.messages.create(**ask("Tell me something."))
    async with client.messages.stream(**ask("Tell me something.")) as stream:
        types = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert [block.text for block in final.content] == [block.text for block in whole.content]
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert types[0] == "message_start" and types[-1] == "message_stop"
    _, entry = await models.journal.entries(wait=2)
    assert entry["stream"] is True
    assert entry["served"]["output"] == final.usage.output_tokens


async def test_the_events_come_in_the_documented_order_with_cumulative_usage(client: Any) -> None:
    stream = await client.messages.create(**ask("[[simulate output=30 chunk=10 cached=7]]", stream=True))
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "message_start", "content_block_start", *["content_block_delta"] * 3, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    start, delta = events[0].message.usage, events[-2].usage
    assert start.output_tokens == 1, "the start has seen next to nothing of the output"
    assert delta.output_tokens == 30, "message_delta is cumulative"
    assert delta.input_tokens == start.input_tokens
    assert (start.cache_read_input_tokens, delta.cache_read_input_tokens) == (7, 7)


async def test_a_ping_follows_the_first_block_start(models: LocalModels) -> None:
    async with anthropic_client(models.url) as client:
        request = client.messages.with_streaming_response.create(**ask("Hi", stream=True))
        async with request as response:
            lines = [line async for line in response.iter_lines()]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[:4] == ["message_start", "content_block_start", "ping", "content_block_delta"]


async def test_thinking_comes_first_and_is_part_of_the_output(client: Any, models: LocalModels) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    async with client.messages.stream(**ask("[[simulate output=100 reasoning=40]]", thinking=thinking)) as stream:
        kinds = [event.delta.type async for event in stream if event.type == "content_block_delta"]
        final = await stream.get_final_message()
    assert kinds[0] == "thinking_delta" and kinds[-1] == "text_delta" and "signature_delta" in kinds
    thought, text = final.content
    assert (thought.type, text.type) == ("thinking", "text")
    assert counted(thought.thinking) == 40
    assert counted(text.text) == 60
    assert final.usage.output_tokens == 100
    assert final.usage.output_tokens_details.thinking_tokens == 40
    assert (await served(models))["served"]["reasoning"] == 40


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_has_arguments_that_parse(client: Any, stream: bool) -> None:
    request = ask("[[simulate output=80]]", tools=[WEATHER], tool_choice={"type": "any"})
    if stream:
        async with client.messages.stream(**request) as streamed:
            message = await streamed.get_final_message()
    else:
        message = await client.messages.create(**request)
    call = message.content[-1]
    assert (call.type, call.name, message.stop_reason) == ("tool_use", "get_forecast", "tool_use")
    assert isinstance(call.input["location"], str)
    assert message.usage.output_tokens == 80


async def test_thinking_and_the_reason_to_stop_can_be_steered_without_asking(client: Any) -> None:
    message = await client.messages.create(**ask("[[simulate thinking stop=max_tokens output=60]]"))
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.stop_reason, message.usage.output_tokens_details.thinking_tokens) == ("max_tokens", 20)
    call = await client.messages.create(**ask("[[simulate stop=tool_use output=60]]"))
    assert (call.stop_reason, call.content[-1].name) == ("tool_use", "get_weather")


async def test_an_offered_tool_is_not_called_unless_forced(client: Any) -> None:
    message = await client.messages.create(**ask("Hi", tools=[WEATHER]))
    assert [block.type for block in message.content] == ["text"]


@pytest.mark.parametrize("stream", [False, True])
async def test_cache_tokens_are_apart_from_input_tokens_and_by_lifetime(
    client: Any, models: LocalModels, stream: bool
) -> None:
    request = ask("[[simulate input=11 cached=1000 cache_write=200 cache_write_1h=30 output=5]]")
    if stream:
        async with client.messages.stream(**request) as streamed:
            usage = (await streamed.get_final_message()).usage
    else:
        usage = (await client.messages.create(**request)).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (11, 1000, 5)
    assert usage.cache_creation_input_tokens == 230
    assert usage.cache_creation.ephemeral_5m_input_tokens == 200
    assert usage.cache_creation.ephemeral_1h_input_tokens == 30
    assert (await served(models))["served"] == {
        "input": 11, "cache_read": 1000, "cache_write_5m": 200, "cache_write_1h": 30, "cache_write": 0,
        "output": 5, "reasoning": 0,
    }  # fmt: skip


async def test_the_output_bound_is_kept_and_named_as_the_reason(client: Any) -> None:
    message = await client.messages.create(**ask("[[simulate output=500]]", max_tokens=50))
    assert (message.usage.output_tokens, message.stop_reason) == (50, "max_tokens")
    over = await client.messages.create(**ask("[[simulate output=500 overrun]]", max_tokens=50))
    assert (over.usage.output_tokens, over.stop_reason) == (500, "end_turn")


async def test_a_bound_of_zero_warms_the_cache_and_answers_nothing(client: Any, models: LocalModels) -> None:
    message = await client.messages.create(**ask("Hi", max_tokens=0))
    assert (message.content, message.usage.output_tokens) == ([], 0)
    assert (await served(models))["served"]["input"] == message.usage.input_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("mode", "expected"), [("zero", 0), ("missing", None)])
async def test_usage_can_be_zero_or_missing(client: Any, stream: bool, mode: str, expected: int | None) -> None:
    request = ask(f"[[simulate usage={mode}]]", stream=stream)
    if stream:
        events = [event async for event in await client.messages.create(**request)]
        usages = [events[0].message.usage, events[-2].usage]
    else:
        usages = [(await client.messages.create(**request)).usage]
    assert [usage and usage.output_tokens for usage in usages] == [expected] * len(usages)


async def test_partial_usage_is_there_at_the_start_of_a_stream_only(client: Any) -> None:
    events = [event async for event in await client.messages.create(**ask("[[simulate usage=partial]]", stream=True))]
    assert events[0].message.usage.input_tokens > 0
    assert events[-2].usage is None


async def test_tokens_are_counted_as_messages_report_them(client: Any, models: LocalModels) -> None:
    request = ask("Count me", system="You are brief.", tools=[WEATHER])
    message = await client.messages.create(**request)
    del request["max_tokens"]
    assert (await client.messages.count_tokens(**request)).input_tokens == message.usage.input_tokens
    _, counting = await models.journal.entries(wait=2)
    assert not any(counting["served"].values()), "counting is free"


async def test_models_are_listed_in_anthropics_shape(client: Any) -> None:
    listed = await client.models.list()
    assert MODEL in [model.id async for model in listed]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("claude-nothing")


ERRORS = [
    # 1. Steered statuses raise what the real API's raise.
    ("status=400", anthropic.BadRequestError, "invalid_request_error"),
    ("status=401", anthropic.AuthenticationError, "authentication_error"),
    ("status=403", anthropic.PermissionDeniedError, "permission_error"),
    ("status=404", anthropic.NotFoundError, "not_found_error"),
    ("status=429,retry_after=7", anthropic.RateLimitError, "rate_limit_error"),
    ("status=500", anthropic.InternalServerError, "api_error"),
    ("status=503", anthropic.ServiceUnavailableError, "api_error"),
    ("status=529", anthropic.OverloadedError, "overloaded_error"),
    ("status=400,kind=context", anthropic.BadRequestError, "invalid_request_error"),
    # 2. A typo in the steering never passes.
    ("outptu=3", anthropic.BadRequestError, "invalid_request_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("simulate", "raised", "kind"), ERRORS)
async def test_errors_raise_the_sdks_own_types_and_bill_nothing(
    client: Any, models: LocalModels, simulate: str, raised: type[anthropic.APIStatusError], kind: str, stream: bool
) -> None:
    with pytest.raises(raised) as caught:
        await client.messages.create(**ask("Hi", stream=stream), extra_headers={"x-simulate": simulate})
    entry = await served(models)
    assert (caught.value.type, caught.value.request_id) == (kind, entry["request_id"])
    assert caught.value.response.headers.get("retry-after") == ("7" if "retry_after" in simulate else None)
    assert entry["served"] == dict.fromkeys(entry["served"], 0)
    assert (entry["end"], entry["status"]) == ("refused", caught.value.status_code)


INVALID = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1024, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "max_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1000}}, "budget_tokens"),
    ({"messages": []}, "messages"),
    # Source: version 2026-10-21, which the SDK sends, knows no sampling parameters.
    ({"extra_body": {"temperature": 1.0}}, "temperature: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("change", "named"), INVALID)
async def test_what_the_api_refuses_is_refused(client: Any, change: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(**{**ask("Hi"), **change})
    assert named in caught.value.message


async def test_the_older_version_still_takes_sampling_parameters(client: Any, models: LocalModels) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    await client.messages.create(**ask("Hi"), extra_body={"temperature": 0.5}, extra_headers=headers)
    assert (await served(models))["headers"]["anthropic-version"] == "2023-06-01"


async def test_a_request_without_a_key_is_not_answered(models: LocalModels) -> None:
    async with anthropic_client(models.url) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(**ask("Hi"), extra_headers={"authorization": anthropic.Omit()})
    assert (await served(models))["key_header"] is None
