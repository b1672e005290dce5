"""A client that hangs up is charged for what was produced: all of it under ``drain``, what was sent under ``cut``.

The models' journal is the truth: what it handed over before it noticed that its peer was gone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.bills import STEPS, assert_settled_to, balance, tokens_served, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, Dialect
from tests.support.gateways import Local
from tests.support.processes import eventually
from tests.support.scrape import scrape
from tests.support.simulators import LocalModels
from tests.support.sockets import connection
from tests.support.tuning import set_upstream, tune
from tests.support.upstreams import scripted

EVENTS = 30  # of content; framing events come on top
CHUNK_TOKENS = 4


async def hang_up_after(gateway: Local, request: bytes, events: int) -> str:
    """Read so many events and leave with a RST; answers the call's id."""
    async with connection(gateway.url) as client:
        client.send(request)
        answer = await client.head()
        assert answer.status == 200
        assert await client.events(events) >= events
        client.reset()
        return answer.headers["tollgate-request-id"]


async def events_of(gateway: Local, request: bytes) -> int:
    """How many events the whole stream has."""
    async with connection(gateway.url) as client:
        client.send(request)
        return (await client.rest()).count(b"\n\n")


async def no_hold_is_left(gateway: Local, account_id: str, within_s: float = 1.0) -> None:
    async def gone() -> bool:
        return (await balance(gateway, account_id)).holds_open == 0

    await eventually(gone, what="the holds are gone", within_s=within_s)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_drained_hang_up_at_any_event_is_charged_what_the_model_served(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    body = dialect.body(f"tag=drain events={EVENTS} chunk={CHUNK_TOKENS} delay=2", stream=True)
    request = dialect.request(key, body)
    total = await events_of(gateway, request)
    assert total > EVENTS
    ids = await asyncio.gather(*(hang_up_after(gateway, request, index) for index in range(total)))
    entries = await models.journal.ended("drain", count=total + 1)
    await no_hold_is_left(gateway, account.id)
    served = {tokens_served(entry) for entry in entries}
    assert {entry["end"] for entry in entries} == {"finished"} and len(served) == 1
    await assert_settled_to(gateway, account.id, sum(tokens_served(entry) for entry in entries) * STEPS)
    rows = {row["hold_id"]: row for row in await usage_rows(gateway, account.id)}
    assert len(rows) == total + 1
    for index, hold_id in enumerate(ids):
        row = rows[hold_id]
        assert (row["charged"], row["basis"]) == (served.copy().pop() * STEPS, "provider"), f"after event {index}"
        assert row["end"] == "client_left" or index >= EVENTS, f"after event {index}"  # the end comes at once


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_cut_hang_up_at_any_event_is_charged_what_was_sent(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """The model waits after each event for the client to leave, so that nothing is under way when it does."""
    key, account = await gateway.account("cut")
    steering = f"events={EVENTS} chunk={CHUNK_TOKENS}"
    total = await events_of(gateway, dialect.request(key, dialect.body(f"{steering} tag=whole", stream=True)))

    def request(index: int) -> bytes:
        return dialect.request(key, dialect.body(f"{steering} tag=cut-{index} stall={index}", stream=True))

    ids = await asyncio.gather(*(hang_up_after(gateway, request(index), index) for index in range(total)))
    await no_hold_is_left(gateway, account.id)
    await gateway.settled()
    rows = {row["hold_id"]: row for row in await usage_rows(gateway, account.id)}
    assert len(rows) == total + 1
    for index, hold_id in enumerate(ids):
        (entry,) = await models.journal.ended(f"cut-{index}")
        row, served = rows[hold_id], entry["served"]
        at = f"after event {index}: {row} {entry}"
        assert (entry["end"], entry["events_served"]) == ("cut_by_client", index), at
        assert row["charged"] > 0, at
        assert row["charged"] == (row["input"] + row["output"]) * STEPS, at
        assert abs(row["output"] - served["output"]) <= CHUNK_TOKENS, at
        assert row["end"] == "client_left", at
    await at_rest(gateway, account.id)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_cut_in_full_flow_is_charged_between_what_the_client_saw_and_what_the_model_sent(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("cut")
    body = dialect.body(f"tag=flow events=200 chunk={CHUNK_TOKENS} delay=5", stream=True)
    hold_id = await hang_up_after(gateway, dialect.request(key, body), 20)
    (entry,) = await models.journal.ended("flow")
    assert entry["end"] == "cut_by_client"
    await at_rest(gateway, account.id)
    (row,) = await usage_rows(gateway, account.id)
    assert row["hold_id"] == hold_id
    assert (20 - 5) * CHUNK_TOKENS <= row["output"] <= entry["served"]["output"] + CHUNK_TOKENS
    assert row["charged"] == (row["input"] + row["output"]) * STEPS


@pytest.mark.parametrize("plan", ["drain", "cut"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_who_leaves_with_the_whole_answer_has_not_hung_up(
    dialect: Dialect, plan: str, gateway: Local, models: LocalModels
) -> None:
    """OpenAI's SDK closes at ``[DONE]``, which may be before the upstream has ended."""
    tune(gateway, drain_s=0.2)
    key, account = await gateway.account(plan)
    total = await events_of(gateway, dialect.request(key, dialect.body("tag=whole output=20", stream=True)))
    (whole,) = await models.journal.ended("whole")
    steering = f"tag=open output=20 stall={whole['events_served']}"
    await hang_up_after(gateway, dialect.request(key, dialect.body(steering, stream=True)), total)
    (entry,) = await models.journal.ended("open")
    await at_rest(gateway, account.id)
    rows = await usage_rows(gateway, account.id)
    assert [row["end"] for row in rows] == ["complete", "complete"]
    assert sum(row["charged"] for row in rows) == (tokens_served(whole) + tokens_served(entry)) * STEPS
    assert await statuses(gateway) == {"200": 2}
    assert not (await scrape(gateway)).series("tollgate_disconnects_total")


async def at_rest(gateway: Local, account_id: str) -> None:
    """Nothing held, nothing pending, and Redis = SQL = the rows; no drain goes on."""
    await no_hold_is_left(gateway, account_id)
    await gateway.settled()
    rows = await usage_rows(gateway, account_id)
    await assert_settled_to(gateway, account_id, sum(row["charged"] for row in rows))
    assert gateway.worker.gateway.drains == 0 and not gateway.worker.gateway.open


async def statuses(gateway: Local) -> dict[str, float]:
    """The metered calls by the status that the metrics know."""
    page = await scrape(gateway)
    return {labels[-1]: calls for labels, calls in page.series("tollgate_requests_total").items()}


async def reached(models: LocalModels, tag: str) -> None:
    """A model got the request."""
    await eventually(lambda: models.models.journal.select(tag=tag), what=f"the request tagged {tag} has arrived")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_drained_hang_up_before_the_first_byte_is_charged_the_whole_answer(
    dialect: Dialect, stream: bool, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    async with connection(gateway.url) as client:
        client.send(dialect.request(key, dialect.body("tag=early output=40 ttfb=150", stream=stream)))
        await reached(models, "early")
        client.reset()
        (entry,) = await models.journal.ended("early")
    assert entry["end"] == "finished"
    await at_rest(gateway, account.id)
    (row,) = await usage_rows(gateway, account.id)
    assert (row["charged"], row["basis"], row["end"]) == (tokens_served(entry) * STEPS, "provider", "client_left")
    assert await statuses(gateway) == {"499": 1}, "one call that nobody waited for"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_cut_hang_up_before_the_first_byte_is_charged_its_input(
    dialect: Dialect, stream: bool, gateway: Local, models: LocalModels
) -> None:
    """The provider has the request and bills at least what it read."""
    key, account = await gateway.account("cut")
    async with connection(gateway.url) as client:
        client.send(dialect.request(key, dialect.body("tag=early output=40 ttfb=60000", stream=stream)))
        await reached(models, "early")
        client.reset()
        (entry,) = await models.journal.ended("early")
    assert entry["end"] == "cut_by_client"
    await at_rest(gateway, account.id)
    (row,) = await usage_rows(gateway, account.id)
    assert (row["basis"], row["end"], row["output"]) == ("estimated", "client_left", 0)
    assert row["charged"] == row["input"] * STEPS > 0
    assert await statuses(gateway) == {"499": 1}, "one call that nobody waited for, and no error of ours"


async def test_a_cut_hang_up_while_an_upstreams_error_still_comes_owes_nothing(gateway: Local) -> None:
    """What answers with an error has billed nothing, though its request was sent."""
    key, account = await gateway.account("cut")

    async def is_refused() -> bool:
        return any(call.outgoing is not None and call.outgoing.refused for call in gateway.worker.gateway.open)

    async with scripted(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 1000\r\n\r\nand so on") as upstream:
        set_upstream(gateway, "anthropic", url=upstream.url)
        async with connection(gateway.url) as client:
            client.send(ANTHROPIC.request(key, ANTHROPIC.body("output=40")))
            await eventually(is_refused, what="the error begins", within_s=10)
            client.reset()
            await assert_settled_to(gateway, account.id, 0)
    assert not await usage_rows(gateway, account.id)


@pytest.mark.parametrize("plan", ["drain", "cut"])
async def test_a_client_that_left_before_its_call_was_sent_gets_none_and_owes_nothing(
    plan: str, gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, account = await gateway.account(plan)
    asked, gate = asyncio.Event(), asyncio.Event()
    admit = gateway.worker.gateway.quota.admit

    async def gated(ask: Any) -> Any:
        asked.set()
        await gate.wait()
        return await admit(ask)

    monkeypatch.setattr(gateway.worker.gateway.quota, "admit", gated)
    async with connection(gateway.url) as client:
        client.send(ANTHROPIC.request(key, ANTHROPIC.body("tag=never", stream=True)))
        await asked.wait()
        client.reset()
        await eventually(lambda: not gateway.connections(), what="the gateway has seen that the client left")
    gate.set()
    await gateway.settled()
    await at_rest(gateway, account.id)
    assert not await models.journal.entries()
    assert not await usage_rows(gateway, account.id)


async def test_a_client_that_closes_its_sending_side_counts_as_gone(gateway: Local, models: LocalModels) -> None:
    """So do nginx and most proxies: who needs the answer keeps its connection open."""
    key, account = await gateway.account("cut")
    async with connection(gateway.url) as client:
        client.send(CHAT.request(key, CHAT.body("tag=half events=30 stall=8", stream=True)))
        await client.head()
        await client.events(8)
        client.writer.write_eof()
        (entry,) = await models.journal.ended("half")
    assert entry["end"] == "cut_by_client"
    await at_rest(gateway, account.id)
    (row,) = await usage_rows(gateway, account.id)
    assert row["charged"] > 0 and abs(row["output"] - entry["served"]["output"]) <= CHUNK_TOKENS


async def test_a_drain_is_capped_in_time(gateway: Local, models: LocalModels) -> None:
    """What was produced by then is charged."""
    key, account = await gateway.account("drain")
    tune(gateway, drain_s=0.2)
    async with connection(gateway.url) as client:
        client.send(CHAT.request(key, CHAT.body("tag=slow events=30 stall=12", stream=True)))
        await client.head()
        await client.events(2)
        client.reset()
        (entry,) = await models.journal.ended("slow")
    assert entry["end"] == "cut_by_client" and entry["events_served"] == 12
    await at_rest(gateway, account.id)
    (row,) = await usage_rows(gateway, account.id)
    assert (row["basis"], row["end"], row["output"]) == ("counted", "client_left", entry["served"]["output"])


async def test_drains_are_capped_in_number(gateway: Local, models: LocalModels) -> None:
    """Who leaves when the cap is reached is cut."""
    key, account = await gateway.account("drain")
    gateway.worker.gateway.drains_max = 2

    async def leave() -> None:
        async with connection(gateway.url) as client:
            client.send(CHAT.request(key, CHAT.body("tag=many events=20 delay=30", stream=True)))
            await client.head()
            await client.events(2)
            client.reset()

    await asyncio.gather(*(leave() for _ in range(5)))
    entries = await models.journal.ended("many", count=5)
    assert sorted(entry["end"] for entry in entries) == ["cut_by_client"] * 3 + ["finished"] * 2
    await at_rest(gateway, account.id)
    assert all(row["charged"] > 0 for row in await usage_rows(gateway, account.id))


async def upstream_is_held_back(models: LocalModels, tag: str) -> dict[str, Any]:
    """Wait until the model can send no more; answers its entry. Model and gateway share this loop: what can go on in a
    turn does."""
    turns_still, before = 0, -1

    def still() -> bool:
        nonlocal turns_still, before
        now = sum(entry.bytes_served for entry in models.models.journal.select(tag=tag))
        turns_still = turns_still + 1 if now == before else 0
        before = now
        return now > 0 and turns_still >= 40

    await eventually(still, what="the upstream is held back")
    (entry,) = await models.journal.entries(tag=tag)
    return entry


async def test_a_client_that_never_reads_holds_its_upstream_back(gateway: Local, models: LocalModels) -> None:
    """Of 50 MB that wait for it, we hold at most 256 KB; most was never produced."""
    key, account = await gateway.account("cut")
    async with connection(gateway.url, receive_bytes=4096) as client:
        client.send(CHAT.request(key, CHAT.body("tag=deaf output=40 giant=50000000", stream=True)))
        entry = await upstream_is_held_back(models, "deaf")
        assert entry["end"] == "open" and entry["bytes_served"] < 20_000_000, "the kernel's own buffers"
        (exchange,) = gateway.worker.gateway.open
        (transport,) = gateway.connections()
        unread_bytes = exchange.forwarded.reply.unread_bytes  # type: ignore[attr-defined]
        assert unread_bytes + transport.get_write_buffer_size() <= 256 * 1024
        client.reset()
    await at_rest(gateway, account.id)
    (row,) = await usage_rows(gateway, account.id)
    assert row["charged"] > 0


async def test_a_client_that_takes_nothing_for_too_long_counts_as_gone(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("cut")
    gateway.worker.gateway.patience.send_s = 0.2
    async with connection(gateway.url, receive_bytes=4096) as client:
        client.send(CHAT.request(key, CHAT.body("tag=deaf output=40 giant=50000000", stream=True)))
        (entry,) = await models.journal.ended("deaf")
    assert entry["end"] == "cut_by_client"
    await at_rest(gateway, account.id)


async def test_a_slow_reader_is_not_an_idle_upstream(gateway: Local, models: LocalModels) -> None:
    """An upstream that waits for us has not gone silent: the answer comes whole, however slowly it is read."""
    key, account = await gateway.account("drain")
    tune(gateway, idle_s=0.1)
    loop = asyncio.get_running_loop()
    async with connection(gateway.url, receive_bytes=4096) as client:
        client.send(CHAT.request(key, CHAT.body("tag=slow output=40 giant=30000000", stream=True)))
        await upstream_is_held_back(models, "slow")
        patient_until_s = loop.time() + 0.35
        await eventually(lambda: loop.time() > patient_until_s, what="three idle times have passed")
        body = await client.rest()
    assert len(body) > 30_000_000 and body.endswith(b"data: [DONE]\n\n")
    (entry,) = await models.journal.ended("slow")
    await assert_settled_to(gateway, account.id, tokens_served(entry) * STEPS)
