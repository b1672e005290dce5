"""The one way of charges into the database: batches, each one transaction, where SQL decides what each charge becomes.

Rules
1. The accounts' rows are locked in order, then what is known of the holds is read: two writers with the same charges
   (an owner and whoever took its outbox over) do not deadlock, and the second one finds the first one's rows.
2. What a charge becomes is ``domain.charges.steps``: none → lapsed → settled, each once, in whatever order they come.
   Each step is one row of ``usage`` with the account's next dense ``seq``.
3. Every answer has all changes of its hold, old and new: a commit whose reply was lost is simply repeated.
4. A charge that cannot be booked (no such account or grant) must not hold up the others: it goes to ``usage_rejects``,
   where the audit finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import bindparam, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.charges import ChargeRow, Committed
from gateway.domain.ledger import charge_entries
from gateway.store.booking import Account, Batch, Grant, Known
from gateway.store.common import among, inserting, wall_clock_ms
from gateway.store.database import Database
from gateway.store.grants import entry_values
from gateway.store.schema import accounts, budget_uses, budgets, grants, ledger, usage, usage_rejects

BATCH_MAX: Final = 1000

_SEQ: Final = (
    update(accounts)
    .where(accounts.c.id == bindparam("account"))
    .values(seq=bindparam("last_seq"), charged_at_ms=bindparam("now_ms"))
)
_USED: Final = (
    update(grants)
    .where(grants.c.account_id == bindparam("account"), grants.c.number == bindparam("grant"))
    .values(used=grants.c.used + bindparam("added"))
)


class Writer:
    """Commits charges."""

    def __init__(self, database: Database, *, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._database = database
        self._now_ms = now_ms
        dialect = database.dialect
        self._lock = (
            select(accounts.c.id, accounts.c.seq)
            .where(among(dialect, accounts.c.id, "ids"))
            .order_by(accounts.c.id)
            .with_for_update(key_share=True)
        )
        of_holds = among(dialect, usage.c.hold_id, "holds")
        self._known = select(usage).where(of_holds).order_by(usage.c.account_id, usage.c.seq)
        grant_columns = (
            grants.c.account_id, grants.c.number, grants.c.wallet, grants.c.amount, grants.c.used,
            grants.c.starts_at_ms, grants.c.expires_at_ms,
        )  # fmt: skip
        of_accounts = among(dialect, grants.c.account_id, "ids")
        self._grants = select(*grant_columns).where(
            of_accounts, or_(grants.c.expires_at_ms == 0, grants.c.expires_at_ms > bindparam("since_ms"))
        )
        self._all_grants = select(*grant_columns).where(of_accounts)
        of_accounts = among(dialect, budgets.c.account_id, "ids")
        self._budgets = select(budgets.c.account_id, budgets.c.number).where(of_accounts)
        self._reject = inserting(dialect, usage_rejects).on_conflict_do_nothing()
        use = inserting(dialect, budget_uses)
        self._use = use.on_conflict_do_update(
            index_elements=["account_id", "number", "starts_at_ms"],
            set_={"used": budget_uses.c.used + use.excluded.used},
        )

    async def commit(self, rows: Sequence[ChargeRow]) -> list[Committed]:
        """Book these charges, at most ``BATCH_MAX``; the answers are in their order, one each.

        A rejected charge is answered with no changes. Raises StoreUnavailable: perhaps booked, repeat.
        """
        if not rows:
            return []
        assert len(rows) <= BATCH_MAX, "commit in batches"
        now_ms = self._now_ms()
        async with self._database.write() as connection:
            batch = await self._read(connection, rows)
            answers = [batch.book(row, now_ms) for row in rows]
            await self._write(connection, batch, now_ms)
        return [answer() for answer in answers]

    async def _read(self, connection: AsyncConnection, rows: Sequence[ChargeRow]) -> Batch:
        """Lock the accounts, and read what the batch needs to know."""
        ids = sorted({row.account_id for row in rows})
        seqs = (await connection.execute(self._lock, {"ids": ids})).all()
        known = (await connection.execute(self._known, {"holds": list({row.hold_id for row in rows})})).all()
        since_ms = min(row.ended_at_ms for row in rows) - 1
        found = (await connection.execute(self._grants, {"ids": ids, "since_ms": since_ms})).all()
        batch = Batch({row.id: Account(row.id, row.seq) for row in seqs})
        for row in known:
            batch.known.setdefault(row.hold_id, []).append(Known.of(row))
        for grant in found:
            batch.accounts[grant.account_id].grants[grant.number] = Grant(*grant[2:])
        if not batch.has_grants(rows):  # a late charge of a grant that has ended
            for grant in (await connection.execute(self._all_grants, {"ids": ids})).all():
                batch.accounts[grant.account_id].grants.setdefault(grant.number, Grant(*grant[2:]))
        if any(row.budgets for row in rows):
            for budget in (await connection.execute(self._budgets, {"ids": ids})).all():
                batch.accounts[budget.account_id].budgets.add(budget.number)
        return batch

    async def _write(self, connection: AsyncConnection, batch: Batch, now_ms: int) -> None:
        """Everything that the batch adds, one statement per table."""
        if batch.rejects:
            await connection.execute(self._reject, batch.rejects)
        if not batch.usage:
            return
        await connection.execute(insert(usage), batch.usage)
        moved = [account for account in batch.accounts.values() if account.seq > account.seq_before]
        await connection.execute(
            _SEQ, [{"account": account.id, "last_seq": account.seq, "now_ms": now_ms} for account in moved]
        )
        used: list[dict[str, Any]] = []
        uses: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        for account in moved:
            for number, grant in account.grants.items():
                if grant.added:
                    used.append({"account": account.id, "grant": number, "added": grant.added})
            for (number, starts_at_ms), added in account.budget_uses.items():
                uses.append({"account_id": account.id, "number": number, "starts_at_ms": starts_at_ms, "used": added})
            posted = charge_entries(account.posted, seq_first=account.seq_before + 1, seq_last=account.seq)
            entries += entry_values(account.id, posted, now_ms=now_ms)
        for statement, values in ((_USED, used), (self._use, uses), (insert(ledger), entries)):
            if values:
                await connection.execute(statement, values)

    async def last_seqs(self, *, older_than_ms: int, newer_than_ms: int) -> tuple[tuple[str, int], ...]:
        """(account, last seq) of the charges written between ``newer_than_ms`` and ``older_than_ms`` ago: what Redis
        should have counted by now. Raises StoreUnavailable."""
        now_ms = self._now_ms()
        query = (
            select(usage.c.account_id, func.max(usage.c.seq))
            .where(usage.c.committed_at_ms > now_ms - newer_than_ms, usage.c.committed_at_ms <= now_ms - older_than_ms)
            .group_by(usage.c.account_id)
        )
        async with self._database.read() as connection:
            return tuple((account_id, seq) for account_id, seq in await connection.execute(query))
