"""How much accounts use over time: by second for a short while, and by slices of days to compare with.

Rules
1. Charges are read by when they were committed, each once: a slice grows in the transaction that moves its mark on.
2. A step is bounded in time, so that catching up after an outage never takes a long transaction.
3. Slices of another length are of no use: a changed config begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, case, cast, delete, func, select, update

from gateway.store.common import inserting
from gateway.store.database import Database
from gateway.store.schema import accounts, usage
from gateway.store.schema_alerts import marks, use_slices

STEP_MS: Final = 600_000
ACCOUNTS_AT_ONCE: Final = 500
_CALLS: Final = cast(func.sum(case((usage.c.state == "reversed", -1), else_=1)), BigInteger)
_CHARGED: Final = cast(func.sum(usage.c.charged), BigInteger)


@dataclass(frozen=True, slots=True)
class Uses:
    """Charged calls of an account's user (or of no named one) within a second."""

    account_id: str
    user_id: str | None
    at_s: int
    calls: int


@dataclass(frozen=True, slots=True)
class Compared:
    """A wallet's running slice beside its past: the sum of the ``slices`` before it. In steps."""

    account_id: str
    wallet: str
    starts_at_ms: int
    recent: int
    calls: int
    past: int


class UseSlices:
    """Queries over the newest charges, for whoever holds the reaper's lease."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def uses(self, *, from_ms: int, to_ms: int) -> tuple[Uses, ...]:
        """Charged calls committed in this time, by second. Raises StoreUnavailable."""
        second = usage.c.committed_at_ms // 1000
        query = (
            select(usage.c.account_id, usage.c.user_id, second.label("at_s"), _CALLS.label("calls"))
            .where(usage.c.committed_at_ms >= from_ms, usage.c.committed_at_ms < to_ms)
            .group_by(usage.c.account_id, usage.c.user_id, second)
        )
        async with self._database.read() as connection:
            return tuple(
                Uses(row.account_id, row.user_id, row.at_s, row.calls) for row in await connection.execute(query)
            )

    async def advance(self, *, slice_ms: int, slices: int, to_ms: int) -> tuple[Compared, ...]:
        """Add what was committed since the mark, at most a step of it, and compare what grew. Accounts younger than
        all those slices are left out: they have no past. Raises StoreUnavailable."""
        name = f"use:{slice_ms}"
        async with self._database.write() as connection:
            found = await connection.execute(select(marks.c.at_ms).where(marks.c.name == name).with_for_update())
            from_ms = found.scalar_one_or_none()
            if from_ms is None:
                await connection.execute(delete(use_slices))
                await connection.execute(delete(marks).where(marks.c.name.startswith("use:")))
                from_ms = to_ms - to_ms % slice_ms - slices * slice_ms
                insert = inserting(self._database.dialect, marks).on_conflict_do_nothing()
                await connection.execute(insert, {"name": name, "at_ms": from_ms})
            to_ms = min(to_ms, from_ms + STEP_MS)
            if to_ms <= from_ms:
                return ()
            grown = await self._grow(connection, from_ms, to_ms, slice_ms)
            await connection.execute(update(marks).where(marks.c.name == name).values(at_ms=to_ms))
            starts_ms = (to_ms - 1) - (to_ms - 1) % slice_ms
            oldest_ms = starts_ms - slices * slice_ms
            await connection.execute(delete(use_slices).where(use_slices.c.starts_at_ms < oldest_ms))
            return await self._compare(connection, grown, starts_ms=starts_ms, oldest_ms=oldest_ms)

    async def _grow(self, connection: Any, from_ms: int, to_ms: int, slice_ms: int) -> Sequence[str]:
        """Answers the accounts that were charged."""
        starts_ms = (usage.c.committed_at_ms - usage.c.committed_at_ms % slice_ms).label("starts_at_ms")
        query = (
            select(usage.c.account_id, usage.c.wallet, starts_ms, _CHARGED.label("charged"), _CALLS.label("calls"))
            .where(usage.c.committed_at_ms >= from_ms, usage.c.committed_at_ms < to_ms)
            .group_by(usage.c.account_id, usage.c.wallet, starts_ms)
        )
        rows = [dict(row._mapping) for row in await connection.execute(query)]
        adding = inserting(self._database.dialect, use_slices)
        if rows:
            await connection.execute(
                adding.on_conflict_do_update(
                    index_elements=["account_id", "wallet", "starts_at_ms"],
                    set_={
                        "charged": use_slices.c.charged + adding.excluded.charged,
                        "calls": use_slices.c.calls + adding.excluded.calls,
                    },
                ),
                rows,
            )
        return sorted({row["account_id"] for row in rows})

    async def _compare(
        self, connection: Any, account_ids: Sequence[str], *, starts_ms: int, oldest_ms: int
    ) -> tuple[Compared, ...]:
        is_recent = use_slices.c.starts_at_ms == starts_ms
        compared: list[Compared] = []
        for first in range(0, len(account_ids), ACCOUNTS_AT_ONCE):
            some = account_ids[first : first + ACCOUNTS_AT_ONCE]
            query = (
                select(
                    use_slices.c.account_id,
                    use_slices.c.wallet,
                    cast(func.sum(case((is_recent, use_slices.c.charged), else_=0)), BigInteger).label("recent"),
                    cast(func.sum(case((is_recent, use_slices.c.calls), else_=0)), BigInteger).label("calls"),
                    cast(func.sum(case((is_recent, 0), else_=use_slices.c.charged)), BigInteger).label("past"),
                )
                .join_from(use_slices, accounts, accounts.c.id == use_slices.c.account_id)
                .where(use_slices.c.account_id.in_(some), accounts.c.created_at_ms <= oldest_ms)
                .where(use_slices.c.starts_at_ms >= oldest_ms, use_slices.c.starts_at_ms <= starts_ms)
                .group_by(use_slices.c.account_id, use_slices.c.wallet)
            )
            compared += [
                Compared(row.account_id, row.wallet, starts_ms, row.recent, row.calls, row.past)
                for row in await connection.execute(query)
            ]
        return tuple(compared)
