"""Payments: what was paid, for what, and what became of it. Pure data and its rules.

Rules
1. Amounts are integers in the currency's smallest unit (``money``).
2. What is told of a payment only ever adds to what is known of it: ``merged`` gives the same in whatever order it is
   told, and however often. A state never goes back: pending, due, failed, paid, refunded.
3. A payment is refunded when all of it is; a part of it takes back that part of what it granted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from gateway.domain.grants import PRIORITY, NewGrant
from gateway.domain.money import minor_units
from gateway.domain.plans import Catalog, Package
from gateway.domain.proration import price_of
from limits.values import dataclass

Kind = Literal["plan", "package", "overage", "credit"]


class PaymentState(StrEnum):
    PENDING = "pending"  # on its way
    DUE = "due"  # nobody has tried to take it
    FAILED = "failed"
    PAID = "paid"
    REFUNDED = "refunded"


_RANK: Final[Mapping[PaymentState, int]] = MappingProxyType({state: rank for rank, state in enumerate(PaymentState)})


@dataclass(frozen=True, slots=True)
class Payment:
    """``starts_at_ms``–``ends_at_ms`` is the time that it pays for, 0 = none; ``subscription_id`` is ours that the time
    was granted to, None = it was not."""

    id: str
    account_id: str
    provider: str  # stripe | manual | tollgate
    provider_ref: str | None
    kind: Kind
    what: str
    amount: int
    currency: str
    state: PaymentState
    created_at_ms: int
    refunded: int = 0
    livemode: bool = False
    intent: str | None = None
    agreement: str | None = None
    subscription_id: str | None = None
    starts_at_ms: int = 0
    ends_at_ms: int = 0
    periods: int = 1
    paid_at_ms: int = 0
    reason: str = ""

    @property
    def was_paid(self) -> bool:
        """Whether it ever was: what is refunded was paid first."""
        return self.state in (PaymentState.PAID, PaymentState.REFUNDED)


def merged(known: Payment, told: Payment) -> Payment:
    """What is known of a payment after it was told of again (rule 2)."""
    further = told if _RANK[told.state] > _RANK[known.state] else known
    refunded = max(known.refunded, told.refunded)
    state = PaymentState.REFUNDED if further.was_paid and refunded >= further.amount > 0 else further.state
    return replace(
        known,
        amount=further.amount,
        state=state,
        refunded=refunded,
        intent=known.intent or told.intent,
        agreement=known.agreement or told.agreement,
        starts_at_ms=known.starts_at_ms or told.starts_at_ms,
        ends_at_ms=known.ends_at_ms or told.ends_at_ms,
        periods=max(known.periods, told.periods),
        paid_at_ms=_first(known.paid_at_ms, told.paid_at_ms),
        created_at_ms=_first(known.created_at_ms, told.created_at_ms),
        reason=known.reason or told.reason,
    )


def package_grants(package: Package, payment: Payment) -> tuple[NewGrant, ...]:
    """What a package puts into wallets: once per payment, by the keys; expiry counts from the payment."""
    return tuple(
        NewGrant(
            key=package_key(payment.id, index),
            wallet=grant.wallet,
            amount=grant.amount,
            source=grant.source,
            priority=PRIORITY[grant.source],
            starts_at_ms=payment.paid_at_ms,
            expires_at_ms=0 if grant.expires_s is None else payment.paid_at_ms + grant.expires_s * 1000,
        )
        for index, grant in enumerate(package.grants)
        if grant.amount
    )


def package_key(payment_id: str, index: int | str) -> str:
    return f"payment:{payment_id}:{index}"


@dataclass(frozen=True, slots=True)
class Offer:
    """What one of Stripe's prices buys here. ``prepaid``: as many of the plan's periods as its prepay says."""

    kind: Literal["plan", "package"]
    name: str
    prepaid: bool = False


def offers(catalog: Catalog) -> dict[str, Offer]:
    """By Stripe's id of the price."""
    found: dict[str, Offer] = {}
    for plan in catalog.plans.values():
        found[plan.stripe_price] = Offer("plan", plan.name)
        if plan.prepay is not None:
            found[plan.prepay.stripe_price] = Offer("plan", plan.name, prepaid=True)
    for package in catalog.packages.values():
        found[package.stripe_price] = Offer("package", package.name)
    found.pop("", None)
    return found


def periods_of(offer: Offer, catalog: Catalog) -> int:
    """How many periods of a plan it pays."""
    prepay = catalog.plans[offer.name].prepay if offer.kind == "plan" else None
    return prepay.periods if offer.prepaid and prepay is not None else 1


def due_for_offer(offer: Offer, catalog: Catalog, terms: Mapping[str, object]) -> int | None:
    """What it costs, in the currency's smallest unit; None for a custom price that the account's terms do not name."""
    if offer.kind == "package":
        return minor_units(catalog.packages[offer.name].price, catalog.currency)
    return price_of(catalog.plans[offer.name], terms, catalog.currency, prepaid=offer.prepaid)


def _first(one_ms: int, other_ms: int) -> int:
    """The earlier of two instants, 0 = none."""
    return min(one_ms, other_ms) if one_ms and other_ms else one_ms or other_ms
