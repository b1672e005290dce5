"""What follows when a subscription's period ends: the pure decision, which the store then writes in one transaction.

Rules
1. The same subscription at the same instant gives the same decision, wherever it is asked; its grants have the same
   keys. So any number of replicas may notice a turn at once.
2. Periods that nobody used get no grant afterwards: the next period is the one that holds ``now_ms``.
3. ``by_itself`` renews by the clock; ``when_paid`` waits for its payment (``past_due`` for the grace time, then it
   ends); ``never`` ends. Whatever ends goes on as plan ``ends``, or is blocked.
4. A period whose end was moved by hand anchors the following ones at that end.
5. A fallback starts where the old period ended, not when somebody noticed.

Not here: money, payments, who is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gateway.domain.accounts import Subscription, SubscriptionStatus
from gateway.domain.grants import NewGrant, period_grants
from gateway.domain.periods import bounds
from gateway.domain.plans import Catalog, Plan, is_trial

BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Stay:
    """Nothing is due: the period has not ended, or nothing follows until somebody acts."""


@dataclass(frozen=True, slots=True)
class NextPeriod:
    """The same plan goes on: insert the grants, move the subscription."""

    subscription: Subscription
    grants: tuple[NewGrant, ...]


@dataclass(frozen=True, slots=True)
class Fallback:
    """Another plan follows by itself: insert the grants, move the subscription."""

    subscription: Subscription
    grants: tuple[NewGrant, ...]


@dataclass(frozen=True, slots=True)
class PastDue:
    """The payment is awaited: usable until the grace time is over, without a new allowance."""

    subscription: Subscription


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing follows: calls are refused until somebody subscribes again."""

    subscription: Subscription


Decision = Stay | NextPeriod | Fallback | PastDue | Ended


@dataclass(frozen=True, slots=True)
class Turned:
    """What the store made of a turn: the plan before it and after; ``to`` None = nothing follows."""

    outcome: Literal["stay", "next_period", "ahead", "fallback", "past_due", "ended"]
    plan: str
    to: str | None


def begin(
    catalog: Catalog,
    plan: Plan,
    *,
    subscription_id: str,
    now_ms: int,
    anchor_ms: int | None = None,
    ends_at_ms: int | None = None,
    terms: Mapping[str, object] | None = None,
) -> tuple[Subscription, tuple[NewGrant, ...]]:
    """A subscription that starts now, with its first grants: a new account's, or a move to another plan.

    ``anchor_ms`` fixes where periods start (default: now); ``ends_at_ms`` overrides the first period's end. Whoever
    moves an account closes the old plan's open grants first. Raises BadRequest for custom terms that are missing.
    """
    starts_ms, ends_ms = bounds(plan.period, now_ms if anchor_ms is None else anchor_ms, now_ms, plan.time_zone)
    ends_ms = ends_ms if ends_at_ms is None else ends_at_ms
    trial = is_trial(catalog, plan)
    subscription = Subscription(
        id=subscription_id,
        plan=plan.name,
        plan_version=plan.version,
        status=SubscriptionStatus.TRIALING if trial else SubscriptionStatus.ACTIVE,
        anchor_at_ms=now_ms if anchor_ms is None else anchor_ms,
        period_starts_at_ms=starts_ms,
        period_ends_at_ms=ends_ms,
        trial_ends_at_ms=ends_ms if trial else 0,
        terms=dict(terms or {}),
    )
    return subscription, _grants(plan, subscription)


def turn_at_ms(subscription: Subscription, *, grace_ms: int = 0) -> int:
    """When the subscription needs its next decision; 0 = never."""
    if not subscription.status.usable or subscription.period_ends_at_ms == 0:
        return 0
    if subscription.status is SubscriptionStatus.PAST_DUE:
        return subscription.period_ends_at_ms + grace_ms
    return subscription.period_ends_at_ms


def decide(catalog: Catalog, subscription: Subscription, now_ms: int, *, grace_ms: int = 0) -> Decision:
    """What follows at ``now_ms``. ``grace_ms`` is how long a ``when_paid`` plan waits for its payment.

    A plan that the catalog no longer has ends: nobody can say what it would grant.
    """
    due_ms = turn_at_ms(subscription, grace_ms=grace_ms)
    if due_ms == 0 or now_ms < due_ms:
        return Stay()
    plan = catalog.plans.get(subscription.plan)
    if plan is None:
        return Ended(replace(subscription, status=SubscriptionStatus.EXPIRED, cancel_at_period_end=False))
    if subscription.cancel_at_period_end:
        return _end(catalog, plan, subscription, now_ms, SubscriptionStatus.CANCELLED)
    match plan.renews:
        case "by_itself":
            moved = renewed(plan, subscription, now_ms)
            return NextPeriod(moved, _grants(plan, moved))
        case "when_paid":
            if now_ms < subscription.period_ends_at_ms + grace_ms:
                return PastDue(replace(subscription, status=SubscriptionStatus.PAST_DUE))
            return _end(catalog, plan, subscription, now_ms, SubscriptionStatus.EXPIRED)
        case "never":
            return _end(catalog, plan, subscription, now_ms, SubscriptionStatus.EXPIRED)


def renewed(plan: Plan, subscription: Subscription, now_ms: int) -> Subscription:
    """The same plan in the period that holds ``now_ms``, at its newest version (rules 2 and 4)."""
    end_ms = subscription.period_ends_at_ms
    anchor_ms = subscription.anchor_at_ms
    if bounds(plan.period, anchor_ms, end_ms, plan.time_zone)[0] != end_ms:
        anchor_ms = end_ms
    starts_ms, ends_ms = bounds(plan.period, anchor_ms, max(now_ms, end_ms), plan.time_zone)
    return replace(
        subscription,
        plan_version=plan.version,
        status=SubscriptionStatus.ACTIVE,
        anchor_at_ms=anchor_ms,
        period_starts_at_ms=starts_ms,
        period_ends_at_ms=ends_ms,
    )


def refills_at_ms(catalog: Catalog, subscription: Subscription) -> int:
    """When this plan's next allowance comes, if nothing is changed; 0 = it does not: a trial's end is no reset."""
    plan = catalog.plans.get(subscription.plan)
    ends = plan is None or plan.renews == "never" or subscription.cancel_at_period_end
    return 0 if ends or not subscription.status.usable else subscription.period_ends_at_ms


def inactive_reason(
    catalog: Catalog, subscription: Subscription
) -> Literal["trial_expired", "subscription_inactive"] | None:
    """Why a call under this subscription is refused whatever its wallets hold; None when it is usable."""
    if subscription.status.usable:
        return None
    plan = catalog.plans.get(subscription.plan)
    trial = subscription.trial_ends_at_ms > 0 and plan is not None and is_trial(catalog, plan)
    expired = subscription.status is SubscriptionStatus.EXPIRED
    return "trial_expired" if trial and expired else "subscription_inactive"


def _end(
    catalog: Catalog, plan: Plan, subscription: Subscription, now_ms: int, status: SubscriptionStatus
) -> Fallback | Ended:
    """Follow ``ends`` until a plan covers ``now_ms``. Bounded: the config has no cycle of plans that end."""
    ended = replace(subscription, status=status, cancel_at_period_end=False)
    for _ in catalog.plans:
        following = catalog.plans.get(plan.ends) if plan.ends != BLOCK else None
        if following is None:
            return Ended(ended)
        moved, grants = begin(catalog, following, subscription_id=ended.id, now_ms=ended.period_ends_at_ms)
        if following.renews == "by_itself" and 0 < moved.period_ends_at_ms <= now_ms:
            moved = renewed(following, moved, now_ms)
            grants = _grants(following, moved)
        if moved.period_ends_at_ms == 0 or now_ms < moved.period_ends_at_ms:
            return Fallback(moved, grants)
        plan, ended = following, replace(moved, status=SubscriptionStatus.EXPIRED)
    return Ended(ended)


def _grants(plan: Plan, subscription: Subscription) -> tuple[NewGrant, ...]:
    return period_grants(
        plan,
        subscription.terms,
        subscription.id,
        starts_at_ms=subscription.period_starts_at_ms,
        ends_at_ms=subscription.period_ends_at_ms,
    )
