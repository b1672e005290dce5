"""Servers shared by the tests of one test worker process. Tests that kill, stop or fill one start their own.

Every process of a test run finds its modules compiled, also where Python is told to write no bytecode beside sources.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import postgres as pg
from tests.support import servers, stores
from tests.support.scheduling import Scheduling

BEYOND_PIP = {"redis7": pytest.mark.apt, "aimock": pytest.mark.npm}
BYTECODE = Path(__file__).resolve().parents[1] / ".cache" / "bytecode"


def pytest_configure() -> None:
    """Hundreds of Python processes start in a run; compiling every module again takes each two of its three seconds."""
    if not sys.dont_write_bytecode:
        return
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(BYTECODE)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(BYTECODE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadgroup`` as tests.support.scheduling says."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that names redis7 or aimock, in a fixture or a parameter, needs them: `make test-fast` leaves it out."""
    for item in items:
        used = f"{item.nodeid} {' '.join(getattr(item, 'fixturenames', ()))}"
        for name, mark in BEYOND_PIP.items():
            if name in used:
                item.add_marker(mark)


def pytest_collection_finish() -> None:
    """What collecting made stays to the end: no test's garbage collection looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[servers.RedisServer]:
    """Embedded Valkey on a unix socket, without persistence."""
    with servers.valkey() as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis7() -> Iterator[servers.RedisServer]:
    """Debian's Redis 7.0 on a unix socket, without persistence."""
    with servers.redis7() as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[servers.Cluster]:
    """Three Valkey masters."""
    with servers.cluster() as nodes:
        yield nodes


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[pg.Postgres]:
    """PostgreSQL 18 without fsync; ``postgres_url`` gives each test a database of its own."""
    with pg.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def databases(shared_postgres: pg.Postgres) -> stores.Databases:
    return stores.Databases(shared_postgres)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[stores.Place]:
    """A migrated, empty database; a test that changes its schema is marked ``own_database``."""
    if request.param == "sqlite":
        stores.copy_sqlite(tmp_path)
        yield stores.Place("embedded", tmp_path, "sqlite")
        return
    databases: stores.Databases = request.getfixturevalue("databases")
    url = databases.create()
    yield stores.Place(url, tmp_path, "postgresql")
    if request.node.get_closest_marker("own_database"):
        databases.drop(url)
    else:
        databases.empty(url)


@pytest.fixture
def valkey_url(shared_valkey: servers.RedisServer) -> str:
    """The shared Valkey, emptied."""
    shared_valkey.command("FLUSHALL")
    return shared_valkey.url


@pytest.fixture
def redis7_url(shared_redis7: servers.RedisServer) -> str:
    """The shared Redis 7.0, emptied."""
    shared_redis7.command("FLUSHALL")
    return shared_redis7.url


@pytest.fixture
def cluster_url(shared_cluster: servers.Cluster) -> str:
    """The shared cluster, emptied."""
    shared_cluster.flush()
    return shared_cluster.url


@pytest.fixture
def postgres_url(shared_postgres: pg.Postgres) -> Iterator[str]:
    """A new, empty PostgreSQL database."""
    url = shared_postgres.create_database()
    yield url
    shared_postgres.drop_database(url)
