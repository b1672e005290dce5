"""Payments: their rows, the packages that they buy, and what a refund takes back.

Rules
1. A payment is one row by its provider's own id; what is told of it again is merged (``domain.payments``).
2. A payment grants at most once: a package's grants carry the payment's id in their keys, a plan's period is granted to
   one subscription, which the row names. Time of payment, not of its arrival, is where expiry counts from.
3. A refund takes back its share of what the payment granted, never what charges took of it or open holds have; told
   again, nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.accounts import GrantState
from gateway.domain.ledger import Kind
from gateway.domain.money import minor_units, share
from gateway.domain.payments import Payment, PaymentState, merged, package_grants, package_key
from gateway.domain.plans import Catalog, Package
from gateway.errors import Conflict, NotFound
from gateway.store.common import Page, changed, lock_account, new_id, page_of, page_size, record
from gateway.store.database import Database
from gateway.store.grants import end_grants, grant_of, insert_grants, withdraw
from gateway.store.schema import grants, ledger, payments


@dataclass(frozen=True, slots=True)
class Given:
    """A payment for a package, and the grants that are there for it. ``is_new``: this time made them."""

    payment: Payment
    grants: tuple[GrantState, ...]
    is_new: bool


class Payments:
    """Payments by hand, and the list of all. ``catalog`` gives what is for sale now."""

    def __init__(self, database: Database, catalog: Callable[[], Catalog]) -> None:
        self._database = database
        self._catalog = catalog

    async def give(
        self, account_id: str, package: Package, *, now_ms: int, ref: str | None = None, reason: str = "", actor: str
    ) -> Given:
        """A package that was paid for elsewhere, or is a present. The same ``ref`` again changes nothing.

        Raises AccountNotFound, Conflict (the ref is another payment's), StoreUnavailable.
        """
        currency = self._catalog().currency
        payment = Payment(
            id=new_id(),
            account_id=account_id,
            provider="manual",
            provider_ref=f"manual:{ref or new_id()}",
            kind="package",
            what=package.name,
            amount=minor_units(package.price, currency),
            currency=currency,
            state=PaymentState.PAID,
            created_at_ms=now_ms,
            paid_at_ms=now_ms,
            reason=reason,
        )
        async with self._database.write() as connection:
            await lock_account(connection, account_id)
            noted = await note(connection, payment, now_ms=now_ms)
            if (noted.account_id, noted.kind, noted.what) != (account_id, "package", package.name):
                raise Conflict(f"The payment {ref} is for something else.", param="payment")
            made = await grant_package(connection, package, noted, now_ms=now_ms)
            if made:
                await changed(connection, account_id, "package", now_ms)
                detail = {"package": package.name, "payment": noted.id, "reason": reason}
                await record(connection, "package", account_id=account_id, actor=actor, now_ms=now_ms, detail=detail)
            return Given(noted, await _granted(connection, noted), bool(made))

    async def one(self, payment_id: str) -> Payment:
        """Raises NotFound, StoreUnavailable."""
        async with self._database.read() as connection:
            return await _known(connection, payment_id)

    async def refund(
        self,
        payment_id: str,
        *,
        now_ms: int,
        refunded: int | None = None,
        held: Mapping[int, int] | None = None,
        reason: str = "",
        actor: str,
    ) -> Payment:
        """Note that a payment was given back, all of it or ``refunded`` so far, and take back what it granted, but for
        what open holds have of each grant number (``held``).

        Raises NotFound, Conflict (more than was paid, not paid, or Stripe's), StoreUnavailable.
        """
        async with self._database.write() as connection:
            payment = await _known(connection, payment_id)
            total = payment.amount if refunded is None else refunded
            if payment.provider == "stripe":
                raise Conflict("Stripe took this payment: refund it there, the rest follows.", param="payment")
            if not payment.was_paid or not 0 < total <= payment.amount:
                raise Conflict("Only what was paid can be refunded, and no more.", param="refunded")
            await lock_account(connection, payment.account_id)
            noted = await note(connection, replace(payment, refunded=total), now_ms=now_ms)
            await take_back(connection, noted, held=held, now_ms=now_ms)
            await changed(connection, payment.account_id, "refund", now_ms)
            detail = {"payment": payment.id, "refunded": noted.refunded, "of": noted.amount, "reason": reason}
            await record(connection, "refund", account_id=payment.account_id, actor=actor, now_ms=now_ms, detail=detail)
            return noted

    async def list(
        self, account_id: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> Page[Payment]:
        """An account's payments, or all, the newest first. Raises StoreUnavailable."""
        size = page_size(limit)
        query = select(payments).order_by(payments.c.id.desc()).limit(size + 1)
        if account_id is not None:
            query = query.where(payments.c.account_id == account_id)
        if cursor is not None:
            query = query.where(payments.c.id < cursor)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return page_of(rows, size, payment_of, lambda row: str(row.id))


async def note(connection: AsyncConnection, told: Payment, *, now_ms: int) -> Payment:
    """Write what is told of a payment; answers what is known now. The account is locked."""
    known = None
    if told.provider_ref is not None:
        known = await _one(connection, payments.c.provider_ref == told.provider_ref)
    if known is None:
        first = merged(told, told)
        await connection.execute(insert(payments).values(**_values(first), id=first.id, changed_at_ms=now_ms))
        return first
    if known.account_id != told.account_id:
        return known
    now = merged(known, told)
    if now != known:
        await connection.execute(
            update(payments).where(payments.c.id == known.id).values(**_values(now), changed_at_ms=now_ms)
        )
    return now


async def find(connection: AsyncConnection, refs: Sequence[str]) -> Payment | None:
    """The payment that one of the provider's ids means: its own, or its intent's."""
    return await _one(connection, or_(payments.c.provider_ref.in_(refs), payments.c.intent.in_(refs)))


async def of_agreement(connection: AsyncConnection, agreement: str) -> tuple[Payment, ...]:
    """All payments of a provider's subscription, by the time that they pay for."""
    query = select(payments).where(payments.c.agreement == agreement, payments.c.kind == "plan")
    found = (payment_of(row) for row in await connection.execute(query))
    return tuple(sorted(found, key=lambda each: (each.starts_at_ms, each.provider_ref or "")))


async def grant_package(
    connection: AsyncConnection, package: Package, payment: Payment, *, now_ms: int
) -> list[GrantState]:
    """What the package grants, once; those that were made now. What is refunded already is taken back at once."""
    account = await lock_account(connection, payment.account_id)
    new = package_grants(package, payment)
    made = await insert_grants(connection, account, new, now_ms=now_ms, reason=f"package {package.name}")
    if made and payment.refunded:
        await take_back(connection, payment, held=None, now_ms=now_ms)  # nobody can hold what is this new
    return made


async def granted_to(connection: AsyncConnection, payment: Payment, subscription_id: str) -> None:
    """Note that the payment's period is granted (rule 2)."""
    await connection.execute(
        update(payments).where(payments.c.id == payment.id).values(subscription_id=subscription_id)
    )


async def take_back(
    connection: AsyncConnection, payment: Payment, *, held: Mapping[int, int] | None, now_ms: int
) -> int:
    """Take back the refunded share of what the payment granted (rule 3); answers in how many grants something was.
    ``held`` is what open holds have of each grant number."""
    taken = 0
    for grant in await _granted(connection, payment):
        original = await _original(connection, payment.account_id, grant.number)
        due = share(original, part=payment.refunded, whole=payment.amount) - (original - grant.amount)
        if due > 0:
            reason = f"refund of {payment.what}"
            part = await withdraw(
                connection, payment.account_id, (grant,), due, now_ms=now_ms, reason=reason, held=held
            )
            taken += bool(part)
        if payment.state is PaymentState.REFUNDED and (grant.expires_at_ms == 0 or grant.expires_at_ms > now_ms):
            await end_grants(connection, payment.account_id, (grant,), max(now_ms, grant.starts_at_ms))
    return taken


async def _granted(connection: AsyncConnection, payment: Payment) -> tuple[GrantState, ...]:
    query = select(grants).where(grants.c.account_id == payment.account_id).order_by(grants.c.number)
    if payment.kind == "package":
        query = query.where(grants.c.key.startswith(package_key(payment.id, ""), autoescape=True))
    else:
        stem = f"{payment.subscription_id}:{payment.what}:"
        query = query.where(
            grants.c.key.startswith(stem, autoescape=True),
            grants.c.starts_at_ms >= payment.starts_at_ms,
            grants.c.starts_at_ms < payment.ends_at_ms,
        )
    return tuple(grant_of(row) for row in await connection.execute(query))


async def _original(connection: AsyncConnection, account_id: str, number: int) -> int:
    """What a grant was when it was made: its amount now may be less by what was withdrawn."""
    query = select(func.coalesce(func.sum(ledger.c.amount), 0)).where(
        ledger.c.account_id == account_id, ledger.c.grant_number == number, ledger.c.kind == Kind.GRANTED.value
    )
    return int((await connection.execute(query)).scalar_one())


async def _known(connection: AsyncConnection, payment_id: str) -> Payment:
    """Raises NotFound."""
    payment = await _one(connection, payments.c.id == payment_id)
    if payment is None:
        raise NotFound("There is no such payment.", param="payment")
    return payment


async def _one(connection: AsyncConnection, condition: ColumnElement[bool]) -> Payment | None:
    row = (await connection.execute(select(payments).where(condition).order_by(payments.c.id).limit(1))).one_or_none()
    return None if row is None else payment_of(row)


def payment_of(row: Row[Any]) -> Payment:
    return Payment(
        id=row.id,
        account_id=row.account_id,
        provider=row.provider,
        provider_ref=row.provider_ref,
        kind=row.kind,
        what=row.what,
        amount=row.amount,
        currency=row.currency,
        state=PaymentState(row.state),
        created_at_ms=row.created_at_ms,
        refunded=row.refunded,
        livemode=bool(row.livemode),
        intent=row.intent,
        agreement=row.agreement,
        subscription_id=row.subscription_id,
        starts_at_ms=row.starts_at_ms,
        ends_at_ms=row.ends_at_ms,
        periods=row.periods,
        paid_at_ms=row.paid_at_ms,
        reason=row.reason,
    )


def _values(payment: Payment) -> dict[str, Any]:
    return {
        "account_id": payment.account_id,
        "provider": payment.provider,
        "provider_ref": payment.provider_ref,
        "kind": payment.kind,
        "what": payment.what,
        "amount": payment.amount,
        "refunded": payment.refunded,
        "currency": payment.currency,
        "state": payment.state.value,
        "livemode": int(payment.livemode),
        "intent": payment.intent,
        "agreement": payment.agreement,
        "subscription_id": payment.subscription_id,
        "starts_at_ms": payment.starts_at_ms,
        "ends_at_ms": payment.ends_at_ms,
        "periods": payment.periods,
        "paid_at_ms": payment.paid_at_ms,
        "reason": payment.reason,
        "created_at_ms": payment.created_at_ms,
    }
