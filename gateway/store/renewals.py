"""What was paid for: periods of a plan, each payment once.

Rules
1. A payment counts once, by its key: whoever tells of it again, in whatever order, changes nothing.
2. A payment moves how far the subscription is paid; the period that it pays is granted under the period's own key.
3. A payment for a plan that the account is not on, or that has ended, starts that plan now.
4. A refund takes back what is left of what its payment granted, never what is used or held; what was paid later pays
   for the periods that it leaves unpaid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain import tidings
from gateway.domain.accounts import Account, Subscription, SubscriptionStatus
from gateway.domain.alerts import PAYMENT_FAILED
from gateway.domain.plans import Catalog, Plan
from gateway.domain.proration import price_of
from gateway.domain.turns import (
    Changed,
    Ended,
    Fallback,
    begin,
    covered_until_ms,
    decide,
    end_now,
    paid_until,
    pay,
)
from gateway.errors import BadRequest, NotFound
from gateway.store.accounts import account_of, current, subscription_of
from gateway.store.alerts import NewAlert, raise_alert
from gateway.store.common import lock_account, new_id
from gateway.store.database import Database
from gateway.store.grants import grant_of, withdraw
from gateway.store.moves import apply, close_plan, finish, known_plan, move, start, take_back_ahead
from gateway.store.owed import lessen_credit
from gateway.store.schema import grants, renewals


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment for periods of a plan. ``plan`` None: of the one the account is on."""

    key: str
    plan: str | None = None
    periods: int = 1
    prepaid: bool = False  # the plan's prepay: its number of periods, at its price
    until_ms: int | None = None  # where it says that they end; None: as our own calendar has it
    price: int | None = None  # what was paid, in the currency's smallest unit; None: what the plan costs
    terms: Mapping[str, object] | None = None  # for a plan that starts now


class Renewals:
    """Payments of plans. ``catalog`` gives the plans as they are configured now."""

    def __init__(self, database: Database, catalog: Callable[[], Catalog]) -> None:
        self._database = database
        self._catalog = catalog

    async def renew(self, account_id: str, payment: Payment, *, now_ms: int, actor: str = "system") -> Account:
        """A payment arrived: more is paid for, nothing is past due, and the period that is due is granted.

        Raises AccountNotFound, BadRequest (plan, missing terms, nothing to renew), StoreUnavailable.
        """
        catalog = self._catalog()
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            first = await current(connection, account_id)
            if await _known(connection, account_id, payment.key):
                return account_of(first)
            row, target = first, payment.plan or first.plan
            over = decide(catalog, subscription_of(row), now_ms)
            if isinstance(over, Ended | Fallback | Changed):
                await apply(connection, row, over, catalog, now_ms)
                row = await current(connection, account_id)
            subscription, payment = subscription_of(row), _whole(known_plan(catalog, target), payment)
            if subscription.status.usable and row.plan == target:
                paid = await self._go_on(connection, row, payment, now_ms)
                from_ms = covered_until_ms(subscription)
            else:
                paid = await self._begin(connection, row, target, payment, now_ms)
                from_ms = paid.period_starts_at_ms
            price = payment.price
            if price is None:
                plan = catalog.plans[target]
                price = price_of(plan, paid.terms, catalog.currency, periods=payment.periods, prepaid=payment.prepaid)
            await _note(connection, account_id, replace(payment, price=price), paid, from_ms, now_ms)
            detail = {"from": first.plan, "to": target, "key": payment.key, "periods": payment.periods}
            return await finish(connection, first, "renew", actor, now_ms, detail)

    async def payment_failed(
        self, account_id: str, *, now_ms: int, key: str | None = None, actor: str = "system"
    ) -> Account:
        """The payment for what comes next did not come: past due, until it does or the grace time is over. Nothing
        changes when the payment ``key`` has arrived meanwhile, or for a plan that does not wait for payments.

        Raises AccountNotFound, StoreUnavailable.
        """
        catalog = self._catalog()
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            subscription = subscription_of(row)
            plan = catalog.plans.get(row.plan)
            waits = plan is not None and plan.renews == "when_paid" and subscription.status is SubscriptionStatus.ACTIVE
            if not waits or (key is not None and await _known(connection, account_id, key)):
                return account_of(row)
            moved = replace(subscription, status=SubscriptionStatus.PAST_DUE)
            await move(connection, row, moved, keeps_ahead=True)
            about = key or f"{subscription.id}:{subscription.period_ends_at_ms}"
            detail = tidings.payment_failed(catalog, row.plan, about)
            await raise_alert(connection, NewAlert(account_id, PAYMENT_FAILED, about, detail, now_ms))
            return await finish(connection, row, "payment_failed", actor, now_ms, {"key": key})

    async def refund(
        self, account_id: str, key: str, *, now_ms: int, held: Mapping[int, int] | None = None, actor: str = "system"
    ) -> Account:
        """The payment ``key`` was paid back: what is left of what it granted is taken back, and what it paid for ends.
        Twice is as once. ``held`` is what open holds have of each grant number.

        Raises AccountNotFound, NotFound (no such payment), StoreUnavailable.
        """
        catalog = self._catalog()
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            row = await current(connection, account_id)
            mine = (renewals.c.account_id == account_id, renewals.c.key == key)
            paid = (await connection.execute(select(renewals).where(*mine))).one_or_none()
            if paid is None:
                raise NotFound("This payment has paid for nothing.", param="key")
            if paid.refunded_at_ms:
                return account_of(row)
            await connection.execute(update(renewals).where(*mine).values(refunded_at_ms=now_ms))
            taken = await _take_back(connection, paid, held or {}, now_ms)
            await lessen_credit(connection, account_id, paid.subscription_id, catalog, now_ms)
            subscription = subscription_of(row)
            runs = paid.subscription_id == row.subscription_id and subscription.status.usable
            later = await _later(connection, paid) if runs else ()
            if later:
                await self._close_up(connection, row, paid, later, now_ms)
            elif runs:
                if paid.from_ms > now_ms:
                    await take_back_ahead(connection, account_id, row, now_ms)
                    await move(connection, row, replace(subscription, paid_until_ms=paid.from_ms))
                else:
                    await close_plan(connection, account_id, row.subscription_id, now_ms)
                    await apply(connection, row, end_now(catalog, subscription, now_ms), catalog, now_ms)
            detail = {"key": key, "plan": paid.plan, "taken": taken}
            return await finish(connection, row, "refund", actor, now_ms, detail)

    async def _go_on(self, connection: AsyncConnection, row: Row[Any], payment: Payment, now_ms: int) -> Subscription:
        catalog = self._catalog()
        plan = known_plan(catalog, row.plan)
        paid = pay(plan, subscription_of(row), periods=payment.periods, until_ms=payment.until_ms)
        await move(connection, row, paid, keeps_ahead=True)
        row = await current(connection, row.id)
        await apply(connection, row, decide(catalog, paid, now_ms), catalog, now_ms)
        return paid

    async def _close_up(
        self, connection: AsyncConnection, row: Row[Any], paid: Row[Any], later: Sequence[Row[Any]], now_ms: int
    ) -> None:
        """The periods of ``paid`` that have not begun fall away: what was paid ``later`` pays for them instead."""
        subscription, plan = subscription_of(row), self._catalog().plans.get(row.plan)
        from_ms = max(paid.from_ms, subscription.period_ends_at_ms)
        if plan is None or from_ms >= paid.until_ms:
            return
        await take_back_ahead(connection, row.id, row, now_ms)
        for each in later:
            until_ms = paid_until(plan, subscription, from_ms, each.periods)
            mine = (renewals.c.account_id == row.id, renewals.c.key == each.key)
            await connection.execute(update(renewals).where(*mine).values(from_ms=from_ms, until_ms=until_ms))
            from_ms = until_ms
        await move(connection, row, replace(subscription, paid_until_ms=from_ms))

    async def _begin(
        self, connection: AsyncConnection, row: Row[Any], target: str, payment: Payment, now_ms: int
    ) -> Subscription:
        catalog = self._catalog()
        plan = known_plan(catalog, target)
        terms = row.terms if payment.terms is None and row.plan == target else payment.terms
        paid, new = begin(
            catalog,
            plan,
            subscription_id=new_id(),
            now_ms=now_ms,
            ends_at_ms=payment.until_ms if payment.periods == 1 else None,
            terms=terms,
            periods=payment.periods,
        )
        await start(connection, row, plan, paid, new, catalog.currency, now_ms)
        return paid


def _whole(plan: Plan, payment: Payment) -> Payment:
    """Raises BadRequest for a prepay that the plan does not offer."""
    if not payment.prepaid:
        return payment
    if plan.prepay is None:
        raise BadRequest("no_prepay", f"Plan {plan.name} cannot be paid several periods ahead.", param="prepaid")
    return replace(payment, periods=plan.prepay.periods)


async def _take_back(
    connection: AsyncConnection, paid: Row[Any], held: Mapping[int, int], now_ms: int
) -> dict[str, int]:
    """What is neither used nor held of the open grants of the periods that were paid for; answers it by wallet."""
    found = await connection.execute(
        select(grants).where(
            grants.c.account_id == paid.account_id,
            grants.c.key.startswith(f"{paid.subscription_id}:", autoescape=True),
            grants.c.starts_at_ms >= paid.from_ms,
            grants.c.starts_at_ms < paid.until_ms,
            grants.c.expires_at_ms > now_ms,
        )
    )
    taken: Counter[str] = Counter()
    for grant in [grant_of(row) for row in found]:
        taken[grant.wallet] += await withdraw(
            connection, paid.account_id, (grant,), grant.amount, now_ms=now_ms, reason="refund", held=held
        )
    return dict(taken)


async def _later(connection: AsyncConnection, paid: Row[Any]) -> Sequence[Row[Any]]:
    """What pays for the same subscription after it, and was not paid back."""
    query = select(renewals).where(
        renewals.c.account_id == paid.account_id,
        renewals.c.subscription_id == paid.subscription_id,
        renewals.c.from_ms >= paid.until_ms,
        renewals.c.refunded_at_ms == 0,
    )
    return (await connection.execute(query.order_by(renewals.c.from_ms))).all()


async def _known(connection: AsyncConnection, account_id: str, key: str) -> bool:
    query = select(renewals.c.key).where(renewals.c.account_id == account_id, renewals.c.key == key)
    return (await connection.execute(query)).first() is not None


async def _note(
    connection: AsyncConnection, account_id: str, payment: Payment, paid: Subscription, from_ms: int, now_ms: int
) -> None:
    await connection.execute(
        insert(renewals).values(
            account_id=account_id,
            key=payment.key,
            subscription_id=paid.id,
            plan=paid.plan,
            periods=payment.periods,
            from_ms=from_ms,
            until_ms=covered_until_ms(paid),
            price=payment.price or 0,
            created_at_ms=now_ms,
        )
    )
