"""Prices in a currency's smallest unit: exact, or refused."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.domain.money import discounted, minor_units, money, share
from gateway.domain.units import UnitError


@pytest.mark.parametrize(
    ("price", "currency", "units", "shown"),
    [
        ("15", "usd", 1500, "15.00"),
        ("49.90", "eur", 4990, "49.90"),
        ("0", "usd", 0, "0.00"),
        ("500", "jpy", 500, "500"),  # no decimals
        ("1.25", "kwd", 1250, "1.250"),  # three, of which Stripe takes two
    ],
)
def test_a_price_is_whole_smallest_units_and_back(price: str, currency: str, units: int, shown: str) -> None:
    assert minor_units(Decimal(price), currency) == units
    assert money(units, currency) == shown


@pytest.mark.parametrize(
    ("price", "currency", "expected"),
    [
        ("15.005", "usd", "at most 2 decimals"),
        ("1.5", "jpy", "no decimals"),
        ("1.255", "kwd", "at most 2 decimals"),
        ("1000000", "usd", "at most 999999.99 usd"),
    ],
)
def test_a_price_that_nobody_can_pay_is_refused(price: str, currency: str, expected: str) -> None:
    with pytest.raises(UnitError, match=expected):
        minor_units(Decimal(price), currency)


@pytest.mark.parametrize(
    ("units", "periods", "discount", "due"),
    [(4900, 12, "0.2", 47_040), (999, 12, "0.15", 10_190), (5, 1, "0.5", 3), (1500, 12, "0", 18_000)],
)
def test_a_discount_is_rounded_half_up(units: int, periods: int, discount: str, due: int) -> None:
    assert discounted(units, periods=periods, discount=Decimal(discount)) == due


@pytest.mark.parametrize(
    ("amount", "part", "whole", "expected"),
    [(1000, 500, 2000, 250), (1000, 2000, 2000, 1000), (7, 1, 3, 2), (7, 0, 3, 0), (7, 0, 0, 7), (7, 4, 3, 7)],
)
def test_a_share_is_rounded_down_and_never_more_than_all(amount: int, part: int, whole: int, expected: int) -> None:
    assert share(amount, part=part, whole=whole) == expected
