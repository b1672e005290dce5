"""The servers that tests stand on do what their names say."""

from __future__ import annotations

import time

import asyncpg

from tests.support.postgres import Postgres, postgres
from tests.support.processes import alive
from tests.support.servers import Cluster, RedisServer, redis7, valkey


def test_valkey_with_aof_keeps_its_data_over_kill9() -> None:
    with valkey(aof=True) as server:
        server.command("SET", "a", "1")
        before = server.pid
        server.restart()
        assert server.command("GET", "a") == b"1"
        assert not alive(before)


def test_valkey_without_aof_forgets_over_kill9() -> None:
    with valkey() as server:
        server.command("SET", "a", "1")
        server.restart()
        assert server.command("GET", "a") is None


def test_redis7_is_the_oldest_engine_promised(shared_redis7: RedisServer) -> None:
    assert shared_redis7.info("server")["redis_version"].startswith("7.0.")


def test_a_server_on_a_port_answers_on_it() -> None:
    with redis7(tcp=True) as server:
        assert server.url == f"redis://127.0.0.1:{server.port}"
        assert server.info("server")["tcp_port"] == str(server.port)


def test_each_cluster_node_serves_a_third_and_a_slot_can_be_moved(shared_cluster: Cluster) -> None:
    shared_cluster.wait_ok()
    slot = 42
    source = shared_cluster.owner(slot)
    target = next(node for node in shared_cluster.masters if node is not source)
    for one, other in ((source, target), (target, source)):
        shared_cluster.begin_move(slot, source=one, target=other)
        shared_cluster.move_keys(slot, source=one, target=other)
        shared_cluster.end_move(slot, target=other)
        assert other.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        assert shared_cluster.owner(slot) is other


async def test_postgres_takes_queries_from_asyncpg(postgres_url: str, shared_postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres_url)
    assert (await connection.fetchval("SHOW server_version")).startswith("18.")
    await connection.close()


def test_postgres_recovers_after_kill9() -> None:
    with postgres(durable=True) as server:
        server.psql("CREATE TABLE t AS SELECT 7 AS n")
        started = time.monotonic()
        server.restart()
        assert server.psql("SELECT n FROM t") == "7"
        assert time.monotonic() - started < 15
