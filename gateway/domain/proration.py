"""What plans cost, which of two is the larger, and what is left of a price when a plan is left early. Pure.

Rules
1. A price is the account's own where its terms name one, else the plan's; of a custom price without terms nobody knows.
2. Larger is what costs more per day. What costs the same is no downgrade.
3. What is left of a price is its share of the time that was paid for and not used, rounded down to the currency's
   smallest unit. Nothing of it depends on how much of the allowance was used.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from gateway.domain.money import discounted, minor_units, share
from gateway.domain.plans import CUSTOM, Plan


def price_of(
    plan: Plan, terms: Mapping[str, object], currency: str, *, periods: int = 1, prepaid: bool = False
) -> int | None:
    """What ``periods`` periods cost, in the currency's smallest unit; ``prepaid``: the plan's prepay, with its
    discount. None for a custom price that no terms name."""
    each = _price(plan, terms)
    if each is None:
        return None
    units = minor_units(each, currency)
    if prepaid and plan.prepay is not None:
        return discounted(units, periods=plan.prepay.periods, discount=plan.prepay.discount)
    return units * periods


def is_downgrade(before: Plan, after: Plan, terms: Mapping[str, object]) -> bool:
    """Whether ``after``, at its list price, costs less per day than ``before`` at the account's price."""
    old, new = _per_day(before, terms), _per_day(after, {})
    return new is not None and (old is None or new < old)


def unused(price: int, *, from_ms: int, until_ms: int, now_ms: int) -> int:
    """What is left at ``now_ms`` of a price that was paid for the time from ``from_ms`` to ``until_ms``."""
    whole = until_ms - from_ms
    return share(price, part=until_ms - max(now_ms, from_ms), whole=whole) if whole > 0 else 0


def _price(plan: Plan, terms: Mapping[str, object]) -> Decimal | None:
    own = terms.get("price")
    if isinstance(own, str):
        return Decimal(own)
    return None if plan.price == CUSTOM else plan.price


def _per_day(plan: Plan, terms: Mapping[str, object]) -> Fraction | None:
    price = _price(plan, terms)
    seconds = plan.period.seconds or plan.period.days * 86_400
    if price is None:
        return None
    return Fraction(price) / seconds if seconds else Fraction(price)
