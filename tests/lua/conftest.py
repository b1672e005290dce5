"""The lab of the law tests, on the embedded Valkey and on Redis 7.0."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support import servers
from tests.support.clients import client_of
from tests.support.lab import Lab


@pytest.fixture(params=["shared_valkey", "shared_redis7"])
def server(request: pytest.FixtureRequest) -> servers.RedisServer:
    """A shared server, emptied."""
    found: servers.RedisServer = request.getfixturevalue(request.param)
    found.command("FLUSHALL")
    return found


@pytest.fixture
async def make_lab(server: servers.RedisServer) -> AsyncIterator[Callable[..., Lab]]:
    """Makes labs on the server, with engine options."""
    async with client_of(server.url) as client:
        yield lambda **options: Lab(client, options)


@pytest.fixture
def lab(make_lab: Callable[..., Any]) -> Lab:
    """A lab without re-assertion wait and amnesty."""
    made: Lab = make_lab()
    return made
