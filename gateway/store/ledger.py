"""The ledger: its entries as an account's transactions, and the audit that compares everything with everything.

Rules
1. The audit reads one account at a time, each in one consistent read, and changes nothing.
2. What must agree: seqs dense up to the account's; each charge = the sum of its lines; each flush's entries = the sums
   of its lines; each grant's and budget's columns = their sums, by lines and by entries. A rejected charge differs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import BigInteger, Row, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.ledger import GrantBalance, Kind, balance, charge_entries
from gateway.errors import BadRequest
from gateway.store.accounts import Accounts
from gateway.store.common import Page, page_of, page_size
from gateway.store.database import Database
from gateway.store.schema import accounts, audit_log, budget_uses, grants, ledger, usage, usage_rejects
from gateway.store.usage import lines_of

AUDIT_TIMEOUT_S: Final = 3600.0
ROWS_AT_ONCE: Final = 2000


@dataclass(frozen=True, slots=True)
class Transaction:
    """A ledger entry as people read it. ``seq_first``–``seq_last``: the charges it sums up, 0 for other kinds."""

    id: int
    account_id: str
    wallet: str
    grant: int
    kind: str
    debit: str
    credit: str
    amount: int
    seq_first: int
    seq_last: int
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A line of the audit log: who did what."""

    id: int
    account_id: str | None
    actor: str
    action: str
    detail: dict[str, object]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Two things that should be equal and are not."""

    account_id: str
    what: str
    expected: int | str
    found: int | str


@dataclass(frozen=True, slots=True)
class AccountAudit:
    """One account compared."""

    account_id: str
    charges: int
    differences: tuple[Difference, ...]


@dataclass(slots=True)
class _Tally:
    """An account's audit while it runs."""

    account_id: str
    charges: int = 0
    grants: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    budgets: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    differences: list[Difference] = field(default_factory=list)

    def compare(self, what: str, expected: int | str, found: int | str) -> None:
        if expected != found:
            self.differences.append(Difference(self.account_id, what, expected, found))


class Ledger:
    """Reads of the ledger and of the audit log."""

    def __init__(self, database: Database, accounts: Accounts) -> None:
        self._database = database
        self._accounts = accounts

    async def transactions(
        self, account_id: str, *, wallet: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Transaction]:
        """The account's entries, newest first. Raises BadRequest (cursor), StoreUnavailable."""
        size = page_size(limit)
        query = select(ledger).where(ledger.c.account_id == account_id).order_by(ledger.c.id.desc()).limit(size + 1)
        if wallet is not None:
            query = query.where(ledger.c.wallet == wallet)
        if cursor is not None:
            query = query.where(ledger.c.id < _serial(cursor))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, _transaction_of, lambda row: str(row.id))

    async def audit_log(
        self, *, account_id: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[AuditLine]:
        """Who did what, newest first; of one account or of all. Raises BadRequest (cursor), StoreUnavailable."""
        size = page_size(limit)
        query = select(audit_log).order_by(audit_log.c.id.desc()).limit(size + 1)
        if account_id is not None:
            query = query.where(audit_log.c.account_id == account_id)
        if cursor is not None:
            query = query.where(audit_log.c.id < _serial(cursor))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, _audit_line_of, lambda row: str(row.id))

    async def audit(self, account_id: str | None = None) -> AsyncIterator[AccountAudit]:
        """Compare one account, or each of them in the order of creation, with rejected charges of nobody at the end.

        Raises StoreUnavailable.
        """
        if account_id is not None:
            yield await self._account(account_id)
            return
        async for each in self._accounts.ids():
            yield await self._account(each)
        async with self._database.read() as connection:
            known = select(accounts.c.id).where(accounts.c.id == usage_rejects.c.account_id).exists()
            nobody = (await connection.execute(select(usage_rejects).where(~known))).all()
        for row in nobody:
            yield AccountAudit(row.account_id, 0, (_rejected(row),))

    async def _account(self, account_id: str) -> AccountAudit:
        tally = _Tally(account_id)
        async with self._database.snapshot(timeout_s=AUDIT_TIMEOUT_S) as connection:
            last = await connection.execute(select(accounts.c.seq).where(accounts.c.id == account_id))
            await _compare_flushes(connection, tally)
            tally.compare("last seq", last.scalar_one_or_none() or 0, tally.charges)
            await _compare_grants(connection, tally)
            await _compare_budgets(connection, tally)
            rejects = await connection.execute(select(usage_rejects).where(usage_rejects.c.account_id == account_id))
            tally.differences += [_rejected(row) for row in rejects]
        return AccountAudit(account_id, tally.charges, tuple(tally.differences))


async def _compare_flushes(connection: AsyncConnection, tally: _Tally) -> None:
    """Walk the charges and the ledger's entries about them side by side, both in order of seq."""
    charges = _charges(connection, tally)
    pending: list[tuple[str, int, int]] = []
    seq = 0
    async for (seq_first, seq_last), posted in _flushes(connection, tally.account_id):
        async for seq, lines in charges:
            if seq < seq_first and any(amount for _, _, amount in lines):
                tally.compare(f"entries of seq {seq}", "posted", "not posted")
            elif seq >= seq_first:
                pending += lines
            if seq >= seq_last:
                break
        due = charge_entries(pending, seq_first=seq_first, seq_last=seq_last)
        expected = {(entry.grant, entry.kind.value): entry.amount for entry in due}
        for key in sorted(expected.keys() | posted.keys()):
            what = f"{key[1]} on grant {key[0]}, seqs {seq_first}-{seq_last}"
            tally.compare(what, expected.get(key, 0), posted.get(key, 0))
        pending = []
    async for seq, lines in charges:
        if any(amount for _, _, amount in lines):
            tally.compare(f"entries of seq {seq}", "posted", "not posted")


async def _charges(connection: AsyncConnection, tally: _Tally) -> AsyncIterator[tuple[int, list[tuple[str, int, int]]]]:
    """Each charge change in order as (seq, [(wallet, grant, amount)]), tallied on the way."""
    columns = (usage.c.seq, usage.c.wallet, usage.c.charged, usage.c.lines, usage.c.budgets)
    while True:
        query = (
            select(*columns)
            .where(usage.c.account_id == tally.account_id, usage.c.seq > tally.charges)
            .order_by(usage.c.seq)
            .limit(ROWS_AT_ONCE)
        )
        rows = (await connection.execute(query)).all()
        for row in rows:
            tally.compare("seq", tally.charges + 1, row.seq)
            tally.charges = row.seq
            lines = [(line.wallet, line.grant, line.amount) for line in lines_of(row.lines, row.wallet)]
            tally.compare(f"charge of seq {row.seq}", sum(amount for _, _, amount in lines), row.charged)
            for _, grant, amount in lines:
                tally.grants[grant] += amount
            for number, starts_at_ms, amount in json.loads(row.budgets):
                tally.budgets[number, starts_at_ms] += amount
            yield row.seq, lines
        if len(rows) < ROWS_AT_ONCE:
            return


async def _flushes(
    connection: AsyncConnection, account_id: str
) -> AsyncIterator[tuple[tuple[int, int], dict[tuple[int, str], int]]]:
    """The charge entries of each flush: (seqs, {(grant, kind): amount}), in order."""
    after, current, posted = 0, (0, 0), dict[tuple[int, str], int]()
    while True:
        query = (
            select(ledger)
            .where(ledger.c.account_id == account_id, ledger.c.seq_last > 0, ledger.c.id > after)
            .order_by(ledger.c.id)
            .limit(ROWS_AT_ONCE)
        )
        rows = (await connection.execute(query)).all()
        for row in rows:
            after = row.id
            if (row.seq_first, row.seq_last) != current:
                if posted:
                    yield current, posted
                current, posted = (row.seq_first, row.seq_last), {}
            key = (row.grant_number, row.kind)
            posted[key] = posted.get(key, 0) + row.amount
        if len(rows) < ROWS_AT_ONCE:
            break
    if posted:
        yield current, posted


async def _compare_grants(connection: AsyncConnection, tally: _Tally) -> None:
    """A grant's columns against its lines and its entries."""
    total = cast(func.sum(ledger.c.amount), BigInteger)
    of_account = ledger.c.account_id == tally.account_id
    sums = await connection.execute(
        select(ledger.c.grant_number, ledger.c.kind, total)
        .where(of_account)
        .group_by(ledger.c.grant_number, ledger.c.kind)
    )
    entries: dict[int, list[tuple[Kind, int]]] = defaultdict(list)
    for number, kind, amount in sums:
        entries[number].append((Kind(kind), amount))
    found = await connection.execute(select(grants).where(grants.c.account_id == tally.account_id))
    rows = {row.number: row for row in found}
    for number in sorted(rows.keys() | entries.keys() | tally.grants.keys()):
        row = rows.get(number)
        if row is None:
            tally.compare(f"grant {number}", "there", "missing")
            continue
        tally.compare(f"used of grant {number}, by lines", tally.grants.get(number, 0), row.used)
        columns = GrantBalance(row.amount, row.used, row.written_off)
        tally.compare(f"grant {number}, by entries", str(balance(entries[number])), str(columns))


async def _compare_budgets(connection: AsyncConnection, tally: _Tally) -> None:
    found = await connection.execute(select(budget_uses).where(budget_uses.c.account_id == tally.account_id))
    used = {(row.number, row.starts_at_ms): row.used for row in found}
    for key in sorted(used.keys() | tally.budgets.keys()):
        tally.compare(f"used of budget {key[0]} from {key[1]}", tally.budgets.get(key, 0), used.get(key, 0))


def _rejected(row: Row[Any]) -> Difference:
    return Difference(row.account_id, f"charge of hold {row.hold_id}", row.state, f"rejected: {row.why}")


def _serial(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise BadRequest("invalid_cursor", "This cursor was not given by this list.", param="cursor")
    return int(cursor)


def _transaction_of(row: Row[Any]) -> Transaction:
    return Transaction(
        id=row.id,
        account_id=row.account_id,
        wallet=row.wallet,
        grant=row.grant_number,
        kind=row.kind,
        debit=row.debit,
        credit=row.credit,
        amount=row.amount,
        seq_first=row.seq_first,
        seq_last=row.seq_last,
        reason=row.reason,
        at_ms=row.created_at_ms,
    )


def _audit_line_of(row: Row[Any]) -> AuditLine:
    return AuditLine(row.id, row.account_id, row.actor, row.action, row.detail, row.created_at_ms)
