"""What Redis is loaded from: one consistent snapshot per account, and the pushes that say who needs one.

Rules
1. A snapshot is one instant of the database: its ``seq`` is the last charge change that its sums include.
2. A push is a note, not news: whoever finds it marks the account stale and loads a snapshot. Deleting one that is gone
   already is nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, and_, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import AccountSnapshot, BudgetUse, GrantState
from gateway.domain.turns import Turned, turn_at_ms
from gateway.errors import AccountNotFound
from gateway.store.accounts import ACCOUNTS, subscription_of
from gateway.store.common import wall_clock_ms
from gateway.store.database import Database
from gateway.store.grants import grant_of
from gateway.store.moves import Taken
from gateway.store.schema import accounts, budget_uses, budgets, grants, pushes
from gateway.store.subscriptions import Subscriptions

_ENDED_SLACK_MS = 60_000  # grants that ended just now stay in the snapshot: Redis' clock decides, not this one


class State:
    """Snapshots, turns and pushes: all that brings an account's grants to Redis."""

    def __init__(
        self, database: Database, subscriptions: Subscriptions, *, now_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._database = database
        self._subscriptions = subscriptions
        self._now_ms = now_ms

    async def snapshot(self, account_id: str) -> AccountSnapshot:
        """The account's grants that have not ended, with their sums. Raises AccountNotFound, StoreUnavailable."""
        for found in await self.snapshots((account_id,)):
            return found
        raise AccountNotFound

    async def snapshots(self, account_ids: Sequence[str]) -> tuple[AccountSnapshot, ...]:
        """Those of these accounts that are there, all at one instant; a few statements, however many they are.

        Raises StoreUnavailable.
        """
        since_ms = self._now_ms() - _ENDED_SLACK_MS
        not_ended = or_(grants.c.expires_at_ms == 0, grants.c.expires_at_ms > since_ms)
        ever_open = or_(grants.c.expires_at_ms == 0, grants.c.expires_at_ms > grants.c.starts_at_ms)
        owned = select(grants).where(grants.c.account_id.in_(account_ids), not_ended, ever_open)
        states: dict[str, list[GrantState]] = defaultdict(list)
        async with self._database.snapshot() as connection:
            rows = (await connection.execute(ACCOUNTS.where(accounts.c.id.in_(account_ids)))).all()
            for each in await connection.execute(owned.order_by(grants.c.account_id, grants.c.number)):
                states[each.account_id].append(grant_of(each))
            uses = await _newest_uses(connection, [row.id for row in rows if row.budgets_made])
        return tuple(
            AccountSnapshot(
                account_id=row.id,
                seq=row.seq,
                rev=row.rev,
                turn_at_ms=self._turn_at_ms(row),
                period_starts_at_ms=row.period_starts_at_ms,
                grants=tuple(states[row.id]),
                budgets=tuple(uses[row.id]),
            )
            for row in rows
        )

    async def turn(self, account_id: str, *, now_ms: int, taken: Taken | None = None) -> Turned:
        """As ``Subscriptions.turn``."""
        return await self._subscriptions.turn(account_id, now_ms=now_ms, taken=taken)

    def rolling(self) -> tuple[str, ...]:
        """As ``Subscriptions.rolling``."""
        return self._subscriptions.rolling()

    async def pushes(self, *, limit: int = 100, after: int = 0) -> tuple[tuple[int, str], ...]:
        """(push, account) of what waits, the oldest first: those after this push. Raises StoreUnavailable."""
        async with self._database.read() as connection:
            query = select(pushes.c.id, pushes.c.account_id).where(pushes.c.id > after)
            query = query.order_by(pushes.c.id).limit(limit)
            found = await connection.execute(query)
            return tuple((row.id, row.account_id) for row in found)

    async def delete_pushes(self, ids: Sequence[int]) -> None:
        """Raises StoreUnavailable."""
        if ids:
            async with self._database.write() as connection:
                await connection.execute(delete(pushes).where(pushes.c.id.in_(ids)))

    def _turn_at_ms(self, row: Row[Any]) -> int:
        """A period whose successor is granted already needs no decision at its end, only at the successor's."""
        at_ms = turn_at_ms(subscription_of(row), grace_ms=self._subscriptions.grace_ms)
        return max(at_ms, row.granted_until_ms) if at_ms else 0


async def _newest_uses(connection: AsyncConnection, account_ids: Sequence[str]) -> Mapping[str, list[BudgetUse]]:
    """The use of each live budget in its newest period: one look into the key per budget, however long its history."""
    uses: dict[str, list[BudgetUse]] = defaultdict(list)
    if not account_ids:
        return uses
    older = budget_uses.alias()
    newest = (
        select(func.max(older.c.starts_at_ms))
        .where(older.c.account_id == budgets.c.account_id, older.c.number == budgets.c.number)
        .scalar_subquery()
    )
    of_budget = and_(
        budget_uses.c.account_id == budgets.c.account_id,
        budget_uses.c.number == budgets.c.number,
        budget_uses.c.starts_at_ms == newest,
    )
    found = await connection.execute(
        select(budgets.c.account_id, budget_uses.c.number, budget_uses.c.starts_at_ms, budget_uses.c.used)
        .join_from(budgets, budget_uses, of_budget)
        .where(budgets.c.account_id.in_(account_ids), budgets.c.removed_at_ms == 0)
        .order_by(budgets.c.account_id, budgets.c.number)
    )
    for row in found:
        uses[row.account_id].append(BudgetUse(row.number, row.starts_at_ms, row.used))
    return uses
