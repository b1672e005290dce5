"""The gateway's own readers against the simulated models: bounds hold, whole streams are exact, cut ones nearly so."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.domain.usage import AtLeast, Exact, NotServed, Outcome, Usage
from gateway.providers.registry import ADAPTERS
from gateway.providers.tokens import Counter, family
from tests.support.simulators import LocalModels, in_process

CLAUDE = "claude-haiku-4-5"
GPT = "gpt-4.1"
CHUNK = 5
LONG = "The quick brown fox jumps over the lazy dog; größer, 世界, 🚀. " * 40
TOOL_INPUT = {"type": "object", "properties": {"location": {"type": "string"}}}


def png(side: int) -> str:
    """A grey square of ``side`` pixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\x00" + b"\x80" * side for _ in range(side)))
    image = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")
    return base64.b64encode(image).decode()


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def document(kind: str, media_type: str, data: str) -> dict[str, Any]:
    return {"type": "document", "source": {"type": kind, "media_type": media_type, "data": data}}


def claude_image(side: int) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(side)}}


def gpt_image(side: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(side)}"}}


MESSAGES: list[dict[str, Any]] = [
    {"messages": user("Hi")},
    {"messages": user(LONG), "system": "Be brief."},
    {"messages": user([text(LONG), text("x")]), "system": [text("Be.")]},
    {"messages": [*user("Hi"), {"role": "assistant", "content": "Hello."}] * 20 + user("Go on")},
    {"messages": user("Hi"), "tools": [{"name": "get", "description": LONG, "input_schema": TOOL_INPUT}]},
    {"messages": user([claude_image(8)])},
    {"messages": user([claude_image(600), {"type": "text", "text": "What is this?"}])},
    {"messages": user([document("text", "text/plain", LONG)])},
    {"messages": user([document("base64", "application/pdf", "JVBERi0=")])},
    {"messages": [
        *user("Weather?"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "get", "input": {"location": LONG}}]},
        *user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": LONG}]}]),
    ]},
]  # fmt: skip
CHATS: list[dict[str, Any]] = [
    {"messages": user("Hi")},
    {"messages": [{"role": "system", "content": "Be brief."}, *user(LONG)]},
    {"messages": user([{"type": "text", "text": LONG}]), "n": 3},
    {"messages": [*user("Hi"), {"role": "assistant", "content": "Hello."}] * 20 + user("Go on")},
    {"messages": user("Hi"), "tools": [{"type": "function", "function": {"name": "get", "parameters": TOOL_INPUT}}]},
    {"messages": user([gpt_image(8)])},
    {"messages": user([gpt_image(600), {"type": "text", "text": "What is this?"}])},
    {"messages": [
        *user("Weather?"),
        {"role": "assistant", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "get", "arguments": LONG}}]},
        {"role": "tool", "tool_call_id": "c", "content": LONG},
    ]},
]  # fmt: skip
RESPONSES: list[dict[str, Any]] = [
    {"input": "Hi"},
    {"input": LONG, "instructions": "Be brief."},
    {"input": user([{"type": "input_text", "text": LONG}])},
    {"input": user([{"type": "input_image", "image_url": f"data:image/png;base64,{png(8)}"}])},
    {"input": "Hi", "tools": [{"type": "function", "name": "get", "parameters": TOOL_INPUT}]},
    {"input": [
        *user("Weather?"),
        {"type": "function_call", "call_id": "c", "name": "get", "arguments": LONG},
        {"type": "function_call_output", "call_id": "c", "output": LONG},
    ]},
]  # fmt: skip

Case = tuple[str, dict[str, Any]]
INPUTS: list[Case] = [
    *(("/v1/messages", {"model": model, "max_tokens": 500, **fields})
      for fields in MESSAGES for model in (CLAUDE, "claude-sonnet-5-5")),
    *(("/v1/chat/completions", {"model": GPT, **fields}) for fields in CHATS),
    *(("/v1/responses", {"model": GPT, **fields}) for fields in RESPONSES),
]  # fmt: skip
STREAMS: list[Case] = [
    ("/v1/messages", {"model": CLAUDE, "max_tokens": 900, "messages": user("Hi")}),
    ("/v1/chat/completions", {"model": GPT, "messages": user("Hi")}),
    ("/v1/responses", {"model": GPT, "input": "Hi"}),
]


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


async def exchange(
    models: LocalModels, case: Case, simulate: str, *, stream: bool
) -> tuple[aiohttp.ClientResponse, list[bytes]]:
    """What the simulated model answers to the request as the adapter forwards it: by event, or whole."""
    path, fields = case
    adapter = ADAPTERS[path]
    call = adapter.parse(orjson.dumps({**fields, "stream": stream}), {"anthropic-version": "2023-06-01"})
    body = adapter.rewrite(call, model=None, output_tokens_max=None, output_field=None)
    headers = {"authorization": "Bearer sk", "anthropic-version": "2023-06-01", "x-simulate": simulate}
    async with aiohttp.ClientSession() as http, http.post(models.url + path, data=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        received = await answer.read()
    return answer, [part + b"\n\n" for part in received.split(b"\n\n")[:-1]] if stream else [received]


def outcome(case: Case, answer: aiohttp.ClientResponse, parts: list[bytes], *, stream: bool) -> Outcome:
    """What the adapter's scanner knows after these parts."""
    path, fields = case
    adapter = ADAPTERS[path]
    call = adapter.parse(orjson.dumps({**fields, "stream": stream}), {"anthropic-version": "2023-06-01"})
    of = family(call.model)
    scanner = adapter.scanner(call, content_type=answer.headers["content-type"], input_tokens=1, family=of)
    for part in parts:
        scanner.feed(part)
    return scanner.outcome()


async def served(models: LocalModels) -> Usage:
    entry = (await models.journal.entries(wait=1))[-1]
    return Usage(**entry["served"])


@pytest.mark.parametrize("case", INPUTS)
async def test_the_estimate_of_an_input_is_never_below_what_is_reported(models: LocalModels, case: Case) -> None:
    path, fields = case
    call = ADAPTERS[path].parse(orjson.dumps(fields), {"anthropic-version": "2023-06-01"})
    estimate = Counter().count(call.prompt, family(call.model))
    await exchange(models, case, "output=20", stream=False)
    reported = (await served(models)).input_total
    assert 0 < reported <= estimate


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize(
    "simulate",
    ["output=40", "cached=300,cache_write=20,cache_write_1h=7,output=40", "reasoning=30,output=80", "tool,output=60",
     "usage=zero"],
)  # fmt: skip
async def test_a_whole_answer_is_read_exactly_as_it_was_served(
    models: LocalModels, case: Case, simulate: str, stream: bool
) -> None:
    answer, parts = await exchange(models, case, simulate, stream=stream)
    expected = Usage() if "zero" in simulate else await served(models)
    assert outcome(case, answer, parts, stream=stream) == Exact(expected)


def carries_text(event: bytes) -> bool:
    """Whether an event is one of the chunks that the steering asked for."""
    return (
        b'"text_delta"' in event
        or b'"response.output_text.delta"' in event
        or (b'"delta":{"content":"' in event and b'"role"' not in event)
    )


@pytest.mark.parametrize("case", STREAMS)
async def test_a_cut_stream_is_counted_within_one_chunk_at_every_event(models: LocalModels, case: Case) -> None:
    """The law of the gateway's ``cut`` policy, without a gateway in between."""
    answer, parts = await exchange(models, case, f"events=30,chunk={CHUNK}", stream=True)
    final = await served(models)
    for cut in range(len(parts) + 1):
        known = outcome(case, answer, parts[:cut], stream=True)
        if cut == 0:
            assert known == NotServed()
            continue
        assert isinstance(known, AtLeast) or known == Exact(final)
        produced = sum(map(carries_text, parts[:cut])) * CHUNK
        assert abs(known.usage.output - produced) <= CHUNK


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("stream", [False, True])
async def test_missing_usage_is_counted_from_the_text(models: LocalModels, case: Case, stream: bool) -> None:
    answer, parts = await exchange(models, case, "output=50,usage=missing", stream=stream)
    known = outcome(case, answer, parts, stream=stream)
    assert isinstance(known, AtLeast)
    assert abs(known.usage.output - (await served(models)).output) <= 2
