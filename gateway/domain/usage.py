"""What a call used, how sure we are, and what that bills.

Rules
1. The five kinds of tokens are disjoint: ``input`` excludes cached ones whatever the provider's own convention.
   ``reasoning`` is the one exception: it is a part of ``output``.
2. Unknown is never zero, and a reported zero stays zero.
3. ``basis`` says how the numbers were found, on every record.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
