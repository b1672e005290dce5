"""The installation that a command works on, opened for its duration: config, database, and Redis where it is needed.

Rules
1. It works whether the server runs or not: with an embedded Redis the running server's is used, else one is started
   on the data folder (under its lock) and ended with the command.
2. What may have to wait is opened before the event loop starts, so that Ctrl-C ends the waiting at once.
"""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.billing.desk import Desk
from gateway.billing.office import Office, office_at
from gateway.cli.frame import Place, Reach
from gateway.cli.terminal import say
from gateway.embedded import borrowed
from gateway.errors import ConfigError, ServiceAway, StoreUnavailable
from gateway.installation import Installation, open_installation
from gateway.metrics import Metrics
from gateway.quota.clock import ServerClock
from gateway.quota.holds import Holds
from gateway.quota.keys import KeyHasher
from gateway.quota.notices import Notices
from gateway.quota.scribe import Scribe
from gateway.quota.service import Quota
from gateway.quota.states import States
from gateway.quota.turn import Turner
from gateway.quota.versions import Versions
from gateway.store import schema
from gateway.store.common import wall_clock_ms
from gateway.store.store import Store, open_store
from limits.client import Client, Timing, connect
from limits.engine import Engine
from limits.errors import EngineUnavailable

LOCK_WAIT_S: Final = 5.0
# Nobody's request waits: a machine that is busy for a moment is no reason to give up.
REDIS_PATIENCE: Final = Timing(command_timeout_s=5.0, connect_timeout_s=5.0, silence_s=5.0)
T = TypeVar("T")


def run_at(place: Place, reach: Reach, work: Callable[[Office], Awaitable[T]]) -> T:
    """Open what ``reach`` names, run the work, close. Raises ConfigError, ServiceAway and what the work raises."""
    installation = open_installation(place.config, place.data)
    if installation.is_new:
        say(f"There was no data folder {installation.data}: it was made, and has nobody in it.")
    with ExitStack() as stack:
        url = None if reach is Reach.SQL else redis_url(installation, stack)

        async def job() -> T:
            async with office_of(installation, url, needed=reach is Reach.REDIS) as office:
                return await work(office)

        return asyncio.run(job())


def redis_url(installation: Installation, stack: ExitStack) -> str:
    """Where Redis answers until the stack closes. Raises ServiceAway when the data folder stays busy."""
    if not installation.redis_embedded:
        return installation.config.settings.redis
    return stack.enter_context(borrowed(installation.data, within_s=LOCK_WAIT_S))


@asynccontextmanager
async def office_of(installation: Installation, url: str | None, *, needed: bool) -> AsyncIterator[Office]:
    """The services on this installation. Raises ConfigError (schema), ServiceAway (Redis needed and away),
    StoreUnavailable."""
    async with AsyncExitStack() as stack:
        store = await store_of(installation, stack)
        states = None
        if url is not None:
            engine = await _engine(installation, store, url, stack, needed=needed)
            states = States(engine, Turner(engine, store.state, Metrics(None)))
        yield _office(installation, store, states)


@asynccontextmanager
async def judging(installation: Installation, url: str) -> AsyncIterator[tuple[Office, Quota]]:
    """The services, and the quota that decides about calls: to be asked dry only, for nothing runs behind it.

    Raises as ``office_of``."""
    async with AsyncExitStack() as stack:
        store = await store_of(installation, stack)
        engine = await _engine(installation, store, url, stack, needed=True)
        metrics, clock = Metrics(None), ServerClock()
        turner = Turner(engine, store.state, metrics)
        states = States(engine, turner)
        quota = Quota(
            engine,
            holds=Holds(engine),
            scribe=Scribe(store.writer, engine, metrics),
            turner=turner,
            versions=Versions(store.plans, states, catalog=lambda: installation.config.catalog, clock=clock),
            notices=Notices(store.alerts, metrics, clock.now_ms),
            metrics=metrics,
            spawn=asyncio.ensure_future,
            clock=clock,
        )
        yield _office(installation, store, states), quota


async def _engine(installation: Installation, store: Store, url: str, stack: AsyncExitStack, *, needed: bool) -> Engine:
    """Raises ServiceAway when Redis is needed and away."""
    client = connect(url, timing=REDIS_PATIENCE)
    stack.push_async_callback(client.close)
    if needed:
        await answering(client)
    return Engine(
        client,
        partitions=await store.installed_partitions(now_ms=wall_clock_ms()),
        reassert_wait_ms=0,  # a command admits nothing
        amnesty_ms=installation.config.settings.amnesty_ms,
    )


def _office(installation: Installation, store: Store, states: States | None) -> Office:
    return office_at(
        Desk(
            store=store,
            catalog=lambda: installation.config.catalog,
            hasher=KeyHasher(installation.secret),
            states=states,
            now_ms=wall_clock_ms,
            actor=actor(),
            stripe=lambda: installation.config.settings.stripe,
            channels=lambda: installation.config.settings.channels,
            undelivered=lambda _: say("Redis does not answer: it learns of this as soon as it is back."),
        )
    )


async def store_of(installation: Installation, stack: AsyncExitStack) -> Store:
    """The database, at this release's schema; SQLite is brought there. Raises ConfigError, StoreUnavailable."""
    url = installation.config.settings.database
    store = open_store(url, folder=installation.data, catalog=lambda: installation.config.catalog)
    stack.push_async_callback(store.close)
    if await _revision(store) != _newest_revision():
        from gateway.store.migration import check, migrate  # 20 % of a command's time, seldom needed

        try:
            await check(store.database)
        except ConfigError:
            if store.database.dialect != "sqlite":
                raise
            await migrate(store.database)
    return store


async def _revision(store: Store) -> str | None:
    """The database's revision; None when it cannot be told so simply."""
    try:
        async with store.database.read() as connection:
            found = await connection.execute(text("SELECT version_num FROM alembic_version"))
            return found.scalar_one_or_none()
    except (StoreUnavailable, DBAPIError):  # no such table, or no such server: the full check says which
        return None


def _newest_revision() -> str:
    """By the names of the revisions' files."""
    files = Path(schema.__file__).parent.glob("migrations/versions/[0-9]*_*.py")
    return max(file.name.partition("_")[0] for file in files)


async def answering(client: Client) -> None:
    """Raises ServiceAway."""
    try:
        await client.execute("PING")
    except EngineUnavailable as error:
        raise ServiceAway(f"Redis does not answer: {error}") from error


def actor() -> str:
    """Who the audit log names."""
    try:
        return f"cli:{os.environ.get('SUDO_USER') or getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"cli:{os.getuid()}"


def migrate_at(place: Place) -> dict[str, object]:
    """Bring the database to this release's schema and note the plans' versions. Raises ConfigError,
    StoreUnavailable."""
    from gateway.store.migration import head, migrate

    installation = open_installation(place.config, place.data)

    async def job() -> dict[str, object]:
        url = installation.config.settings.database
        store = open_store(url, folder=installation.data, catalog=lambda: installation.config.catalog)
        try:
            await migrate(store.database)
            versions = [plan.version for plan in installation.config.catalog.plans.values()]
            await store.plans.register(now_ms=wall_clock_ms(), returned=versions)
        finally:
            await store.close()
        return {"schema": head(), "database": store.database.dialect}

    return asyncio.run(job())
