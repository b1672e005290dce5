"""Rate cards: what model tokens cost in a meter."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class RateCard:
    """Prices in meter *steps* per token, exact. ``version`` is a hash of the content, stamped on each charge."""

    name: str
    meter: str
    version: str
    input: Fraction
    output: Fraction
    cache_read: Fraction
    cache_write: Fraction
    cache_write_5m: Fraction
    cache_write_1h: Fraction
    reasoning: Fraction | None = None  # None: priced as output
    request: Fraction = Fraction(0)  # steps per request
