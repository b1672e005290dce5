"""An upstream that fails within its answer: no second try, an error in the dialect's words or a broken connection, and
a charge for what was produced."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import anthropic
import openai
import orjson
import pytest

from tests.support.bills import STEPS, assert_settled_to, balance, tokens_served, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, RESPONSES, Dialect
from tests.support.gateways import Local
from tests.support.simulators import LocalModels, anthropic_client, openai_client
from tests.support.sockets import Broken, connection
from tests.support.tuning import set_upstream, tune
from tests.support.upstreams import scripted

EVENTS = 30
CHUNK_TOKENS = 4
STREAM = f"events={EVENTS} chunk={CHUNK_TOKENS}"


async def read_all(gateway: Local, request: bytes) -> tuple[str, bytes, bool]:
    """(the call's id, what came of the body, whether it ended in order)."""
    async with connection(gateway.url) as client:
        client.send(request)
        answer = await client.head()
        assert answer.status == 200
        try:
            await client.rest()
        except Broken:
            return answer.headers["tollgate-request-id"], bytes(answer.body), False
        return answer.headers["tollgate-request-id"], bytes(answer.body), True


def last_event(dialect: Dialect, body: bytes) -> Any:
    """The last event's data; an error of ours is named as one."""
    name, _, data = body.rstrip(b"\n").rpartition(b"\n\n")[2].rpartition(b"data: ")
    content = orjson.loads(data)
    if "error" in content and dialect is not CHAT:
        assert name == b"event: error\n"
    return content


async def rows_of(gateway: Local, account_id: str) -> dict[str, dict[str, Any]]:
    await gateway.settled()
    return {row["hold_id"]: row for row in await usage_rows(gateway, account_id)}


async def at_rest(gateway: Local, account_id: str) -> None:
    await gateway.settled()
    rows = await usage_rows(gateway, account_id)
    await assert_settled_to(gateway, account_id, sum(row["charged"] for row in rows))
    assert (await balance(gateway, account_id)).holds_open == 0 and not gateway.worker.gateway.open


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_silence_after_any_event_is_told_in_the_dialects_words_and_charged_as_produced(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    tune(gateway, idle_s=1.0)

    def request(steering: str) -> bytes:
        return dialect.request(key, dialect.body(f"{STREAM} {steering}", stream=True))

    _, whole, _ = await read_all(gateway, request("tag=whole"))
    total = whole.count(b"\n\n")
    found = await asyncio.gather(
        *(read_all(gateway, request(f"tag=silent-{index} stall={index}")) for index in range(total))
    )
    rows = await rows_of(gateway, account.id)
    for index, (hold_id, body, in_order) in enumerate(found):
        (entry,) = await models.journal.ended(f"silent-{index}")
        at = f"after event {index}: {entry}"
        assert in_order and body.count(b"\n\n") == index + 1 and body.endswith(b"\n\n"), at
        told = last_event(dialect, body)
        assert told["error"]["tollgate"]["reason"] == "upstream_timeout", at
        if dialect is RESPONSES:
            assert (told["type"], told["sequence_number"], told["code"]) == ("error", index, "upstream_timeout"), at
        row = rows.get(hold_id)
        if index == 0:
            assert row is None, "nothing was served"
            continue
        assert row is not None and row["end"] == "upstream_error", at
        assert abs(row["output"] - entry["served"]["output"]) <= CHUNK_TOKENS, at
        assert row["charged"] == (row["input"] + row["output"]) * STEPS > 0, at
    await at_rest(gateway, account.id)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_reset_after_any_event_is_charged_between_what_the_client_saw_and_what_was_produced(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """A reset destroys what was on its way, as networks do."""
    key, account = await gateway.account("drain")

    def request(steering: str) -> bytes:
        return dialect.request(key, dialect.body(f"{STREAM} {steering}", stream=True))

    found = await asyncio.gather(
        *(read_all(gateway, request(f"tag=reset-{index} reset=within:{index}")) for index in range(EVENTS))
    )
    rows = await rows_of(gateway, account.id)
    for index, (hold_id, body, in_order) in enumerate(found):
        (entry,) = await models.journal.ended(f"reset-{index}")
        at = f"after event {index}: {entry}"
        assert in_order and 1 <= body.count(b"\n\n") <= index + 1, at
        assert last_event(dialect, body)["error"]["tollgate"]["reason"] == "upstream_interrupted", at
        row = rows.get(hold_id)
        output = row["output"] if row is not None else 0
        content = max(0, body.count(b"\n\n") - 1 - 5)  # without our error and framing
        assert content * CHUNK_TOKENS <= output <= entry["served"]["output"] + CHUNK_TOKENS, at
        assert row is None or row["charged"] == (row["input"] + row["output"]) * STEPS > 0, at
    await at_rest(gateway, account.id)


WITHIN = [
    # (steering, reason of our error event; None = the stream ends as the upstream ended it)
    ("stall=8", "upstream_timeout"),
    ("truncate=8", "upstream_interrupted"),
    ("truncate=0", "upstream_interrupted"),
    ("reset=headers", "upstream_interrupted"),
    ("error_event=8", None),
    ("usage=missing", None),
    ("usage=zero", None),
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_stream_with_a_fault_in_it_is_told_truly_and_charged_as_produced(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    tune(gateway, idle_s=0.3)
    for steering, reason in WITHIN:
        tag = steering.replace("=", "-")
        body = dialect.body(f"{STREAM} tag={tag} {steering}", stream=True)
        hold_id, received, in_order = await read_all(gateway, dialect.request(key, body))
        (entry,) = await models.journal.ended(tag)
        at = f"{steering}: {entry}"
        assert received.endswith(b"\n\n"), at
        ours = [line for line in received.split(b"\n") if b'"tollgate"' in line]
        assert len(ours) == (reason is not None), at
        if reason is not None:
            assert in_order and last_event(dialect, received)["error"]["tollgate"]["reason"] == reason, at
        row = (await rows_of(gateway, account.id)).get(hold_id)
        served = entry["served"]
        if steering == "usage=zero":
            assert row is not None and (row["charged"], row["basis"]) == (0, "provider"), "a reported 0 stays 0"
        elif not served["input"] and not served["output"]:
            assert row is None or row["output"] == 0, at  # half of the first event is an input that was read
        else:
            assert row is not None and row["charged"] > 0, at
            assert abs(row["output"] - served["output"]) <= CHUNK_TOKENS, at
            assert row["basis"] in ("counted", "estimated", "provider"), at
            assert (row["end"] == "complete") is (steering == "usage=missing"), at
    await at_rest(gateway, account.id)


async def test_anthropics_sdk_raises_what_a_broken_stream_says(gateway: Local) -> None:
    key = await gateway.key("drain")
    async with anthropic_client(gateway.url, key=key) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with client.messages.stream(**ANTHROPIC.body(f"{STREAM} reset=within:9")) as stream:
                await stream.get_final_message()
    assert caught.value.body["error"]["tollgate"]["reason"] == "upstream_interrupted"  # type: ignore[index]


@pytest.mark.parametrize("dialect", [CHAT, RESPONSES], ids=str)
async def test_openais_sdk_raises_what_a_broken_stream_says(dialect: Dialect, gateway: Local) -> None:
    key = await gateway.key("drain")
    body = dialect.body(f"{STREAM} reset=within:9", stream=True)
    async with openai_client(gateway.url, key=key) as client:
        make = client.chat.completions.create if dialect is CHAT else client.responses.create
        with pytest.raises(openai.APIError) as caught:
            async for _ in await make(**body):
                pass
    assert caught.value.code == "upstream_interrupted"


JSON_FAULTS = [
    # (steering, status, reason)
    ("reset=within:1", 502, "upstream_interrupted"),
    ("stall=1", 504, "upstream_timeout"),
    ("truncate=1", 502, "upstream_interrupted"),
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_half_a_json_answer_is_an_error_and_is_charged_as_produced(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """The client gets no half of an answer that says 200."""
    key, account = await gateway.account("drain")
    tune(gateway, idle_s=0.3)
    for number, (steering, status, reason) in enumerate(JSON_FAULTS):
        async with connection(gateway.url) as client:
            client.send(dialect.request(key, dialect.body(f"output=60 tag=half-{number} {steering}")))
            answer = await client.head()
            body = orjson.loads(await client.rest())
        assert (answer.status, dialect.error_code(body)) == (status, reason), steering
        await models.journal.ended(f"half-{number}")
    rows = await rows_of(gateway, account.id)
    assert len(rows) == len(JSON_FAULTS) and all(row["charged"] > 0 for row in rows.values())
    assert {row["basis"] for row in rows.values()} <= {"counted", "estimated"}
    await at_rest(gateway, account.id)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_reported_zero_of_a_json_answer_stays_zero_and_a_missing_usage_does_not_become_zero(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    charges = {}
    for usage in ("zero", "missing"):
        async with connection(gateway.url) as client:
            client.send(dialect.request(key, dialect.body(f"output=60 usage={usage}")))
            answer = await client.head()
            await client.rest()
        charges[usage] = (await rows_of(gateway, account.id))[answer.headers["tollgate-request-id"]]
        assert answer.headers["tollgate-charged"] == str(charges[usage]["charged"] // STEPS)
    assert (charges["zero"]["charged"], charges["zero"]["basis"]) == (0, "provider")
    assert charges["missing"]["charged"] >= 60 * STEPS and charges["missing"]["basis"] == "counted"
    await at_rest(gateway, account.id)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_line_of_50_mb_passes_through_in_little_memory(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    size = 50_000_000
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with connection(gateway.url) as client:
        client.send(dialect.request(key, dialect.body(f"output=40 tag=giant giant={size}", stream=True)))
        await client.head()
        received = 0
        while piece := await client.piece():
            received += len(piece)
            client.forget()
    assert received > size
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown_kb < 16 * 1024, f"{grown_kb} KB"
    (entry,) = await models.journal.ended("giant")
    assert entry["end"] == "finished"
    await assert_settled_to(gateway, account.id, tokens_served(entry) * STEPS)


@pytest.mark.parametrize("words", [30_000, 200_000])
async def test_a_break_within_a_giant_event_is_a_broken_connection(words: int, gateway: Local) -> None:
    """The client has its beginning already: nothing of ours may be written into it. What it got is charged."""
    key, account = await gateway.account("drain")
    text = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"word " * words
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999999\r\n\r\n"
    async with scripted(head + text, then_close=True) as upstream:
        set_upstream(gateway, "openai", url=upstream.url)
        hold_id, received, in_order = await read_all(gateway, CHAT.request(key, CHAT.body(stream=True)))
    assert not in_order and received == text
    row = (await rows_of(gateway, account.id))[hold_id]
    assert row["output"] >= words and (row["basis"], row["end"]) == ("estimated", "upstream_error")
    await at_rest(gateway, account.id)
