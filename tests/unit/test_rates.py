"""Laws of prices: exact sums, rounded once, and a hold that is never below the charge it stands for."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.rates import RateCard
from gateway.domain.units import AMOUNT_MAX
from gateway.domain.usage import Usage
from tests.support.catalogs import card

USD = Fraction(10**9, 10**6)  # one dollar per million tokens, in nano-dollar steps per token
SONNET = RateCard(
    name="sonnet_usd",
    meter="usd",
    version="v1",
    input=3 * USD,
    output=15 * USD,
    cache_read=Fraction(3, 10) * USD,
    cache_write=6 * USD,
    cache_write_5m=Fraction(15, 4) * USD,
    cache_write_1h=6 * USD,
    reasoning=20 * USD,
    request=Fraction(1_000_000),
)

prices = st.fractions(min_value=0, max_value=10**6, max_denominator=10**6)
cards = st.builds(
    RateCard,
    name=st.just("c"),
    meter=st.just("m"),
    version=st.just("v"),
    input=prices,
    output=prices,
    cache_read=prices,
    cache_write=prices,
    cache_write_5m=prices,
    cache_write_1h=prices,
    reasoning=st.none() | prices,
    request=prices,
)
tokens = st.integers(0, 10**6)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    kinds = {kind: draw(tokens) for kind in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write")}
    output = draw(tokens)
    return Usage(**kinds, output=output, reasoning=draw(st.integers(0, output)))


def by_hand(rates: RateCard, usage: Usage) -> Fraction:
    """The price as a person writes it down: one exact product per kind."""
    reasoning = rates.output if rates.reasoning is None else rates.reasoning
    return (
        usage.input * rates.input
        + usage.cache_read * rates.cache_read
        + usage.cache_write * rates.cache_write
        + usage.cache_write_5m * rates.cache_write_5m
        + usage.cache_write_1h * rates.cache_write_1h
        + (usage.output - usage.reasoning) * rates.output
        + usage.reasoning * reasoning
        + rates.request
    )


@pytest.mark.parametrize(
    ("usage", "nano_usd"),
    [
        (Usage(), 1_000_000),  # the price per request alone
        (Usage(input=1), 1_003_000),
        (Usage(cache_read=10), 1_003_000),
        (Usage(cache_write=1), 1_006_000),
        (Usage(cache_write_5m=1), 1_003_750),
        (Usage(cache_write_1h=1), 1_006_000),
        (Usage(output=2), 1_030_000),
        (Usage(output=2, reasoning=1), 1_035_000),  # one of the two is reasoning
        (Usage(output=2, reasoning=5), 1_040_000),  # a provider cannot have reasoned more than it produced
    ],
)
def test_each_kind_of_token_has_its_price(usage: Usage, nano_usd: int) -> None:
    assert SONNET.price(usage) == nano_usd


@given(cards, usages())
def test_a_price_is_the_exact_sum_rounded_half_up_once(rates: RateCard, usage: Usage) -> None:
    assert rates.price(usage) == min((by_hand(rates, usage) + Fraction(1, 2)).__floor__(), AMOUNT_MAX)


@given(cards, usages(), tokens, tokens)
def test_a_hold_is_never_below_the_charge_of_what_stays_within_it(
    rates: RateCard, usage: Usage, more_input: int, more_output: int
) -> None:
    held = rates.bound(input_tokens=usage.input_total + more_input, output_tokens=usage.output + more_output)
    assert rates.price(usage) <= held


@given(usages())
def test_a_card_of_ones_charges_the_providers_total(usage: Usage) -> None:
    assert card().price(usage) == usage.total * 1000


@pytest.mark.parametrize(("price", "settled", "held"), [("1/2", 1, 1), ("2/5", 0, 1), ("3/2", 2, 2), ("1", 1, 1)])
def test_a_charge_rounds_half_up_and_a_hold_up(price: str, settled: int, held: int) -> None:
    inputs = ("input", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h")
    rates = card(**dict.fromkeys(inputs, Fraction(price)))
    assert rates.price(Usage(input=1)) == settled
    assert rates.bound(input_tokens=1, output_tokens=0) == held


def test_reasoning_is_output_unless_it_has_a_price() -> None:
    assert card().price(Usage(output=10, reasoning=7)) == 10_000
    assert card(reasoning=Fraction(0)).price(Usage(output=10, reasoning=7)) == 3_000


def test_no_report_however_absurd_leaves_the_range_of_amounts() -> None:
    assert SONNET.price(Usage(output=10**30)) == AMOUNT_MAX
    assert SONNET.bound(input_tokens=10**30, output_tokens=0) == AMOUNT_MAX
