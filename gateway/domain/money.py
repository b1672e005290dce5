"""Prices in a currency: plain decimals for people, whole smallest units for whoever takes the payment.

Rules
1. What is paid is an integer count of the currency's smallest unit, as Stripe counts it. Source:
   https://docs.stripe.com/currencies#zero-decimal and #three-decimal.
2. A price that the currency cannot say is refused, never rounded; what is worked out (a discount) is rounded half up.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Final

from gateway.domain.units import UnitError

PRICE_MAX: Final = 99_999_999  # Stripe takes eight digits
_NO_DECIMALS: Final = frozenset(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf")
)
_THREE_DECIMALS: Final = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))


def decimals_of(currency: str) -> int:
    """Digits after the point of the currency's smallest unit."""
    if currency in _NO_DECIMALS:
        return 0
    return 3 if currency in _THREE_DECIMALS else 2


def minor_units(price: Decimal, currency: str) -> int:
    """The price in the currency's smallest unit. Raises UnitError when it is none, or too large to be paid at once."""
    decimals = decimals_of(currency)
    units = Fraction(price) * int(10**decimals)
    digits = f"at most {decimals} decimals" if decimals else "no decimals"
    if units.denominator != 1 or units < 0 or (decimals == 3 and units % 10):
        raise UnitError(f"a price in {currency} with {'at most 2 decimals' if decimals == 3 else digits}", price)
    if units > PRICE_MAX:
        raise UnitError(f"a price of at most {money(PRICE_MAX, currency)} {currency}", price)
    return units.numerator


def money(units: int, currency: str) -> str:
    """The smallest units as a plain decimal, with all the currency's digits: ``15.00``."""
    return f"{Decimal(units).scaleb(-decimals_of(currency)):f}"


def discounted(units: int, *, periods: int, discount: Decimal) -> int:
    """What several periods cost at once, in smallest units; half of one counts as a whole."""
    exact = Decimal(units) * periods * (1 - discount)
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def due_for(unit_price: Fraction, steps: int) -> int:
    """What so many steps of overage cost, in smallest units, rounded half up. The parts of a period add up to the
    whole: a part is the difference of two such sums."""
    return int(unit_price * steps + Fraction(1, 2))


def share(amount: int, *, part: int, whole: int) -> int:
    """The part of ``amount`` that ``part`` is of ``whole``, rounded down; all of it when the whole is there."""
    return amount if part >= whole else amount * max(part, 0) // whole
