"""Laws of prices of features: one price, read before the call as a demand and after it as a charge."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.plans import (
    BulkStep,
    ByCard,
    Feature,
    Model,
    PerThousandTokens,
    PerUse,
    Price,
    abandoned,
    charge,
    demand,
    output_affordable,
    pricing,
)
from gateway.domain.units import AMOUNT_MAX
from gateway.domain.usage import Usage
from gateway.errors import PriceMissing
from tests.support.catalogs import card, catalog, plan

BULK = PerUse(5000, (BulkStep(10, 4000), BulkStep(100, 3000)))
BY_SIZE = PerThousandTokens(rate=500, minimum=2000)
tokens = st.integers(0, 10**6)


def feature(price: Price) -> Feature:
    return Feature("general", "tokens", price)


@pytest.mark.parametrize(
    ("uses", "steps"), [(1, 5000), (9, 45_000), (10, 40_000), (99, 396_000), (100, 300_000), (10**15, AMOUNT_MAX)]
)
def test_a_use_costs_its_price_and_many_at_once_the_step_they_reach(uses: int, steps: int) -> None:
    assert charge(feature(BULK), None, Usage(input=999), uses) == steps
    assert demand(feature(BULK), None, input_tokens=1, output_tokens=1, uses=uses) == steps


@pytest.mark.parametrize(
    ("usage", "charged", "held"),
    [
        (Usage(input=100), 2000, 2000),  # the floor
        (Usage(input=4000), 2000, 2000),
        (Usage(input=4000, output=2), 2001, 2001),
        (Usage(input=4000, output=1), 2001, 2001),  # half a step: up
        (Usage(input=3000, cache_read=3000, cache_write_1h=3000, output=1000), 5000, 5000),  # every token counts
    ],
)
def test_a_price_by_size_counts_every_token_and_has_a_floor(usage: Usage, charged: int, held: int) -> None:
    assert charge(feature(BY_SIZE), None, usage) == charged
    assert demand(feature(BY_SIZE), None, input_tokens=usage.input_total, output_tokens=usage.output) == held


@given(st.sampled_from([BULK, BY_SIZE, PerThousandTokens(7, 0), ByCard()]), tokens, tokens, tokens, tokens)
def test_what_stays_within_its_demand_never_costs_more(
    price: Price, used_input: int, used_output: int, more_input: int, more_output: int
) -> None:
    rates = card(input=Fraction(1, 3), output=Fraction(22, 7))
    held = demand(feature(price), rates, input_tokens=used_input + more_input, output_tokens=used_output + more_output)
    assert charge(feature(price), rates, Usage(input=used_input, output=used_output)) <= held


@pytest.mark.parametrize("rates", [None, card(meter="usd")])
def test_a_price_by_card_without_a_card_of_that_meter_is_refused(rates: object) -> None:
    with pytest.raises(PriceMissing):
        charge(feature(ByCard()), rates, Usage())  # type: ignore[arg-type]
    with pytest.raises(PriceMissing):
        demand(feature(ByCard()), rates, input_tokens=1, output_tokens=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "price", "steps"),
    [
        ("release", ByCard(), 0),
        ("hold", ByCard(), 50_000),
        ("estimate", ByCard(), 20_000),
        ("estimate", PerUse(3000), 3000),
        ("estimate", PerUse(60_000), 50_000),  # never above what is held
    ],
)
def test_a_hold_that_nobody_settled_charges_by_the_plans_policy(
    policy: Literal["estimate", "release", "hold"], price: Price, steps: int
) -> None:
    pro = plan("pro", on_abandon=policy)
    assert abandoned(pro, pricing(feature(price), card()), Usage(input=20), held=50_000) == steps


@given(
    st.sampled_from([PerUse(3000), BY_SIZE, ByCard()]),
    st.integers(0, 1000),
    st.integers(0, 5_000_000),
    st.integers(0, 5000),
)
def test_the_affordable_output_is_the_largest_one_that_fits(
    price: Price, input_tokens: int, available: int, output_max: int
) -> None:
    def fits(output: int) -> bool:
        return demand(feature(price), card(), input_tokens=input_tokens, output_tokens=output) <= available

    by = pricing(feature(price), card())
    found = output_affordable(by, input_tokens=input_tokens, available=available, output_max=output_max)
    assert -1 <= found <= output_max
    assert found == -1 or fits(found)
    assert found == output_max or not fits(found + 1)


def test_the_first_model_rule_that_matches_wins() -> None:
    rules = tuple(
        Model(match, (), ("a",), (card(name=match),), 100, 10) for match in ("claude-sonnet-*", "claude-*", "gpt-5")
    )
    offered = catalog(plan("pro"), models=rules)
    found = {name: offered.model(name) for name in ("claude-sonnet-4-5", "claude-x", "gpt-5", "gpt-5-mini", "Claude-x")}
    assert {name: rule.match if rule else None for name, rule in found.items()} == {
        "claude-sonnet-4-5": "claude-sonnet-*",
        "claude-x": "claude-*",
        "gpt-5": "gpt-5",
        "gpt-5-mini": None,
        "Claude-x": None,
    }
    assert rules[0].card("tokens") is not None
    assert rules[0].card("usd") is None
