"""Alerts run against real receivers, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.store.store import Store
from tests.support import receivers, stores
from tests.support.receivers import MailServer, Receiver
from tests.support.stores import Place


@pytest.fixture
def clock() -> stores.Clock:
    return stores.Clock()


@pytest.fixture
async def store(place: Place, clock: stores.Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, clock=clock) as opened:
        yield opened


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receivers.http() as running:
        yield running


@pytest.fixture
async def mail_server() -> AsyncIterator[MailServer]:
    async with receivers.mail() as running:
        yield running
