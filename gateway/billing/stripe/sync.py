"""Stripe's books beside ours: what differs, and how it is brought into agreement.

Rules
1. Nothing is compared twice or healed in a way of its own: what Stripe has is read as the event that would have told of
   it, and a difference is healed by taking that event.
2. Only what concerns us is looked at: our prices, our customers, our metadata.
3. What an event would not be believed for is kept here, too: a wrong amount stays an operator's to decide.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.billing.desk import Desk
from gateway.billing.stripe.client import plain, stripe_client
from gateway.billing.stripe.reading import agreement_of, intent_of, invoice_of, refund_of
from gateway.billing.stripe.webhooks import StripeService, access_of
from gateway.domain.payments import offers
from gateway.domain.stripe import Access, Agreement, Event, Fact, IntentPaid, Invoice, Refunded
from gateway.store.stripe_events import KEPT

LISTING_S: Final = 1800.0
PAGE: Final = 100
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Differs:
    """One thing that Stripe has and we have otherwise. ``healed``: what became of it, done or kept; "" = not tried."""

    what: str
    id: str
    stripe: str
    ours: str
    healed: str = ""
    why: str = ""

    @property
    def is_left(self) -> bool:
        return self.healed != "done"


class Sync:
    """One comparison."""

    def __init__(self, desk: Desk, *, days: int) -> None:
        self._desk = desk
        self._access: Access = access_of(desk)
        self._service = StripeService(desk)
        self._since_s = int(time.time()) - days * DAY_S

    async def events(self, seen: Callable[[], None]) -> list[Event]:
        """What Stripe has of the last days, as events; ``seen`` is called for each object looked at. Running
        subscriptions are all there, however old. Raises PaymentProviderUnavailable, PaymentProviderRefused."""
        found: list[Event] = []
        sold, linked = offers(self._desk.catalog()), await self._desk.store.stripe.customers()
        async with stripe_client(self._access, within_s=LISTING_S) as client:
            async for each in _all(client.v1.subscriptions, 0, seen, status="all"):
                agreement = agreement_of(each, made_ms=_now_ms())
                if agreement.price in sold or agreement.customer in linked or agreement.account is not None:
                    found.append(self._event("customer.subscription.updated", each, agreement, _now_ms()))
            async for each in _all(client.v1.invoices, self._since_s, seen):
                if each.get("status") != "paid":
                    continue
                invoice = invoice_of(each, is_paid=True, made_ms=_now_ms())
                ours = invoice.customer in linked or any(line.price in sold for line in invoice.lines)
                if invoice.agreement is not None and ours:
                    found.append(self._event("invoice.payment_succeeded", each, invoice, invoice.paid_at_ms))
            async for each in _all(client.v1.payment_intents, self._since_s, seen):
                intent = intent_of(each)
                if each.get("status") == "succeeded" and intent.package is not None:
                    found.append(self._event("payment_intent.succeeded", each, intent, each["created"] * 1000))
            async for each in _all(client.v1.charges, self._since_s, seen):
                refund = refund_of(each)
                if refund.refunded and each.get("customer") in linked:
                    found.append(self._event("charge.refunded", each, refund, _now_ms()))
        return found

    async def compare(self, event: Event) -> Differs | None:
        """How we have it otherwise; None when we have it alike. Raises StoreUnavailable."""
        match event.fact:
            case Agreement() as fact:
                return await self._agreement(fact)
            case Invoice() | IntentPaid() as fact:
                payment = await self._desk.store.stripe.payment([fact.id])
                if payment is not None and payment.was_paid:
                    return None
                what = "invoice" if isinstance(fact, Invoice) else "package"
                return Differs(what, fact.id, "paid", "nothing" if payment is None else payment.state.value)
            case Refunded() as fact:
                refs = [ref for ref in (fact.invoice, fact.intent) if ref is not None]
                payment = await self._desk.store.stripe.payment(refs) if refs else None
                if payment is not None and payment.refunded >= min(fact.refunded, payment.amount):
                    return None
                ours = "nothing" if payment is None else f"refunded {payment.refunded}"
                return Differs("refund", fact.charge, f"refunded {fact.refunded}", ours)
        return None

    async def heal(self, event: Event, found: Differs) -> Differs:
        """Take the event; one that was kept tries again. Raises StoreUnavailable."""
        taken = await self._service.take(event, self._access)
        if taken.state == KEPT and not taken.is_new:
            taken = await self._service.retry(event.id)
        return Differs(found.what, found.id, found.stripe, found.ours, taken.state, taken.why)

    async def _agreement(self, fact: Agreement) -> Differs | None:
        known = await self._desk.store.stripe.agreement(fact.id)
        theirs = _spelled(fact.status, fact.cancel_at_period_end, ended=fact.ended_at_ms > 0)
        if known is None:
            return Differs("subscription", fact.id, theirs, "nothing") if fact.status != "incomplete_expired" else None
        ours = _spelled(known.status or fact.status, known.cancel_at_period_end, ended=known.ended_at_ms > 0)
        return None if ours == theirs else Differs("subscription", fact.id, theirs, ours)

    def _event(self, kind: str, each: dict[str, Any], fact: Fact, at_ms: int) -> Event:
        """The same thing is the same event; what a subscription is may come back, and is an event each time."""
        which = fact.refunded if isinstance(fact, Refunded) else at_ms
        return Event(f"sync_{each['id']}_{which}", kind, bool(each.get("livemode")), at_ms, fact)


def _spelled(status: str, cancels: bool, *, ended: bool) -> str:
    if ended:
        return "ended"
    return f"{status}, ends with its period" if cancels else status


async def _all(service: Any, since_s: int, seen: Callable[[], None], **asked: Any) -> AsyncIterator[dict[str, Any]]:
    """The objects of a list that are not older than ``since_s``, page by page: lists are newest first."""
    page = await service.list_async({"limit": PAGE, **asked})
    async for each in page.auto_paging_iter():
        if each["created"] < since_s:
            return
        seen()
        yield plain(each)


def _now_ms() -> int:
    return int(time.time()) * 1000  # Stripe's clock has seconds
