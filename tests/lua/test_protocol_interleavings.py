"""The charge protocol in simulated interleavings, with every fault of its model check, on the oracle and on servers.

Promises at the end of every run: who was served is billed once, for what was used, unless Redis lost the charge and its
worker died before the commit; who wasn't served pays nothing; Redis and SQL differ by 0; nothing is left behind.
``TOLLGATE_RUNS=100000`` looks further.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from limits import keys
from limits.client import connect
from limits.engine import Engine
from limits.oracle import Oracle
from tests.support import servers
from tests.support.clients import PATIENT
from tests.support.interleaving import ACCOUNTS, BASE_MS, World

RUNS = int(os.environ.get("TOLLGATE_RUNS", "0"))
OPTIONS = {"partitions": 1, "reassert_wait_ms": 1_000, "amnesty_ms": 20_000}


class OracleRedis:
    """The oracle as the Redis of a world."""

    def __init__(self) -> None:
        self.oracle = Oracle(now_ms=BASE_MS, **OPTIONS)
        self._incarnations = 0

    @property
    def now_ms(self) -> int:
        return self.oracle.now_ms

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self.oracle.now_ms = now_ms

    def call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        try:
            getattr(self.oracle, verb)(*args, **kwargs).send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("the oracle never waits")

    def save(self) -> object:
        return copy.deepcopy((self.oracle.accounts, self.oracle.places))

    def restore(self, saved: object) -> None:
        self.oracle.accounts, self.oracle.places = copy.deepcopy(saved)  # type: ignore[misc]
        self._incarnations += 1
        self.oracle.restart(f"{self._incarnations:016x}")

    def flush(self) -> None:
        self.oracle.flush()


class ServerRedis:
    """An engine on a real server as the Redis of a world. Its data is saved and restored key by key."""

    def __init__(self, server: servers.RedisServer) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._client = connect(server.url, timing=PATIENT)
        self._engine = Engine(self._client, clock_ms=BASE_MS, **OPTIONS)
        self._now_ms = BASE_MS
        self._keys = [keys.outbox_key(0), keys.leases_key(0), *(keys.account_key(0, name) for name in ACCOUNTS)]

    @property
    def now_ms(self) -> int:
        return self._now_ms

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._engine.set_clock(still_ms=now_ms)

    def call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        return self._loop.run_until_complete(getattr(self._engine, verb)(*args, **kwargs))

    def _command(self, *args: Any) -> Any:
        return self._loop.run_until_complete(self._client.execute(*args))

    def save(self) -> object:
        return [self._command("DUMP", key) for key in self._keys]

    def restore(self, saved: object) -> None:
        self.flush()
        for key, value in zip(self._keys, saved, strict=True):  # type: ignore[call-overload]
            if value is not None:
                self._command("RESTORE", key, 0, value)
        self._command("REPLICAOF", "127.0.0.1", "1")  # leaving a master gives a new replication id,
        self._command("REPLICAOF", "NO", "ONE")  # as a restart or a promotion does

    def flush(self) -> None:
        self._command("FLUSHALL")

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


def explore(make: Callable[[], Any], seeds: range, *, data_loss: bool, faults: float) -> None:
    for seed in seeds:
        broken = World(make(), seed, data_loss=data_loss, faults=faults).run()
        assert not broken, f"seed {seed}: {broken}"


@pytest.mark.parametrize("part", range(4))
def test_no_interleaving_breaks_a_bill_though_redis_loses_data(part: int) -> None:
    count = RUNS or 40
    explore(OracleRedis, range(part * count, (part + 1) * count), data_loss=True, faults=0.15)


@pytest.mark.parametrize("part", range(2))
def test_no_interleaving_overspends_while_redis_keeps_its_data(part: int) -> None:
    """Replies lost, calls late, workers dead, SQL away: spent + held never exceeds what was granted."""
    count = RUNS or 40
    explore(OracleRedis, range(part * count, (part + 1) * count), data_loss=False, faults=0.3)


@pytest.fixture(params=["shared_valkey", "shared_redis7"])
def server_redis(request: pytest.FixtureRequest) -> Iterator[ServerRedis]:
    made = ServerRedis(request.getfixturevalue(request.param))
    yield made
    made.close()


def test_the_scripts_keep_the_bills_in_every_interleaving(server_redis: ServerRedis) -> None:
    def fresh() -> ServerRedis:
        server_redis.flush()
        return server_redis

    explore(fresh, range(12), data_loss=True, faults=0.15)
    explore(fresh, range(12, 24), data_loss=False, faults=0.3)
