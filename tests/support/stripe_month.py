"""What Stripe sends, as it would: bodies of events, and a customer's whole month of them.

Only what Stripe says is made here; nothing of it knows what Tollgate does with it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

DAY_S = 86_400
WEEK_S = 7 * DAY_S

Body = dict[str, Any]


@dataclass
class Shop:
    """A customer at Stripe, and the events about them. ``account`` None: nothing names ours."""

    name: str
    start_s: int
    account: str | None
    price: str = "price_pro"
    amount: int = 2900
    currency: str = "usd"
    livemode: bool = False
    is_named: bool = True  # invoices and subscriptions carry our metadata, not only the checkout
    old_api: bool = False
    _number: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def customer(self) -> str:
        return f"cus_{self.name}"

    @property
    def subscription(self) -> str:
        return f"sub_{self.name}"

    def event(self, kind: str, at_s: int, about: Body) -> Body:
        number = next(iter(self._number))
        return {
            "id": f"evt_{self.name}_{number:03}",
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": at_s,
            "livemode": self.livemode,
            "type": kind,
            "data": {"object": about},
            "request": {"id": None, "idempotency_key": None},
        }

    @property
    def metadata(self) -> dict[str, str]:
        return {"tollgate_account": self.account} if self.account is not None and self.is_named else {}

    def checkout(self, at_s: int, *, mode: str = "subscription", intent: str | None = None) -> Body:
        named = {"tollgate_account": self.account} if self.account is not None else {}
        session = {
            "id": f"cs_{self.name}_{at_s}",
            "object": "checkout.session",
            "mode": mode,
            "payment_status": "paid",
            "customer": self.customer,
            "metadata": named,
            "customer_details": {"email": "card.canary@example.com", "name": "Canary Holder"},
            "payment_intent": intent,
            "subscription": self.subscription if mode == "subscription" else None,
        }
        return self.event("checkout.session.completed", at_s, session)

    def invoice(self, number: int, at_s: int, starts_s: int, ends_s: int, *, paid: bool, **changes: Any) -> Body:
        """``invoice.payment_succeeded`` or ``…_failed`` of the subscription's n-th invoice."""
        amount = changes.pop("amount", self.amount)
        line: Body = {
            "id": f"il_{self.name}_{number}",
            "amount": amount,
            "currency": self.currency,
            "period": {"start": starts_s, "end": ends_s},
        }
        price = changes.pop("price", self.price)
        invoice: Body = {
            "id": f"in_{self.name}_{number}",
            "object": "invoice",
            "customer": self.customer,
            "customer_email": "card.canary@example.com",
            "currency": self.currency,
            "created": starts_s,
            "amount_due": amount,
            "amount_paid": amount if paid else 0,
            "status": "paid" if paid else "open",
            "status_transitions": {"paid_at": at_s if paid else None},
            "lines": {"data": [line]},
        }
        if self.old_api:
            line |= {"price": {"id": price}, "proration": changes.pop("proration", False)}
            invoice |= {"subscription": self.subscription, "payment_intent": f"pi_{self.name}_in{number}"}
            invoice |= {"subscription_details": {"metadata": self.metadata}}
        else:
            item = {"proration": changes.pop("proration", False), "subscription": self.subscription}
            line |= {"pricing": {"price_details": {"price": price}}, "parent": {"subscription_item_details": item}}
            details = {"subscription": self.subscription, "metadata": self.metadata}
            invoice |= {"parent": {"type": "subscription_details", "subscription_details": details}}
        invoice |= changes
        return self.event(f"invoice.payment_{'succeeded' if paid else 'failed'}", at_s, invoice)

    def updated(self, at_s: int, status: str = "active", *, cancels: bool = False, gone: bool = False) -> Body:
        subscription = {
            "id": self.subscription,
            "object": "subscription",
            "customer": self.customer,
            "metadata": self.metadata,
            "status": "canceled" if gone else status,
            "cancel_at_period_end": cancels,
            "start_date": self.start_s,
            "ended_at": at_s if gone else None,
            "items": {"data": [{"id": f"si_{self.name}", "price": {"id": self.price}}]},
        }
        return self.event(f"customer.subscription.{'deleted' if gone else 'updated'}", at_s, subscription)

    def package(self, at_s: int, name: str, amount: int, *, number: int = 1, **changes: Any) -> Body:
        intent = {
            "id": f"pi_{self.name}_{number}",
            "object": "payment_intent",
            "customer": self.customer,
            "amount": amount,
            "amount_received": amount,
            "currency": self.currency,
            "metadata": {"tollgate_account": self.account, "tollgate_package": name} if self.account else {},
            "latest_charge": f"ch_{self.name}_{number}",
        }
        return self.event("payment_intent.succeeded", at_s, intent | changes)

    def refund(self, at_s: int, intent: str, amount: int, refunded: int, *, invoice: str | None = None) -> Body:
        charge = {
            "id": f"ch_{intent}",
            "object": "charge",
            "customer": self.customer,
            "amount": amount,
            "amount_refunded": refunded,
            "currency": self.currency,
            "payment_intent": intent,
            "refunded": refunded == amount,
            "invoice": invoice,
            "billing_details": {"email": "card.canary@example.com", "name": "Canary Holder"},
            "payment_method_details": {"card": {"last4": "4242", "fingerprint": "Canary"}},
        }
        return self.event("charge.refunded", at_s, charge)


def month(shop: Shop, *, ends: str = "cancelled") -> list[Body]:
    """Sign-up, a renewal, a failure and its recovery, a package refunded in two parts, a refunded week, and what
    ``ends`` names: ``cancelled`` (with its period), ``deleted`` (at once), ``runs``, ``past_due``."""
    week = [shop.start_s + number * WEEK_S for number in range(6)]
    events = [
        shop.checkout(week[0] + 1),
        shop.invoice(1, week[0] + 2, week[0], week[1], paid=True),
        shop.updated(week[0] + 3),
        shop.invoice(2, week[1] + 3600, week[1], week[2], paid=True),
        shop.updated(week[1] + 3601),
        shop.package(week[1] + DAY_S, "growth", 1800),
        shop.checkout(week[1] + DAY_S + 1, mode="payment", intent=f"pi_{shop.name}_1"),
        shop.refund(week[1] + 2 * DAY_S, f"pi_{shop.name}_1", 1800, 600),
        shop.invoice(3, week[2] + 3600, week[2], week[3], paid=False),
        shop.updated(week[2] + 3601, "past_due"),
        shop.invoice(3, week[2] + DAY_S, week[2], week[3], paid=False),
        shop.invoice(3, week[2] + 2 * DAY_S, week[2], week[3], paid=True),
        shop.updated(week[2] + 2 * DAY_S + 1),
        shop.refund(week[2] + 3 * DAY_S, f"pi_{shop.name}_1", 1800, 1800),
        shop.package(week[2] + 3 * DAY_S, "growth", 1800, number=2),
        shop.invoice(4, week[3] + 3600, week[3], week[4], paid=True),
        shop.updated(week[3] + 3601),
        shop.refund(week[3] + DAY_S, f"pi_{shop.name}_in4", shop.amount, 1450, invoice=f"in_{shop.name}_4"),
    ]
    match ends:
        case "cancelled":
            events += [shop.updated(week[3] + 2 * DAY_S, cancels=True), shop.updated(week[4], gone=True)]
        case "deleted":
            events += [shop.updated(week[3] + 2 * DAY_S, gone=True)]
        case "past_due":
            events += [
                shop.invoice(5, week[4] + 3600, week[4], week[5], paid=False),
                shop.updated(week[4] + 3601, "past_due"),
            ]
    return events


def raw(body: Body) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
