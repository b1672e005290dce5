"""Stripe's JSON into facts (``domain.stripe``), of every API version that an endpoint may be set to.

Rules
1. Only what is named here is read: nothing of cards, addresses or names goes any further.
2. Since 2025 an invoice names its subscription under ``parent`` and its lines' prices under ``pricing``; before that
   both stood on top. Both are read. Source: https://docs.stripe.com/changelog/basil.
3. What an event needs and does not have makes it no event (BadRequest); what it may lack is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from gateway.domain.stripe import (
    Agreement,
    CheckoutDone,
    Event,
    Fact,
    IntentPaid,
    Invoice,
    Line,
    NothingOfOurs,
    Refunded,
)
from gateway.errors import BadRequest

ACCOUNT_KEY: Final = "tollgate_account"  # what we write into metadata
PACKAGE_KEY: Final = "tollgate_package"
_ENDED: Final = frozenset(("canceled", "incomplete_expired"))

Json = Mapping[str, Any]


def read(payload: bytes) -> Event:
    """Raises BadRequest: not JSON, or not an event as Stripe makes them."""
    try:
        body = orjson.loads(payload)
        if not isinstance(body, dict) or body["object"] != "event":
            raise TypeError
        return event_of(body)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadRequest("invalid_event", "The body is not an event of Stripe's.") from error


def event_of(body: Json) -> Event:
    """Raises KeyError, TypeError, ValueError, AttributeError or IndexError for what is no event."""
    made_ms = _ms(body["created"])
    about = body["data"]["object"]
    reader = _READERS.get(_text(body["type"]))
    fact = NothingOfOurs("type_not_used") if reader is None else reader(about, _text(body["type"]), made_ms)
    return Event(_text(body["id"]), _text(body["type"]), body["livemode"] is True, made_ms, fact)


def _checkout(session: Json, _type: str, _made_ms: int) -> Fact:
    account = _metadata(session).get(ACCOUNT_KEY)
    if account is None:
        return NothingOfOurs("not_our_checkout")
    return CheckoutDone(customer=_id(session.get("customer")), account=account)


def invoice_of(invoice: Json, *, is_paid: bool, made_ms: int) -> Invoice:
    """Also what the API lists as an invoice."""
    details = (invoice.get("parent") or {}).get("subscription_details") or invoice.get("subscription_details") or {}
    named = {**_metadata(details), **_metadata(invoice)}
    paid_at = (invoice.get("status_transitions") or {}).get("paid_at")
    return Invoice(
        id=_text(invoice["id"]),
        customer=_id(invoice.get("customer")),
        account=named.get(ACCOUNT_KEY),
        agreement=_id(details.get("subscription")) or _id(invoice.get("subscription")),
        intent=_intent_of(invoice),
        is_paid=is_paid,
        amount=_whole(invoice["amount_paid"] if is_paid else invoice["amount_due"]),
        currency=_text(invoice["currency"]),
        lines=tuple(_line(line) for line in (invoice.get("lines") or {}).get("data") or ()),
        created_at_ms=_ms(invoice.get("created") or made_ms // 1000),
        paid_at_ms=(_ms(paid_at) if paid_at else made_ms) if is_paid else 0,
    )


def _invoice(invoice: Json, kind: str, made_ms: int) -> Fact:
    return invoice_of(invoice, is_paid=kind == "invoice.payment_succeeded", made_ms=made_ms)


def _intent_of(invoice: Json) -> str | None:
    """Named on top in older versions; in newer ones among the payments, where an event has those."""
    paid = [
        (each.get("payment") or {}).get("payment_intent") for each in (invoice.get("payments") or {}).get("data") or ()
    ]
    return _id(invoice.get("payment_intent")) or next((_id(each) for each in paid if each), None)


def _line(line: Json) -> Line:
    pricing = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
    item = (line.get("parent") or {}).get("subscription_item_details") or {}
    return Line(
        price=_id(pricing) or _id(line.get("price")) or _id(line.get("plan")) or "",
        amount=_whole(line["amount"]),
        starts_at_ms=_ms(line["period"]["start"]),
        ends_at_ms=_ms(line["period"]["end"]),
        is_proration=bool(line.get("proration") or item.get("proration")),
    )


def agreement_of(subscription: Json, *, made_ms: int) -> Agreement:
    """Also what the API lists as a subscription."""
    item = subscription["items"]["data"][0]
    status = _text(subscription["status"])
    ended = subscription.get("ended_at") or subscription.get("canceled_at") or made_ms // 1000
    return Agreement(
        id=_text(subscription["id"]),
        customer=_id(subscription.get("customer")),
        account=_metadata(subscription).get(ACCOUNT_KEY),
        price=_id(item.get("price")) or _id(item.get("plan")) or "",
        status=status,
        cancel_at_period_end=bool(subscription.get("cancel_at_period_end") or subscription.get("cancel_at")),
        started_at_ms=_ms(subscription.get("start_date") or subscription.get("start") or 0),
        ended_at_ms=_ms(ended) if status in _ENDED else 0,
    )


def _agreement(subscription: Json, kind: str, made_ms: int) -> Fact:
    is_over = kind == "customer.subscription.deleted"
    return agreement_of({**subscription, "status": "canceled"} if is_over else subscription, made_ms=made_ms)


def intent_of(intent: Json) -> IntentPaid:
    """Also what the API lists as a payment intent."""
    metadata = _metadata(intent)
    return IntentPaid(
        id=_text(intent["id"]),
        customer=_id(intent.get("customer")),
        account=metadata.get(ACCOUNT_KEY),
        package=metadata.get(PACKAGE_KEY),
        amount=_whole(intent.get("amount_received") or intent["amount"]),
        currency=_text(intent["currency"]),
    )


def _intent(intent: Json, _type: str, _made_ms: int) -> Fact:
    return intent_of(intent)


def refund_of(charge: Json) -> Refunded:
    """Also what the API lists as a charge."""
    order = (charge.get("payment_details") or {}).get("order_reference")
    invoice = _id(charge.get("invoice")) or (order if isinstance(order, str) and order.startswith("in_") else None)
    return Refunded(
        charge=_text(charge["id"]),
        intent=_id(charge.get("payment_intent")),
        invoice=invoice,
        amount=_whole(charge["amount"]),
        refunded=_whole(charge["amount_refunded"]),
    )


def _refund(charge: Json, _type: str, _made_ms: int) -> Fact:
    return refund_of(charge)


_READERS: Final[Mapping[str, Callable[[Json, str, int], Fact]]] = {
    "checkout.session.completed": _checkout,
    "customer.subscription.updated": _agreement,
    "customer.subscription.deleted": _agreement,
    "invoice.payment_succeeded": _invoice,
    "invoice.payment_failed": _invoice,
    "payment_intent.succeeded": _intent,
    "charge.refunded": _refund,
}


def _metadata(of: Json) -> dict[str, str]:
    return {key: value for key, value in (of.get("metadata") or {}).items() if isinstance(value, str) and value}


def _id(value: object) -> str | None:
    """An id, given as such or as the expanded object."""
    if isinstance(value, dict):
        value = value.get("id")
    return value if isinstance(value, str) and value else None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("a text")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number")
    return value


def _ms(seconds: object) -> int:
    return _whole(seconds) * 1000
