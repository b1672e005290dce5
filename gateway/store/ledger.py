"""The ledger's entries as an account's transactions, and the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, select

from gateway.errors import BadRequest
from gateway.store.audit import AccountAudit, audit
from gateway.store.common import Page, page_of, page_size, record
from gateway.store.database import Database
from gateway.store.schema import audit_log, ledger


@dataclass(frozen=True, slots=True)
class Times:
    """Half-open: ``from_ms`` <= t < ``to_ms``; None = without end."""

    from_ms: int | None = None
    to_ms: int | None = None


ANY_TIME: Final = Times()


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


class Ledger:
    """Reads; and lines of the audit log for what is no change of anything here."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def transactions(
        self,
        account_id: str,
        *,
        wallet: str | None = None,
        times: Times = ANY_TIME,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[Transaction]:
        """The account's entries, newest first. Raises BadRequest (cursor), StoreUnavailable."""
        size = page_size(limit)
        query = select(ledger).where(ledger.c.account_id == account_id).order_by(ledger.c.id.desc()).limit(size + 1)
        if wallet is not None:
            query = query.where(ledger.c.wallet == wallet)
        query = _within(query, ledger.c.created_at_ms, times)
        if cursor is not None:
            query = query.where(ledger.c.id < _serial(cursor))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, _transaction_of, lambda row: str(row.id))

    async def audit_log(
        self,
        *,
        account_id: str | None = None,
        times: Times = ANY_TIME,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[AuditLine]:
        """Who did what, newest first; of one account or of all. Raises BadRequest (cursor), StoreUnavailable."""
        size = page_size(limit)
        query = select(audit_log).order_by(audit_log.c.id.desc()).limit(size + 1)
        if account_id is not None:
            query = query.where(audit_log.c.account_id == account_id)
        query = _within(query, audit_log.c.created_at_ms, times)
        if cursor is not None:
            query = query.where(audit_log.c.id < _serial(cursor))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, _audit_line_of, lambda row: str(row.id))

    async def note(
        self, action: str, *, account_id: str | None, actor: str, now_ms: int, detail: Mapping[str, Any]
    ) -> None:
        """A line of the audit log about an act that changes nothing else here. Raises StoreUnavailable."""
        async with self._database.write() as connection:
            await record(connection, action, account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)

    async def audit(self, account_id: str | None = None) -> AsyncIterator[AccountAudit]:
        """Compare one account, or each of them in the order of creation, with rejected charges of nobody at the end.

        Raises StoreUnavailable.
        """
        async for group in audit(self._database, account_id):
            for audited in group:
                yield audited


def _within(query: Select[Any], column: ColumnElement[int], times: Times) -> Select[Any]:
    if times.from_ms is not None:
        query = query.where(column >= times.from_ms)
    return query if times.to_ms is None else query.where(column < times.to_ms)


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
