"""Periods: how long an allowance lasts and when the next one starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Period:
    """``month`` and ``year`` follow the calendar from an anchor in a time zone, with month-end clamp; ``once`` never ends;
    ``fixed`` lasts ``seconds``."""

    kind: Literal["month", "year", "once", "fixed"]
    seconds: int = 0
