"""Reading the bill: usage records and what they add up to.

Rules
1. A record is one row of the append-only ``usage``: a settle, a lapse, or the reversal of a lapse, whose numbers are
   the lapse's negated. So sums over any rows are right, and a hold counts once.
2. Lists are newest first, half-open in time (``from_ms`` <= t < ``to_ms``), and page by (time, seq).
3. An account's records appear in the order of their seq: who has summed up to one need not look at those before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Row, Select, case, cast, func, literal_column, select, tuple_

from gateway.domain.periods import DAY_MS, billing_month, day_of, month_span
from gateway.domain.usage import Basis, Usage
from gateway.errors import BadRequest
from gateway.store.common import Page, page_of, page_size, storable
from gateway.store.database import Database, Dialect
from gateway.store.schema import usage

_KINDS: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write", "output", "reasoning")
_SUMMED_MAX: Final = 4_096  # accounts
_DAY, _MONTH = "day", "month"  # of the call's end, in UTC
_MONTHS: Final[Mapping[Dialect, str]] = {
    "sqlite": "strftime('%Y-%m', usage.at_ms / 1000, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(usage.at_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM')",
}
_COLUMNS: Final = {  # by what records call them
    "wallet": "wallet",
    "feature": "feature",
    "plan": "plan",
    "model": "model",
    "route": "route",
    "user": "user_id",
    "team": "team_id",
    "key": "key_id",
    "job": "job",
    "job_type": "job_type",
}
_GROUPS: Final = (_DAY, _MONTH, *_COLUMNS)


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What a record took from one grant, and what that left on it."""

    wallet: str
    grant: int  # number
    amount: int
    left: int


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One line of the bill."""

    account_id: str
    seq: int
    hold_id: str
    state: str  # lapsed | reversed | settled
    created_at_ms: int
    at_ms: int  # when the call ended
    month: str  # billing month, UTC: 2026-11
    route: str
    model: str | None
    upstream: str | None
    plan: str
    feature: str
    wallet: str
    card_version: str
    basis: Basis
    usage: Usage
    held: int
    charged: int
    overrun: int
    balance_after: int  # of the wallet's open grants
    lines: tuple[UsageLine, ...]
    status: int
    end: str
    key_id: str | None
    team_id: str | None
    user_id: str | None
    job: str | None
    job_type: str | None
    metadata: Mapping[str, object]
    shadow: str | None  # why a plan in shadow would have refused it
    waived: int  # what it would have cost then


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records; None = any."""

    from_ms: int | None = None
    to_ms: int | None = None
    month: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    key_id: str | None = None
    feature: str | None = None
    wallet: str | None = None
    model: str | None = None
    job: str | None = None
    job_type: str | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """What the records of one group add up to. ``group`` has the values of the columns that were asked for."""

    group: tuple[str | None, ...]
    wallet: str
    calls: int
    charged: int
    overrun: int
    waived: int
    usage: Usage
    first_at_ms: int
    last_at_ms: int


@dataclass(frozen=True, slots=True)
class _Summed:
    """What an account's records that ended since a time, up to a seq, come to per wallet."""

    since_ms: int
    seq: int
    charged: Mapping[str, int]


class UsageLog:
    """Queries over usage records."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._summed: dict[str, _Summed] = {}  # by account; bounded, the oldest go

    async def list(
        self, account_id: str, which: Filter | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> Page[UsageRecord]:
        """The account's records, newest first. Raises BadRequest (cursor), StoreUnavailable."""
        size = page_size(limit)
        query = _filtered(select(usage), account_id, which or Filter())
        if query is None:
            return Page((), None)
        if cursor is not None:
            query = query.where(tuple_(usage.c.at_ms, usage.c.seq) < tuple_(*_position(cursor)))
        query = query.order_by(usage.c.at_ms.desc(), usage.c.seq.desc()).limit(size + 1)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, _record_of, lambda row: f"{row.at_ms}.{row.seq}")

    async def of_hold(self, account_id: str, hold_id: str) -> tuple[UsageRecord, ...]:
        """What became of one call, the oldest first; empty when nothing was charged yet. Raises StoreUnavailable."""
        if not storable(hold_id):
            return ()
        query = select(usage).where(usage.c.hold_id == hold_id, usage.c.account_id == account_id).order_by(usage.c.seq)
        async with self._database.read() as connection:
            return tuple(_record_of(row) for row in await connection.execute(query))

    async def totals(
        self, account_id: str, which: Filter | None = None, *, by: tuple[str, ...] = ()
    ) -> tuple[Total, ...]:
        """Sums per wallet and per value of the groups ``by``, ordered by them. Raises BadRequest, StoreUnavailable."""
        for name in by:
            if name not in _GROUPS:
                raise BadRequest("invalid_group", f"Usage can be summed by {', '.join(_GROUPS)}.", param="by")
        groups = [self._group(name) for name in by]
        sums = [_sum(usage.c[name]).label(name) for name in ("charged", "overrun", "waived", *_KINDS)]
        calls = _sum(case((usage.c.state == "reversed", -1), else_=1)).label("calls")
        columns = (
            *groups,
            usage.c.wallet.label("of_wallet"),
            calls,
            *sums,
            func.min(usage.c.at_ms).label("first_at_ms"),
            func.max(usage.c.at_ms).label("last_at_ms"),
        )
        query = _filtered(select(*columns), account_id, which or Filter())
        if query is None:
            return ()
        query = query.group_by(*groups, usage.c.wallet).order_by(*groups, usage.c.wallet)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return tuple(
            Total(
                group=tuple(_told(name, value) for name, value in zip(by, row, strict=False)),
                wallet=row.of_wallet,
                calls=row.calls,
                charged=row.charged,
                overrun=row.overrun,
                waived=row.waived,
                usage=Usage(**{kind: getattr(row, kind) for kind in _KINDS}),
                first_at_ms=row.first_at_ms,
                last_at_ms=row.last_at_ms,
            )
            for row in rows
        )

    async def charged_since(self, account_id: str, since_ms: int) -> Mapping[str, int]:
        """What was charged per wallet since a time, in steps: for who asks again and again, only what is new is read.

        Raises StoreUnavailable."""
        known = self._summed.pop(account_id, None)
        if known is None or known.since_ms != since_ms:
            known = _Summed(since_ms, 0, {})
        at_ms = usage.c.at_ms if known.seq == 0 else usage.c.at_ms + 0  # new records: by their seq, not by that index
        query = (
            select(usage.c.wallet, _sum(usage.c.charged).label("charged"), func.max(usage.c.seq).label("seq"))
            .where(usage.c.account_id == account_id, usage.c.seq > known.seq, at_ms >= since_ms)
            .group_by(usage.c.wallet)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        charged = {**known.charged, **{row.wallet: known.charged.get(row.wallet, 0) + row.charged for row in rows}}
        if len(self._summed) >= _SUMMED_MAX:
            del self._summed[next(iter(self._summed))]
        self._summed[account_id] = _Summed(since_ms, max([known.seq, *(row.seq for row in rows)]), charged)
        return charged

    def _group(self, name: str) -> ColumnElement[Any]:
        if name == _DAY:
            return usage.c.at_ms // literal_column(str(DAY_MS))
        return literal_column(_MONTHS[self._database.dialect]) if name == _MONTH else usage.c[_COLUMNS[name]]


def _told(name: str, value: Any) -> str | None:
    """A group's value as people read it."""
    return value if name != _DAY else day_of(value * DAY_MS)


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.sum(column), BigInteger)  # PostgreSQL sums bigints as numeric


def _filtered(query: Select[Any], account_id: str, which: Filter) -> Select[Any] | None:
    """The query with its conditions; None when no row can match."""
    query = query.where(usage.c.account_id == account_id)
    if which.from_ms is not None:
        query = query.where(usage.c.at_ms >= which.from_ms)
    if which.to_ms is not None:
        query = query.where(usage.c.at_ms < which.to_ms)
    if which.month is not None:
        try:
            from_ms, to_ms = month_span(which.month)
        except ValueError:
            return None
        query = query.where(usage.c.at_ms >= from_ms, usage.c.at_ms < to_ms)
    for name in ("user_id", "team_id", "key_id", "feature", "wallet", "model", "job", "job_type"):
        value = getattr(which, name)
        if value is not None:
            if not storable(value):
                return None
            query = query.where(usage.c[name] == value)
    return query


def _position(cursor: str) -> tuple[int, int]:
    at_ms, _, seq = cursor.partition(".")
    if not (at_ms.isascii() and at_ms.isdigit() and seq.isascii() and seq.isdigit() and len(cursor) < 40):
        raise BadRequest("invalid_cursor", "This cursor was not given by this list.", param="cursor")
    return int(at_ms), int(seq)


def _record_of(row: Row[Any]) -> UsageRecord:
    return UsageRecord(
        account_id=row.account_id,
        seq=row.seq,
        hold_id=row.hold_id,
        state=row.state,
        created_at_ms=row.created_at_ms,
        at_ms=row.at_ms,
        month=billing_month(row.at_ms),
        route=row.route,
        model=row.model,
        upstream=row.upstream,
        plan=row.plan,
        feature=row.feature,
        wallet=row.wallet,
        card_version=row.card_version,
        basis=Basis(row.basis),
        usage=Usage(*(row._mapping[kind] for kind in _KINDS)),
        held=row.held,
        charged=row.charged,
        overrun=row.overrun,
        balance_after=row.balance_after,
        lines=lines_of(row.lines, row.wallet),
        status=row.status,
        end=row.end,
        key_id=row.key_id,
        team_id=row.team_id,
        user_id=row.user_id,
        job=row.job,
        job_type=row.job_type,
        metadata=json.loads(row.metadata),
        shadow=row.shadow,
        waived=row.waived,
    )


def lines_of(text: str, wallet: str) -> tuple[UsageLine, ...]:
    """The stored lines; a line names its wallet only when it is another one than its record's."""
    return tuple(UsageLine(line[3] if len(line) > 3 else wallet, *line[:3]) for line in json.loads(text))
