"""The cluster client against three real masters: redirections are invisible, other slots never suffer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from limits.client import Client, Script, Timing, inspect
from limits.cluster import slot_of
from limits.connection import Link
from limits.errors import EngineUnavailable, ScriptRejected
from tests.support.clients import AT_ONCE_S, client_of
from tests.support.processes import eventually, free_port
from tests.support.servers import Cluster, RedisServer, cluster, valkey

COUNT = Script.of("count", b"return redis.call('INCR', KEYS[1])")
BOTH = Script.of("both", b"redis.call('INCR', KEYS[1]) return redis.call('INCR', KEYS[2])")
PARTITIONS = [b"{p%03d}" % number for number in range(256)]


@pytest.fixture
async def client(cluster_url: str) -> AsyncIterator[Client]:
    async with client_of(cluster_url) as made:
        yield made


def other(nodes: Cluster, node: RedisServer) -> RedisServer:
    return next(each for each in nodes.masters if each is not node)


@contextlib.contextmanager
def moving(nodes: Cluster, slot: int) -> Any:
    """The slot open for migration; at the end it has moved, and moved back."""
    source = nodes.owner(slot)
    target = other(nodes, source)
    nodes.begin_move(slot, source=source, target=target)
    try:
        yield source, target
    finally:
        nodes.move_keys(slot, source=source, target=target)
        nodes.end_move(slot, target=target)
        nodes.begin_move(slot, source=target, target=source)
        nodes.move_keys(slot, source=target, target=source)
        nodes.end_move(slot, target=source)


async def test_slots_are_those_of_the_servers(client: Client) -> None:
    for key in (b"a", b"{p017}:x", b"{}x", b"x{", b"{a}{b}", b"\xff\x00", b"foo{{bar}}zap"):
        assert await client.execute("CLUSTER", "KEYSLOT", key) == slot_of(key)


async def test_every_partition_is_reached_and_scripts_are_loaded_where_missing(
    client: Client, shared_cluster: Cluster
) -> None:
    for node in shared_cluster.masters:
        node.command("SCRIPT", "FLUSH")
    for expected in (1, 2):
        replies = await asyncio.gather(*(client.evalsha(COUNT, [tag + b"n"], []) for tag in PARTITIONS))
        assert replies == [expected] * 256
    assert [node.command("DBSIZE") > 50 for node in shared_cluster.masters] == [True] * 3
    assert client.up


async def test_commands_of_one_turn_leave_in_one_write_per_master(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(client.evalsha(COUNT, [tag + b"n"], []) for tag in PARTITIONS))
    writes: list[bytes] = []
    write = Link.write

    def recorded(link: Link, data: bytes) -> None:
        writes.append(data)
        write(link, data)

    monkeypatch.setattr(Link, "write", recorded)
    await asyncio.gather(*(client.evalsha(COUNT, [tag + b"n"], []) for tag in PARTITIONS))
    assert len(writes) == 3
    assert sum(data.count(b"EVALSHA") for data in writes) == 256


async def test_a_slot_that_moved_is_followed_and_remembered(client: Client, shared_cluster: Cluster) -> None:
    tag = PARTITIONS[1]
    slot = slot_of(tag)
    assert await client.evalsha(COUNT, [tag + b"n"], []) == 1
    with moving(shared_cluster, slot) as (source, target):
        shared_cluster.move_keys(slot, source=source, target=target)
        shared_cluster.end_move(slot, target=target)
        replies = await asyncio.gather(*(client.evalsha(COUNT, [tag + b"n"], []) for _ in range(10)))
        assert sorted(replies) == list(range(2, 12))
        moved = int(source.info("errorstats").get("errorstat_MOVED", "count=0").removeprefix("count="))
        await client.evalsha(COUNT, [tag + b"n"], [])
        again = int(source.info("errorstats").get("errorstat_MOVED", "count=0").removeprefix("count="))
        assert again == moved


async def test_a_slot_on_the_move_is_asked_at_its_target(client: Client, shared_cluster: Cluster) -> None:
    tag = PARTITIONS[2]
    slot = slot_of(tag)
    assert await client.evalsha(COUNT, [tag + b"n"], []) == 1
    with moving(shared_cluster, slot) as (source, target):
        target.command("SCRIPT", "FLUSH")  # ASK and NOSCRIPT together
        shared_cluster.move_keys(slot, source=source, target=target)
        assert await client.evalsha(COUNT, [tag + b"n"], []) == 2
        assert await client.execute("GET", tag + b"n", key=tag) == b"2"
        assert source.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0


async def test_a_half_moved_account_waits_until_its_move_is_over(client: Client, shared_cluster: Cluster) -> None:
    tag = PARTITIONS[3]
    slot = slot_of(tag)
    keys = [tag + b"a", tag + b"b"]
    assert await client.evalsha(BOTH, keys, []) == 1
    with moving(shared_cluster, slot) as (source, target):
        source.command("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        error = await refused(client.evalsha(BOTH, keys, [], timeout_s=0.05))
        assert not error.sent
        waiting = asyncio.create_task(client.evalsha(BOTH, keys, [], timeout_s=5))
        tried = tries(source)
        await eventually(lambda: tries(source) > tried, what="it is tried again")
        shared_cluster.move_keys(slot, source=source, target=target)
        assert await waiting == 2


def tries(node: RedisServer) -> int:
    return int(node.info("errorstats").get("errorstat_TRYAGAIN", "count=0").removeprefix("count="))


async def refused(awaitable: Any) -> EngineUnavailable:
    with pytest.raises(EngineUnavailable) as caught:
        await awaitable
    return caught.value


async def test_resharding_under_load_is_invisible(client: Client, shared_cluster: Cluster) -> None:
    tags = PARTITIONS[10:14]
    calls = Counter[bytes]()
    stop = asyncio.Event()

    async def load(tag: bytes) -> None:
        while not stop.is_set():
            await client.evalsha(BOTH, [tag + b"a", tag + b"b"], [], timeout_s=5)
            calls[tag] += 1

    async def more(tag: bytes) -> None:
        before = calls[tag]
        await eventually(lambda: calls[tag] >= before + 20, what="calls go on")

    loads = [asyncio.create_task(load(tag)) for tag in tags for _ in range(4)]
    for tag in tags:
        await more(tag)
        with moving(shared_cluster, slot_of(tag)) as (source, target):
            await asyncio.to_thread(shared_cluster.move_keys, slot_of(tag), source=source, target=target)
            await more(tag)
            await asyncio.to_thread(shared_cluster.end_move, slot_of(tag), target=target)
            await more(tag)
        await more(tag)
    stop.set()
    await asyncio.gather(*loads)
    for tag in tags:
        assert int(await client.execute("GET", tag + b"b", key=tag)) == calls[tag]


async def test_a_script_that_refuses_its_arguments_says_so(client: Client) -> None:
    script = Script.of("refuses", b"return redis.error_reply('ERR arity')")
    with pytest.raises(ScriptRejected, match="arity"):
        await client.evalsha(script, [PARTITIONS[0]], [])
    with pytest.raises(ScriptRejected, match="CROSSSLOT"):
        await client.evalsha(BOTH, [PARTITIONS[0], PARTITIONS[1]], [])


async def test_one_answering_seed_is_enough(shared_cluster: Cluster) -> None:
    shared_cluster.flush()
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{shared_cluster.masters[2].port}"
    async with client_of(url) as client:
        replies = await asyncio.gather(*(client.evalsha(COUNT, [tag], []) for tag in PARTITIONS))
        assert replies == [1] * 256
        assert (await inspect(client)).mode == "cluster"


async def test_a_cluster_that_is_not_there_is_refused_at_once() -> None:
    async with client_of(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}") as client:
        assert not (await refused(client.evalsha(COUNT, [b"x"], []))).sent
        started = time.monotonic()
        assert not (await refused(client.evalsha(COUNT, [b"x"], []))).sent
        assert time.monotonic() - started < AT_ONCE_S
        assert not client.up


async def test_a_server_that_is_no_cluster_says_so() -> None:
    with valkey(tcp=True) as server:
        async with client_of(f"redis+cluster://127.0.0.1:{server.port}") as client:
            assert "cluster support disabled" in str(await refused(client.evalsha(COUNT, [b"x"], [])))


async def test_a_failover_hurts_only_its_own_slots_and_heals_by_itself() -> None:
    """Three masters with a replica each; one master is killed, then another stopped without being killed."""
    with await asyncio.to_thread(lambda: cluster(replicas=1)) as nodes:
        async with client_of(nodes.url, timing=Timing(command_timeout_s=1.0)) as client:
            await asyncio.gather(*(client.evalsha(COUNT, [tag], []) for tag in PARTITIONS))
            for hurt, victim in zip(("kill9", "suspend"), nodes.masters, strict=False):
                owners = {tag: nodes.owner(slot_of(tag)) for tag in PARTITIONS}
                theirs = [tag for tag in PARTITIONS if owners[tag] is victim]
                others = [tag for tag in PARTITIONS if owners[tag] is not victim]
                getattr(victim, hurt)()
                await refused(client.evalsha(COUNT, [theirs[0]], []))
                started = time.monotonic()
                while not await healed(client, theirs[:4]):
                    await asyncio.gather(*(client.evalsha(COUNT, [tag], []) for tag in others[:8]))
                    assert time.monotonic() - started < 20
                await asyncio.gather(*(client.evalsha(COUNT, [tag], []) for tag in PARTITIONS))


async def healed(client: Client, tags: list[bytes]) -> bool:
    replies = await asyncio.gather(*(client.evalsha(COUNT, [tag], []) for tag in tags), return_exceptions=True)
    assert all(isinstance(reply, int | EngineUnavailable) for reply in replies), replies
    return all(isinstance(reply, int) for reply in replies)
