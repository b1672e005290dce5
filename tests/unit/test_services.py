"""Laws of what work outside the proxy costs."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.plans import BulkStep, ByCard, Catalog, Feature, PerThousandTokens, PerUse, Service
from gateway.domain.services import (
    Measure,
    Offer,
    PerUnit,
    billable,
    ceiling,
    cost,
    feature_offer,
    offer_of,
    quantity_of,
    service_offer,
    wallet_offer,
    written,
)
from gateway.domain.units import UnitError
from gateway.domain.usage import Usage
from gateway.errors import PriceMissing
from tests.support.catalogs import TOKENS, card, catalog, trial


def steps(text: str) -> Fraction:
    return Fraction(text) * TOKENS.scale


CALL = service_offer(Service("outbound_call", "tokens", "minute", steps("2"), 10_000, 1))
SCRIBE = service_offer(Service("transcription", "tokens", "minute", steps("0.1"), 0, None))
SMS = service_offer(Service("sms", "tokens", "message", steps("0.5")))
STORAGE = service_offer(Service("storage", "tokens", "unit", steps("0.0004")))
BULK = feature_offer(Feature("leads", "tokens", PerUse(3000, (BulkStep(10, 2000), BulkStep(100, 1000)))))
SIZED = feature_offer(Feature("sized", "tokens", PerThousandTokens(500, 2000)))
CARD = feature_offer(Feature("general", "tokens", ByCard()))


@pytest.mark.parametrize(
    ("offer", "quantity", "price"),
    [
        # times: seconds, however they are written, in whole increments
        (CALL, "61.2s", "2.067"),  # 62 s × 2 / 60 = 2.0666…
        (CALL, "1.02", "2.067"),  # minutes
        (CALL, "61.000s", "2.033"),
        (CALL, "60001ms", "2.033"),
        (CALL, "90s", "3"),
        (CALL, "1h", "120"),
        (CALL, 5, "10"),
        (CALL, Decimal("0.5"), "1"),
        (CALL, "0", "0"),
        (SCRIBE, "1.5s", "0.003"),  # no increment: 1.5 × 0.1 / 60 = 0.0025, half up
        (SCRIBE, "1.4s", "0.002"),
        # what is counted
        (SMS, 7, "3.5"),
        (SMS, "1", "0.5"),
        (STORAGE, "2", "0.001"),  # 0.0008: rounded once, of the whole
        (STORAGE, "1", "0"),
        (STORAGE, "1.25", "0.001"),
        (BULK, 1, "3"),
        (BULK, 9, "27"),
        (BULK, 10, "20"),
        (BULK, 100, "100"),
        (BULK, 0, "0"),
        (wallet_offer(TOKENS), 3500, "3.5"),
    ],
)
def test_a_quantity_costs_its_exact_price_rounded_once(offer: Offer, quantity: str | int, price: str) -> None:
    assert TOKENS.format(cost(offer, Measure(quantity_of(offer, quantity)))) == price


@pytest.mark.parametrize(
    ("offer", "quantity", "expected"),
    [
        (SMS, "1.5", "a whole quantity"),
        (SMS, "61s", "a quantity, 0 or more"),
        (BULK, "1.5", "a whole quantity"),
        (CALL, "-1", "or a duration such as 61.2s"),
        (CALL, "1d", "or a duration such as 61.2s"),
        (CALL, "1e3", "or a duration such as 61.2s"),
        (CALL, True, "a quantity"),
        (CALL, Decimal("NaN"), "a quantity"),
        (STORAGE, "1000000000001", "at most"),
    ],
)
def test_what_is_no_quantity_is_refused_with_what_was_expected(offer: Offer, quantity: str, expected: str) -> None:
    with pytest.raises(UnitError, match=expected):
        quantity_of(offer, quantity)


def test_a_price_by_size_has_a_floor_and_a_price_by_card_needs_its_card() -> None:
    used = Measure(usage=Usage(input=9_000, output=1_000))
    assert cost(SIZED, Measure()) == 2000
    assert cost(SIZED, used) == ceiling(SIZED, used) == 5000
    assert cost(CARD, used, card()) == ceiling(CARD, used, card()) == 10_000_000
    with pytest.raises(PriceMissing):
        cost(CARD, used)


quantities = st.fractions(min_value=0, max_value=10**6)


@given(
    price=st.fractions(min_value=0, max_value=10**6),
    unit_s=st.sampled_from([0, 1, 60, 3600]),
    increment_s=st.sampled_from([0, 1, 6, 60]),
    parts=st.lists(quantities, max_size=5),
)
def test_a_service_costs_its_exact_price_within_half_a_step_and_more_never_costs_less(
    price: Fraction, unit_s: int, increment_s: int, parts: list[Fraction]
) -> None:
    offer = Offer("service", "s", "tokens", PerUnit(price, unit_s, increment_s))
    total, before = Fraction(0), 0
    for part in parts:
        total += part
        after = cost(offer, Measure(total))
        assert after >= before
        before = after
    tariff = offer.tariff
    assert isinstance(tariff, PerUnit)
    paid = billable(tariff, total)
    assert total <= paid < total + (increment_s or 1)
    assert abs(before - paid * price / (unit_s or 1)) <= Fraction(1, 2)
    assert ceiling(offer, Measure(total)) == before


@given(each=st.integers(1, 10), uses=st.integers(0, 1000))
def test_what_was_held_for_a_bulk_is_never_below_a_part_of_it(each: int, uses: int) -> None:
    prices = PerUse(each * 1000, (BulkStep(10, each * 800), BulkStep(100, each * 500)))
    offer = feature_offer(Feature("leads", "tokens", prices))
    held = ceiling(offer, Measure(Fraction(uses)))
    assert all(cost(offer, Measure(Fraction(part))) <= held for part in range(uses + 1))


@given(count=st.integers(1, 400))
def test_the_seventh_half_token_is_as_exact_as_the_first(count: int) -> None:
    one = cost(SMS, Measure(quantity_of(SMS, 1)))
    assert one * count == cost(SMS, Measure(quantity_of(SMS, count))) == count * TOKENS.scale // 2


def test_a_quantity_is_written_as_it_was_measured() -> None:
    assert written(CALL, quantity_of(CALL, "1.02")) == "61.2s"
    assert written(SMS, quantity_of(SMS, "7")) == "7"
    assert written(STORAGE, quantity_of(STORAGE, "1.50")) == "1.5"
    assert written(wallet_offer(TOKENS), Fraction(TOKENS.parse("85.25"))) == "85.25"


def test_only_what_the_config_offers_can_be_metered() -> None:
    sold: Catalog = catalog(trial(), services={"sms": Service("sms", "tokens", "message", steps("0.5"))})
    assert offer_of(sold, service="sms", feature=None, wallet=None) == SMS
    assert offer_of(sold, service=None, feature="general", wallet=None) == CARD
    assert offer_of(sold, service=None, feature=None, wallet="tokens") == wallet_offer(TOKENS)
    assert offer_of(sold, service="fax", feature=None, wallet=None) is None
    assert offer_of(sold, service=None, feature="fax", wallet=None) is None
    assert offer_of(sold, service=None, feature=None, wallet="fax") is None
