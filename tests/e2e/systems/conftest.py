"""The five billing systems, each served once per database for the tests of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from gateway.simulator.child import Simulator
from tests.support import postgres as pg
from tests.support import simulators
from tests.support.scheduling import DATABASES
from tests.support.systems import System, system

Opens = Callable[..., System]


@pytest.fixture(scope="session")
def models() -> Iterator[Simulator]:
    with simulators.child() as started:
        yield started


@contextmanager
def a_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database, of the kind that the fixture's parameter names."""
    if request.param == "sqlite":
        yield "embedded"
        return
    server: pg.Postgres = request.getfixturevalue("shared_postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@contextmanager
def opening(folders: pytest.TempPathFactory, models: Simulator, database: str) -> Iterator[Opens]:
    """Serves examples on the database until the block ends: ``opened("credits", edits={…})``."""
    with ExitStack() as stack:

        def serve(example: str, **options: object) -> System:
            folder = folders.mktemp(example)
            return stack.enter_context(system(folder, example, models, database=database, **options))  # type: ignore[arg-type]

        yield serve


@pytest.fixture(scope="module", params=DATABASES)
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    with a_database(request) as url:
        yield url


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, models: Simulator, database: str) -> Iterator[Opens]:
    with opening(tmp_path_factory, models, database) as serve:
        yield serve
