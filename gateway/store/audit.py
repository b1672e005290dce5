"""The store's own audit: usage rows, ledger entries and balances compared with each other, for one account or for all.

Rules
1. Accounts are read in groups, each group in one consistent read; nothing is changed. Charges and entries are walked
   side by side, a page of rows at a time: neither the number of accounts nor the length of a history fills memory.
2. What must agree: seqs dense up to the account's; each charge = the sum of its lines; each flush's entries = the sums
   of its lines; each grant's and budget's columns = their sums, by lines and by entries. A rejected charge differs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import BigInteger, Column, ColumnElement, Row, Select, Table, cast, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.ledger import GrantBalance, Kind, balance, charge_entries
from gateway.store.database import Database
from gateway.store.schema import accounts, budget_uses, grants, ledger, usage, usage_rejects
from gateway.store.usage import lines_of

TIMEOUT_S: Final = 3600.0
ROWS_AT_ONCE: Final = 2000
ACCOUNTS_AT_ONCE: Final = 500


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


Lines = list[tuple[str, int, int]]  # (wallet, grant, amount)
Posted = dict[tuple[int, str], int]  # (grant, kind) → amount


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


async def audit(database: Database, account_id: str | None = None) -> AsyncIterator[list[AccountAudit]]:
    """Compare one account, or each of them in the order of creation, group by group; at the end the rejected charges
    of nobody. Raises StoreUnavailable."""
    if account_id is not None:
        async with database.snapshot(timeout_s=TIMEOUT_S) as connection:
            known = await connection.execute(select(accounts.c.seq).where(accounts.c.id == account_id))
            group = await _group(connection, [(account_id, known.scalar_one_or_none() or 0)])
        yield group
        return
    after = ""
    while True:
        query = select(accounts.c.id, accounts.c.seq).where(accounts.c.id > after).order_by(accounts.c.id)
        async with database.snapshot(timeout_s=TIMEOUT_S) as connection:
            page = [(row.id, row.seq) for row in await connection.execute(query.limit(ACCOUNTS_AT_ONCE))]
            group = await _group(connection, page) if page else []
        yield group
        if len(page) < ACCOUNTS_AT_ONCE:
            break
        after = page[-1][0]
    async with database.read() as connection:
        known_ids = select(accounts.c.id).where(accounts.c.id == usage_rejects.c.account_id).exists()
        nobody = (await connection.execute(select(usage_rejects).where(~known_ids))).all()
    yield [AccountAudit(row.account_id, 0, (_rejected(row),)) for row in nobody]


async def _group(connection: AsyncConnection, members: list[tuple[str, int]]) -> list[AccountAudit]:
    """Accounts that follow each other, with their last seqs."""
    first, last = members[0][0], members[-1][0]

    def of_group(table: Table) -> ColumnElement[bool]:
        return table.c.account_id.between(first, last)

    ids = {account_id for account_id, _ in members}
    charges = _Walk(_pages(connection, select(*_CHARGE), usage.c.seq, of_group(usage)), ids)
    posted = select(ledger).where(ledger.c.seq_last > 0)
    entries = _Walk(_pages(connection, posted, ledger.c.id, of_group(ledger)), ids)
    total = cast(func.sum(ledger.c.amount), BigInteger).label("total")
    by_kind = (ledger.c.account_id, ledger.c.grant_number, ledger.c.kind)
    sums = await _by_account(connection, select(*by_kind, total).where(of_group(ledger)).group_by(*by_kind))
    owned = await _by_account(connection, select(grants).where(of_group(grants)))
    uses = await _by_account(connection, select(budget_uses).where(of_group(budget_uses)))
    rejects = await _by_account(connection, select(usage_rejects).where(of_group(usage_rejects)))
    audited = []
    for account_id, seq in members:
        tally = _Tally(account_id)
        await _compare_flushes(tally, charges.of(account_id), _flushes(entries.of(account_id)))
        tally.compare("last seq", seq, tally.charges)
        _compare_grants(tally, sums[account_id], owned[account_id])
        _compare_budgets(tally, uses[account_id])
        tally.differences += [_rejected(row) for row in rejects[account_id]]
        audited.append(AccountAudit(account_id, tally.charges, tuple(tally.differences)))
    return audited


_CHARGE: Final = (usage.c.account_id, usage.c.seq, usage.c.wallet, usage.c.charged, usage.c.lines, usage.c.budgets)


async def _by_account(connection: AsyncConnection, query: Select[Any]) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in await connection.execute(query):
        found[row.account_id].append(row)
    return found


async def _pages(
    connection: AsyncConnection, query: Select[Any], order: Column[int], condition: ColumnElement[bool]
) -> AsyncIterator[Row[Any]]:
    """The rows in order of (account, ``order``), a page at a time."""
    owner = order.table.c.account_id
    query = query.where(condition).order_by(owner, order).limit(ROWS_AT_ONCE)
    page = (await connection.execute(query)).all()
    while page:
        for row in page:
            yield row
        if len(page) < ROWS_AT_ONCE:
            return
        last = page[-1]
        following = query.where(tuple_(owner, order) > tuple_(last.account_id, last._mapping[order]))
        page = (await connection.execute(following)).all()


class _Walk:
    """Rows sorted by account, handed out account by account in the same order; rows of nobody are passed over."""

    def __init__(self, rows: AsyncIterator[Row[Any]], members: Collection[str]) -> None:
        self._rows = rows
        self._members = members
        self._head: Row[Any] | None = None

    async def of(self, account_id: str) -> AsyncIterator[Row[Any]]:
        """The account's rows, which are next."""
        while True:
            if self._head is None:
                self._head = await anext(self._rows, None)
            if self._head is None:
                return
            if self._head.account_id != account_id and self._head.account_id in self._members:
                return
            row, self._head = self._head, None
            if row.account_id == account_id:
                yield row


async def _compare_flushes(
    tally: _Tally, rows: AsyncIterator[Row[Any]], flushes: AsyncIterator[tuple[tuple[int, int], Posted]]
) -> None:
    """Walk the charges and the ledger's entries about them side by side, both in order of seq."""
    charges = _charges(rows, tally)
    pending: Lines = []
    seq = 0
    async for (seq_first, seq_last), posted in flushes:
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


async def _charges(rows: AsyncIterator[Row[Any]], tally: _Tally) -> AsyncIterator[tuple[int, Lines]]:
    """Each charge change in order as (seq, lines), tallied on the way."""
    async for row in rows:
        tally.compare("seq", tally.charges + 1, row.seq)
        tally.charges = row.seq
        lines = [(line.wallet, line.grant, line.amount) for line in lines_of(row.lines, row.wallet)]
        tally.compare(f"charge of seq {row.seq}", sum(amount for _, _, amount in lines), row.charged)
        for _, grant, amount in lines:
            tally.grants[grant] += amount
        for number, starts_at_ms, amount in json.loads(row.budgets):
            tally.budgets[number, starts_at_ms] += amount
        yield row.seq, lines


async def _flushes(rows: AsyncIterator[Row[Any]]) -> AsyncIterator[tuple[tuple[int, int], Posted]]:
    """The charge entries of each flush: (seqs, what was posted), in order."""
    current, posted = (0, 0), Posted()
    async for row in rows:
        if (row.seq_first, row.seq_last) != current:
            if posted:
                yield current, posted
            current, posted = (row.seq_first, row.seq_last), {}
        key = (row.grant_number, row.kind)
        posted[key] = posted.get(key, 0) + row.amount
    if posted:
        yield current, posted


def _compare_grants(tally: _Tally, sums: Iterable[Row[Any]], owned: Iterable[Row[Any]]) -> None:
    """A grant's columns against its lines and its entries."""
    entries: dict[int, list[tuple[Kind, int]]] = defaultdict(list)
    for sum_row in sums:
        entries[sum_row.grant_number].append((Kind(sum_row.kind), sum_row.total))
    rows = {row.number: row for row in owned}
    for number in sorted(rows.keys() | entries.keys() | tally.grants.keys()):
        row = rows.get(number)
        if row is None:
            tally.compare(f"grant {number}", "there", "missing")
            continue
        tally.compare(f"used of grant {number}, by lines", tally.grants.get(number, 0), row.used)
        columns = GrantBalance(row.amount, row.used, row.written_off)
        tally.compare(f"grant {number}, by entries", str(balance(entries[number])), str(columns))


def _compare_budgets(tally: _Tally, uses: Iterable[Row[Any]]) -> None:
    used = {(row.number, row.starts_at_ms): row.used for row in uses}
    for key in sorted(used.keys() | tally.budgets.keys()):
        tally.compare(f"used of budget {key[0]} from {key[1]}", tally.budgets.get(key, 0), used.get(key, 0))


def _rejected(row: Row[Any]) -> Difference:
    return Difference(row.account_id, f"charge of hold {row.hold_id}", row.state, f"rejected: {row.why}")
