"""Periods: how long an allowance lasts and when the next one starts.

Rules
1. The periods of an anchor cover all of time: half-open, no gap, no overlap, each starting where the last one ended.
2. Calendar periods are counted from the anchor, not from the period before: Jan 31 → Feb 28 → Mar 31.
3. A calendar start is the anchor's wall-clock time in the zone. A time that a clock change skips is read with the
   offset from before the change (so it falls after the gap); a time that occurs twice is the first one.
4. No clock of its own: ``now_ms`` is an argument. Times are Unix milliseconds, UTC; an end of 0 means never.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal
from zoneinfo import ZoneInfo

from gateway.domain.units import UnitError, format_duration, parse_duration_s
from limits.values import dataclass

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_DAY_S: Final = 86_400
DAY_MS: Final = 86_400_000
_NOMINAL_DAYS: Final = {"month": 30, "year": 365, "once": 0}


@dataclass(frozen=True, slots=True)
class Period:
    """``month`` and ``year`` follow the calendar from an anchor in a time zone, with month-end clamp; ``once`` never
    ends; ``fixed`` lasts ``seconds``."""

    kind: Literal["month", "year", "once", "fixed"]
    seconds: int = 0

    def __str__(self) -> str:
        return format_duration(self.seconds) if self.kind == "fixed" else self.kind

    @property
    def days(self) -> int:
        """Whole days, rounded up, as a message tells them; a month counts 30, a year 365, once 0."""
        return -(-self.seconds // _DAY_S) if self.kind == "fixed" else _NOMINAL_DAYS[self.kind]


def parse_period(value: object) -> Period:
    """``month``, ``year``, ``once`` or a duration of at least 1 s. Raises UnitError."""
    match value:
        case "month" | "year" | "once":
            return Period(value)
        case _:
            try:
                return Period("fixed", parse_duration_s(value))
            except UnitError as error:
                raise UnitError("month, year, once or a duration such as 30d (at least 1s)", error.found) from None


def bounds(period: Period, anchor_ms: int, now_ms: int, zone: str = "UTC") -> tuple[int, int]:
    """The period that holds ``now_ms``: (start, end) with start <= now < end; ``once`` is (anchor, 0)."""
    match period.kind:
        case "once":
            return anchor_ms, 0
        case "fixed":
            length_ms = period.seconds * 1000
            start_ms = now_ms - (now_ms - anchor_ms) % length_ms
            return start_ms, start_ms + length_ms
        case "month":
            return _calendar_bounds(1, anchor_ms, now_ms, zone)
        case "year":
            return _calendar_bounds(12, anchor_ms, now_ms, zone)


def end_of(period: Period, anchor_ms: int, at_ms: int, count: int, zone: str = "UTC") -> int:
    """When the ``count``-th period from the one that holds ``at_ms`` on ends; 0 = never."""
    for _ in range(count):
        _, at_ms = bounds(period, anchor_ms, at_ms, zone)
        if at_ms == 0:
            break
    return at_ms


MONTH: Final = r"^[0-9]{4}-(0[1-9]|1[0-2])$"  # a billing month as it is asked for


def billing_month(at_ms: int) -> str:
    """The UTC calendar month of an instant: ``2026-11``."""
    return _moment(at_ms).strftime("%Y-%m")


def month_span(month: str) -> tuple[int, int]:
    """The first instant of a UTC calendar month, ``2026-11``, and of the next one. Raises ValueError."""
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    starts_ms = _unix_ms(first)
    return starts_ms, starts_ms + calendar.monthrange(first.year, first.month)[1] * DAY_MS


def day_of(at_ms: int) -> str:
    """The UTC day of an instant: ``2026-11-20``."""
    return _moment(at_ms).strftime("%Y-%m-%d")


@lru_cache(maxsize=4096)
def rfc3339(at_ms: int) -> str:
    """An instant as RFC 3339 in UTC, to the second and rounded up: a reset is never announced too early."""
    return _moment(-(-at_ms // 1000) * 1000).strftime("%Y-%m-%dT%H:%M:%SZ")


def _calendar_bounds(step_months: int, anchor_ms: int, now_ms: int, zone: str) -> tuple[int, int]:
    place = ZoneInfo(zone)
    anchor = _moment(anchor_ms).astimezone(place)
    now = _moment(now_ms).astimezone(place)
    index = ((now.year - anchor.year) * 12 + now.month - anchor.month) // step_months
    # The guess by month numbers is off by at most one either way: the day, or a clock change, may not be reached yet.
    start_ms = _nth_start_ms(anchor, index * step_months)
    while start_ms > now_ms:
        index -= 1
        start_ms = _nth_start_ms(anchor, index * step_months)
    end_ms = _nth_start_ms(anchor, (index + 1) * step_months)
    while end_ms <= now_ms:
        index += 1
        start_ms, end_ms = end_ms, _nth_start_ms(anchor, (index + 1) * step_months)
    return start_ms, end_ms


def _nth_start_ms(anchor: datetime, months: int) -> int:
    """The anchor's wall-clock time ``months`` later, on the last day of a month that is too short for its day."""
    if months == 0:
        return _unix_ms(anchor)  # exactly: an anchor in a repeated hour keeps its fold
    year, month0 = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    day = min(anchor.day, calendar.monthrange(year, month0 + 1)[1])
    return _unix_ms(anchor.replace(year=year, month=month0 + 1, day=day, fold=0))


def _moment(at_ms: int) -> datetime:
    return _EPOCH + at_ms * _MILLISECOND


def _unix_ms(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // _MILLISECOND
