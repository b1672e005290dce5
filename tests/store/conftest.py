"""Every test of the store runs on SQLite and on PostgreSQL 18, on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.store.store import Store
from tests.support import stores
from tests.support.postgres import Postgres


@dataclass(frozen=True)
class Place:
    """Where a test's database is: what ``stores.opened`` takes."""

    url: str
    folder: Path
    backend: str


@pytest.fixture(scope="session")
def databases(shared_postgres: Postgres) -> stores.Databases:
    return stores.Databases(shared_postgres)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A migrated, empty database; a test that changes its schema is marked ``own_database``."""
    if request.param == "sqlite":
        stores.copy_sqlite(tmp_path)
        yield Place("embedded", tmp_path, "sqlite")
        return
    databases: stores.Databases = request.getfixturevalue("databases")
    url = databases.create()
    yield Place(url, tmp_path, "postgresql")
    if request.node.get_closest_marker("own_database"):
        databases.drop(url)
    else:
        databases.empty(url)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_database: the test changes its database's schema")


@pytest.fixture
def clock() -> stores.Clock:
    return stores.Clock()


@pytest.fixture
async def store(place: Place, clock: stores.Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, clock=clock) as opened:
        yield opened
