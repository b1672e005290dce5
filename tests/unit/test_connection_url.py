"""Redis URLs: what they mean, and what servers behind them say; credentials, TLS, and errors by name."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest

from limits.client import Script, Timing, connect
from limits.cluster import ClusterClient
from limits.connection import NodeClient
from limits.errors import EngineUnavailable, ScriptRejected
from limits.resp import error_of
from tests.support.clients import client_of
from tests.support.processes import eventually, free_port
from tests.support.servers import RedisServer, redis7, valkey

TLS = Path(__file__).parents[1] / "data" / "tls"


async def failure(awaitable: Any) -> EngineUnavailable:
    with pytest.raises(EngineUnavailable) as caught:
        await awaitable
    return caught.value


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", "localhost:6379"),
        ("redis://h:1", "h:1"),
        ("redis://[::1]:7", "::1:7"),
        ("unix:///a/b.sock?db=2", "/a/b.sock"),
        ("unix:///a%20b", "/a b"),
        ("rediss://u:p@h:1/3?ssl_cert_reqs=none", "h:1"),
    ],
)
def test_a_url_names_one_server(url: str, expected: str) -> None:
    client = connect(url)
    assert isinstance(client, NodeClient)
    assert str(client._node.address) == expected


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("redis+cluster://a:1,b:2,c", [("a", 1), ("b", 2), ("c", 6379)]),
        ("rediss+cluster://u:p@a:1,[::1]:2", [("a", 1), ("::1", 2)]),
    ],
)
def test_a_cluster_url_names_its_seeds(url: str, places: list[tuple[str, int]]) -> None:
    client = connect(url)
    assert isinstance(client, ClusterClient)
    assert [(seed.host, seed.port) for seed in client._seeds] == places
    assert all((seed.tls is not None) == url.startswith("rediss") for seed in client._seeds)


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@h",
        "redis://:s3cret@h:port",
        "redis://:s3cret@h/zero",
        "redis://:s3cret@a,b",
        "redis://:s3cret@h?retry=yes",
        "redis+cluster://:s3cret@h/1",
        "unix://?db=1",
        "redis://h:99999",
        "",
    ],
)
def test_a_url_without_sense_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        connect(url)
    assert "s3cret" not in str(caught.value)


def test_credentials_are_never_shown() -> None:
    client = connect("redis://user:s3cret@h:1")
    assert isinstance(client, NodeClient)
    assert "s3cret" not in repr(client._node.address) + str(client._node.address)


async def test_password_user_and_database_are_used() -> None:
    with valkey(tcp=True, extra=("--user", "app", "on", ">w0rd", "~*", "+@all")) as server:
        server.command("CONFIG", "SET", "requirepass", "p@ss/word")
        place = f"127.0.0.1:{server.port}"
        async with client_of(f"redis://:p%40ss%2Fword@{place}/3") as client:
            await client.execute("SET", "who", "default")
        async with client_of(f"redis://app:w0rd@{place}/3") as client:
            assert await client.execute("GET", "who") == b"default"
        async with client_of(f"unix://app:w0rd@{server.socket_path}?db=3") as client:
            assert await client.execute("GET", "who") == b"default"
        for wrong in (f"redis://:wrong@{place}", f"redis://{place}", f"redis://app:w0rd@{place}/99"):
            async with client_of(wrong) as client:
                error = await failure(client.execute("PING"))
                assert not error.sent
                assert "w0rd" not in str(error)


@pytest.fixture(scope="module")
def tls_server() -> Iterator[tuple[RedisServer, int]]:
    port = free_port()
    files = ("--tls-cert-file", TLS / "server.pem", "--tls-key-file", TLS / "server.key")
    checks = ("--tls-ca-cert-file", TLS / "server.pem", "--tls-auth-clients", "no")
    with redis7(extra=[str(part) for part in ("--tls-port", port, *files, *checks)]) as server:
        yield server, port


async def test_tls_is_verified_unless_told_not_to(tls_server: tuple[RedisServer, int]) -> None:
    _, port = tls_server
    good = f"ssl_ca_certs={TLS / 'server.pem'}"
    for url in (f"localhost:{port}?{good}", f"127.0.0.1:{port}?{good}", f"127.0.0.1:{port}?ssl_cert_reqs=none"):
        async with client_of(f"rediss://{url}") as client:
            assert await client.execute("PING") == b"PONG"
            big = await client.evalsha(Script.of("big", b"return ARGV[1]"), [b"k"], [b"x" * 300_000])
            assert len(big) == 300_000
    for url in (f"rediss://127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):
        async with client_of(url) as client:
            assert not (await failure(client.execute("PING"))).sent


@pytest.mark.parametrize(
    ("reply", "sent"),
    [
        # Nothing ran.
        ("LOADING Redis is loading the dataset in memory", False),
        ("BUSY Redis is busy running a script", False),
        ("CLUSTERDOWN Hash slot not served", False),
        ("MASTERDOWN Link with MASTER is down", False),
        ("TRYAGAIN Multiple keys request during rehashing of slot", False),
        ("NOAUTH Authentication required.", False),
        ("NOPERM this user has no permissions", False),
        # An earlier write of the same script may stand.
        ("NOPERM this user has no permissions script: abc, on @user_script:1.", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("MISCONF Redis is configured to save RDB snapshots", True),
        ("READONLY You can't write against a read only replica.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
    ],
)
def test_a_servers_trouble_is_unavailability(reply: str, sent: bool) -> None:
    error = error_of(hiredis.ReplyError(reply))
    assert isinstance(error, EngineUnavailable)
    assert error.sent is sent


@pytest.mark.parametrize(
    "reply",
    ["ERR amount is not an integer", "WRONGTYPE Operation against a key", "NOSCRIPT No matching script", "X", ""],
)
def test_everything_else_is_a_mistake_of_ours(reply: str) -> None:
    assert isinstance(error_of(hiredis.ReplyError(reply)), ScriptRejected)


async def test_a_full_server_and_a_replica_are_unavailable_and_reads_go_on() -> None:
    write = Script.of("write", b"#!lua\nreturn redis.call('SET', KEYS[1], ARGV[1])")
    with valkey(extra=("--maxmemory", "1")) as server:
        async with client_of(server.url) as client:
            assert "OOM" in str(await failure(client.evalsha(write, [b"a"], [b"1"])))
            assert await client.execute("GET", "a") is None
    with valkey(extra=("--replicaof", "127.0.0.1 1")) as server:
        async with client_of(server.url) as client:
            await failure(client.evalsha(write, [b"a"], [b"1"]))

            async def answers() -> bool:
                with contextlib.suppress(EngineUnavailable):
                    return bool(await client.execute("PING") == b"PONG")
                return False

            await eventually(answers, what="connected again, perhaps to a master")


async def test_a_script_that_never_ends_is_busy_for_the_others() -> None:
    forever = Script.of("forever", b"while true do end")
    with valkey(extra=("--busy-reply-threshold", "50")) as server:
        async with client_of(server.url) as first, client_of(server.url, timing=Timing()) as second:
            running = asyncio.create_task(first.evalsha(forever, [b"k"], []))

            async def busy() -> bool:
                with contextlib.suppress(EngineUnavailable):
                    await second.execute("GET", "k", timeout_s=5)
                    return False
                return "BUSY" in str(await failure(second.execute("GET", "k", timeout_s=5)))

            await eventually(busy, what="the server says BUSY")
            assert not (await failure(second.execute("GET", "k", timeout_s=5))).sent
            await second.execute("SCRIPT", "KILL", timeout_s=5)
            with pytest.raises(ScriptRejected):
                await running
            assert await second.execute("PING", timeout_s=5) == b"PONG"
