"""When a wallet runs out, rule by rule, on amounts that can be checked in one's head."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.forecast import HORIZON_DAYS, Left, Pace, pace_of, refills, runs_out_at_ms
from gateway.domain.periods import DAY_MS, Period
from gateway.domain.turns import begin
from tests.support import catalogs

NOW = 1_763_600_000_000
TEN_A_DAY = Pace(70, 7 * DAY_MS)


def left(amount: int, *, priority: int = 30, starts: float = 0, ends: float | None = None) -> Left:
    """Days from now."""
    return Left(amount, priority, NOW + int(starts * DAY_MS), 0 if ends is None else NOW + int(ends * DAY_MS))


@pytest.mark.parametrize(
    ("grants", "days"),
    [
        # even use of what there is
        ([left(100)], 10),
        ([left(5), left(10)], 1.5),
        ([], 0),
        # nothing left, or owed
        ([left(0)], 0),
        ([left(-5)], 0),
        ([left(-5), left(15)], 1),
        # what a grant has left at its end is lost
        ([left(100, ends=4)], 4),
        ([left(100, ends=4), left(20)], 6),
        ([left(100, priority=60), left(1000, priority=30, ends=3)], 13),
        # a period's allowance runs out before its end
        ([left(20, ends=4)], 2),
        # what starts later helps only whoever gets there
        ([left(50), left(100, starts=5)], 15),
        ([left(40), left(100, starts=5)], 4),
        # past the horizon it lasts
        ([left(10 * HORIZON_DAYS)], None),
        ([left(10 * HORIZON_DAYS - 1)], HORIZON_DAYS - 0.1),  # and just before it it does not
    ],
)
def test_a_wallet_runs_out_when_even_use_has_eaten_it(grants: list[Left], days: float | None) -> None:
    expected = None if days is None else NOW + round(days * DAY_MS)
    assert runs_out_at_ms(grants, (), TEN_A_DAY, NOW) == expected


def test_without_recent_use_it_lasts() -> None:
    assert runs_out_at_ms([left(1)], (), Pace(0, DAY_MS), NOW) is None


@pytest.mark.parametrize(
    ("used", "first_days_ago", "per_day"),
    [
        (70, 7, 10),
        (70, 2, 35),
        (70, 0.5, 70),  # a first day counts whole
        (0, 0, 0),
        (-3, 1, 0),  # a lapse taken back
        (1, 3, 0),
        (2, 3, 1),  # half up
    ],
)
def test_pace_is_what_was_charged_over_the_days_since_the_first_charge(
    used: int, first_days_ago: float, per_day: int
) -> None:
    assert pace_of(used, NOW - int(first_days_ago * DAY_MS), NOW).per_day == per_day


@pytest.mark.parametrize(
    ("allowance", "days"),
    [
        (300, None),  # just enough for each period of 30 days
        (299, 29.9),
        (150, 15),
    ],
)
def test_each_period_brings_its_allowance(allowance: int, days: float | None) -> None:
    catalog = catalogs.catalog(catalogs.plan("pro", allowance={"tokens": allowance}))
    subscription, _ = begin(catalog, catalog.plans["pro"], subscription_id="s", now_ms=NOW)
    running = [left(allowance, ends=30)]
    found = runs_out_at_ms(running, refills(catalog, subscription, "tokens"), TEN_A_DAY, NOW)
    assert found == (None if days is None else NOW + int(days * DAY_MS))


def test_a_cancelled_plan_brings_nothing_more() -> None:
    catalog = catalogs.catalog(catalogs.plan("pro", allowance={"tokens": 300}))
    subscription, _ = begin(catalog, catalog.plans["pro"], subscription_id="s", now_ms=NOW)
    ending = replace(subscription, cancel_at_period_end=True)
    assert list(refills(catalog, ending, "tokens")) == []
    assert list(refills(catalog, subscription, "other")) == []
    assert runs_out_at_ms([left(300, ends=30)], (), TEN_A_DAY, NOW) == NOW + 30 * DAY_MS


def test_periods_of_seconds_are_bounded() -> None:
    catalog = catalogs.catalog(catalogs.plan("pro", allowance={"tokens": 300}, period=Period("fixed", 5)))
    subscription, _ = begin(catalog, catalog.plans["pro"], subscription_id="s", now_ms=NOW)
    running = Left(300, 30, NOW, NOW + 5_000)
    assert runs_out_at_ms([running], refills(catalog, subscription, "tokens"), TEN_A_DAY, NOW) is None


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), min_size=1, max_size=6), st.integers(1, 500))
def test_more_left_never_runs_out_sooner(grants: list[tuple[int, int]], more: int) -> None:
    few = [left(amount, ends=days) for amount, days in grants]
    many = [replace(few[0], amount=few[0].amount + more), *few[1:]]
    first, second = (runs_out_at_ms(each, (), TEN_A_DAY, NOW) for each in (few, many))
    assert second is None or (first is not None and first <= second)
