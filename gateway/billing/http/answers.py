"""What the billing APIs answer, field by field: the views of ``gateway.billing.views`` as models, for the document.

Rules
1. A view and its model have the same fields: every answer of a test run is held against its model.
2. Amounts are plain decimals in a text, or ``unlimited`` or ``custom``; instants RFC 3339 in UTC or null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from gateway.billing.http.models import Strict, When

Scope = Literal["account", "team", "user", "key"]


class Uses(Strict):
    max: int
    per_s: int


class LimitsAnswer(Strict):
    """Only what is limited is there."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    uses: Uses | None = None


class OverageAnswer(Strict):
    """Use beyond the allowance, up to ``cap``, paid afterwards at ``price`` a unit."""

    cap: str
    price: str


class PrepayAnswer(Strict):
    """Several periods paid at once, for less: ``price`` is of all of them."""

    periods: int
    discount: str
    price: str


class PlanAnswer(Strict):
    name: str
    label: str
    price: str
    currency: str
    period: str
    renews: Literal["by_itself", "when_paid", "never"]
    allowance: dict[str, str]  # wallet → amount
    ends: str
    overage: dict[str, OverageAnswer]  # by wallet
    rollover: dict[str, str]  # by wallet: the most that is carried over
    prepay: PrepayAnswer | None
    debt: Literal["forgive", "carry"]
    trial: bool
    entitlements: dict[str, Any]
    clamp: int | None
    on_exhausted: str
    on_disconnect: str
    on_abandon: str
    models: list[str] | None
    features: list[str] | None
    limits: dict[Scope, LimitsAnswer]
    default: bool
    version: str


class PlansAnswer(Strict):
    items: list[PlanAnswer]


class AccountAnswer(Strict):
    """An account with its subscription, as it is now."""

    id: str
    name: str
    external_id: str | None
    email: str | None
    status: Literal["active", "suspended"]
    plan: str
    subscription_status: Literal["trialing", "active", "past_due", "expired", "cancelled"]
    period_starts_at: When | None
    period_ends_at: When | None
    trial_starts_at: When | None
    trial_ends_at: When | None
    entitlements: dict[str, Any]
    cancel_at_period_end: bool
    next_plan: str | None
    paid_until: When | None
    created_at: When


class ChangeAnswer(AccountAnswer):
    """An account whose plan changes: when that takes effect, and what is credited of the old plan's price."""

    effective_at: When
    credit: str
    currency: str


class HoldingAnswer(Strict):
    """``limit`` is without overage, ``used`` with it."""

    wallet: str
    limit: str
    used: str
    overage_used: str
    overage_due: str  # in the currency


class AccountWithWallets(AccountAnswer):
    wallets: list[HoldingAnswer]


class TeamAnswer(Strict):
    id: str
    account: str
    name: str
    external_id: str | None
    created_at: When


class UserAnswer(Strict):
    id: str
    account: str
    team: str | None
    name: str
    external_id: str | None
    email: str | None
    created_at: When


class KeyAnswer(Strict):
    """What is known of a key; the key itself is not."""

    id: str
    prefix: str
    name: str
    account: str | None  # null: a service key
    service: bool
    team: str | None
    user: str | None
    status: Literal["active", "expired", "revoked"]
    created_at: When
    expires_at: When | None
    revoked_at: When | None


class FreshKeyAnswer(KeyAnswer):
    """``key`` is told this once."""

    key: str


class RotatedKeyAnswer(FreshKeyAnswer):
    replaces: str
    old_key_expires_at: When | None


class BudgetAnswer(Strict):
    number: int
    scope: Literal["team", "user", "key"]
    id: str
    meter: str
    amount: str
    raised: str  # by gifts to the user, now
    used: str
    period: str
    anchor_at: When
    time_zone: str


class GrantAnswer(Strict):
    number: int
    id: str
    wallet: str
    source: str
    amount: str
    used: str
    priority: int
    starts_at: When
    expires_at: When | None


class OpenGrantAnswer(GrantAnswer):
    held: str
    available: str


class WalletAnswer(Strict):
    wallet: str
    available: str
    held: str
    used: str
    granted: str
    resets_at: When | None
    grants: list[OpenGrantAnswer]


class BalanceAnswer(Strict):
    account: str
    plan: str
    subscription_status: str
    period_starts_at: When | None
    period_ends_at: When | None
    trial_ends_at: When | None
    holds_open: int
    wallets: list[WalletAnswer]


class AdjustedAnswer(Strict):
    """``adjusted`` may be less than ``asked``: nothing is taken that is not there."""

    wallet: str
    asked: str
    adjusted: str
    balance: str


class TokensUsed(Strict):
    """Input is all of it, cached tokens included; output includes reasoning."""

    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int


class UsageAnswer(TokensUsed):
    id: str
    seq: int
    state: Literal["lapsed", "reversed", "settled"]
    at: When
    started_at: When
    month: str
    account: str
    team: str | None
    user: str | None
    key: str | None
    route: str
    model: str | None
    upstream: str | None
    plan: str
    feature: str
    job: str | None
    job_type: str | None
    wallet: str
    held: str
    charged: str
    overrun: str
    balance_after: str
    basis: Literal["provider", "counted", "estimated", "hold"]
    card_version: str
    status: int
    end: str
    metadata: dict[str, Any]
    shadow: str | None
    waived: str


class TotalAnswer(TokensUsed):
    """What the records of one group add up to; the group's own columns stand beside."""

    model_config = ConfigDict(extra="allow")

    wallet: str
    calls: int
    charged: str
    overrun: str
    waived: str
    last_at: When


class TotalsAnswer(Strict):
    items: list[TotalAnswer]


class TransactionAnswer(Strict):
    """``amount`` is signed as the balance felt it."""

    id: str
    at: When
    wallet: str
    kind: str
    amount: str
    grant: int
    reason: str
    seq_first: int | None
    seq_last: int | None


class AuditLineAnswer(Strict):
    """Who did what."""

    id: str
    at: When
    account: str | None
    actor: str
    action: str
    detail: dict[str, Any]


class DifferenceAnswer(Strict):
    what: str
    expected: int | str
    found: int | str


class AuditAnswer(Strict):
    """One account, compared: Redis, ledger and balances."""

    account: str
    charges: int
    in_redis: bool
    moving: bool
    differences: list[DifferenceAnswer]


class PackageGrantAnswer(Strict):
    wallet: str
    amount: str
    source: str
    expires: str | None


class PackageAnswer(Strict):
    name: str
    label: str
    price: str
    currency: str
    grants: list[PackageGrantAnswer]
    plans: list[str] | None


class PackagesAnswer(Strict):
    items: list[PackageAnswer]


class Done(Strict):
    done: Literal[True] = True
