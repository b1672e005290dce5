"""Laws of amounts and durations: exact inside, plain at the edges."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.units import (
    AMOUNT_MAX,
    UNLIMITED_AMOUNT,
    Meter,
    UnitError,
    format_duration,
    is_endless,
    parse_duration_s,
)

TOKENS = Meter("tokens", 3)
WHOLE = Meter("tokens", 0)
CREDITS = Meter("credits", 6, label="credit", tokens_per_unit=2000)
meters = st.builds(Meter, st.just("m"), st.integers(0, 9))
steps = st.integers(-AMOUNT_MAX, AMOUNT_MAX)


@pytest.mark.parametrize(
    ("meter", "value", "expected"),
    [
        (TOKENS, "0.5", 500),
        (TOKENS, "6000", 6_000_000),
        (TOKENS, 6000, 6_000_000),
        (TOKENS, Decimal("0.001"), 1),
        (TOKENS, "1.5000", 1500),  # more digits, but no more precision
        (TOKENS, "+2", 2000),
        (WHOLE, "9007199254740991", AMOUNT_MAX),
        (CREDITS, "0.000001", 1),
        (CREDITS, Decimal("1E+2"), 100_000_000),
    ],
)
def test_an_amount_is_read_exactly(meter: Meter, value: str | int | Decimal, expected: int) -> None:
    assert meter.parse(value) == expected


@pytest.mark.parametrize(
    ("meter", "value", "said"),
    [
        (TOKENS, "0.0001", "expected an amount of tokens with at most 3 decimals, found '0.0001'"),
        (WHOLE, "1.5", "expected an amount of tokens with no decimals, found '1.5'"),
        (TOKENS, "-1", "expected an amount of tokens with at most 3 decimals, 0 or more, found '-1'"),
        (WHOLE, "9007199254740992", "expected an amount of at most 9007199254740991 tokens"),
        (TOKENS, "1e3", "found '1e3'"),
        (TOKENS, "NaN", "found 'NaN'"),
        (TOKENS, "", "found ''"),
        (TOKENS, "1,000", "found '1,000'"),
        (TOKENS, "٣", "found"),  # only ASCII digits
        (TOKENS, "9" * 5000, "..."),
        (TOKENS, Decimal("NaN"), "found 'NaN'"),
        (TOKENS, Decimal("Infinity"), "found 'Infinity'"),
        (TOKENS, Decimal("1E+999999"), "found"),
        (TOKENS, 1.5, "found '1.5'"),  # a float is never an amount
        (TOKENS, True, "found 'True'"),
        (TOKENS, None, "found 'None'"),
    ],
)
def test_what_is_not_an_amount_is_refused_with_what_was_expected(meter: Meter, value: Any, said: str) -> None:
    with pytest.raises(UnitError) as caught:
        meter.parse(value)
    assert said in str(caught.value)


@given(meters, steps)
def test_format_and_parse_are_exact_inverses(meter: Meter, amount: int) -> None:
    text = meter.format(amount)
    assert meter.parse(text, signed=True) == amount
    assert "e" not in text.lower()
    assert not ("." in text and text.endswith(("0", ".")))


@pytest.mark.parametrize(
    ("meter", "amount", "text"),
    [(WHOLE, 1401, "1500"), (WHOLE, 1500, "1500"), (WHOLE, 1, "100"), (TOKENS, 1_500_001, "1600"), (WHOLE, 0, "0")],
)
def test_an_estimated_need_is_rounded_up_to_the_next_hundred(meter: Meter, amount: int, text: str) -> None:
    assert meter.roundly(amount) == text


def test_an_unlimited_amount_is_endless_whatever_was_used_of_it() -> None:
    for used in (0, 1, 10**15):
        assert is_endless(UNLIMITED_AMOUNT - used)
    for amount in (-1, 0, 10**15):
        assert not is_endless(amount)


def test_an_amount_reads_in_tokens_too() -> None:
    assert CREDITS.tokens(CREDITS.parse("5")) == "10000"
    assert CREDITS.tokens(1) == "0"
    assert TOKENS.tokens(1500) == "1.5"
    assert (CREDITS.unit, TOKENS.unit) == ("credits", "tokens")


@given(st.lists(st.just("0.5"), max_size=50))
def test_fractions_add_up_without_drift(uses: list[str]) -> None:
    assert TOKENS.format(sum(TOKENS.parse(use) for use in uses)) == TOKENS.format(500 * len(uses))


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("60s", 60), ("10m", 600), ("24h", 86400), ("7d", 604800), ("2w", 1209600)]
)
def test_a_duration_carries_its_unit(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "value", ["30", 30, "0s", "-5s", "1.5h", "5 s", "5S", "", None, "99999999999d", "101d5s", "4000w0"]
)
def test_a_duration_without_unit_or_below_a_second_is_refused(value: object) -> None:
    with pytest.raises(UnitError, match="expected a duration"):
        parse_duration_s(value)


@given(st.integers(1, 10**9))
def test_a_duration_reads_back_as_written(seconds: int) -> None:
    assert parse_duration_s(format_duration(seconds)) == seconds
