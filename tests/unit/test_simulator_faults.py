"""Faults of simulated models on the wire, and the journal at every cut: what a provider would bill there."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.providers.tokens import count_text, family
from tests.support.processes import eventually
from tests.support.simulators import LocalModels, in_process


@dataclass(frozen=True)
class Dialect:
    path: str
    body: dict[str, Any]
    end: bytes  # how the last event begins


MESSAGE = [{"role": "user", "content": "Tell me something long."}]
DIALECTS = {
    "anthropic": Dialect(
        "/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 4000, "messages": MESSAGE}, b"event: message_stop"
    ),
    "chat": Dialect("/v1/chat/completions", {"model": "gpt-5", "messages": MESSAGE}, b"data: [DONE]"),
    "responses": Dialect("/v1/responses", {"model": "gpt-5", "input": "Tell me more."}, b"event: response.completed"),
}
CUTS = (1, 2, 3, 4, 5, 9, 17, 29, 30)


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False, read_bufsize=2**18) as session:
        yield session


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return DIALECTS[request.param]


def post(
    http: aiohttp.ClientSession, models: LocalModels, dialect: Dialect, simulate: str, *, stream: bool = True
) -> Any:
    """A call with ``simulate`` as steering, tagged t."""
    headers = {"authorization": "Bearer sk", "anthropic-version": "2023-06-01", "x-simulate": f"{simulate},tag=t"}
    body = {**dialect.body, "stream": stream}
    return http.post(models.url + dialect.path, json=body, headers=headers, allow_redirects=False)


async def read_events(answer: aiohttp.ClientResponse, count: int) -> list[bytes]:
    """The first ``count`` events."""
    return [await answer.content.readuntil(b"\n\n") for _ in range(count)]


def text_of(events: list[bytes]) -> str:
    """The visible text of a stream's events, whatever their dialect."""
    text = ""
    for event in events:
        data = event.rpartition(b"data: ")[2].strip()
        if data in (b"[DONE]", b""):
            continue
        fields = orjson.loads(data)
        if fields.get("type") == "content_block_delta":
            text += fields["delta"]["text"]
        elif fields.get("type") == "response.output_text.delta":
            text += fields["delta"]
        elif fields.get("choices"):
            text += fields["choices"][0]["delta"].get("content", "")
    return text


def produced(dialect: Dialect, events: list[bytes]) -> int:
    of = family(dialect.body["model"])
    return of.scale(count_text(text_of(events), of.encoding))


async def entry_of(models: LocalModels) -> dict[str, Any]:
    (entry,) = await models.journal.ended("t")
    return entry


@pytest.mark.parametrize("cut", CUTS)
async def test_a_client_that_leaves_after_an_event_is_billed_what_was_produced_by_then(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect, cut: int
) -> None:
    async with post(http, models, dialect, f"events=40,stall={cut}") as answer:
        seen = await read_events(answer, cut)
        answer.close()
    entry = await entry_of(models)
    assert (entry["end"], entry["events_served"]) == ("cut_by_client", cut)
    assert entry["served"]["output"] == produced(dialect, seen) < entry["planned"]["output"]
    assert entry["served"]["input"] == entry["planned"]["input"] > 0
    assert entry["bytes_served"] == len(b"".join(seen))
    assert entry["served_sha256"] == sha256(b"".join(seen)).hexdigest()


async def test_a_client_that_leaves_between_slow_events_stops_the_model(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "events=2000,delay=5") as answer:
        await read_events(answer, 8)
        answer.close()
    entry = await entry_of(models)
    assert entry["end"] == "cut_by_client"
    assert 8 <= entry["events_served"] < 1000
    assert 0 < entry["served"]["output"] < entry["planned"]["output"]


async def test_a_client_that_leaves_before_the_first_byte_is_billed_nothing(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    call = asyncio.ensure_future(post(http, models, dialect, "ttfb=60000"))
    await eventually(lambda: models.models.journal.select(tag="t"), what="the request has arrived")
    call.cancel()
    entry = await entry_of(models)
    assert (entry["end"], entry["bytes_served"], entry["first_byte_at_ms"]) == ("cut_by_client", 0, None)
    assert entry["served"] == dict.fromkeys(entry["served"], 0)


async def test_a_whole_stream_is_billed_to_its_last_token(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "events=40") as answer:
        body = await answer.read()
    events = [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]
    entry = await entry_of(models)
    assert events[-1].startswith(dialect.end)
    assert (entry["end"], entry["events_served"]) == ("finished", len(events))
    assert entry["served"]["output"] == entry["planned"]["output"] == produced(dialect, events)
    assert entry["served_sha256"] == sha256(body).hexdigest()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reset_before_the_answer_bills_nothing(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect, stream: bool
) -> None:
    with pytest.raises(aiohttp.ClientConnectionError):
        await post(http, models, dialect, "reset=before", stream=stream)
    entry = await entry_of(models)
    assert (entry["end"], entry["status"], entry["served"]["input"]) == ("reset", 0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reset_after_the_headers_bills_nothing(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect, stream: bool
) -> None:
    async with post(http, models, dialect, "reset=headers", stream=stream) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    entry = await entry_of(models)
    assert (entry["end"], entry["status"], entry["bytes_served"]) == ("reset", 200, 0)
    assert entry["served"] == dict.fromkeys(entry["served"], 0)


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 20])
async def test_a_reset_within_the_stream_comes_after_whole_events(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect, cut: int
) -> None:
    async with post(http, models, dialect, f"events=40,reset=within:{cut}") as answer:
        seen = await read_events(answer, cut)
        with pytest.raises(aiohttp.ClientError):
            await answer.content.readany()
    entry = await entry_of(models)
    assert (entry["end"], entry["events_served"]) == ("reset", cut)
    assert entry["served"]["output"] == produced(dialect, seen)


async def test_a_reset_after_the_last_event_bills_the_whole_answer(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "events=3,reset=after") as answer:
        while not (await answer.content.readuntil(b"\n\n")).startswith(dialect.end):
            pass
        with pytest.raises(aiohttp.ClientError):
            await answer.content.readany()
    entry = await entry_of(models)
    assert (entry["end"], entry["served"]) == ("reset", entry["planned"])


async def test_a_reset_within_a_json_answer_comes_in_its_middle(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "reset=within:1", stream=False) as answer:
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    entry = await entry_of(models)
    assert entry["end"] == "reset"
    assert 0 < entry["bytes_served"] < int(answer.headers["content-length"])


@pytest.mark.parametrize("cut", [0, 1, 6])
async def test_a_truncated_stream_ends_in_order_within_a_line(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect, cut: int
) -> None:
    async with post(http, models, dialect, f"events=40,truncate={cut}") as answer:
        body = await answer.read()
    whole, _, rest = body.rpartition(b"\n\n")
    assert rest and not rest.endswith(b"\n")
    entry = await entry_of(models)
    assert (entry["end"], entry["events_served"]) == ("truncated", cut)
    assert entry["served"]["output"] == produced(dialect, [event + b"\n\n" for event in whole.split(b"\n\n")])


async def test_a_truncated_json_answer_does_not_parse(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "truncate=1", stream=False) as answer:
        body = await answer.read()
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(body)
    entry = await entry_of(models)
    assert (entry["end"], entry["bytes_served"]) == ("truncated", len(body))


async def test_an_error_event_ends_the_stream(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "events=40,error_event=6") as answer:
        body = await answer.read()
    events = [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]
    error = orjson.loads(events[-1].rpartition(b"data: ")[2])
    assert len(events) == 7 and error["error"]["message"]
    entry = await entry_of(models)
    assert (entry["end"], entry["events_served"]) == ("error_event", 7)
    assert entry["served"]["output"] == produced(dialect, events[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stall_ends_at_its_cap(http: aiohttp.ClientSession, dialect: Dialect, stream: bool) -> None:
    async with in_process(stall_max_s=0.05) as models:
        async with post(http, models, dialect, "stall=2", stream=stream) as answer:
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
        assert (await entry_of(models))["end"] == "stalled"


async def test_a_giant_line_is_one_line_of_that_size(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "giant=300000") as answer:
        body = await answer.read()
    assert max(len(line) for line in body.split(b"\n")) == 300_000 - len(b"event: padding\n") * (
        dialect.path == "/v1/messages"
    ) - len(b"event: response.output_text.delta\n") * (dialect.path == "/v1/responses")
    assert (await entry_of(models))["bytes_served"] == len(body)


async def test_a_giant_line_waits_for_its_reader(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "giant=100000000") as answer:
        await read_events(answer, 2)
        answer.close()
    entry = await entry_of(models)
    assert entry["end"] == "cut_by_client"
    assert entry["bytes_served"] < 50_000_000, "what nobody reads is not produced"


async def test_an_answer_can_be_compressed_though_nobody_asked(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "gzip=1000000", stream=False) as answer:
        packed = await answer.read()
        assert answer.headers["content-encoding"] == "gzip"
    body = gzip.decompress(packed)
    assert len(packed) < 10_000 < len(body) == 1_000_000
    assert orjson.loads(body)["usage"]


async def test_a_stream_can_be_compressed_event_by_event(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect
) -> None:
    async with post(http, models, dialect, "gzip=1") as answer:
        body = gzip.decompress(await answer.read())
    assert body.rstrip(b"\n").rpartition(b"\n\n")[2].startswith(dialect.end)
    assert (await entry_of(models))["served_sha256"] == sha256(body).hexdigest()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_redirect_points_at_a_place_where_it_would_be_seen(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect, stream: bool
) -> None:
    async with post(http, models, dialect, "redirect", stream=stream) as answer:
        location = answer.headers["location"]
    assert answer.status == 302 and location.startswith(f"{models.url}/redirected")
    assert (await entry_of(models))["end"] == "redirected"
    async with http.get(location) as followed:
        assert followed.status in (401, 404)
    assert [entry["route"] for entry in await models.journal.entries(wait=2)] == [dialect.path, "/redirected"]


@pytest.mark.parametrize(("simulate", "least_ms"), [("ttfb=80", 80), ("events=5,delay=20", 100)])
async def test_answers_take_their_time(
    models: LocalModels, http: aiohttp.ClientSession, dialect: Dialect, simulate: str, least_ms: int
) -> None:
    begin = time.monotonic()
    async with post(http, models, dialect, simulate) as answer:
        await answer.read()
    assert (time.monotonic() - begin) * 1000 >= least_ms
