"""Rate cards: what model tokens cost in a meter, exactly.

Rules
1. Prices are fractions of a meter step per token; a sum is exact and rounded once, at its end: a settled charge half up
   to the smallest step, a hold always up. So a hold of a bound is never below the charge of what stays within it.
2. Reasoning is a part of output, and priced as output unless the card prices it apart.
3. Cache writes are priced by their lifetime; those whose lifetime the provider does not name, by ``cache_write``.
4. A hold does not know which input will come from a cache: it is priced at the dearest kind of input.

Not here: which card a model has (``plans``), and what a call used (``usage``).
"""

from __future__ import annotations

from dataclasses import field
from fractions import Fraction
from math import lcm

from gateway.domain.units import AMOUNT_MAX
from gateway.domain.usage import Usage
from limits.values import dataclass


@dataclass(frozen=True, slots=True)
class RateCard:
    """Prices in meter *steps* per token, exact. ``version`` is a hash of the content, stamped on each charge."""

    name: str
    meter: str
    version: str
    input: Fraction
    output: Fraction
    cache_read: Fraction
    cache_write: Fraction
    cache_write_5m: Fraction
    cache_write_1h: Fraction
    reasoning: Fraction | None = None  # None: priced as output
    request: Fraction = Fraction(0)  # steps per request
    _numerators: tuple[int, ...] = field(init=False, repr=False, compare=False)  # prices in 1/denominator steps
    _bounds: tuple[int, int] = field(init=False, repr=False, compare=False)  # dearest input and output, likewise
    _denominator: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        reasoning = self.output if self.reasoning is None else self.reasoning
        inputs = (self.input, self.cache_read, self.cache_write, self.cache_write_5m, self.cache_write_1h)
        prices = (*inputs, self.output, reasoning - self.output, self.request)
        denominator = lcm(*(price.denominator for price in prices))
        numerators = tuple(int(price * denominator) for price in prices)
        outputs = (self.output, reasoning)
        object.__setattr__(self, "_denominator", denominator)
        object.__setattr__(self, "_numerators", numerators)
        object.__setattr__(self, "_bounds", (int(max(inputs) * denominator), int(max(outputs) * denominator)))

    def price(self, usage: Usage, _uses: int = 1) -> int:
        """The charge in steps for what a call used, rounded half up; capped at AMOUNT_MAX."""
        fresh, read, write, write_5m, write_1h, output, reasoning_more, request = self._numerators
        total = (
            usage.input * fresh
            + usage.cache_read * read
            + usage.cache_write * write
            + usage.cache_write_5m * write_5m
            + usage.cache_write_1h * write_1h
            + usage.output * output
            + request
        )
        if usage.reasoning:
            total += min(usage.reasoning, usage.output) * reasoning_more
        denominator = self._denominator
        return min((2 * total + denominator) // (2 * denominator), AMOUNT_MAX)

    def bound(self, input_tokens: int, output_tokens: int, _uses: int = 1) -> int:
        """The most that a call within these tokens can cost, in steps, rounded up; capped at AMOUNT_MAX."""
        dearest_input, dearest_output = self._bounds
        total = input_tokens * dearest_input + output_tokens * dearest_output + self._numerators[7]
        return min(-(-total // self._denominator), AMOUNT_MAX)
