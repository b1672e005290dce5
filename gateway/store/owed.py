"""What the gateway itself finds to be owed: overage by the account, the rest of a price that was paid by the operator.

Each is a payment in state ``due``, written in the transaction of the move that made it due.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.agreements import end_ms
from gateway.domain.money import due_for
from gateway.domain.plans import Catalog, Plan
from gateway.domain.proration import price_of, unused
from gateway.store.common import new_id
from gateway.store.payments import payment_of
from gateway.store.schema import grants, payments, renewals


async def credit_rest(connection: AsyncConnection, row: Row[Any], catalog: Catalog, now_ms: int) -> int:
    """Credit what is left of what was paid for the current subscription, ``row``, and not given back; of a plan that is
    not paid by payments, of its price for the running period. Answers how much it was."""
    plan = catalog.plans.get(row.plan)
    spans = await _paid(connection, row.id, row.subscription_id, plan, catalog.currency)
    if not spans and plan is not None:
        price = price_of(plan, row.terms, catalog.currency) or 0
        spans = [(price, row.period_starts_at_ms, row.period_ends_at_ms)]
    credit = sum(unused(price, from_ms=from_ms, until_ms=until_ms, now_ms=now_ms) for price, from_ms, until_ms in spans)
    if credit:
        await _note(
            connection, row.id, "credit", row.plan, credit, currency=catalog.currency, starts_ms=now_ms,
            ends_ms=max(until_ms for _, _, until_ms in spans), reason=f"plan {row.plan} left", now_ms=now_ms,
            subscription_id=row.subscription_id,
        )  # fmt: skip
    return credit


async def lessen_credit(
    connection: AsyncConnection, account_id: str, subscription_id: str, catalog: Catalog, now_ms: int
) -> None:
    """A payment of the subscription was given back: what of it was credited when the plan was left is not owed too."""
    found = await connection.execute(
        select(payments).where(
            payments.c.account_id == account_id,
            payments.c.kind == "credit",
            payments.c.state == "due",
            payments.c.subscription_id == subscription_id,
        )
    )
    for credit in found.all():
        left_ms = credit.starts_at_ms
        spans = await _paid(connection, account_id, subscription_id, catalog.plans.get(credit.what), credit.currency)
        still = sum(
            unused(price, from_ms=from_ms, until_ms=until_ms, now_ms=left_ms) for price, from_ms, until_ms in spans
        )
        if still < credit.amount - credit.refunded:
            values = {
                "refunded": credit.amount - still,
                "state": "due" if still else "refunded",
                "changed_at_ms": now_ms,
            }
            await connection.execute(update(payments).where(payments.c.id == credit.id).values(**values))


async def bill_overage(connection: AsyncConnection, account_id: str, currency: str, now_ms: int) -> None:
    """What was used of ended overage is due, once; what a call adds after that is due with the next turn."""
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == account_id,
            grants.c.source == "overage",
            grants.c.expires_at_ms > 0,
            grants.c.expires_at_ms <= now_ms,
            grants.c.used > grants.c.billed,
        )
    )
    for row in found.all():
        price = Fraction(row.unit_price or 0)
        due = due_for(price, row.used) - due_for(price, row.billed)
        if due:
            await _note(
                connection, account_id, "overage", row.wallet, due, currency=currency, starts_ms=row.starts_at_ms,
                ends_ms=row.expires_at_ms, reason=f"overage of {row.wallet}", now_ms=now_ms,
            )  # fmt: skip
        await connection.execute(
            update(grants)
            .where(grants.c.account_id == account_id, grants.c.number == row.number)
            .values(billed=row.used)
        )


async def _paid(
    connection: AsyncConnection, account_id: str, subscription_id: str, plan: Plan | None, currency: str
) -> list[tuple[int, int, int]]:
    """(amount, from, until) of each payment of a subscription, told by hand or by the provider; one that both
    told of, by one key, is there once. What the provider gave back counts 0, and so does what an operator accepted in
    another currency: it cannot be credited in ours."""
    by_hand = await connection.execute(
        select(renewals).where(
            renewals.c.account_id == account_id,
            renewals.c.subscription_id == subscription_id,
            renewals.c.refunded_at_ms == 0,
        )
    )
    found = {each.key: (each.price, each.from_ms, each.until_ms) for each in by_hand}
    told = await connection.execute(
        select(payments).where(
            payments.c.account_id == account_id,
            payments.c.kind == "plan",
            payments.c.subscription_id == subscription_id,
        )
    )
    for each in (payment_of(one) for one in told):
        if each.was_paid:
            until_ms = each.ends_at_ms if plan is None else end_ms(plan, each)
            rest = each.amount - each.refunded if each.currency == currency else 0
            found[each.provider_ref or each.id] = (rest, each.starts_at_ms, until_ms)
    return list(found.values())


async def _note(
    connection: AsyncConnection, account_id: str, kind: str, what: str, amount: int, *,
    currency: str, starts_ms: int, ends_ms: int, reason: str, now_ms: int, subscription_id: str | None = None,
) -> None:  # fmt: skip
    payment_id = new_id()
    values = {
        "id": payment_id, "account_id": account_id, "provider": "tollgate", "provider_ref": payment_id,
        "kind": kind, "what": what, "amount": amount, "currency": currency, "state": "due",
        "starts_at_ms": starts_ms, "ends_at_ms": ends_ms, "reason": reason, "subscription_id": subscription_id,
        "created_at_ms": now_ms, "changed_at_ms": now_ms,
    }  # fmt: skip
    await connection.execute(insert(payments).values(values))
