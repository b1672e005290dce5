"""What services answer about money, as plain objects with stable names (see ``views``).

Prices are plain decimals of the currency, as text.
"""

from __future__ import annotations

from gateway.billing.views import View, exactly, quantity, when
from gateway.domain.money import minor_units, money
from gateway.domain.payments import Payment
from gateway.domain.periods import rfc3339
from gateway.domain.plans import Catalog, Package
from gateway.domain.units import format_duration
from gateway.store.payments import Given


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
