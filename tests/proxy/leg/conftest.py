"""Every test of the leg runs on both event loops: asyncio's own, and the one that serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from gateway.proxy.leg.client import HttpLeg
from tests.support.links import Upstream, upstream


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def leg() -> AsyncIterator[HttpLeg]:
    """A leg of its own, closed in the end."""
    leg = HttpLeg(connect_s=5)
    yield leg
    await leg.close()


@pytest.fixture
async def up() -> AsyncIterator[Upstream]:
    """An upstream that follows a script; every connection of the test is closed in the end."""
    async with upstream() as up:
        yield up
