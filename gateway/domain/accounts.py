"""Who calls and who pays: account → team → user → key, and what an account holds. Pure data; times are Unix ms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from gateway.domain.periods import Period
from limits.values import dataclass


class AccountStatus(StrEnum):
    ACTIVE = "active"
    SUSPENDED = "suspended"


class SubscriptionStatus(StrEnum):
    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def usable(self) -> bool:
        return self in (SubscriptionStatus.TRIALING, SubscriptionStatus.ACTIVE, SubscriptionStatus.PAST_DUE)


@dataclass(frozen=True, slots=True)
class Subscription:
    """An account's place on a plan. ``period_ends_at_ms`` 0 = never (period: once)."""

    id: str
    plan: str
    plan_version: str
    status: SubscriptionStatus
    anchor_at_ms: int
    period_starts_at_ms: int
    period_ends_at_ms: int
    trial_ends_at_ms: int  # 0 = no trial
    cancel_at_period_end: bool = False
    next_plan: str | None = None  # the plan that follows at the end of what is paid
    paid_until_ms: int = 0  # 0 = nothing was paid for in advance
    terms: Mapping[str, object] = field(default_factory=dict)  # custom allowance, price, entitlements


@dataclass(frozen=True, slots=True)
class Budget:
    """A ceiling of a team, user or key in a meter, per period. ``number`` is dense per account."""

    number: int
    scope: str  # team | user | key
    scope_id: str
    meter: str
    amount: int
    period: Period
    anchor_at_ms: int
    time_zone: str = "UTC"
    raises: tuple[tuple[int, int], ...] = ()  # (amount, until ms; 0 = for ever): gifts to the user

    def ceiling(self, at_ms: int) -> int:
        """The amount with what gifts add to it at a time."""
        return self.amount + sum(amount for amount, until_ms in self.raises if until_ms == 0 or at_ms < until_ms)


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    name: str
    external_id: str | None
    email: str | None
    status: AccountStatus
    rev: int  # grows with every change that a cached caller must see
    subscription: Subscription
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Caller:
    """A key and the account it acts for, as authenticated. A service key has no account of its own."""

    key_id: str
    account: Account | None
    team_id: str | None
    user_id: str | None
    budgets: tuple[Budget, ...]  # of the account: whoever calls picks those of its scopes
    expires_at_ms: int = 0  # of the key; 0 = never
    service: bool = False


@dataclass(frozen=True, slots=True)
class GrantState:
    """An open grant with the sum of charges on it."""

    id: str
    number: int  # dense per account, older = smaller
    wallet: str
    amount: int
    source: str  # plan | trial | package | bonus | gift | rollover | adjustment | overage
    priority: int
    starts_at_ms: int
    expires_at_ms: int  # 0 = never
    used: int
    unit_price: str = ""  # of overage: what a step costs, as a fraction of the currency's smallest unit
    charged_at_ms: int = 0  # end of the last call that it was charged for; 0 = none yet


@dataclass(frozen=True, slots=True)
class BudgetUse:
    number: int
    starts_at_ms: int
    used: int


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """One consistent read of an account: what Redis is loaded from. ``seq`` = last charge change in the sums."""

    account_id: str
    seq: int
    rev: int
    turn_at_ms: int  # 0 = the period never ends
    period_starts_at_ms: int
    grants: tuple[GrantState, ...]
    budgets: tuple[BudgetUse, ...]


@dataclass(frozen=True, slots=True)
class AccountSums:
    """What an account's charges up to ``seq`` sum to."""

    seq: int
    grants: dict[int, tuple[str, int]]  # number → wallet, used
    meters: dict[int, str]  # of live budgets, by number
    budgets: dict[tuple[int, int], int]  # (number, period's start) → used
