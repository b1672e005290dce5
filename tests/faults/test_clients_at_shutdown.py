"""SIGTERM: answers finish within the grace time; what does not is ended with an error, settled and written."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from gateway import app
from tests.support.bills import STEPS, assert_settled_to, tokens_served, usage_rows
from tests.support.calls import CHAT, DIALECTS, Dialect
from tests.support.gateways import Local
from tests.support.processes import eventually
from tests.support.simulators import LocalModels
from tests.support.sockets import connection
from tests.support.tuning import tune


def short_grace(gateway: Local, grace_s: float) -> None:
    tune(gateway, grace_s=grace_s)
    gateway.worker.configure(gateway.worker.gateway.config)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_stream_that_outlasts_the_grace_time_ends_with_an_error_and_is_charged_as_produced(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    short_grace(gateway, 0.2)
    async with connection(gateway.url) as client, connection(gateway.url) as waiting:
        client.send(dialect.request(key, dialect.body("tag=long events=20 stall=9", stream=True)))
        await client.head()
        await client.events(9)
        waiting.send(dialect.request(key, dialect.body("tag=mute ttfb=60000", stream=True)))
        await eventually(lambda: models.models.journal.select(tag="mute"), what="the second call has arrived")
        async with asyncio.timeout(10):
            await app.finish(gateway.worker)
        body = await client.rest()
        last = body.split(b"\n\n")[-2]
        assert b"upstream_interrupted" in last and b"gateway is being stopped" in last
        assert (await waiting.head()).status == 502
        assert dialect.error_code(orjson.loads(await waiting.rest())) == "upstream_interrupted"
    (entry,) = await models.journal.ended("long")
    (row,) = await usage_rows(gateway, account.id)
    assert row["end"] == "shutdown" and row["output"] == entry["served"]["output"]
    await assert_settled_to(gateway, account.id, row["charged"])


async def test_answers_finish_within_the_grace_time(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("drain")

    async def call(number: int) -> bytes:
        async with connection(gateway.url) as client:
            client.send(CHAT.request(key, CHAT.body(f"tag=late events=20 delay={number}", stream=True)))
            await client.head()
            await client.events(1)
            begun.append(number)
            return await client.rest()

    begun: list[int] = []
    calls = [asyncio.create_task(call(number)) for number in range(10, 20)]
    await eventually(lambda: len(begun) == 10, what="all answers have begun")
    await app.finish(gateway.worker)
    assert all(body.endswith(b"data: [DONE]\n\n") for body in await asyncio.gather(*calls))
    entries = await models.journal.ended("late", count=10)
    await assert_settled_to(gateway, account.id, sum(tokens_served(entry) for entry in entries) * STEPS)


async def test_what_is_drained_for_a_client_that_left_is_settled_at_the_end_of_the_grace_time(
    gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("drain")
    short_grace(gateway, 0.2)
    async with connection(gateway.url) as client:
        client.send(CHAT.request(key, CHAT.body("tag=left events=20 stall=9", stream=True)))
        await client.head()
        await client.events(9)
        client.reset()
    await eventually(lambda: gateway.worker.gateway.drains == 1, what="the answer is drained")
    await app.finish(gateway.worker)
    (entry,) = await models.journal.ended("left")
    (row,) = await usage_rows(gateway, account.id)
    assert (row["end"], row["output"]) == ("client_left", entry["served"]["output"])
    await assert_settled_to(gateway, account.id, row["charged"])
