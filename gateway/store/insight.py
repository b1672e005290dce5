"""Sums over all accounts, for operators. They read every charge of the time asked for, so they may take a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Select, case, cast, func, or_, select

from gateway.store.database import Database
from gateway.store.schema import grants, usage

TIMEOUT_S: Final = 10.0
LATE_MS: Final = 86_400_000  # so long after its end a charge may still be written
_CALLS: Final = cast(func.sum(case((usage.c.state == "reversed", -1), else_=1)), BigInteger).label("calls")
_CHARGED: Final = cast(func.sum(usage.c.charged), BigInteger).label("charged")
_TOKENS: Final = cast(
    func.sum(
        usage.c.input
        + usage.c.cache_read
        + usage.c.cache_write
        + usage.c.cache_write_5m
        + usage.c.cache_write_1h
        + usage.c.output
    ),
    BigInteger,
).label("tokens")


@dataclass(frozen=True, slots=True)
class FeatureUse:
    """``charged`` in steps, ``tokens`` of models."""

    feature: str
    wallet: str
    calls: int
    charged: int
    tokens: int


@dataclass(frozen=True, slots=True)
class UserUse:
    """``user_id`` None: calls that named nobody."""

    account_id: str
    user_id: str | None
    wallet: str
    calls: int
    charged: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Recent:
    """What was charged to a wallet lately, the first time at ``first_at_ms``."""

    account_id: str
    wallet: str
    charged: int
    first_at_ms: int


@dataclass(frozen=True, slots=True)
class OpenGrant:
    account_id: str
    wallet: str
    amount: int
    used: int
    priority: int
    starts_at_ms: int
    expires_at_ms: int


class InsightQueries:
    """Of all accounts, or of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def features(self, account_id: str | None, *, from_ms: int, to_ms: int, limit: int) -> tuple[FeatureUse, ...]:
        """What was charged most often, by feature and wallet. Raises StoreUnavailable."""
        columns = (usage.c.feature, usage.c.wallet)
        query = _within(select(*columns, _CALLS, _CHARGED, _TOKENS), account_id, from_ms, to_ms).group_by(*columns)
        rows = await self._rows(query.order_by(_CALLS.desc(), *columns).limit(limit))
        return tuple(FeatureUse(*row) for row in rows)

    async def users(self, account_id: str | None, *, from_ms: int, to_ms: int, limit: int) -> tuple[UserUse, ...]:
        """Who made most calls. Raises StoreUnavailable."""
        columns = (usage.c.account_id, usage.c.user_id, usage.c.wallet)
        query = _within(select(*columns, _CALLS, _CHARGED, _TOKENS), account_id, from_ms, to_ms).group_by(*columns)
        rows = await self._rows(query.order_by(_CALLS.desc(), usage.c.account_id, usage.c.wallet).limit(limit))
        return tuple(UserUse(*row) for row in rows)

    async def recent(self, account_id: str | None, *, since_ms: int) -> tuple[Recent, ...]:
        """Raises StoreUnavailable."""
        columns = (usage.c.account_id, usage.c.wallet)
        query = select(*columns, _CHARGED, func.min(usage.c.at_ms)).group_by(*columns)
        rows = await self._rows(_within(query, account_id, since_ms, None))
        return tuple(Recent(*row) for row in rows)

    async def open_grants(self, account_id: str | None, *, now_ms: int) -> tuple[OpenGrant, ...]:
        """Raises StoreUnavailable."""
        g = grants.c
        query = select(g.account_id, g.wallet, g.amount, g.used, g.priority, g.starts_at_ms, g.expires_at_ms).where(
            g.starts_at_ms <= now_ms, or_(g.expires_at_ms == 0, g.expires_at_ms > now_ms)
        )
        if account_id is not None:
            query = query.where(g.account_id == account_id)
        return tuple(OpenGrant(*row) for row in await self._rows(query))

    async def _rows(self, query: Select[Any]) -> Sequence[Any]:
        async with self._database.snapshot(timeout_s=TIMEOUT_S) as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
        return rows


def _within(query: Select[Any], account_id: str | None, from_ms: int, to_ms: int | None) -> Select[Any]:
    """Calls that ended in this time. Of all accounts what is indexed is when they were committed, soon after."""
    query = query.where(usage.c.at_ms >= from_ms)
    if account_id is not None:
        query = query.where(usage.c.account_id == account_id)
    else:
        query = query.where(usage.c.committed_at_ms >= from_ms)
    if to_ms is None:
        return query
    if account_id is None:
        query = query.where(usage.c.committed_at_ms < to_ms + LATE_MS)
    return query.where(usage.c.at_ms < to_ms)
