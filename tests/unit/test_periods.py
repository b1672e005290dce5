"""Laws of periods: half-open, no gap, no overlap, counted from the anchor."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.periods import Period, billing_month, bounds, parse_period
from gateway.domain.units import UnitError

MONTH, YEAR, ONCE = Period("month"), Period("year"), Period("once")
WEEK = Period("fixed", 604_800)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"]
LATEST_MS = 4_102_444_800_000  # 2100

periods = st.one_of(st.just(MONTH), st.just(YEAR), st.builds(Period, st.just("fixed"), st.integers(1, 10**8)))
moments = st.integers(0, LATEST_MS)


def ms(text: str, zone: str = "UTC", fold: int = 0) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(moment.timestamp()) * 1000


def starts(period: Period, anchor_ms: int, count: int, zone: str = "UTC") -> list[int]:
    found = [bounds(period, anchor_ms, anchor_ms, zone)[0]]
    for _ in range(count - 1):
        found.append(bounds(period, anchor_ms, found[-1], zone)[1])
    return found


@given(periods, moments, moments, st.sampled_from(ZONES))
def test_the_period_of_an_instant_holds_it(period: Period, anchor_ms: int, now_ms: int, zone: str) -> None:
    start, end = bounds(period, anchor_ms, now_ms, zone)
    assert start <= now_ms < end


@given(periods, moments, moments, st.sampled_from(ZONES))
def test_periods_meet_without_gap_or_overlap(period: Period, anchor_ms: int, now_ms: int, zone: str) -> None:
    start, end = bounds(period, anchor_ms, now_ms, zone)
    assert bounds(period, anchor_ms, start, zone) == (start, end)
    assert bounds(period, anchor_ms, end - 1, zone) == (start, end)
    assert bounds(period, anchor_ms, end, zone)[0] == end
    assert bounds(period, anchor_ms, start - 1, zone)[1] == start


@given(periods, moments, st.lists(moments, min_size=2, max_size=2).map(sorted), st.sampled_from(ZONES))
def test_a_later_instant_is_never_in_an_earlier_period(
    period: Period, anchor_ms: int, instants: list[int], zone: str
) -> None:
    first, second = (bounds(period, anchor_ms, instant, zone) for instant in instants)
    assert first <= second


@given(periods, moments, st.sampled_from(ZONES))
def test_a_period_starts_at_its_anchor(period: Period, anchor_ms: int, zone: str) -> None:
    assert bounds(period, anchor_ms, anchor_ms, zone)[0] == anchor_ms


def test_a_month_end_is_clamped_and_comes_back() -> None:
    expected = ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]
    assert starts(MONTH, ms("2026-01-31T09:30"), 5) == [ms(f"{day}T09:30") for day in expected]


def test_a_leap_day_is_clamped_and_comes_back() -> None:
    expected = ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]
    assert starts(YEAR, ms("2024-02-29T00:00"), 5) == [ms(f"{day}T00:00") for day in expected]


@pytest.mark.parametrize(
    ("zone", "anchor", "expected_utc"),
    [
        # wall-clock time stays, UTC moves with the clock change
        ("Europe/Berlin", "2026-03-15T08:00", "2026-04-15T06:00"),
        ("Europe/Berlin", "2026-10-15T08:00", "2026-11-15T07:00"),
        # 02:30 on 29 March does not exist in Berlin: read with the offset from before, it is 03:30 there
        ("Europe/Berlin", "2026-02-28T02:30", "2026-03-28T01:30"),
        ("Europe/Berlin", "2026-01-29T02:30", "2026-02-28T01:30"),
        # 01:30 on 1 November occurs twice in New York: the first one
        ("America/New_York", "2026-10-01T01:30", "2026-11-01T05:30"),
    ],
)
def test_calendar_periods_follow_the_wall_clock(zone: str, anchor: str, expected_utc: str) -> None:
    anchor_ms = ms(anchor, zone)
    assert bounds(MONTH, anchor_ms, anchor_ms, zone)[1] == ms(expected_utc)


def test_a_start_inside_the_hour_that_a_clock_change_skips_falls_after_the_gap() -> None:
    anchor_ms = ms("2026-01-29T02:30", "Europe/Berlin")
    february = bounds(MONTH, anchor_ms, anchor_ms, "Europe/Berlin")[1]
    assert bounds(MONTH, anchor_ms, february, "Europe/Berlin")[1] == ms("2026-03-29T01:30")  # 03:30 summer time


def test_an_anchor_in_a_repeated_hour_is_itself_a_start() -> None:
    second = ms("2026-11-01T01:30", "America/New_York", fold=1)
    assert bounds(MONTH, second, second, "America/New_York")[0] == second


def test_once_never_ends() -> None:
    assert bounds(ONCE, 5, LATEST_MS) == (5, 0)


@pytest.mark.parametrize(
    ("text", "period", "days", "back"),
    [
        ("month", MONTH, 30, "month"),
        ("year", YEAR, 365, "year"),
        ("once", ONCE, 0, "once"),
        ("7d", WEEK, 7, "7d"),
        ("5s", Period("fixed", 5), 1, "5s"),
    ],
)
def test_a_period_is_a_calendar_word_or_a_duration(text: str, period: Period, days: int, back: str) -> None:
    assert parse_period(text) == period
    assert (parse_period(text).days, str(period)) == (days, back)


@pytest.mark.parametrize("value", ["monthly", "30", 30, "0s", None, ["month"]])
def test_what_is_no_period_is_refused(value: object) -> None:
    with pytest.raises(UnitError, match="expected month, year, once or a duration"):
        parse_period(value)


def test_a_billing_month_is_the_utc_one() -> None:
    assert billing_month(ms("2026-11-30T23:59:59")) == "2026-11"
    assert billing_month(ms("2026-12-01T00:00:00")) == "2026-12"
