"""Stripe's subscriptions, and ours that follow them: the rules of ``domain.agreements`` written down.

Rules
1. Everything here happens inside the caller's transaction, with the account locked.
2. ``follow`` brings ours to where the facts say it is, from wherever it is: the same facts give the same end.
3. Each paid period is granted once, to the subscription that the payment's row names.
4. What the clock makes of it is left to the clock: a period that is over is turned by whoever notices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import GrantState
from gateway.domain.agreements import Known, at, first_period, is_newer, paid_of, told_again
from gateway.domain.grants import period_grants
from gateway.domain.payments import Payment
from gateway.domain.plans import Catalog, Plan
from gateway.domain.turns import NextPeriod, begin, end_now
from gateway.store.accounts import current, subscription_of
from gateway.store.common import lock_account, new_id
from gateway.store.grants import end_grants, insert_grants
from gateway.store.moves import apply, close_plan, finish, known_plan, move, start
from gateway.store.owed import lessen_credit
from gateway.store.payments import granted_to, of_agreement, take_back
from gateway.store.schema import stripe_subscriptions, subscriptions


async def tell(connection: AsyncConnection, told: Known) -> Known:
    """Write what is told of one of Stripe's subscriptions; answers what is known now."""
    known = await known_of(connection, told.id)
    if known is None:
        await connection.execute(insert(stripe_subscriptions).values(id=told.id, **_values(told)))
        return told
    now = replace(told_again(known, told), account_id=known.account_id)
    if now != known:
        statement = update(stripe_subscriptions).where(stripe_subscriptions.c.id == known.id)
        await connection.execute(statement.values(**_values(now)))
    return now


async def known_of(connection: AsyncConnection, agreement: str) -> Known | None:
    row = (
        await connection.execute(select(stripe_subscriptions).where(stripe_subscriptions.c.id == agreement))
    ).one_or_none()
    return None if row is None else _known(row)


async def of_account(connection: AsyncConnection, account_id: str) -> tuple[Known, ...]:
    """The account's, the newest first."""
    query = select(stripe_subscriptions).where(stripe_subscriptions.c.account_id == account_id)
    found = await connection.execute(query.order_by(stripe_subscriptions.c.started_at_ms.desc()))
    return tuple(_known(row) for row in found)


async def follow(
    connection: AsyncConnection,
    catalog: Catalog,
    known: Known,
    *,
    held: Mapping[int, int] | None,
    now_ms: int,
    actor: str,
) -> bool:
    """Bring our subscription to where Stripe's is (rule 2); whether anything changed. ``held`` is what open holds have
    of each grant number: a refund does not take it.

    Raises BadRequest for a plan that is not for sale any more, or terms that are missing.
    """
    payments = await of_agreement(connection, known.id)
    if not paid_of(payments):
        return False
    first = await current(connection, known.account_id)
    plan = known_plan(catalog, paid_of(payments)[-1].what)
    known = await _placed(connection, catalog, known, plan, payments, now_ms)
    made = await _granted(connection, catalog, known, paid_of(payments), now_ms)
    taken = 0
    for payment in await of_agreement(connection, known.id):
        if payment.refunded and payment.subscription_id is not None:
            taken += await take_back(connection, payment, held=held, now_ms=now_ms)
            await lessen_credit(connection, known.account_id, payment.subscription_id, catalog, now_ms)
    if known.ended_at_ms:
        await _ended(connection, catalog, known, plan, now_ms)
    last = await current(connection, known.account_id)
    if not made and not taken and subscription_of(first) == subscription_of(last):
        return False
    await finish(connection, first, "payment", actor, now_ms, {"plan": plan.name, "stripe": known.id})
    return True


async def _placed(
    connection: AsyncConnection,
    catalog: Catalog,
    known: Known,
    plan: Plan,
    payments: tuple[Payment, ...],
    now_ms: int,
) -> Known:
    """Our subscription in the newest paid period: the one that follows Stripe's is moved, or another one starts."""
    row = await current(connection, known.account_id)
    subscription, latest = subscription_of(row), paid_of(payments)[-1]
    follows = known.subscription_id == subscription.id
    if follows and subscription.plan == plan.name and subscription.status.usable:
        turns = not plan.rollover and latest.starts_at_ms <= now_ms
        moved = at(plan, subscription, known, payments, turns=turns)
        if moved.period_starts_at_ms != subscription.period_starts_at_ms:
            await apply(connection, row, NextPeriod(moved, ()), catalog, now_ms)
        elif moved != subscription:
            await move(connection, row, moved, keeps_ahead=True)
        return known
    over = 0 < known.ended_at_ms <= latest.starts_at_ms or not is_newer(latest, subscription)
    if over if follows else await _overtaken(connection, row, known, latest):
        if follows and subscription.plan == plan.name:  # it has ended, and still began with its first paid period
            began = replace(subscription, anchor_at_ms=paid_of(payments)[0].starts_at_ms)
            await move(connection, row, began, keeps_ahead=True)
        return known
    terms = row.terms if row.plan == plan.name else None
    fresh, _ = begin(catalog, plan, subscription_id=new_id(), now_ms=latest.starts_at_ms, terms=terms)
    moved = at(plan, replace(fresh, period_starts_at_ms=0), known, payments)
    await start(connection, row, plan, moved, (), catalog.currency, now_ms)
    statement = update(stripe_subscriptions).where(stripe_subscriptions.c.id == known.id)
    await connection.execute(statement.values(subscription_id=moved.id))
    return replace(known, subscription_id=moved.id)


async def _overtaken(connection: AsyncConnection, row: Row[Any], known: Known, latest: Payment) -> bool:
    """Whether what the account is on is of a later date than the payment."""
    of_row = select(stripe_subscriptions.c.id).where(stripe_subscriptions.c.subscription_id == row.subscription_id)
    other = (await connection.execute(of_row)).scalar_one_or_none()
    if other is not None:
        paid = paid_of(await of_agreement(connection, other))
        return bool(paid) and (paid[-1].starts_at_ms, other) > (latest.starts_at_ms, known.id)
    made = select(subscriptions.c.created_at_ms).where(subscriptions.c.id == row.subscription_id)
    made_at_ms: int = (await connection.execute(made)).scalar_one()
    by_hand = made_at_ms > row.created_at_ms  # an account's first subscription is nobody's choice
    return by_hand and made_at_ms > latest.paid_at_ms


async def _granted(
    connection: AsyncConnection, catalog: Catalog, known: Known, paid: tuple[Payment, ...], now_ms: int
) -> list[GrantState]:
    """Grant the paid periods that are not granted yet (rule 3). What the account has left by now ends at once; a period
    that something rolls over into is left to its turn."""
    made: list[GrantState] = []
    if known.subscription_id is None:
        return made
    subscription = subscription_of(await current(connection, known.account_id))
    for payment in paid:
        plan = catalog.plans.get(payment.what)
        if payment.subscription_id is not None or plan is None:
            continue
        await granted_to(connection, payment, known.subscription_id)
        running = subscription.id == known.subscription_id and subscription.plan == payment.what
        starts_ms, ends_ms = first_period(plan, payment)
        if running and plan.rollover and starts_ms > subscription.period_starts_at_ms:
            continue
        bounds = {"starts_at_ms": starts_ms, "ends_at_ms": ends_ms}
        new = period_grants(plan, subscription.terms, known.subscription_id, **bounds)
        account = await lock_account(connection, known.account_id)
        granted = await insert_grants(connection, account, new, now_ms=now_ms, reason=f"paid {payment.provider_ref}")
        if not running and ends_ms > now_ms:
            await end_grants(connection, known.account_id, granted, now_ms)
        made += granted
    return made


async def _ended(connection: AsyncConnection, catalog: Catalog, known: Known, plan: Plan, now_ms: int) -> None:
    """Stripe's subscription is over: what follows begins where it ended."""
    row = await current(connection, known.account_id)
    subscription = subscription_of(row)
    runs = subscription.id == known.subscription_id and subscription.plan == plan.name and subscription.status.usable
    if runs:
        await close_plan(connection, known.account_id, subscription.id, now_ms)
        await apply(connection, row, end_now(catalog, subscription, known.ended_at_ms), catalog, now_ms)


def _known(row: Row[Any]) -> Known:
    return Known(
        id=row.id,
        account_id=row.account_id,
        subscription_id=row.subscription_id,
        plan=row.plan,
        status=row.status,
        cancel_at_period_end=bool(row.cancel_at_period_end),
        seen_at_ms=row.seen_at_ms,
        started_at_ms=row.started_at_ms,
        ended_at_ms=row.ended_at_ms,
    )


def _values(known: Known) -> dict[str, Any]:
    return {
        "account_id": known.account_id,
        "subscription_id": known.subscription_id,
        "plan": known.plan,
        "status": known.status,
        "cancel_at_period_end": int(known.cancel_at_period_end),
        "seen_at_ms": known.seen_at_ms,
        "started_at_ms": known.started_at_ms,
        "ended_at_ms": known.ended_at_ms,
    }
