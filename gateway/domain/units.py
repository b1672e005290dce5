"""Meters and amounts: exact integers inside, plain decimals at the edges. No float near an amount."""

from __future__ import annotations

from dataclasses import dataclass

AMOUNT_MAX = 2**53 - 1
UNLIMITED_AMOUNT = 2**52  # how an unlimited allowance is granted; all other grants of that wallet sum below it


@dataclass(frozen=True, slots=True)
class Meter:
    """A named unit; amounts are integers in steps of 10**-decimals."""

    name: str
    decimals: int
    label: str = ""  # what a person reads: "credit"
    tokens_per_unit: int | None = None
