"""The store as a whole: one database with everything that reads and writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import select

from gateway.domain.plans import Catalog
from gateway.metrics import Metrics
from gateway.store.accounts import Accounts
from gateway.store.alerts import Alerts
from gateway.store.common import inserting, new_id, wall_clock_ms
from gateway.store.corrections import Corrections
from gateway.store.database import Database, open_database
from gateway.store.grants import Grants
from gateway.store.idempotency import Idempotency
from gateway.store.insight import InsightQueries
from gateway.store.keys import Callers, Keys
from gateway.store.ledger import Ledger
from gateway.store.members import Members
from gateway.store.metering import MeteringHolds
from gateway.store.payments import Payments
from gateway.store.plans import Plans
from gateway.store.renewals import Renewals
from gateway.store.schema import installation
from gateway.store.state import State
from gateway.store.stripe_events import StripeEvents
from gateway.store.subscriptions import Subscriptions
from gateway.store.sums import Sums
from gateway.store.usage import UsageLog
from gateway.store.use_slices import UseSlices
from gateway.store.writer import Writer

PARTITIONS: Final = 256


@dataclass(frozen=True, slots=True)
class Store:
    """Made by ``open_store``; belongs to one event loop; ``close`` it there."""

    database: Database
    accounts: Accounts
    members: Members
    keys: Keys
    callers: Callers
    plans: Plans
    subscriptions: Subscriptions
    renewals: Renewals
    corrections: Corrections
    grants: Grants
    payments: Payments
    stripe: StripeEvents
    state: State
    sums: Sums
    writer: Writer
    usage: UsageLog
    ledger: Ledger
    alerts: Alerts
    use_slices: UseSlices
    insight: InsightQueries
    metering: MeteringHolds
    idempotency: Idempotency

    async def installed_partitions(self, *, partitions: int = PARTITIONS, now_ms: int) -> int:
        """The number of partitions that accounts are hashed onto: fixed by whoever asks first. Raises
        StoreUnavailable."""
        first = inserting(self.database.dialect, installation).on_conflict_do_nothing()
        async with self.database.write() as connection:
            values = {"id": 1, "installation_id": new_id(), "partitions": partitions, "created_at_ms": now_ms}
            await connection.execute(first, values)
            return int((await connection.execute(select(installation.c.partitions))).scalar_one())

    async def close(self) -> None:
        await self.database.close()


def open_store(
    url: str,
    *,
    folder: Path,
    catalog: Callable[[], Catalog],
    now_ms: Callable[[], int] = wall_clock_ms,
    timeout_s: float | None = None,
    metrics: Metrics | None = None,
) -> Store:
    """The store in ``storage.database`` (see ``database.open_database``); connects lazily, migrates nothing.

    ``catalog`` gives the plans as configured at the moment of the call; ``metrics`` are a server's. Raises ConfigError
    for a bad URL.
    """
    database = open_database(url, folder=folder, timeout_s=timeout_s)
    accounts = Accounts(database, catalog)
    members = Members(database)
    subscriptions = Subscriptions(database, catalog)
    return Store(
        database=database,
        accounts=accounts,
        members=members,
        keys=Keys(database),
        callers=Callers(database, accounts, members),
        plans=Plans(database, catalog),
        subscriptions=subscriptions,
        renewals=Renewals(database, catalog),
        corrections=Corrections(database),
        grants=Grants(database),
        payments=Payments(database, catalog),
        stripe=StripeEvents(database, catalog),
        state=State(database, subscriptions, now_ms=now_ms),
        sums=Sums(database),
        writer=Writer(database, catalog, now_ms=now_ms, metrics=metrics),
        usage=UsageLog(database),
        ledger=Ledger(database),
        alerts=Alerts(database),
        use_slices=UseSlices(database),
        insight=InsightQueries(database),
        metering=MeteringHolds(database),
        idempotency=Idempotency(database),
    )
