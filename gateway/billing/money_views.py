"""What services answer about money, as plain objects with stable names (see ``views``).

Prices are plain decimals of the currency, as text.
"""

from __future__ import annotations

from gateway.billing.stripe.sync import Differs
from gateway.billing.views import View, exactly, quantity, when
from gateway.domain.money import minor_units, money
from gateway.domain.payments import Payment
from gateway.domain.periods import rfc3339
from gateway.domain.plans import Catalog, Package
from gateway.domain.stripe import fact_json
from gateway.domain.units import format_duration
from gateway.store.payments import Given
from gateway.store.stripe_events import StoredEvent, Taken


def package_view(package: Package, catalog: Catalog) -> View:
    return {
        "name": package.name,
        "label": package.label,
        "price": money(minor_units(package.price, catalog.currency), catalog.currency),
        "currency": catalog.currency,
        "grants": [
            {
                "wallet": grant.wallet,
                "amount": quantity(catalog.meters.get(grant.wallet), grant.amount),
                "source": grant.source,
                "expires": None if grant.expires_s is None else format_duration(grant.expires_s),
            }
            for grant in package.grants
        ],
        "plans": None if package.plans is None else list(package.plans),
    }


def payment_view(payment: Payment) -> View:
    return {
        "id": payment.id,
        "account": payment.account_id,
        "at": exactly(payment.paid_at_ms or payment.created_at_ms),
        "provider": payment.provider,
        "reference": payment.provider_ref,
        "kind": payment.kind,
        "what": payment.what,
        "amount": money(payment.amount, payment.currency),
        "refunded": money(payment.refunded, payment.currency),
        "currency": payment.currency,
        "state": payment.state.value,
        "livemode": payment.livemode,
        "pays_from": when(payment.starts_at_ms),
        "pays_until": when(payment.ends_at_ms),
        "reason": payment.reason,
    }


def given_view(given: Given, catalog: Catalog) -> View:
    return {
        "payment": given.payment.id,
        "package": given.payment.what,
        "new": given.is_new,
        "grants": [
            {
                "number": grant.number,
                "wallet": grant.wallet,
                "amount": quantity(catalog.meters.get(grant.wallet), grant.amount),
                "source": grant.source,
                "expires_at": rfc3339(grant.expires_at_ms) if grant.expires_at_ms else None,
            }
            for grant in given.grants
        ],
    }


def event_view(stored: StoredEvent) -> View:
    facts = fact_json(stored.event.fact)
    return {
        "id": stored.event.id,
        "at": exactly(stored.event.created_at_ms),
        "type": stored.event.type,
        "state": stored.state,
        "why": stored.why,
        "account": stored.account_id,
        "customer": facts.get("customer"),
        "waits_for": stored.waits_for,
        "livemode": stored.event.livemode,
        "received_at": exactly(stored.received_at_ms),
        "facts": facts,
    }


def taken_view(taken: Taken) -> View:
    return {"id": taken.id, "state": taken.state, "why": taken.why, "resumed": list(taken.resumed)}


def difference_view(found: Differs) -> View:
    return {
        "what": found.what,
        "id": found.id,
        "stripe": found.stripe,
        "ours": found.ours,
        "healed": found.healed,
        "why": found.why,
    }
