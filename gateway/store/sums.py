"""What Redis should have counted: SQL's sums of charges, for many accounts in one look."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import and_, func, or_, select

from gateway.domain.accounts import AccountSums
from gateway.store.database import Database
from gateway.store.schema import accounts, budget_uses, budgets, grants


class Sums:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(
        self, account_ids: Collection[str], *, grants_since_ms: int, budgets_since_ms: int
    ) -> dict[str, AccountSums]:
        """The sums of these accounts at one instant: on grants that had not ended at ``grants_since_ms``, and of live
        budgets in their periods since ``budgets_since_ms``. Raises StoreUnavailable."""
        found: dict[str, AccountSums] = {}
        ids = list(account_ids)
        grant, budget, use = grants.c, budgets.c, budget_uses.c
        seqs = select(accounts.c.id, accounts.c.seq).where(accounts.c.id.in_(ids))
        not_ended = or_(grant.expires_at_ms == 0, grant.expires_at_ms > grants_since_ms)
        used = select(grant.account_id, grant.number, grant.wallet, grant.used).where(
            grant.account_id.in_(ids), not_ended
        )
        of_budget = and_(use.account_id == budget.account_id, use.number == budget.number)
        uses = (
            select(budget.account_id, budget.number, budget.meter, use.starts_at_ms, func.coalesce(use.used, 0))
            .join_from(budgets, budget_uses, and_(of_budget, use.starts_at_ms >= budgets_since_ms), isouter=True)
            .where(budget.account_id.in_(ids), budget.removed_at_ms == 0)
        )
        async with self._database.snapshot() as connection:
            for account_id, seq in await connection.execute(seqs):
                found[account_id] = AccountSums(seq, {}, {}, {})
            for account_id, number, wallet, amount in await connection.execute(used):
                found[account_id].grants[number] = (wallet, amount)
            for account_id, number, meter, starts_at_ms, amount in await connection.execute(uses):
                found[account_id].meters[number] = meter
                if starts_at_ms is not None:
                    found[account_id].budgets[number, starts_at_ms] = amount
        return found
