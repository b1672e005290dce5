"""Laws of what plans cost, which of two is larger, and what is left of a price."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.money import due_for
from gateway.domain.periods import Period
from gateway.domain.plans import Plan, Prepay
from gateway.domain.proration import is_downgrade, price_of, unused
from gateway.domain.units import plain
from tests.support.catalogs import plan

times = st.integers(0, 10**9)


def priced(price: Any, **changes: Any) -> Plan:
    return plan("p", price=price if price == "custom" else Decimal(price), **changes)


@pytest.mark.parametrize(
    ("of", "terms", "how", "price"),
    [
        (priced("29"), {}, {}, 2900),
        (priced("29"), {"price": "19.50"}, {}, 1950),
        (priced("29"), {}, {"periods": 3}, 8700),
        (priced("49", prepay=Prepay(12, Decimal("0.2"))), {}, {"prepaid": True}, 47_040),
        (priced("custom"), {}, {}, None),
        (priced("custom"), {"price": "499"}, {}, 49_900),
    ],
)
def test_a_price_is_the_accounts_own_where_it_has_one(
    of: Plan, terms: dict[str, object], how: dict[str, Any], price: int | None
) -> None:
    assert price_of(of, terms, "usd", **how) == price


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (priced("29"), priced("9"), True),
        (priced("9"), priced("29"), False),
        (priced("9"), priced("9"), False),
        (priced("9"), priced("0", period=Period("once")), True),
        (priced("10", period=Period("month")), priced("100", period=Period("year")), True),
        (priced("10", period=Period("month")), priced("122", period=Period("year")), False),
        (priced("custom"), priced("99"), True),
        (priced("99"), priced("custom"), False),
    ],
)
def test_what_costs_less_per_day_is_a_downgrade(before: Plan, after: Plan, expected: bool) -> None:
    assert is_downgrade(before, after, {}) is expected


@given(st.integers(0, 10**8), times, st.integers(1, 10**9), times)
def test_what_is_left_of_a_price_falls_from_all_of_it_to_nothing(price: int, start: int, length: int, at: int) -> None:
    left = unused(price, from_ms=start, until_ms=start + length, now_ms=at)
    assert 0 <= left <= price
    if at <= start:
        assert left == price
    if at >= start + length:
        assert left == 0
    assert left >= unused(price, from_ms=start, until_ms=start + length, now_ms=at + 1)


@given(st.fractions(0, 10), st.lists(st.integers(0, 10**6), max_size=5))
def test_parts_of_overage_add_up_to_the_whole(unit_price: Fraction, parts: list[int]) -> None:
    due, used = 0, 0
    for part in parts:
        due += due_for(unit_price, used + part) - due_for(unit_price, used)
        used += part
    assert due == due_for(unit_price, used)


@pytest.mark.parametrize(
    ("value", "text"),
    [(Fraction(3), "3"), (Fraction(1, 4), "0.25"), (Fraction(1, 10**6), "0.000001"), (Fraction(1, 3), "1/3")],
)
def test_a_fraction_is_shown_as_a_decimal_where_that_is_exact(value: Fraction, text: str) -> None:
    assert plain(value) == text
