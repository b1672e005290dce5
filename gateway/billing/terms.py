"""What a hold is for, as a document beside it: the price it was opened at, and how much of it so far. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from gateway.domain.plans import BulkStep, ByCard, PerThousandTokens, PerUse
from gateway.domain.services import Debit, Measure, Offer, PerUnit, Tariff
from gateway.domain.usage import Usage

KEYS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Terms:
    """``keys``: the idempotent extensions that were made last."""

    offer: Offer
    measure: Measure
    model: str | None = None
    keys: tuple[str, ...] = ()

    def plus(self, more: Measure) -> Terms:
        """As much more."""
        mine, yours = self.measure.usage, more.usage
        usage = Usage(
            input=mine.input + yours.input,
            cache_read=mine.cache_read + yours.cache_read,
            cache_write=mine.cache_write + yours.cache_write,
            output=mine.output + yours.output,
            reasoning=mine.reasoning + yours.reasoning,
        )
        return replace(self, measure=Measure(self.measure.quantity + more.quantity, usage))

    def done(self, key: str) -> Terms:
        """With an extension that must not be made again."""
        return replace(self, keys=(*self.keys, key)[-KEYS_MAX:])

    def written(self) -> dict[str, Any]:
        offer, usage = self.offer, self.measure.usage
        return {
            "kind": offer.kind,
            "name": offer.name,
            "wallet": offer.wallet,
            "minimum": offer.minimum,
            "tariff": _written(offer.tariff),
            "quantity": str(self.measure.quantity),
            "usage": [usage.input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning],
            "model": self.model,
            "keys": list(self.keys),
        }

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Terms:
        fresh, cached, written, output, reasoning = kept["usage"]
        usage = Usage(input=fresh, cache_read=cached, cache_write=written, output=output, reasoning=reasoning)
        return cls(
            Offer(kept["kind"], kept["name"], kept["wallet"], _read(kept["tariff"]), kept["minimum"]),
            Measure(Fraction(kept["quantity"]), usage),
            kept["model"],
            tuple(kept["keys"]),
        )


def _written(tariff: Tariff) -> list[Any]:
    match tariff:
        case PerUnit(price, unit_s, increment_s, whole):
            return ["unit", str(price), unit_s, increment_s, whole]
        case PerUse(amount, bulk):
            return ["use", amount, [[step.start, step.per_use] for step in bulk]]
        case PerThousandTokens(rate, minimum):
            return ["size", rate, minimum]
        case ByCard():
            return ["card"]
        case Debit(scale):
            return ["debit", scale]


def _read(kept: list[Any]) -> Tariff:
    match kept:
        case ["unit", price, unit_s, increment_s, whole]:
            return PerUnit(Fraction(price), unit_s, increment_s, whole)
        case ["use", amount, bulk]:
            return PerUse(amount, tuple(BulkStep(*step) for step in bulk))
        case ["size", rate, minimum]:
            return PerThousandTokens(rate, minimum)
        case ["card"]:
            return ByCard()
        case ["debit", scale]:
            return Debit(scale)
    raise AssertionError(f"no such price: {kept}")
