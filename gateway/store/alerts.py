"""Alerts: what somebody must be told of, once each, and how far the telling got.

Rules
1. An alert is raised once per account and key, by whoever notices first: the unique row decides, in the notice's own
   transaction or in another's (``raise_alert``).
2. Raised is not announced: one worker announces each alert, which addresses it to the channels there are then.
3. A delivery is claimed before it is sent, for a time: whoever dies with it loses the claim, and it is sent again under
   the same id. Nobody else sends it meanwhile.
4. News is told to those who listen live and removed afterwards; it is no alert.

Not here: what is noticed (``quota``), and the sending (``billing.alerts``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Row, Text, and_, cast, delete, exists, func, literal, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import Subscription
from gateway.domain.alerts import DAY_MS, EMAIL, TRIAL_ENDING, TRIAL_ENDING_PARTS
from gateway.errors import BadRequest
from gateway.store.accounts import SUBSCRIPTION_COLUMNS, subscription_of
from gateway.store.common import Page, inserting, page_of, page_size
from gateway.store.database import Database
from gateway.store.schema import accounts, subscriptions
from gateway.store.schema_alerts import alert_deliveries, alerts

PENDING: Final = "pending"
SENT: Final = "sent"
FAILED: Final = "failed"
ANNOUNCED_AT_ONCE: Final = 200
AT_ONCE: Final = 100
_ERROR_MAX: Final = 200
_TRIALING: Final = (subscriptions.c.ended_at_ms == 0, subscriptions.c.status == literal_column("'trialing'"))


@dataclass(frozen=True, slots=True)
class NewAlert:
    """What was noticed. ``detail`` is what people are told: amounts and times as text, no key, no prompt.

    ``news_until_ms`` 0 = an alert; else news until then.
    """

    account_id: str
    kind: str
    key: str
    detail: Mapping[str, Any]
    at_ms: int
    news_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    id: int  # grows; on PostgreSQL a smaller one may become visible later
    account_id: str
    kind: str
    detail: Mapping[str, Any]
    created_at_ms: int
    is_news: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far one channel got with one alert."""

    channel: str
    state: str  # pending | sent | failed
    attempts: int
    next_at_ms: int
    last_error: str


@dataclass(frozen=True, slots=True)
class AlertRecord:
    alert: Alert
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that this worker is to send now; ``attempt`` counts from 1."""

    alert: Alert
    channel: str
    attempt: int
    account_name: str
    external_id: str | None
    email: str | None


async def raise_alert(connection: AsyncConnection, new: NewAlert) -> bool:
    """Raise an alert in the caller's transaction, so that it is there exactly when what it tells of is.

    Answers False when it was raised before.
    """
    statement = inserting(_dialect(connection), alerts).values(_values(new)).on_conflict_do_nothing()
    return bool((await connection.execute(statement)).rowcount == 1)


class Alerts:
    """Alerts, their deliveries, and news."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def raise_all(self, new: Sequence[NewAlert]) -> None:
        """Those that are not there yet, in one transaction. Raises StoreUnavailable."""
        rows = sorted((_values(each) for each in new), key=itemgetter("account_id"))  # callers meet in one order
        if rows:
            statement = inserting(self._database.dialect, alerts).on_conflict_do_nothing()
            async with self._database.write() as connection:
                await connection.execute(statement, rows)

    async def list(
        self,
        *,
        account_id: str | None = None,
        kind: str | None = None,
        state: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[AlertRecord]:
        """Alerts, the newest first; ``state``: only those with a delivery in it. Raises BadRequest (cursor),
        StoreUnavailable."""
        size = page_size(limit)
        query = select(alerts).where(alerts.c.news_until_ms == 0).order_by(alerts.c.id.desc()).limit(size + 1)
        if account_id is not None:
            query = query.where(alerts.c.account_id == account_id)
        if kind is not None:
            query = query.where(alerts.c.kind == kind)
        if state is not None:
            of_alert = and_(alert_deliveries.c.alert_id == alerts.c.id, alert_deliveries.c.state == state)
            query = query.where(exists().where(of_alert))
        if cursor is not None:
            if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
                raise BadRequest("invalid_cursor", "This cursor was not given by this list.", param="cursor")
            query = query.where(alerts.c.id < int(cursor))
        async with self._database.snapshot() as connection:
            rows = (await connection.execute(query)).all()
            sends = alert_deliveries.c.alert_id.in_([row.id for row in rows])
            found = await connection.execute(select(alert_deliveries).where(sends).order_by(alert_deliveries.c.channel))
            deliveries: dict[int, list[Delivery]] = {}
            for row in found:
                deliveries.setdefault(row.alert_id, []).append(_delivery_of(row))

        def read(row: Row[Any]) -> AlertRecord:
            return AlertRecord(_alert_of(row), tuple(deliveries.get(row.id, ())))

        return page_of(rows, size, read, lambda row: str(row.id))

    # --- noticing ----------------------------------------------------------------------------------------------------

    async def trials_over(self, *, now_ms: int, limit: int = AT_ONCE, skip: int = 0) -> tuple[str, ...]:
        """Accounts whose trial has ended, and nobody has turned it. Raises StoreUnavailable."""
        query = (
            select(subscriptions.c.account_id)
            .where(
                *_TRIALING,
                subscriptions.c.trial_ends_at_ms <= now_ms,
                subscriptions.c.period_ends_at_ms <= now_ms,
            )
            .order_by(subscriptions.c.trial_ends_at_ms, subscriptions.c.id)
            .limit(limit)
            .offset(skip)
        )
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def trials_ending(self, *, now_ms: int, limit: int = AT_ONCE) -> tuple[tuple[str, Subscription], ...]:
        """(account, subscription) of trials that are about to end, and nobody was told. Raises StoreUnavailable."""
        ends_ms, starts_ms = subscriptions.c.trial_ends_at_ms, subscriptions.c.period_starts_at_ms
        key = literal(f"{TRIAL_ENDING}:") + subscriptions.c.id + ":" + cast(ends_ms, Text)
        told = exists().where(alerts.c.account_id == subscriptions.c.account_id, alerts.c.key == key)
        query = (
            select(subscriptions.c.account_id, *SUBSCRIPTION_COLUMNS)
            .where(
                *_TRIALING,
                ends_ms > now_ms,
                ends_ms <= now_ms + DAY_MS,
                (ends_ms - now_ms) * TRIAL_ENDING_PARTS <= ends_ms - starts_ms,
                ~told,
            )
            .order_by(ends_ms)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
        return tuple((row.account_id, subscription_of(row)) for row in rows)

    # --- announcing and sending ------------------------------------------------------------------------------------

    async def has_work(self, *, now_ms: int) -> bool:
        """Whether something waits to be announced or sent: one cheap look. Raises StoreUnavailable."""
        new = select(alerts.c.id).where(alerts.c.announced_at_ms == 0).limit(1).exists()
        due = (
            select(alert_deliveries.c.alert_id)
            .where(alert_deliveries.c.state == PENDING, alert_deliveries.c.next_at_ms <= now_ms)
            .limit(1)
            .exists()
        )
        async with self._database.read() as connection:
            return bool((await connection.execute(select(new | due))).scalar_one())

    async def announce(self, channels: Sequence[str], *, now_ms: int) -> tuple[Alert, ...]:
        """Take what nobody has announced, and address it to these channels; e-mails need an account with an address.

        Each alert is answered to one caller only. Raises StoreUnavailable.
        """
        query = (
            select(alerts, accounts.c.email)
            .join_from(alerts, accounts, accounts.c.id == alerts.c.account_id, isouter=True)
            .where(alerts.c.announced_at_ms == 0)
            .order_by(alerts.c.id)
            .limit(ANNOUNCED_AT_ONCE)
            .with_for_update(skip_locked=True, of=alerts)
        )
        async with self._database.write() as connection:
            rows = (await connection.execute(query)).all()
            if not rows:
                return ()
            ids = [row.id for row in rows]
            await connection.execute(update(alerts).where(alerts.c.id.in_(ids)).values(announced_at_ms=now_ms))
            sends = [
                {"alert_id": row.id, "channel": channel, "state": PENDING, "next_at_ms": now_ms, "last_error": ""}
                for row in rows
                for channel in channels
                if channel != EMAIL or row.email
            ]
            if sends:
                await connection.execute(alert_deliveries.insert(), sends)
        return tuple(_alert_of(row) for row in rows)

    async def claim(self, *, now_ms: int, lease_ms: int, limit: int) -> tuple[Claim, ...]:
        """Deliveries that are due, now this caller's for ``lease_ms``. Raises StoreUnavailable."""
        due = (
            select(alert_deliveries.c.alert_id, alert_deliveries.c.channel, alert_deliveries.c.attempts)
            .where(alert_deliveries.c.state == PENDING, alert_deliveries.c.next_at_ms <= now_ms)
            .order_by(alert_deliveries.c.next_at_ms)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._database.write() as connection:
            mine = (await connection.execute(due)).all()
            if not mine:
                return ()
            for row in mine:
                await connection.execute(
                    update(alert_deliveries)
                    .where(alert_deliveries.c.alert_id == row.alert_id, alert_deliveries.c.channel == row.channel)
                    .values(attempts=row.attempts + 1, next_at_ms=now_ms + lease_ms)
                )
            query = (
                select(alerts, accounts.c.name, accounts.c.external_id, accounts.c.email)
                .join_from(alerts, accounts, accounts.c.id == alerts.c.account_id, isouter=True)
                .where(alerts.c.id.in_({row.alert_id for row in mine}))
            )
            of_id = {row.id: row for row in await connection.execute(query)}
        return tuple(_claim_of(of_id[row.alert_id], row.channel, row.attempts + 1) for row in mine)

    async def sent(self, claim: Claim) -> None:
        """The delivery arrived. Raises StoreUnavailable."""
        await self._end(claim, state=SENT, next_at_ms=0, last_error="")

    async def failed(self, claim: Claim, error: str, *, again_at_ms: int | None) -> None:
        """It did not arrive: once more at ``again_at_ms``, or never (None). ``error`` holds no secret. Raises
        StoreUnavailable."""
        state = FAILED if again_at_ms is None else PENDING
        await self._end(claim, state=state, next_at_ms=again_at_ms or 0, last_error=error[:_ERROR_MAX])

    async def _end(self, claim: Claim, **values: Any) -> None:
        """Unless the claim ran out and another one has it by now."""
        statement = update(alert_deliveries).where(
            alert_deliveries.c.alert_id == claim.alert.id,
            alert_deliveries.c.channel == claim.channel,
            alert_deliveries.c.state == PENDING,
            alert_deliveries.c.attempts == claim.attempt,
        )
        async with self._database.write() as connection:
            await connection.execute(statement.values(values))

    # --- listening live --------------------------------------------------------------------------------------------

    async def newest(self) -> int:
        """The largest id there is; 0 = none. Raises StoreUnavailable."""
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.max(alerts.c.id)))).scalar_one() or 0)

    async def since(self, after: int, *, account_id: str | None = None, limit: int = 1000) -> tuple[Alert, ...]:
        """Alerts and news behind an id, in order. Raises StoreUnavailable."""
        query = select(alerts).where(alerts.c.id > after).order_by(alerts.c.id).limit(limit)
        if account_id is not None:
            query = query.where(alerts.c.account_id == account_id)
        async with self._database.read() as connection:
            return tuple(_alert_of(row) for row in await connection.execute(query))

    async def remove_old_news(self, *, now_ms: int) -> None:
        """Raises StoreUnavailable."""
        old = delete(alerts).where(alerts.c.news_until_ms > 0, alerts.c.news_until_ms <= now_ms)
        async with self._database.write() as connection:
            await connection.execute(old)


def _dialect(connection: AsyncConnection) -> Any:
    return connection.dialect.name


def _values(new: NewAlert) -> dict[str, Any]:
    return {
        "account_id": new.account_id,
        "kind": new.kind,
        "key": f"{new.kind}:{new.key}",
        "detail": dict(new.detail),
        "created_at_ms": new.at_ms,
        "announced_at_ms": new.at_ms if new.news_until_ms else 0,
        "news_until_ms": new.news_until_ms,
    }


def alert_texts(new: NewAlert) -> dict[str, Any]:
    """The columns of an alert as a script writes them."""
    return {**_values(new), "detail": json.dumps(dict(new.detail))}


def _alert_of(row: Row[Any]) -> Alert:
    return Alert(row.id, row.account_id, row.kind, row.detail, row.created_at_ms, is_news=row.news_until_ms > 0)


def _delivery_of(row: Row[Any]) -> Delivery:
    return Delivery(row.channel, row.state, row.attempts, row.next_at_ms, row.last_error)


def _claim_of(row: Row[Any], channel: str, attempt: int) -> Claim:
    return Claim(_alert_of(row), channel, attempt, row.name or "", row.external_id, row.email)
