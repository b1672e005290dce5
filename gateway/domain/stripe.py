"""What Stripe says, as plain facts: one per event, with nothing of a card and no secret.

Rules
1. A fact says everything about its object that is needed to act on it, so that events can come in any order.
2. Facts are stored with their event and read again when an operator lets it try once more.

Not here: Stripe's JSON (``billing.stripe.reading``), and what follows (``store.stripe_events``, ``agreements``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, Final

from limits.values import dataclass


@dataclass(frozen=True, slots=True)
class Access:
    """The way to Stripe, and how it proves itself to us."""

    secret_key: str = field(repr=False)
    publishable_key: str
    webhook_secrets: tuple[str, ...] = field(repr=False)  # several while one replaces another
    success_url: str
    cancel_url: str
    url: str  # of the API; no trailing slash

    @property
    def livemode(self) -> bool:
        """Real money: keys say so themselves, sk_live_… or sk_test_…."""
        return self.secret_key.split("_")[1] == "live"


@dataclass(frozen=True, slots=True)
class CheckoutDone:
    """A Checkout session that a customer completed. It says who the customer is; what is paid is said by the invoice or
    the payment intent."""

    customer: str | None
    account: str | None  # our id, as we wrote it into the session


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an invoice."""

    price: str
    amount: int
    starts_at_ms: int
    ends_at_ms: int
    is_proration: bool


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice of a subscription, paid or not."""

    id: str
    customer: str | None
    account: str | None
    agreement: str | None  # Stripe's subscription; None = an invoice for something else
    intent: str | None
    is_paid: bool
    amount: int  # what was paid, or is due
    currency: str
    lines: tuple[Line, ...]
    created_at_ms: int
    paid_at_ms: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Stripe's subscription as it was when the event was made."""

    id: str
    customer: str | None
    account: str | None
    price: str
    status: str
    cancel_at_period_end: bool
    started_at_ms: int
    ended_at_ms: int  # 0 = it runs


@dataclass(frozen=True, slots=True)
class IntentPaid:
    """A payment intent that succeeded. ``package`` None = it pays something that another event tells of."""

    id: str
    customer: str | None
    account: str | None
    package: str | None
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Refunded:
    """A charge of which something was given back: ``refunded`` so far, of ``amount``."""

    charge: str
    intent: str | None
    invoice: str | None
    amount: int
    refunded: int


@dataclass(frozen=True, slots=True)
class NothingOfOurs:
    """An event that changes nothing here, and why."""

    why: str


Fact = CheckoutDone | Invoice | Agreement | IntentPaid | Refunded | NothingOfOurs
_KINDS: Final[Mapping[str, type[Any]]] = {
    kind.__name__: kind for kind in (CheckoutDone, Invoice, Agreement, IntentPaid, Refunded, NothingOfOurs)
}


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``created_at_ms`` is by Stripe's clock."""

    id: str
    type: str
    livemode: bool
    created_at_ms: int
    fact: Fact


def fact_json(fact: Fact) -> dict[str, Any]:
    """As it is stored."""
    return {"is": type(fact).__name__, **asdict(fact)}


def fact_of(stored: Mapping[str, Any]) -> Fact:
    """A stored fact."""
    values = dict(stored)
    kind = _KINDS[values.pop("is")]
    if kind is Invoice:
        values["lines"] = tuple(Line(**line) for line in values["lines"])
    fact: Fact = kind(**values)
    return fact
