"""The steps that a subscription's moves are made of, inside the caller's transaction with the account locked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import Subscription
from gateway.domain.ledger import Entry, Kind
from gateway.store.accounts import subscription_values
from gateway.store.grants import end_grants, grant_of, open_grants, post, withdraw
from gateway.store.schema import grants, subscriptions


async def move(
    connection: AsyncConnection, row: Row[Any], subscription: Subscription, *, keeps_ahead: bool = False
) -> None:
    """Write where the current subscription is now. ``keeps_ahead``: what was granted ahead stays granted."""
    until_ms = subscription.period_ends_at_ms
    await connection.execute(
        update(subscriptions)
        .where(subscriptions.c.id == row.subscription_id)
        .values(
            granted_until_ms=max(row.granted_until_ms, until_ms) if keeps_ahead else until_ms,
            **subscription_values(subscription),
        )
    )


async def close_plan(connection: AsyncConnection, account_id: str, subscription_id: str, now_ms: int) -> None:
    """End what a plan granted, and the adjustments to it. What was granted once for ever stays the account's."""
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account_id,
            grants.c.expires_at_ms > now_ms,
            or_(grants.c.key.startswith(f"{subscription_id}:"), grants.c.source == "adjustment"),
        )
    )
    ended = [grant_of(row) for row in found]
    ahead = [grant for grant in ended if grant.starts_at_ms > now_ms]
    for grant in ahead:
        await withdraw(connection, account_id, (grant,), grant.amount, now_ms=now_ms, reason="plan left")
    await end_grants(connection, account_id, ended, now_ms)


async def take_back_ahead(connection: AsyncConnection, account_id: str, row: Row[Any], now_ms: int) -> None:
    """Take back the next period's grants while they have not started; they may be granted again.

    Whoever calls this moves the subscription, too.
    """
    if row.granted_until_ms <= row.period_ends_at_ms:
        return
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account_id,
            grants.c.starts_at_ms >= row.period_ends_at_ms,
            grants.c.starts_at_ms > now_ms,
            grants.c.key.startswith(f"{row.subscription_id}:"),
        )
    )
    ahead = [grant_of(each) for each in found]
    for grant in ahead:
        await withdraw(connection, account_id, (grant,), grant.amount, now_ms=now_ms, reason="not renewed")
    await end_grants(connection, account_id, ahead, now_ms)
    await connection.execute(
        update(grants)
        .where(grants.c.account_id == account_id, grants.c.number.in_([grant.number for grant in ahead]))
        .values(key=None)
    )


async def close_debts(connection: AsyncConnection, account_id: str, *, carry: bool, now_ms: int) -> None:
    """What ended grants still owe is forgiven, or carried to the wallet's open grants as far as they reach."""
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account_id,
            grants.c.expires_at_ms > 0,
            grants.c.expires_at_ms <= now_ms,
            grants.c.used > grants.c.amount + grants.c.written_off,
        )
    )
    for row in found.all():
        owed = row.used - row.amount - row.written_off
        entries = await _carried(connection, row, owed, now_ms) if carry else [_entry(row, Kind.FORGIVEN, owed)]
        closed = sum(entry.amount for entry in entries if entry.grant == row.number)
        if closed:
            await connection.execute(
                update(grants)
                .where(grants.c.account_id == account_id, grants.c.number == row.number)
                .values(written_off=grants.c.written_off + closed)
            )
            await post(connection, account_id, entries, now_ms=now_ms, reason="debt")


async def _carried(connection: AsyncConnection, row: Row[Any], owed: int, now_ms: int) -> Sequence[Entry]:
    entries: list[Entry] = []
    left = owed
    for grant in await open_grants(connection, row.account_id, now_ms, wallet=row.wallet):
        part = min(left, max(grant.amount - grant.used, 0))
        if part:
            left -= part
            entries.append(Entry(grant.wallet, grant.number, Kind.CARRIED_IN, part))
            await connection.execute(
                update(grants)
                .where(grants.c.account_id == row.account_id, grants.c.number == grant.number)
                .values(amount=grants.c.amount - part)
            )
    if left < owed:
        entries.append(_entry(row, Kind.CARRIED_OUT, owed - left))
    return entries


def _entry(row: Row[Any], kind: Kind, amount: int) -> Entry:
    return Entry(row.wallet, row.number, kind, amount)
