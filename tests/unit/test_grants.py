"""Laws of grants: what a plan gives, in which order it burns, and how a changed plan adjusts it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.accounts import GrantState
from gateway.domain.grants import PRIORITY, adjustment, adjustment_key, allowance, burn_order, is_open, period_grants
from gateway.domain.periods import Period
from gateway.domain.units import UNLIMITED_AMOUNT
from gateway.errors import BadRequest
from tests.support.catalogs import plan

NOW = 1_000_000
amounts = st.integers(0, 10**12)


def grant(number: int, **changes: Any) -> GrantState:
    base: dict[str, Any] = {
        "id": f"g{number}",
        "wallet": "tokens",
        "amount": 100,
        "source": "plan",
        "priority": 30,
        "starts_at_ms": 0,
        "expires_at_ms": 0,
        "used": 0,
    }
    return GrantState(number=number, **{**base, **changes})


def test_a_wallet_burns_by_priority_then_earliest_end_then_age() -> None:
    grants = [
        grant(1, priority=60),
        grant(2, priority=30),  # never ends: after those that do
        grant(3, priority=30, expires_at_ms=NOW + 2),
        grant(4, priority=30, expires_at_ms=NOW + 1),
        grant(5, priority=10),
        grant(6, priority=30),
        grant(7, wallet="credits", priority=0),
        grant(8, priority=0, expires_at_ms=NOW),  # ended
        grant(9, priority=0, starts_at_ms=NOW + 1),  # not yet started
    ]
    assert [each.number for each in burn_order(grants, "tokens", NOW)] == [5, 4, 3, 2, 6, 1]


def test_what_is_lost_soonest_burns_first_and_what_was_paid_apart_last() -> None:
    order = sorted(PRIORITY, key=lambda source: PRIORITY[source])
    assert order == ["trial", "rollover", "plan", "adjustment", "gift", "bonus", "package", "overage"]


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [(NOW, 0, True), (NOW + 1, 0, False), (0, NOW, False), (0, NOW + 1, True), (NOW, NOW + 1, True)],
)
def test_a_grant_is_open_from_its_start_until_before_its_end(starts: int, ends: int, expected: bool) -> None:
    assert is_open(grant(1, starts_at_ms=starts, expires_at_ms=ends), NOW) is expected


def test_an_allowance_becomes_grants_that_end_with_the_period() -> None:
    pro = plan("pro", allowance={"leads": 50_000, "goals": 0, "general": "unlimited"})
    grants = period_grants(pro, {}, "s1", starts_at_ms=10, ends_at_ms=20)
    assert [(each.wallet, each.amount) for each in grants] == [("leads", 50_000), ("general", UNLIMITED_AMOUNT)]
    assert {(each.starts_at_ms, each.expires_at_ms, each.source, each.priority) for each in grants} == {
        (10, 20, "plan", PRIORITY["plan"])
    }
    assert len({each.key for each in grants}) == 2


def test_the_same_period_has_the_same_keys_and_another_one_other_keys() -> None:
    pro = plan("pro")
    first, again, later = (
        period_grants(pro, {}, "s1", starts_at_ms=start, ends_at_ms=start + 10)[0].key for start in (10, 10, 20)
    )
    assert first == again != later


def test_what_is_granted_once_has_one_key_whenever_and_however_often_it_is_subscribed() -> None:
    free = plan("free", period=Period("once"), grant_source="trial")
    first = period_grants(free, {}, "s1", starts_at_ms=10, ends_at_ms=0)
    later = period_grants(free, {}, "s2", starts_at_ms=99, ends_at_ms=0)
    assert first[0].key == later[0].key
    assert (first[0].source, first[0].priority, first[0].expires_at_ms) == ("trial", PRIORITY["trial"], 0)


def test_a_subscription_has_its_own_terms() -> None:
    custom = plan("enterprise", allowance={"tokens": "custom", "leads": 7})
    assert allowance(custom, {"allowance": {"tokens": 5}}) == {"tokens": 5, "leads": 7}
    assert allowance(custom, {"allowance": {"tokens": "unlimited"}})["tokens"] == UNLIMITED_AMOUNT


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({}, "terms_missing"),
        ({"allowance": {}}, "terms_missing"),
        ({"allowance": 5}, "invalid_terms"),
        ({"allowance": {"tokens": -1}}, "invalid_terms"),
        ({"allowance": {"tokens": 1.5}}, "invalid_terms"),
        ({"allowance": {"tokens": True}}, "invalid_terms"),
    ],
)
def test_custom_terms_that_are_missing_or_no_amount_are_refused(terms: dict[str, object], code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        allowance(plan("enterprise", allowance={"tokens": "custom"}), terms)
    assert caught.value.code == code


@given(old=amounts, new=amounts, granted=amounts, used=amounts, held=amounts)
def test_an_adjustment_never_takes_what_is_used_or_held(old: int, new: int, granted: int, used: int, held: int) -> None:
    change = adjustment(old=old, new=new, granted=granted, used=used, held=held)
    if new >= old:
        assert change == new - old
    else:
        assert new - old <= change <= 0
        assert change == 0 or granted + change >= used + held


def test_an_adjustment_is_made_once_per_period_and_version() -> None:
    keys = {
        adjustment_key("s1", starts_at_ms=start, version=version, wallet="tokens")
        for start in (1, 2)
        for version in ("a", "b")
    }
    assert len(keys) == 4
