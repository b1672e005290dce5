"""What a config offers, as plain data: meters, cards, models, features, services, plans, packages.

Built only by ``gateway.config``; every cross-reference in it has been checked there. Amounts are integers in the
meter's smallest step (see ``units``), ``UNLIMITED`` and ``CUSTOM`` are named values, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Final, Literal

from gateway.domain.periods import Period
from gateway.domain.rates import RateCard
from gateway.domain.units import Meter

UNLIMITED: Final = "unlimited"
CUSTOM: Final = "custom"
Amount = int | Literal["unlimited", "custom"]


@dataclass(frozen=True, slots=True)
class Model:
    """A rule for model names; the first that matches wins."""

    match: str
    ids: tuple[str, ...]
    upstreams: tuple[str, ...]  # names, in order of preference
    rates: tuple[RateCard, ...]
    output_max: int  # tokens
    output_default: int  # injected when the call names no bound
    rename: str | None = None  # `as:`

    def matches(self, name: str) -> bool:
        return fnmatchcase(name, self.match)

    def card(self, meter: str) -> RateCard | None:
        return next((card for card in self.rates if card.meter == meter), None)


@dataclass(frozen=True, slots=True)
class BulkStep:
    start: int
    per_use: int


@dataclass(frozen=True, slots=True)
class PerUse:
    """A fixed cost per use."""

    amount: int
    bulk: tuple[BulkStep, ...] = ()


@dataclass(frozen=True, slots=True)
class PerThousandTokens:
    """By size: ``rate`` wallet steps per 1,000 model tokens, never below ``minimum`` steps."""

    rate: int
    minimum: int


@dataclass(frozen=True, slots=True)
class ByCard:
    """By the model's rate card of the wallet's meter."""


Price = PerUse | PerThousandTokens | ByCard


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    wallet: str
    price: Price


@dataclass(frozen=True, slots=True)
class Service:
    """Work outside the proxy, metered by API."""

    name: str
    wallet: str
    per: Literal["minute", "hour", "second", "message", "request", "unit"]
    price: int
    minimum_balance: int = 0
    increment_s: int | None = None


@dataclass(frozen=True, slots=True)
class UsesLimit:
    max: int
    per_s: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates of one scope; None = no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    uses: UsesLimit | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    label: str
    price: Decimal | Literal["custom"]
    period: Period
    renews: Literal["by_itself", "when_paid", "never"]
    allowance: Mapping[str, Amount]  # wallet → amount
    ends: str  # "block" or a plan's name
    models: tuple[str, ...] | None = None  # patterns; None = all
    features: tuple[str, ...] | None = None  # None = all
    limits: Mapping[str, Limits] = field(default_factory=dict)  # account | team | user | key
    clamp: int | None = None  # floor in tokens
    on_exhausted: Literal["stop", "error"] = "stop"
    on_disconnect: Literal["drain", "cut"] = "drain"
    on_abandon: Literal["estimate", "release", "hold"] = "estimate"
    debt: Literal["forgive", "carry"] = "forgive"
    time_zone: str = "UTC"
    grant_source: str = "plan"
    entitlements: Mapping[str, object] = field(default_factory=dict)
    version: str = ""  # content hash of what the plan promises


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that is for sale, and what it costs."""

    currency: str
    meters: Mapping[str, Meter]
    cards: Mapping[str, RateCard]
    models: tuple[Model, ...]
    features: Mapping[str, Feature]
    default_feature: str
    services: Mapping[str, Service]
    plans: Mapping[str, Plan]
    default_plan: str
    messages: Mapping[str, Mapping[str, str]]  # reason → {"title"?, "text"}
    warn_at_permille: tuple[int, ...]

    def model(self, name: str) -> Model | None:
        return next((model for model in self.models if model.matches(name)), None)


def is_trial(catalog: Catalog, plan: Plan) -> bool:
    """A plan that costs nothing, runs once for a time, and blocks at its end or is what new accounts start on."""
    if plan.renews != "never" or plan.period.kind == "once" or plan.price == CUSTOM:
        return False
    return plan.price == 0 and (plan.ends == "block" or plan.name == catalog.default_plan)
