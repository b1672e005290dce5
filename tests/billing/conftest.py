"""The billing APIs through HTTP, on SQLite and on PostgreSQL, with a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import stores
from tests.support.apis import Apis, apis
from tests.support.stores import Place


@pytest.fixture
async def running(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    """Both listeners on an empty database."""
    if place.backend == "sqlite":
        (tmp_path / "data").mkdir()
        stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, database=place.url) as started:
        yield started


@pytest.fixture
async def one(valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    """Both listeners on an empty SQLite: for what no database changes."""
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path) as started:
        yield started
