"""What work outside the proxy costs: services per unit, features per use, by size or by card, and plain amounts. Pure.

Rules
1. Quantities are exact fractions. What is priced per second, minute or hour is measured in seconds, everything else in
   its unit: 61.2 s stays 61.2 s, however it was written (``61.2s``, or 1.02 of a minute).
2. A time is rounded up to whole increments of its service: at ``increment: 1s``, 61.2 s is 62 s; without one it stays.
3. The price of the whole is worked out exactly and rounded once, half up, to the meter's smallest step: 62 s at 2 per
   minute is 62 × 2 / 60 = 2.0666… = 2.067. Nothing is added up from rounded parts, so that 7 × 0.5 is 3.5 for ever.
4. What grows is priced anew as a whole, and pays the difference. ``ceiling`` is what must be held so that no smaller
   quantity costs more: with bulk prices 9 uses may cost more than 10.

Not here: who pays, and how a price is held and charged (``quota``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from gateway.domain import plans
from gateway.domain.plans import ByCard, Catalog, Feature, PerThousandTokens, PerUse, Service
from gateway.domain.rates import RateCard
from gateway.domain.units import AMOUNT_MAX, Meter, UnitError, exact
from gateway.domain.usage import Usage
from limits.values import dataclass

UNIT_S: Final[Mapping[str, int]] = {"second": 1, "minute": 60, "hour": 3600}
QUANTITY_MAX: Final = 10**12
_TIME: Final = re.compile(r"([0-9]{1,13}(?:\.[0-9]{1,12})?)(ms|s|m|h)", re.ASCII)
_TIME_S: Final = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
_WHOLE: Final = ("message", "request")


@dataclass(frozen=True, slots=True)
class PerUnit:
    """A service's price: ``price`` steps per unit; a unit of ``unit_s`` seconds, 0 = it is counted."""

    price: Fraction
    unit_s: int = 0
    increment_s: int = 0  # 0 = as it was measured
    whole: bool = False  # there is no half message


@dataclass(frozen=True, slots=True)
class Debit:
    """No price at all: the caller says the amount, in steps of a meter that has ``scale`` of them to one."""

    scale: int


Tariff = PerUnit | PerUse | PerThousandTokens | ByCard | Debit


@dataclass(frozen=True, slots=True)
class Offer:
    """Something that is metered by API. ``name`` as it stands in records: the service's, the feature's, or
    ``wallet:NAME``."""

    kind: Literal["service", "feature", "wallet"]
    name: str
    wallet: str
    tariff: Tariff
    minimum: int = 0  # what must be available for it to start


@dataclass(frozen=True, slots=True)
class Measure:
    """How much of it: seconds or units of a service, uses of a feature, steps of a wallet; and model tokens, if any."""

    quantity: Fraction = Fraction(1)
    usage: Usage = field(default_factory=Usage)


def service_offer(service: Service) -> Offer:
    unit_s = UNIT_S.get(service.per, 0)
    tariff = PerUnit(service.price, unit_s, service.increment_s or 0, service.per in _WHOLE)
    return Offer("service", service.name, service.wallet, tariff, service.minimum_balance)


def feature_offer(feature: Feature) -> Offer:
    assert not isinstance(feature.price, plans.Fixed), "a config has no worked out prices"
    return Offer("feature", feature.name, feature.wallet, feature.price)


def wallet_offer(meter: Meter) -> Offer:
    return Offer("wallet", f"wallet:{meter.name}", meter.name, Debit(meter.scale))


def quantity_of(offer: Offer, value: str | int | Decimal) -> Fraction:
    """A quantity as somebody wrote it: a plain number of units, or for what takes time a duration such as ``61.2s``.

    Raises UnitError.
    """
    tariff = offer.tariff
    timed = isinstance(tariff, PerUnit) and tariff.unit_s > 0
    expected = "a quantity, 0 or more" + (", or a duration such as 61.2s" if timed else "")
    match = _TIME.fullmatch(value) if timed and isinstance(value, str) else None
    if match is not None:
        quantity = Fraction(match[1]) * _TIME_S[match[2]]
    else:
        quantity = exact(value, expected=expected) * (tariff.unit_s if isinstance(tariff, PerUnit) and timed else 1)
    if not 0 <= quantity <= QUANTITY_MAX:
        raise UnitError(expected if quantity < 0 else f"a quantity of at most {QUANTITY_MAX}", value)
    if quantity.denominator != 1 and (isinstance(tariff, PerUse) or (isinstance(tariff, PerUnit) and tariff.whole)):
        raise UnitError("a whole quantity", value)
    return quantity


def billable(tariff: PerUnit, quantity: Fraction) -> Fraction:
    """The quantity that is paid for: rule 2."""
    if not tariff.unit_s or not tariff.increment_s:
        return quantity
    return Fraction(-(-quantity // tariff.increment_s) * tariff.increment_s)


def cost(offer: Offer, measure: Measure, card: RateCard | None = None) -> int:
    """What it costs, in steps of the offer's wallet, at most AMOUNT_MAX. Raises PriceMissing: by card, but no card."""
    tariff = offer.tariff
    match tariff:
        case PerUnit(price, unit_s):
            steps = billable(tariff, measure.quantity) * price / (unit_s or 1)
            return min((2 * steps.numerator + steps.denominator) // (2 * steps.denominator), AMOUNT_MAX)
        case Debit():
            return min(int(measure.quantity), AMOUNT_MAX)
        case PerUse():
            uses = int(measure.quantity)
            return plans.charge(Feature(offer.name, offer.wallet, tariff), None, Usage(), uses) if uses else 0
        case PerThousandTokens() | ByCard():
            return plans.charge(Feature(offer.name, offer.wallet, tariff), card, measure.usage)


def ceiling(offer: Offer, measure: Measure, card: RateCard | None = None) -> int:
    """What no part of it costs more than: rule 4. Raises PriceMissing like ``cost``."""
    tariff = offer.tariff
    if isinstance(tariff, PerUse) and tariff.bulk:
        most = int(measure.quantity)
        ends = {min(most, step.start - 1) for step in tariff.bulk} | {most}
        return max(cost(offer, Measure(Fraction(uses))) for uses in ends)
    if isinstance(tariff, ByCard):
        tokens = measure.usage
        feature = Feature(offer.name, offer.wallet, tariff)
        return plans.demand(feature, card, input_tokens=tokens.input_total, output_tokens=tokens.output)
    return cost(offer, measure, card)


def written(offer: Offer, quantity: Fraction) -> str:
    """The quantity as a plain decimal of its unit; a time in seconds, as ``62s``."""
    tariff = offer.tariff
    timed = isinstance(tariff, PerUnit) and tariff.unit_s > 0
    if isinstance(tariff, Debit):
        quantity /= tariff.scale
    text = format((Decimal(quantity.numerator) / Decimal(quantity.denominator)).normalize(), "f")
    return f"{text}s" if timed else text


def offer_of(catalog: Catalog, *, service: str | None, feature: str | None, wallet: str | None) -> Offer | None:
    """What the config offers under this name; exactly one of the three is given."""
    if service is not None:
        found = catalog.services.get(service)
        return None if found is None else service_offer(found)
    if feature is not None:
        named = catalog.features.get(feature)
        return None if named is None else feature_offer(named)
    return wallet_offer(catalog.meters[wallet]) if wallet is not None and wallet in catalog.meters else None


def card_of(catalog: Catalog, offer: Offer, model: str | None) -> RateCard | None:
    """The card that prices ``model`` for this offer; None for an offer that needs none, or a model without one."""
    if model is None or not isinstance(offer.tariff, ByCard):
        return None
    found = catalog.model(model)
    return None if found is None else found.card(offer.wallet)
