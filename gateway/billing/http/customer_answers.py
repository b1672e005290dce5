"""What the customer API answers, field by field, besides what all APIs share (see ``answers``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from gateway.billing.http.answers import KeyAnswer, TotalAnswer, UsageAnswer, WalletAnswer
from gateway.billing.http.models import Strict, When

Status = Literal["trialing", "active", "past_due", "expired", "cancelled"]


class TokensOfWallet(Strict):
    """A wallet's amounts in tokens, where its meter says how many a unit is; parts of a token are dropped."""

    available: str
    granted: str
    held: str
    used: str
    lifetime_used: str
    period_used: str


class StandingWallet(WalletAnswer):
    """``used`` is what its open grants bore, ``period_used`` what was used in this period, ``lifetime_used`` ever."""

    unit: str
    lifetime_used: str
    period_used: str
    tokens: TokensOfWallet | None


class StandingAnswer(Strict):
    account: str
    plan: str
    subscription_status: Status
    period_starts_at: When | None
    period_ends_at: When | None
    trial_ends_at: When | None
    next_refresh_at: When | None
    holds_open: int
    wallets: list[StandingWallet]


class LimitOfWallet(Strict):
    """``limit`` is what was granted for now; ``overage_used`` what of ``used`` is to be paid afterwards."""

    wallet: str
    limit: str
    used: str
    held: str
    available: str
    overage_used: str
    resets_at: When | None


class TermsAnswer(Strict):
    """What was agreed with this account besides its plan."""

    price: str | None
    allowance: dict[str, str]


class SubscriptionAnswer(Strict):
    account: str
    plan: str
    label: str
    status: Status
    price: str | None
    currency: str
    period: str | None
    renews: Literal["by_itself", "when_paid", "never"] | None
    trial_starts_at: When | None
    trial_ends_at: When | None
    period_starts_at: When | None
    period_ends_at: When | None
    next_refresh_at: When | None
    paid_until: When | None
    next_plan: str | None
    cancel_at_period_end: bool
    entitlements: dict[str, Any]
    terms: TermsAnswer
    wallets: list[LimitOfWallet]


class SubscribedAnswer(Strict):
    """``url``: where the plan is paid, after which it begins; null: it needs no payment."""

    url: str | None
    takes_effect_at: When | None
    subscription: SubscriptionAnswer


class RecordsAnswer(Strict):
    """One page of records, the newest first; ``totals`` when ``by`` asks for them."""

    totals: list[TotalAnswer]
    items: list[UsageAnswer]
    next: str | None


class MeterAnswer(Strict):
    name: str
    unit: str
    decimals: int
    tokens_per_unit: int | None


class CardAnswer(Strict):
    """Prices ``per`` so many model tokens, in the meter; ``request`` per call."""

    name: str
    meter: str
    version: str
    per: int
    input: str
    output: str
    cache_read: str
    cache_write: str
    cache_write_5m: str
    cache_write_1h: str
    reasoning: str
    request: str


class BulkAnswer(Strict):
    """From so many uses in one call on, each costs this."""

    model_config = ConfigDict(extra="allow")  # "from" is no name of Python's

    per_use: str


class FeatureAnswer(Strict):
    """One of ``per_use``, ``per_1k_tokens`` and ``rates`` (by the model's card) prices it."""

    name: str
    wallet: str
    per_use: str | None
    bulk: list[BulkAnswer]
    per_1k_tokens: str | None
    minimum: str | None
    rates: bool


class ServiceAnswer(Strict):
    name: str
    wallet: str
    per: str
    price: str
    minimum_balance: str
    increment: str | None


class RatesAnswer(Strict):
    currency: str
    meters: list[MeterAnswer]
    cards: list[CardAnswer]
    features: list[FeatureAnswer]
    services: list[ServiceAnswer]
    default_feature: str


class OutlookAnswer(Strict):
    """``runs_out_at`` null: at this pace it lasts."""

    wallet: str
    available: str
    used_recently: str
    per_day: str
    runs_out_at: When | None


class ForecastAnswer(Strict):
    account: str
    next_refresh_at: When | None
    wallets: list[OutlookAnswer]


class KeysAnswer(Strict):
    items: list[KeyAnswer]


class ExplainedKey(Strict):
    id: str
    service: bool
    team: str | None
    user: str | None


class ExplainedAccount(Strict):
    id: str
    name: str
    external_id: str | None


class ExplainedPlan(Strict):
    name: str
    label: str
    version: str
    shadow: bool
    status: Status
    period_ends_at: When | None


class ExplainedPrice(Strict):
    name: str
    wallet: str
    price: dict[str, Any]


class ExplainedCard(Strict):
    name: str
    version: str


class ExplainedModel(Strict):
    name: str | None
    rule: str
    upstreams: list[str]
    card: ExplainedCard | None
    output_max: int


class ExplainedTokens(Strict):
    """``output`` is the bound that was decided on, of all choices; ``clamped_to`` of each, when it was lowered."""

    counted: bool
    input: int
    output: int
    output_asked: int | None
    choices: int
    clamped_to: int | None


class ExplainedCost(Strict):
    wallet: str
    needed: str


class ExplainedLimit(Strict):
    """One limit that the call falls under, as it stands; amounts of its meter, or counts."""

    limit_of: Literal["wallet", "budget", "requests", "tokens", "uses", "concurrency"]
    scope: Literal["account", "team", "user", "key"]
    meter: str | None
    window_s: int | None
    limit: str
    used: str
    held: str
    needed: str
    available: str
    fits: bool
    resets_at: When | None


class ExplainAnswer(Strict):
    """``status`` is what the call would be answered with; ``reason`` to ``plans`` say why not."""

    decision: Literal["admitted", "refused", "admitted_in_shadow"]
    status: int
    reason: str | None
    message: str | None
    retry: bool | None
    scope: str | None
    hint: str | None
    plans: list[str]
    key: ExplainedKey
    account: ExplainedAccount
    plan: ExplainedPlan
    feature: ExplainedPrice
    model: ExplainedModel | None
    tokens: ExplainedTokens
    cost: ExplainedCost
    limits: list[ExplainedLimit]
