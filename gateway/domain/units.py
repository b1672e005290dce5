"""Meters, amounts and durations: exact integers inside, plain decimals at the edges. No float near an amount.

Rules
1. An amount is an integer count of its meter's smallest step, below 2**53 in size.
2. ``parse`` and ``format`` are exact inverses; what has more decimals than the meter is refused, never rounded.
3. A duration is a whole number of seconds, at least one, and always carries its unit.

Not here: how long a calendar month is (``periods``).
"""

from __future__ import annotations

import re
from dataclasses import field
from decimal import Decimal
from fractions import Fraction
from typing import Final

from limits.values import dataclass

AMOUNT_MAX = 2**53 - 1
UNLIMITED_AMOUNT = 2**52  # how an unlimited allowance is granted; all other grants of that wallet sum below it
ENDLESS_FROM = UNLIMITED_AMOUNT // 2  # no config names as much, and nobody uses as much up

_DECIMAL: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
_DURATION: Final = re.compile(r"([0-9]{1,10})(s|m|h|d|w)", re.ASCII)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION_MAX_S: Final = 100 * 366 * 86_400
_DECIMALS_SHOWN_MAX: Final = 18
_DEMAND_ROUNDING_UNITS: Final = 100


class UnitError(ValueError):
    """A text is not the amount or duration it should be. ``expected`` and ``found`` make the sentence."""

    def __init__(self, expected: str, found: object) -> None:
        shown = found if isinstance(found, str) else str(found)
        self.expected = expected
        self.found = shown if len(shown) <= 40 else shown[:37] + "..."
        super().__init__(f"expected {expected}, found {self.found!r}")


def is_endless(steps: int) -> bool:
    """Whether an amount is an unlimited one, or what is left of one."""
    return steps >= ENDLESS_FROM


def exact(value: str | int | Decimal, *, expected: str = "a plain decimal number") -> Fraction:
    """The exact value of a plain decimal. Raises UnitError: no exponent in a text, no NaN, no infinity, no bool."""
    if isinstance(value, str):
        if _DECIMAL.fullmatch(value) is None:
            raise UnitError(expected, value)
        return Fraction(value)
    if isinstance(value, Decimal):
        if not value.is_finite() or abs(value.adjusted()) > 60:
            raise UnitError(expected, value)
        return Fraction(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnitError(expected, value)
    return Fraction(value)


def plain(value: Fraction) -> str:
    """The value as a plain decimal; where none is exact as a fraction."""
    scale = 0
    while value.denominator != 1 and (value * 10**scale).denominator != 1 and scale < _DECIMALS_SHOWN_MAX:
        scale += 1
    if (value * 10**scale).denominator != 1:
        return str(value)
    return format(Decimal((value * 10**scale).numerator).scaleb(-scale), "f")


@dataclass(frozen=True, slots=True)
class Meter:
    """A named unit; amounts are integers in steps of 10**-decimals."""

    name: str
    decimals: int
    label: str = ""  # what a person reads: "credit"
    tokens_per_unit: int | None = None
    scale: int = field(init=False, repr=False, compare=False)  # steps per unit

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", int(10**self.decimals))

    @property
    def unit(self) -> str:
        """The word for several of it: "tokens", "credits"."""
        return f"{self.label}s" if self.label else self.name

    def parse(self, value: str | int | Decimal, *, signed: bool = False) -> int:
        """Steps of a plain decimal amount. Raises UnitError saying what was expected; floats are refused."""
        digits = f"at most {self.decimals} decimals" if self.decimals else "no decimals"
        expected = f"an amount of {self.name} with {digits}"
        steps = exact(value, expected=expected) * self.scale
        if steps.denominator != 1:
            raise UnitError(expected, value)
        if steps < 0 and not signed:
            raise UnitError(f"{expected}, 0 or more", value)
        if abs(steps.numerator) > AMOUNT_MAX:
            raise UnitError(f"an amount of at most {self.format(AMOUNT_MAX)} {self.unit}", value)
        return steps.numerator

    def format(self, steps: int) -> str:
        """The amount as a plain decimal: no exponent, no separators, no trailing zeros."""
        if steps < 0:
            return f"-{self.format(-steps)}"
        scale = self.scale
        part = steps % scale
        if not part:
            return str(steps // scale)
        return f"{steps // scale}.{str(part).zfill(self.decimals)}".rstrip("0")

    def roundly(self, steps: int) -> str:
        """An estimated demand as it stands behind a "~": rounded up to the next 100 units."""
        block = _DEMAND_ROUNDING_UNITS * self.scale
        return self.format(-(-steps // block) * block)

    def tokens(self, steps: int) -> str:
        """The amount in tokens, by ``tokens_per_unit`` (1 when the meter names none); parts of a token are dropped."""
        if self.tokens_per_unit is None:
            return self.format(steps)
        return str(steps * self.tokens_per_unit // self.scale)


def parse_duration_s(value: object) -> int:
    """Seconds of a text such as ``5s``, ``10m``, ``24h``, ``7d``, ``2w``. Raises UnitError."""
    expected = "a duration such as 30s, 5m, 24h or 7d"
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UnitError(expected, value)
    seconds = int(match[1]) * _UNIT_S[match[2]]
    if not 1 <= seconds <= _DURATION_MAX_S:
        raise UnitError("a duration of at least 1s and at most 100 years", value)
    return seconds


def format_duration(seconds: int) -> str:
    """A short text that ``parse_duration_s`` reads as ``seconds``: in its largest whole unit up to days."""
    for unit in ("d", "h", "m"):
        if seconds % _UNIT_S[unit] == 0:
            return f"{seconds // _UNIT_S[unit]}{unit}"
    return f"{seconds}s"
