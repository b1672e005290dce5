"""What a call used, how sure we are, and what that bills.

Rules
1. The five kinds of tokens are disjoint: ``input`` excludes cached ones whatever the provider's own convention.
   ``reasoning`` is the one exception: it is a part of ``output``.
2. Unknown is never zero, and a reported zero stays zero.
3. ``basis`` says how the numbers were found, on every record.
4. What was served in part is billed for what was produced: more than nothing, at least what was seen of it.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from limits.values import dataclass


class Basis(StrEnum):
    """How a charge's numbers were found."""

    PROVIDER = "provider"  # the provider reported them
    COUNTED = "counted"  # we counted what was produced
    ESTIMATED = "estimated"  # our estimate from before the call
    HOLD = "hold"  # the whole hold


@dataclass(frozen=True, slots=True)
class Usage:
    """Model tokens of one call, by kind."""

    input: int = 0  # not from and not into a cache
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_write: int = 0  # of a lifetime the provider does not name, or another one
    output: int = 0  # reasoning included
    reasoning: int = 0

    @property
    def input_total(self) -> int:
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h + self.cache_write

    @property
    def total(self) -> int:
        return self.input_total + self.output


@dataclass(frozen=True, slots=True)
class Exact:
    """The provider reported the whole usage of a finished answer."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The answer was cut, or came without usage: at least this was produced.

    ``basis`` is COUNTED when the output was counted by us, ESTIMATED when even that could not be seen.
    """

    usage: Usage
    basis: Basis


@dataclass(frozen=True, slots=True)
class NotServed:
    """Nothing was produced: the hold is released and nothing charged."""


Outcome = Exact | AtLeast | NotServed


def billed(outcome: Outcome, estimate: Usage) -> tuple[Usage, Basis] | None:
    """What an outcome bills, and how its numbers were found; None when nothing was served and nothing is charged.

    ``estimate`` is what was known before the call: its counted input, and as output what to bill when not even the
    output could be seen. It fills in only what the answer did not tell.
    """
    match outcome:
        case Exact(usage):
            return usage, Basis.PROVIDER
        case NotServed():
            return None
        case AtLeast(usage, basis):
            return _at_least(usage, basis, estimate), basis


def _at_least(usage: Usage, basis: Basis, estimate: Usage) -> Usage:
    output = max(usage.output, estimate.output) if basis is Basis.ESTIMATED else usage.output
    if usage.input_total == 0:
        usage = replace(estimate, output=usage.output, reasoning=usage.reasoning)
    if usage.input_total == 0 and output == 0:
        output = 1
    return replace(usage, output=output)
