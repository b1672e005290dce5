"""The engine's connection: order, coalescing, deadlines, and what callers learn when a server is away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from limits.client import Client, Script, Timing, inspect
from limits.connection import Link
from limits.errors import EngineUnavailable, ScriptRejected
from tests.support.clients import AT_ONCE_S, PATIENT, PATIENT_S, client_of
from tests.support.processes import eventually
from tests.support.proxy import proxied
from tests.support.servers import RedisServer, short_folder, valkey

ECHO = Script.of("echo", b"return {KEYS[1], ARGV[1]}")
COUNT = Script.of("count", b"return redis.call('INCR', KEYS[1])")


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Client]:
    async with client_of(valkey_url) as made:
        yield made


async def answers(client: Client) -> bool:
    with contextlib.suppress(EngineUnavailable):
        return bool(await client.execute("PING") == b"PONG")
    return False


async def failure(awaitable: Any) -> EngineUnavailable:
    with pytest.raises(EngineUnavailable) as caught:
        await awaitable
    return caught.value


# --- order and coalescing -----------------------------------------------------------------------------------------


async def test_arguments_of_every_type_arrive_as_bytes(client: Client) -> None:
    for argument, expected in (
        (b"\x00\r\n", b"\x00\r\n"),
        ("é", "é".encode()),
        (-7, b"-7"),
        (2**53, b"9007199254740992"),
    ):
        assert await client.evalsha(ECHO, [b"{p1}k"], [argument]) == [b"{p1}k", expected]


async def test_commands_of_one_turn_leave_in_one_write(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.evalsha(COUNT, [b"n"], [])
    writes: list[bytes] = []
    write = Link.write

    def recorded(link: Link, data: bytes) -> None:
        writes.append(data)
        write(link, data)

    monkeypatch.setattr(Link, "write", recorded)
    replies = await asyncio.gather(*(client.evalsha(COUNT, [b"n"], []) for _ in range(100)))
    assert replies == list(range(2, 102))
    assert len(writes) == 1
    assert writes[0].count(b"EVALSHA") == 100


async def test_replies_go_to_their_callers_in_order(client: Client) -> None:
    replies = await asyncio.gather(*(client.evalsha(ECHO, [b"k"], [b"x" * (n * 37)]) for n in range(500)))
    assert [len(reply[1]) for reply in replies] == [n * 37 for n in range(500)]


async def test_a_cancelled_caller_does_not_shift_the_others_replies(client: Client) -> None:
    await client.execute("PING")
    tasks = [asyncio.create_task(client.evalsha(ECHO, [b"k"], [n])) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [reply[1] for reply in done[1::2] if isinstance(reply, list)] == [b"%d" % n for n in range(1, 20, 2)]
    assert all(isinstance(reply, asyncio.CancelledError) for reply in done[::2])


def test_everything_works_on_uvloop_too(valkey_url: str) -> None:
    async def scenario() -> list[Any]:
        async with client_of(valkey_url) as client:
            return await asyncio.gather(*(client.evalsha(COUNT, [b"u"], []) for _ in range(50)))

    assert uvloop.run(scenario()) == list(range(1, 51))


# --- scripts ------------------------------------------------------------------------------------------------------


async def test_an_unknown_script_is_made_known_and_run_once(client: Client, shared_valkey: RedisServer) -> None:
    for expected in range(1, 6):
        shared_valkey.command("SCRIPT", "FLUSH")
        assert await client.evalsha(COUNT, [b"n"], []) == expected


async def test_many_calls_of_an_unknown_script_each_run_once(client: Client, shared_valkey: RedisServer) -> None:
    shared_valkey.command("SCRIPT", "FLUSH")
    replies = await asyncio.gather(*(client.evalsha(COUNT, [b"n"], []) for _ in range(50)))
    assert sorted(replies) == list(range(1, 51))


async def test_a_script_that_fails_is_not_run_again(client: Client) -> None:
    script = Script.of("fails", b"redis.call('INCR', KEYS[1]) return redis.error_reply('ERR bad amount')")
    with pytest.raises(ScriptRejected, match="bad amount"):
        await client.evalsha(script, [b"n"], [])
    assert await client.execute("GET", "n") == b"1"


# --- deadlines ----------------------------------------------------------------------------------------------------


async def test_a_lost_reply_is_a_timeout_with_unknown_effect_and_never_repeated(shared_valkey: RedisServer) -> None:
    async with (
        proxied(str(shared_valkey.socket_path)) as proxy,
        client_of(f"redis://127.0.0.1:{proxy.port}", timing=Timing(connect_timeout_s=PATIENT_S)) as client,
    ):
        shared_valkey.command("SET", "lost", "0")
        assert await answers(client)
        proxy.swallow = True
        started = time.monotonic()
        error = await failure(client.execute("INCR", "lost"))
        assert error.sent
        assert 0.2 <= time.monotonic() - started <= AT_ONCE_S
        proxy.swallow = False
        await eventually(lambda: answers(client), what="answers again")
        assert shared_valkey.command("GET", "lost") == b"1"


async def test_a_reset_connection_is_an_unknown_effect_and_never_repeated(shared_valkey: RedisServer) -> None:
    async with proxied(str(shared_valkey.socket_path)) as proxy, client_of(f"redis://127.0.0.1:{proxy.port}") as client:
        shared_valkey.command("SET", "cut", "0")
        assert await answers(client)
        proxy.swallow = True
        call = asyncio.create_task(client.execute("INCR", "cut"))
        await eventually(lambda: shared_valkey.command("GET", "cut") == b"1", what="the command ran")
        proxy.cut()
        assert (await failure(call)).sent
        proxy.swallow = False
        await eventually(lambda: answers(client), what="answers again")
        assert shared_valkey.command("GET", "cut") == b"1"


async def test_a_late_reply_is_matched_and_dropped() -> None:
    with valkey() as server:
        async with client_of(server.url, timing=replace(PATIENT, command_timeout_s=0.05)) as client:
            assert await answers(client)
            server.suspend()
            assert (await failure(client.execute("ECHO", "late"))).sent
            later = asyncio.create_task(client.execute("ECHO", "in time", timeout_s=10))
            await asyncio.sleep(0)
            server.resume()
            assert await later == b"in time"


async def test_a_stopped_server_times_out_then_refuses_at_once_and_comes_back() -> None:
    with valkey() as server:
        async with client_of(server.url, timing=Timing()) as client:
            await eventually(lambda: answers(client), what="answers")
            server.suspend()
            started = time.monotonic()
            errors = await asyncio.gather(*(failure(client.execute("INCR", "n")) for _ in range(20)))
            assert time.monotonic() - started < AT_ONCE_S
            assert all(error.sent for error in errors)
            await eventually(lambda: not client.up, what="the connection is given up")
            started = time.monotonic()
            assert not (await failure(client.execute("INCR", "n"))).sent
            assert time.monotonic() - started < AT_ONCE_S
            server.resume()
            await eventually(lambda: answers(client), what="answers again")
            assert server.command("GET", "n") == b"20"


async def test_a_command_may_be_given_more_time_than_the_servers_silence_may_last() -> None:
    with valkey(extra=("--enable-debug-command", "yes")) as server:
        async with client_of(server.url, timing=replace(PATIENT, command_timeout_s=0.05, silence_s=0.1)) as client:
            assert await client.execute("DEBUG", "SLEEP", "0.4", timeout_s=5) == b"OK"


async def test_a_reply_that_is_already_there_beats_its_timeout_when_this_process_was_slow(valkey_url: str) -> None:
    async with client_of(valkey_url, timing=Timing()) as client:
        await eventually(lambda: answers(client), what="answers")
        calls = [asyncio.create_task(client.execute("PING")) for _ in range(3)]
        for _ in range(2):
            await asyncio.sleep(0)
        busy_until = time.perf_counter() + 0.6  # longer than the command timeout and than a server may be silent
        while time.perf_counter() < busy_until:
            pass
        assert await asyncio.gather(*calls) == [b"PONG"] * 3


# --- servers that are away ----------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_refused_at_once_and_nothing_was_sent() -> None:
    with short_folder() as folder:
        async with client_of(f"unix://{folder}/nobody") as client:
            for _ in range(3):
                started = time.monotonic()
                assert not (await failure(client.execute("PING"))).sent
                assert time.monotonic() - started < AT_ONCE_S


async def test_kill9_fails_what_waits_then_refuses_then_recovers_without_help() -> None:
    changes: list[bool] = []
    with valkey(aof=True) as server:
        async with client_of(server.url, on_state=lambda address, up, reason: changes.append(up)) as client:
            assert await client.execute("INCR", "n") == 1
            server.suspend()
            waiting = asyncio.create_task(client.execute("INCR", "n"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            server.kill9()
            assert (await failure(waiting)).sent
            await failure(client.execute("PING"))
            started = time.monotonic()
            assert not (await failure(client.execute("PING"))).sent
            assert time.monotonic() - started < AT_ONCE_S
            server.start()
            await eventually(lambda: answers(client), what="answers again")
            assert changes == [True, False, True]


async def test_a_connection_that_the_server_ended_is_replaced_without_an_error(client: Client) -> None:
    for _ in range(3):
        number = await client.execute("CLIENT", "ID")
        await client.execute("CLIENT", "KILL", "ID", number, "SKIPME", "yes")
        with contextlib.suppress(EngineUnavailable):  # the kill's own reply may be lost
            await client.execute("CLIENT", "KILL", "ID", number, "SKIPME", "no")
        await eventually(lambda: answers(client), what="answers again")
        assert await client.execute("CLIENT", "ID") != number


async def test_commands_queued_for_the_first_dial_that_time_out_are_never_sent(shared_valkey: RedisServer) -> None:
    async with proxied(str(shared_valkey.socket_path)) as proxy:
        proxy.swallow = True  # accepts, but the greeting stays unanswered
        timing = replace(PATIENT, command_timeout_s=0.05)
        async with client_of(f"redis://127.0.0.1:{proxy.port}", timing=timing) as client:
            assert not (await failure(client.execute("SET", "never", "1"))).sent
            assert b"never" not in proxy.requests


async def test_what_waits_is_bounded() -> None:
    with valkey() as server:
        async with client_of(server.url, timing=Timing(connect_timeout_s=PATIENT_S, waiting_max=10)) as client:
            assert await answers(client)
            server.suspend()
            done = await asyncio.gather(*(failure(client.execute("PING")) for _ in range(15)))
            assert sorted(error.sent for error in done) == [False] * 5 + [True] * 10
            server.resume()


@pytest.mark.parametrize("banner", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n+PONG\r\n+PONG\r\n", b""])
async def test_a_server_that_speaks_something_else_is_away(banner: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client_of(f"redis://127.0.0.1:{port}") as client:
        await failure(client.execute("PING"))
        await failure(client.execute("PING"))
    server.close()
    await server.wait_closed()


async def test_a_closed_client_refuses_and_leaves_no_task(valkey_url: str) -> None:
    async with client_of(valkey_url) as client:
        assert await answers(client)
    assert not (await failure(client.execute("PING"))).sent
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("redis")] == []


async def test_inspect_tells_what_doctor_asks(client: Client, redis7_url: str) -> None:
    policy = await inspect(client)
    assert (policy.server, policy.version[:2], policy.supported, policy.evicts) == ("valkey", "9.", True, False)
    with valkey(aof=True, extra=("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")) as server:
        async with client_of(server.url) as other:
            policy = await inspect(other)
            assert (policy.appendonly, policy.evicts, policy.maxmemory_bytes) == (True, True, 50 * 2**20)
    async with client_of(redis7_url) as other:
        policy = await inspect(other)
        assert (policy.server, policy.version[:4], policy.supported, policy.mode) == (
            "redis",
            "7.0.",
            True,
            "standalone",
        )
