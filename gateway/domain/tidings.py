"""The details of alerts, as people are told them: amounts and times as text. Pure.

What an alert of each kind says stands here (and in ``docs/billing.md``), whoever raises it.
"""

from __future__ import annotations

from typing import Any

from gateway.domain import messages, turns
from gateway.domain.accounts import Subscription
from gateway.domain.periods import rfc3339
from gateway.domain.plans import Catalog, paid_plans
from gateway.domain.units import Meter

Detail = dict[str, Any]


def threshold(catalog: Catalog, subscription: Subscription, wallet: str, permille: int) -> Detail:
    resets_at_ms = turns.refills_at_ms(catalog, subscription)
    return {
        **wallet_of(catalog, wallet),
        "percent": f"{permille / 10:g}",
        "plan": label(catalog, subscription.plan),
        "resets_at": rfc3339(resets_at_ms) if resets_at_ms else None,
    }


def low_balance(catalog: Catalog, wallet: str, *, available: int, mark: int) -> Detail:
    """``available`` and ``mark`` in steps."""
    meter = catalog.meters.get(wallet) or Meter(wallet, 0)
    return {**wallet_of(catalog, wallet), "available": meter.format(max(0, available)), "mark": meter.format(mark)}


def trial_ending(catalog: Catalog, subscription: Subscription) -> Detail:
    return {
        "plan": label(catalog, subscription.plan),
        "ends_at": rfc3339(subscription.trial_ends_at_ms),
        "plans": [plan.label for plan in paid_plans(catalog)],
    }


def trial_expired(catalog: Catalog, plan: str, *, ended_at_ms: int, following: str | None) -> Detail:
    """``following``: the plan that goes on instead; None when nothing does."""
    words = messages.render(catalog, "trial_expired", messages.Facts(plan=catalog.plans.get(plan)))
    return {
        "plan": label(catalog, plan),
        "ended_at": rfc3339(ended_at_ms),
        "message": words.text,
        "plans": [paid.label for paid in paid_plans(catalog)],
        "following": None if following is None else label(catalog, following),
    }


def payment_failed(catalog: Catalog, what: str, reference: str) -> Detail:
    """``what`` was to be paid: a plan or a package, by its name."""
    return {"plan": label(catalog, what), "reference": reference}


def spike(catalog: Catalog, wallet: str, *, used: int, usual: int, since_ms: int, calls: int) -> Detail:
    """``used`` since then, and what is ``usual`` in as long a time, in steps."""
    meter = catalog.meters.get(wallet) or Meter(wallet, 0)
    return {
        **wallet_of(catalog, wallet),
        "used": meter.format(used),
        "usual": meter.format(usual),
        "calls": str(calls),
        "since": rfc3339(since_ms),
    }


def label(catalog: Catalog, plan: str) -> str:
    return catalog.plans[plan].label if plan in catalog.plans else plan


def wallet_of(catalog: Catalog, wallet: str) -> dict[str, str]:
    meter = catalog.meters.get(wallet)
    return {"wallet": wallet, "unit": wallet if meter is None else meter.unit}
