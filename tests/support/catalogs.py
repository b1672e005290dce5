"""Catalogs for tests of the pure domain: small, explicit, and changed by keyword."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from gateway.domain.periods import Period
from gateway.domain.plans import ByCard, Catalog, Feature, Plan
from gateway.domain.rates import RateCard
from gateway.domain.units import Meter

DAY_MS = 86_400_000
TOKENS = Meter("tokens", 3)


def card(**changes: Any) -> RateCard:
    """One token of any kind costs one token of the meter."""
    one = Fraction(1000)
    prices = dict.fromkeys(("input", "output", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h"), one)
    return RateCard(**{"name": "default", "meter": "tokens", "version": "v1", **prices, **changes})


def plan(name: str, **changes: Any) -> Plan:
    """A plan of 30 days that renews by itself and grants 1 token."""
    base: dict[str, Any] = {
        "label": name.capitalize(),
        "price": Decimal(0),
        "period": Period("fixed", 30 * 86_400),
        "renews": "by_itself",
        "allowance": {"tokens": 1000},
        "ends": "block",
        "version": f"{name}-1",
    }
    return Plan(name=name, **{**base, **changes})


def trial(**changes: Any) -> Plan:
    base: dict[str, Any] = {
        "period": Period("fixed", 7 * 86_400),
        "renews": "never",
        "allowance": {"tokens": 6_000_000},
    }
    return plan("trial", **{**base, **changes})


def catalog(*plans: Plan, **changes: Any) -> Catalog:
    """The given plans (the first is the default one) over one meter, card and feature."""
    base: dict[str, Any] = {
        "currency": "usd",
        "meters": {"tokens": TOKENS},
        "cards": {"default": card()},
        "models": (),
        "features": {"general": Feature("general", "tokens", ByCard())},
        "default_feature": "general",
        "services": {},
        "plans": {each.name: each for each in plans},
        "default_plan": plans[0].name,
        "messages": {},
        "warn_at_permille": (900,),
    }
    return Catalog(**{**base, **changes})
