"""Packages: what is bought once. Given here by hand; bought through ``billing.stripe``, by the same store function."""

from __future__ import annotations

from decimal import Decimal

from gateway.billing.desk import Desk, shown
from gateway.domain.accounts import Account
from gateway.domain.money import minor_units
from gateway.domain.payments import Payment
from gateway.domain.plans import Package
from gateway.domain.units import UnitError, exact
from gateway.errors import BadRequest, NotFound, RequestError
from gateway.store.common import Page, storable
from gateway.store.payments import Given

REF_MAX = 200


class PackageService:
    """What is for sale, and handing it out."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(self, account: Account | None = None) -> tuple[Package, ...]:
        """All packages, or those that the account's plan may buy, in the config's order."""
        packages = self._desk.catalog().packages.values()
        return tuple(each for each in packages if account is None or may_buy(each, account))

    async def give(
        self, account_ref: str, name: str, *, payment: str | None = None, reason: str = ""
    ) -> tuple[Account, Given]:
        """Grant a package's amounts once per payment: ``payment`` is the operator's own name of it (a transfer, an
        order), the same one again changes nothing.

        Raises AccountNotFound, BadRequest (unknown package, not for the account's plan), Conflict (the payment is for
        something else), RequestError, StoreUnavailable.
        """
        desk = self._desk
        if payment is not None and not (payment.strip() and len(payment) <= REF_MAX and storable(payment)):
            raise RequestError(f"payment: expected a name of at most {REF_MAX} characters", param="payment")
        account = await desk.account(account_ref)
        package = package_of(desk, name, account)
        given = await desk.store.payments.give(
            account.id, package, now_ms=desk.now_ms(), ref=payment, reason=reason, actor=desk.actor
        )
        await desk.deliver(account.id)
        if desk.metrics is not None and given.is_new:
            desk.metrics.payments.add(("package", "given"), 1)
        return account, given

    async def refund(self, payment_id: str, *, refunded: str | None = None, reason: str = "") -> Payment:
        """Take back what a payment granted, or the share of it that was given back: ``refunded`` so far, a plain
        decimal of the currency. The money itself is given back where it was taken.

        Raises NotFound, RequestError (amount), Conflict (not paid, more than was paid, taken by Stripe: refund it there
        and the rest follows), StoreUnavailable.
        """
        desk = self._desk
        if not storable(payment_id):
            raise NotFound("There is no such payment.", param="payment")
        try:
            units = None
            if refunded is not None:
                exact(refunded)  # Decimal takes more than that: exponents, NaN, spaces
                units = minor_units(Decimal(refunded), desk.catalog().currency)
        except UnitError as error:
            raise RequestError("refunded: expected an amount such as 5.00", param="refunded") from error
        payment = await desk.store.payments.one(payment_id)
        done = await desk.store.payments.refund(
            payment_id,
            now_ms=desk.now_ms(),
            refunded=units,
            held=await desk.held(payment.account_id),
            reason=reason,
            actor=desk.actor,
        )
        await desk.deliver(done.account_id)
        if desk.metrics is not None:
            desk.metrics.payments.add((done.kind, "refunded"), 1)
        return done

    async def payments(
        self, account_ref: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> Page[Payment]:
        """Payments, the newest first. Raises AccountNotFound, StoreUnavailable."""
        account = None if account_ref is None else await self._desk.account(account_ref)
        return await self._desk.store.payments.list(None if account is None else account.id, cursor=cursor, limit=limit)


def package_of(desk: Desk, name: str, account: Account) -> Package:
    """Raises BadRequest when there is none, or the account's plan may not buy it."""
    packages = desk.catalog().packages
    if name not in packages:
        there = ", ".join(packages) or "none"
        raise BadRequest("unknown_package", f"There is no package {shown(name)}; there is: {there}.", param="package")
    package = packages[name]
    if not may_buy(package, account):
        plans = ", ".join(package.plans or ())
        message = f"The package {name} is for the plans {plans}; the account is on {account.subscription.plan}."
        raise BadRequest("package_not_in_plan", message, param="package")
    return package


def may_buy(package: Package, account: Account) -> bool:
    return package.plans is None or account.subscription.plan in package.plans
