"""Holds of work outside the proxy, kept in SQL too: any worker can extend and end one, also after Redis lost it.

Rules
1. A row says what was held, never how it ended: that is for the bill to say (``usage``: none → lapsed → settled).
2. A row changes only from the version that its changer has seen: of two at once one finds itself too late.

Not here: what the documents in a row mean (``quota.metered``, ``billing.metering``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Row, delete, exists, insert, select, update

from gateway.errors import Conflict
from gateway.store.common import storable
from gateway.store.database import Database
from gateway.store.schema import usage
from gateway.store.schema_metering import metering_holds


@dataclass(frozen=True, slots=True)
class HoldRow:
    """One hold. Times Unix ms, ``abandon`` in steps of its wallet."""

    id: str
    account_id: str
    version: int
    note: bytes
    hold: Mapping[str, Any]
    terms: Mapping[str, Any]
    abandon: int
    lease_ends_at_ms: int
    created_at_ms: int


class MeteringHolds:
    """The table ``metering_holds``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, row: HoldRow) -> HoldRow:
        """Keep it; answers what is kept under this id, perhaps already. Raises Conflict (another account's id),
        StoreUnavailable: perhaps kept, repeat."""
        try:
            async with self._database.write() as connection:
                await connection.execute(insert(metering_holds).values(**asdict(row)))
        except Conflict:
            known = await self.get(row.account_id, row.id)
            if known is None:
                raise
            return known
        return row

    async def get(self, account_id: str, hold_id: str) -> HoldRow | None:
        """Raises StoreUnavailable."""
        if not storable(hold_id):
            return None
        query = select(metering_holds).where(metering_holds.c.id == hold_id, metering_holds.c.account_id == account_id)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).one_or_none()
        return None if found is None else _row_of(found)

    async def change(self, row: HoldRow, *, version_before: int) -> bool:
        """Whether it was still at that version, and is now as ``row`` says. Raises StoreUnavailable."""
        values = {name: value for name, value in asdict(row).items() if name not in ("id", "account_id")}
        changing = update(metering_holds).where(
            metering_holds.c.id == row.id, metering_holds.c.version == version_before
        )
        async with self._database.write() as connection:
            return bool((await connection.execute(changing.values(**values))).rowcount)

    async def remove(self, hold_id: str) -> None:
        """Nobody was told of it. Raises StoreUnavailable."""
        async with self._database.write() as connection:
            await connection.execute(delete(metering_holds).where(metering_holds.c.id == hold_id))

    async def live(self, *, now_ms: int, after: str = "", limit: int = 500) -> tuple[HoldRow, ...]:
        """Those whose lease runs and which have not ended, by id. Raises StoreUnavailable."""
        query = (
            select(metering_holds)
            .where(
                metering_holds.c.lease_ends_at_ms > now_ms,
                metering_holds.c.id > after,
                ~_charged("settled"),
            )
            .order_by(metering_holds.c.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return tuple(_row_of(row) for row in await connection.execute(query))

    async def overdue(self, *, from_ms: int, to_ms: int, limit: int = 100) -> tuple[HoldRow, ...]:
        """Those whose lease ended in that time, and for which nothing was charged though something is due. Raises
        StoreUnavailable."""
        query = (
            select(metering_holds)
            .where(
                metering_holds.c.lease_ends_at_ms >= from_ms,
                metering_holds.c.lease_ends_at_ms < to_ms,
                metering_holds.c.abandon > 0,
                ~_charged("lapsed", "settled"),
            )
            .order_by(metering_holds.c.lease_ends_at_ms)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return tuple(_row_of(row) for row in await connection.execute(query))

    async def forget(self, *, before_ms: int) -> None:
        """Those whose lease ended before that: their end, if they had one, is in the bill. Raises StoreUnavailable."""
        async with self._database.write() as connection:
            await connection.execute(delete(metering_holds).where(metering_holds.c.lease_ends_at_ms < before_ms))


def _charged(*states: str) -> Any:
    return exists().where(usage.c.hold_id == metering_holds.c.id, usage.c.state.in_(states))


def _row_of(row: Row[Any]) -> HoldRow:
    return HoldRow(
        id=row.id,
        account_id=row.account_id,
        version=row.version,
        note=bytes(row.note),
        hold=row.hold,
        terms=row.terms,
        abandon=row.abandon,
        lease_ends_at_ms=row.lease_ends_at_ms,
        created_at_ms=row.created_at_ms,
    )
