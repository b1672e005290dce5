"""Real databases for tests, migrated and empty: SQLite files copied from a template, PostgreSQL databases.

stores.copy_sqlite(tmp_path)
async with stores.opened("embedded", tmp_path, catalog=..., clock=...) as store: ...
url = stores.Databases(shared_postgres).create()
async with stores.opened(url, tmp_path) as store: ...
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gateway.domain.accounts import Account
from gateway.domain.charges import BudgetLine, ChargeRow, GrantLine
from gateway.domain.plans import Catalog
from gateway.domain.usage import Basis, Usage
from gateway.store.common import new_id
from gateway.store.database import EMBEDDED, EMBEDDED_FILE, open_database
from gateway.store.migration import migrate
from gateway.store.schema import APPEND_ONLY, metadata
from gateway.store.store import Store, open_store
from tests.support import catalogs
from tests.support.postgres import Postgres

NOW_MS = 1_763_600_000_000  # 2025-11-20T00:53:20Z
DAY_MS = 86_400_000
CATALOG = catalogs.catalog(catalogs.trial(), catalogs.plan("pro", allowance={"tokens": 500_000}))


@dataclass
class Clock:
    """The store's clock in tests: stands still unless moved."""

    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


async def migrated(url: str, folder: Path) -> None:
    """Bring the database to head and leave it."""
    database = open_database(url, folder=folder)
    try:
        await migrate(database)
    finally:
        await database.close()


def _migrate_now(url: str, folder: Path) -> None:
    """In a thread of its own, since the caller may be inside a running loop."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, migrated(url, folder)).result()


@dataclass(frozen=True)
class Place:
    """Where a test's database is: what ``opened`` takes."""

    url: str
    folder: Path
    backend: str


@functools.cache
def _sqlite_template() -> Path:
    """One migrated SQLite file per test process."""
    folder = Path(tempfile.mkdtemp(prefix="tgdb-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _migrate_now(EMBEDDED, folder)
    return folder / EMBEDDED_FILE


def copy_sqlite(folder: Path) -> None:
    """A migrated, empty embedded database in ``folder``."""
    shutil.copy(_sqlite_template(), folder / EMBEDDED_FILE)


class Databases:
    """Migrated databases on one PostgreSQL server. Making one takes 0.3 s, so they are emptied and used again."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self._free: list[str] = []

    def create(self) -> str:
        """The URL of a migrated, empty database of one's own; ``drop`` it, or give it back with ``empty``."""
        if self._free:
            return self._free.pop()
        url = self.server.create_database()
        _migrate_now(url, Path("/tmp"))
        return url

    def empty(self, url: str) -> None:
        """Take every row out, for the next test. The schema must be as it was."""
        tables = [table.name for table in reversed(metadata.sorted_tables)]
        statements = [f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only" for table in APPEND_ONLY]
        statements += [f"DELETE FROM {table}" for table in tables]
        statements += [f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only" for table in APPEND_ONLY]
        self.server.psql("; ".join(statements), url.partition("@/")[2].partition("?")[0])
        self._free.append(url)

    def drop(self, url: str) -> None:
        self.server.drop_database(url)


@contextlib.asynccontextmanager
async def opened(
    url: str,
    folder: Path,
    *,
    catalog: Catalog | Callable[[], Catalog] = CATALOG,
    clock: Callable[[], int] | None = None,
    timeout_s: float | None = None,
) -> AsyncIterator[Store]:
    """A store on a database that exists, closed at the end."""
    current = catalog if callable(catalog) else lambda: catalog
    store = open_store(url, folder=folder, catalog=current, now_ms=clock or Clock(), timeout_s=timeout_s)
    try:
        yield store
    finally:
        await store.close()


def charge(
    account: Account | str,
    *lines: tuple[int, int],
    hold_id: str | None = None,
    state: str = "settled",
    budgets: tuple[tuple[int, int, int], ...] = (),
    wallet: str = "tokens",
    at_ms: int = NOW_MS,
    **changes: object,
) -> ChargeRow:
    """A charge of (grant number, amount) lines and (budget number, period start, amount) budgets."""
    total = sum(amount for _, amount in lines)
    values: dict[str, object] = {
        "hold_id": hold_id or new_id(),
        "account_id": account if isinstance(account, str) else account.id,
        "state": state,
        "created_at_ms": at_ms - 1000,
        "ended_at_ms": at_ms,
        "route": "openai_chat",
        "model": "gpt-5-mini",
        "upstream": "openai",
        "plan": "pro",
        "feature": "general",
        "wallet": wallet,
        "card_version": "v1",
        "usage": Usage(input=total),
        "basis": Basis.PROVIDER,
        "held": total,
        "charged": total,
        "overrun": 0,
        "lines": tuple(GrantLine(wallet, number, amount) for number, amount in lines),
        "budgets": tuple(BudgetLine(*line) for line in budgets),
        "status": 200 if state == "settled" else 0,
        "end": "complete" if state == "settled" else "lapsed",
    }
    return ChargeRow(**{**values, **changes})  # type: ignore[arg-type]
