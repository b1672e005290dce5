"""A deadline is the server's: what this process lost on its own does not count against it."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from limits.errors import EngineUnavailable
from tests.support.clients import AT_ONCE_S, PATIENT, PATIENT_S, client_of
from tests.support.servers import RedisServer

LARGE = b"x" * 8_000_000  # more than a socket takes at once: the rest leaves when the loop turns again


async def test_a_loop_that_stood_still_does_not_blame_the_server(shared_valkey: RedisServer) -> None:
    async with client_of(shared_valkey.url, timing=replace(PATIENT, command_timeout_s=0.25, silence_s=0.25)) as client:
        await client.execute("PING", timeout_s=PATIENT_S)
        sent = asyncio.ensure_future(client.execute("ECHO", LARGE))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        threading.Event().wait(0.8)  # the loop stands still
        assert await sent == LARGE


@pytest.mark.parametrize("turns", range(1, 9))
async def test_a_loop_that_stood_still_while_it_dialled_does_not_blame_the_server(
    shared_valkey: RedisServer, turns: int
) -> None:
    async with client_of(shared_valkey.url, timing=replace(PATIENT, connect_timeout_s=0.2)) as client:
        sent = asyncio.ensure_future(client.execute("PING"))
        for _ in range(turns):
            await asyncio.sleep(0)
        threading.Event().wait(0.4)  # the loop stands still
        assert await sent == b"PONG"


async def test_a_silent_server_is_still_given_up_in_time(shared_valkey: RedisServer) -> None:
    async with client_of(shared_valkey.url, timing=replace(PATIENT, command_timeout_s=0.25, silence_s=0.25)) as client:
        try:
            await client.execute("PING", timeout_s=PATIENT_S)
            shared_valkey.suspend()
            started_s = time.monotonic()
            with pytest.raises(EngineUnavailable):
                await client.execute("PING")
            assert time.monotonic() - started_s < AT_ONCE_S
        finally:
            shared_valkey.resume()
