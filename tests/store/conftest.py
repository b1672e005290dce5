"""Every test of the store runs on SQLite and on PostgreSQL 18, on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.store.store import Store
from tests.support import stores
from tests.support.stores import Place


@pytest.fixture
def clock() -> stores.Clock:
    return stores.Clock()


@pytest.fixture
async def store(place: Place, clock: stores.Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, clock=clock) as opened:
        yield opened
