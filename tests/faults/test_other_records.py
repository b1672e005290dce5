"""When a partition's record is another one, every worker with live holds there learns of it with its next beat, whoever
made it and whatever was settled meanwhile; nobody is told of a change where there was none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from gateway.quota.holds import Holds
from limits.client import connect
from limits.engine import Engine
from limits.model import Hold, PartitionState, Settled, Stale
from tests.support import servers
from tests.support.bills import usage_rows
from tests.support.calls import ANTHROPIC
from tests.support.clients import PATIENT
from tests.support.gateways import Local
from tests.support.lab import ACCOUNT, Lab, wallet


@dataclass(slots=True)
class Beats:
    """An engine that remembers what a worker's beats carried."""

    engine: Engine
    sent: list[set[str]] = field(default_factory=list)

    def partition(self, account: str) -> int:
        return self.engine.partition(account)

    async def renew(self, partition: int, holds: Sequence[Hold]) -> PartitionState:
        self.sent.append({hold.hold_id for hold in holds})
        return await self.engine.renew(partition, holds)


class Worker:
    """A worker's live holds, and how it settles: as the quota service does."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.beats, self.told = lab, Beats(lab.engine), list[str]()
        self.holds = Holds(self.beats)  # type: ignore[arg-type]
        self.holds.on_other_record = lambda: self.told.append("another record")

    async def take(self, count: int) -> list[Hold]:
        taken = [await self.lab.reserved(wallet(10)) for _ in range(count)]
        for each in taken:
            self.holds.add(each.hold)
            self.holds.saw_record(0, each.record)
        return [each.hold for each in taken]

    async def settle(self, hold: Hold) -> bool:
        self.holds.remove(hold)
        settled = await self.lab.engine.settle(hold, self.lab.charge(hold, 5))
        if not settled.known:
            self.holds.saw_record(0, settled.record)
        return settled.known


@pytest.fixture(params=["shared_valkey", "shared_redis7"])
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    server: servers.RedisServer = request.getfixturevalue(request.param)
    server.command("FLUSHALL")
    client = connect(server.url, timing=PATIENT)
    yield Lab(client)
    await client.close()


async def by_a_load(lab: Lab) -> None:
    """Another worker's reserve, then its load."""
    answer = await lab.ask(wallet(1))
    assert isinstance(answer, Stale) and await lab.load(answer.ticket)


async def by_a_beat(lab: Lab) -> None:
    await lab.engine.renew(0, ())


async def by_a_sweep(lab: Lab) -> None:
    await lab.engine.sweep(0, count=1)


async def by_nobody_yet(lab: Lab) -> None:
    pass


MAKERS = (by_a_load, by_a_beat, by_a_sweep, by_nobody_yet)


@pytest.mark.parametrize("made", MAKERS, ids=lambda made: str(made.__name__))
@pytest.mark.parametrize("data_is_lost", [True, False])
@pytest.mark.parametrize("settles", [0, 2])
async def test_every_worker_re_asserts_with_its_next_beat(
    lab: Lab, made: Callable[[Lab], Any], data_is_lost: bool, settles: int
) -> None:
    await lab.ready(1_000)
    workers = [Worker(lab) for _ in range(2)]
    taken = [await worker.take(5) for worker in workers]
    for worker in workers:
        await worker.holds.beat()
    assert [worker.beats.sent for worker in workers] == [[set()], [set()]]
    lab.advance(1)  # or the new record would be the old one's twin
    if data_is_lost:
        await lab.client.execute("FLUSHALL")
    else:
        await lab.promote()
    await made(lab)
    for index in range(settles):
        assert await workers[0].settle(taken[0].pop(index)) is not data_is_lost
    for worker, holds in zip(workers, taken, strict=True):
        await worker.holds.beat()
        assert worker.beats.sent[-1] == {hold.hold_id for hold in holds}
        assert worker.told == ["another record"] and not worker.holds.stale
    opened = {hold.hold_id for hold in await lab.engine.open_holds(ACCOUNT)}
    assert opened == {hold.hold_id for holds in taken for hold in holds}
    for worker in workers:
        await worker.holds.beat()
        assert worker.beats.sent[-1] == set() and len(worker.told) == 1


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_call_that_ends_tells_of_another_record_only_where_redis_forgot_its_hold(
    gateway: Local, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    key, account = await gateway.account("drain")
    quota, client = gateway.worker.gateway.quota, gateway.worker.client
    told: list[str] = []
    settle = quota._engine.settle

    async def after_a_loss(*args: Any, **options: Any) -> Settled:
        if forgets:
            await client.execute("FLUSHALL")
        return await settle(*args, **options)

    monkeypatch.setattr(quota._engine, "settle", after_a_loss)
    monkeypatch.setattr(quota.holds, "on_other_record", lambda: told.append("another record"))
    request = {"json": ANTHROPIC.body(), "headers": ANTHROPIC.headers(key)}
    async with aiohttp.ClientSession() as session, session.post(gateway.url + ANTHROPIC.path, **request) as answer:
        assert answer.status == 200
    await gateway.settled()
    assert told == ["another record"] * forgets
    assert len(await usage_rows(gateway, account.id)) == 1
