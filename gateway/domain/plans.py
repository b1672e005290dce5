"""What a config offers, as plain data: meters, cards, models, features, services, plans, packages.

Built only by ``gateway.config``; every cross-reference in it has been checked there. Amounts are integers in the
meter's smallest step (see ``units``), ``UNLIMITED`` and ``CUSTOM`` are named values, durations are seconds.

Rules
1. One price, two readings: ``bound`` is what is held before the call, rounded up; ``price`` what is due after it.
   What stays within its bound never costs more than it.
2. ``bulk`` is by volume: the step that the number of uses reaches prices all of them.
3. Unknown is never zero: a price by card without a card is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Final, Literal

from gateway.domain.alerts import AlertRules
from gateway.domain.periods import Period
from gateway.domain.rates import RateCard
from gateway.domain.units import AMOUNT_MAX, Meter
from gateway.domain.usage import Usage
from gateway.errors import PriceMissing
from limits.values import dataclass

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
        for card in self.rates:  # asked several times per call: a loop costs less than a generator
            if card.meter == meter:
                return card
        return None


@dataclass(frozen=True, slots=True)
class BulkStep:
    start: int
    per_use: int


@dataclass(frozen=True, slots=True)
class PerUse:
    """A fixed cost per use."""

    amount: int
    bulk: tuple[BulkStep, ...] = ()

    def price(self, _: Usage, uses: int) -> int:
        return self.bound(0, 0, uses)

    def bound(self, _input_tokens: int, _output_tokens: int, uses: int) -> int:
        each = self.amount
        for step in self.bulk:
            if uses >= step.start:
                each = step.per_use
        return min(each * uses, AMOUNT_MAX)


@dataclass(frozen=True, slots=True)
class PerThousandTokens:
    """By size: ``rate`` wallet steps per 1,000 model tokens, never below ``minimum`` steps."""

    rate: int
    minimum: int

    def price(self, usage: Usage, _uses: int) -> int:
        return min(max(self.minimum, (2 * self.rate * usage.total + 1000) // 2000), AMOUNT_MAX)

    def bound(self, input_tokens: int, output_tokens: int, _uses: int) -> int:
        return min(max(self.minimum, -(-self.rate * (input_tokens + output_tokens) // 1000)), AMOUNT_MAX)


@dataclass(frozen=True, slots=True)
class ByCard:
    """By the model's rate card of the wallet's meter."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Worked out already: this many wallet steps for the whole call, whatever its uses and tokens (``services``)."""

    amount: int

    def price(self, _: Usage, _uses: int) -> int:
        return self.amount

    def bound(self, _input_tokens: int, _output_tokens: int, _uses: int) -> int:
        return self.amount


Price = PerUse | PerThousandTokens | ByCard | Fixed
Pricing = PerUse | PerThousandTokens | RateCard | Fixed  # a price whose card is found


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    wallet: str
    price: Price


@dataclass(frozen=True, slots=True)
class Service:
    """Work outside the proxy, metered by API. What it costs is ``services``' to say."""

    name: str
    wallet: str
    per: Literal["second", "minute", "hour", "message", "request", "unit"]
    price: Fraction  # steps per unit, exact
    minimum_balance: int = 0  # what must be available for it to start
    increment_s: int | None = None


@dataclass(frozen=True, slots=True)
class PackageGrant:
    """What a package puts into one wallet. ``expires_s`` None = it never ends."""

    wallet: str
    amount: int
    source: str = "package"
    expires_s: int | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """Something bought once. ``plans`` None = everybody may buy it."""

    name: str
    label: str
    price: Decimal
    grants: tuple[PackageGrant, ...]
    plans: tuple[str, ...] | None = None
    stripe_price: str = ""


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
class Overage:
    """Use beyond the allowance, up to ``cap`` steps a period, to be paid afterwards."""

    cap: int
    price: Fraction  # of a step, in the currency's smallest unit


@dataclass(frozen=True, slots=True)
class Rollover:
    """The most that a period's unused rest adds to the next: an amount in steps, or a share of the allowance."""

    amount: int | None = None
    share: Decimal | None = None

    def limit(self, allowance: int) -> int:
        return int(allowance * self.share) if self.share is not None else self.amount or 0


@dataclass(frozen=True, slots=True)
class Prepay:
    """Several periods paid at once, for less."""

    periods: int
    discount: Decimal  # 0.2 = a fifth less
    stripe_price: str = ""


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
    overage: Mapping[str, Overage] = field(default_factory=dict)  # by wallet
    rollover: Mapping[str, Rollover] = field(default_factory=dict)  # by wallet
    prepay: Prepay | None = None
    time_zone: str = "UTC"
    grant_source: str = "plan"
    entitlements: Mapping[str, object] = field(default_factory=dict)
    shadow: bool = False  # decide and record, never refuse
    stripe_price: str = ""  # Stripe's id of the price of one period; "" = not sold there
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
    grace_ms: int = 0  # how long a plan stays usable while its payment is due
    packages: Mapping[str, Package] = field(default_factory=dict)
    alerts: AlertRules = field(default_factory=AlertRules)

    @property
    def card_meters(self) -> frozenset[str]:
        """The meters in which some card prices a model's tokens."""
        return frozenset(card.meter for card in self.cards.values())

    def model(self, name: str) -> Model | None:
        return next((model for model in self.models if model.matches(name)), None)


def is_trial(catalog: Catalog, plan: Plan) -> bool:
    """A plan that costs nothing, runs once for a time, and blocks at its end or is what new accounts start on."""
    if plan.renews != "never" or plan.period.kind == "once" or plan.price == CUSTOM:
        return False
    return plan.price == 0 and (plan.ends == "block" or plan.name == catalog.default_plan)


def paid_plans(catalog: Catalog) -> tuple[Plan, ...]:
    """The plans that cost something, custom prices included, in the config's order."""
    return tuple(plan for plan in catalog.plans.values() if plan.price == CUSTOM or plan.price > 0)


def larger_plans(catalog: Catalog, plan: Plan, wallet: str) -> tuple[Plan, ...]:
    """The plans that allow more of ``wallet`` than ``plan`` does, in the config's order; custom counts as more."""
    mine = _size(plan, wallet)
    return tuple(other for other in catalog.plans.values() if other.name != plan.name and _size(other, wallet) > mine)


def allows_more(plan: Plan, other: Plan) -> bool:
    """Whether ``plan`` grants at least as much of every wallet as ``other``, and more of one."""
    sizes = [(_size(plan, wallet), _size(other, wallet)) for wallet in {*plan.allowance, *other.allowance}]
    return all(mine >= theirs for mine, theirs in sizes) and any(mine > theirs for mine, theirs in sizes)


def _size(plan: Plan, wallet: str) -> int:
    amount = plan.allowance.get(wallet, 0)
    return amount if isinstance(amount, int) else AMOUNT_MAX + (amount == UNLIMITED)


def pricing(feature: Feature, card: RateCard | None) -> Pricing:
    """What prices a feature's calls: its ``price`` is what a call costs after it, its ``bound`` what it may cost at
    most, in steps of the feature's wallet. Raises PriceMissing when the price is by card and there is none."""
    if not isinstance(feature.price, ByCard):
        return feature.price
    if card is None or card.meter != feature.wallet:
        raise PriceMissing
    return card


def charge(feature: Feature, card: RateCard | None, usage: Usage, uses: int = 1) -> int:
    """What a call costs after it, in steps of the feature's wallet. ``uses`` >= 1 counts the operations in the call.

    Raises PriceMissing when the price is by card and there is none.
    """
    return pricing(feature, card).price(usage, uses)


def demand(feature: Feature, card: RateCard | None, *, input_tokens: int, output_tokens: int, uses: int = 1) -> int:
    """What a call may cost at most, in steps of the feature's wallet: the hold. Raises PriceMissing like ``charge``."""
    return pricing(feature, card).bound(input_tokens, output_tokens, uses)


def abandoned(plan: Plan, by: Pricing, estimate: Usage, *, held: int, uses: int = 1) -> int:
    """What a hold that nobody settled charges provisionally, by the plan's ``on_abandon``; never above ``held``.

    ``estimate`` is what was known before the call: its counted input's price is due, a fixed price whole.
    """
    match plan.on_abandon:
        case "release":
            return 0
        case "hold":
            return held
        case "estimate":
            return min(held, by.price(estimate, uses))


def output_affordable(by: Pricing, *, input_tokens: int, available: int, output_max: int) -> int:
    """The most output tokens, up to ``output_max``, whose bound ``available`` steps can pay; -1 when even 0 cannot be.

    For ``clamp``: found by bisection over the bound, so it holds for every kind of price.
    """
    low, high = -1, output_max
    while low < high:
        middle = (low + high + 1) // 2
        if by.bound(input_tokens, middle, 1) <= available:
            low = middle
        else:
            high = middle - 1
    return low
