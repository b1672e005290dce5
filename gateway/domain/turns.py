"""What follows when a subscription's period ends: the pure decision, which the store then writes in one transaction.

Rules
1. The same subscription at the same instant gives the same decision, wherever it is asked; its grants have the same
   keys. So any number of replicas may notice a turn at once.
2. Periods that nobody used get no grant afterwards: the next period is the one that holds ``now_ms``.
3. ``by_itself`` renews by the clock; ``when_paid`` waits for its payment (``past_due`` for the grace time, then it
   ends); ``never`` ends. Whatever ends goes on as plan ``ends``, or is blocked.
4. What is paid for goes on until it is used up, whatever the plan says: a cancellation and a change to another plan
   wait for the end of what is paid.
5. A period whose end was moved by hand anchors the following ones at that end.
6. A fallback starts where the old period ended, not when somebody noticed.

Not here: money, payments, who is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from gateway.domain.accounts import Subscription, SubscriptionStatus
from gateway.domain.grants import NewGrant, period_grants
from gateway.domain.periods import bounds, end_of
from gateway.domain.plans import Catalog, Plan, is_trial
from gateway.errors import BadRequest
from limits.values import dataclass

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
class Changed:
    """The plan that was chosen to follow begins: insert the grants, move the subscription."""

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


Decision = Stay | NextPeriod | Fallback | Changed | PastDue | Ended


@dataclass(frozen=True, slots=True)
class Turned:
    """What the store made of a turn: the plan before it and after; ``to`` None = nothing follows."""

    outcome: Literal["stay", "next_period", "ahead", "fallback", "changed", "past_due", "ended"]
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
    periods: int = 1,
) -> tuple[Subscription, tuple[NewGrant, ...]]:
    """A subscription that starts now, with its first grants: a new account's, or a move to another plan.

    ``anchor_ms`` fixes where periods start (default: now); ``ends_at_ms`` overrides the first period's end. A plan that
    renews when paid is paid for ``periods`` periods. Whoever moves an account closes the old plan's open grants first.
    A custom price may stay unnamed: it was agreed elsewhere. Raises BadRequest for a custom allowance that is missing.
    """
    anchor_ms = now_ms if anchor_ms is None else anchor_ms
    starts_ms, ends_ms = bounds(plan.period, anchor_ms, now_ms, plan.time_zone)
    ends_ms = ends_ms if ends_at_ms is None else ends_at_ms
    trial = is_trial(catalog, plan)
    subscription = Subscription(
        id=subscription_id,
        plan=plan.name,
        plan_version=plan.version,
        status=SubscriptionStatus.TRIALING if trial else SubscriptionStatus.ACTIVE,
        anchor_at_ms=anchor_ms,
        period_starts_at_ms=starts_ms,
        period_ends_at_ms=ends_ms,
        trial_ends_at_ms=ends_ms if trial else 0,
        terms=dict(terms or {}),
    )
    if plan.renews == "when_paid" or periods > 1:
        subscription = replace(subscription, paid_until_ms=paid_until(plan, subscription, ends_ms, periods - 1))
    return subscription, _grants(plan, subscription)


def paid_until(plan: Plan, subscription: Subscription, from_ms: int, periods: int) -> int:
    """Where ``periods`` more periods from ``from_ms`` on end. ``from_ms`` is the running period's end, or later."""
    anchor_ms = _anchor_ms(plan, subscription, from_ms)
    return end_of(plan.period, anchor_ms, from_ms, periods, plan.time_zone)


def pay(plan: Plan, subscription: Subscription, *, periods: int, until_ms: int | None = None) -> Subscription:
    """The usable subscription with ``periods`` more periods paid for, from the end of what it has. ``until_ms``: where
    the payment says they end. Raises BadRequest for a plan that has no next period."""
    if subscription.period_ends_at_ms == 0:
        raise BadRequest("nothing_to_renew", f"Plan {plan.name} has no end, so there is nothing to renew.")
    from_ms = covered_until_ms(subscription)
    until_ms = paid_until(plan, subscription, from_ms, periods) if until_ms is None else max(until_ms, from_ms)
    past_due = subscription.status is SubscriptionStatus.PAST_DUE
    status = SubscriptionStatus.ACTIVE if past_due else subscription.status
    return replace(subscription, status=status, paid_until_ms=until_ms)


def covered_until_ms(subscription: Subscription) -> int:
    """The end of what is granted or paid for: where a cancellation takes effect; 0 = never."""
    ends_ms = subscription.period_ends_at_ms
    return max(ends_ms, subscription.paid_until_ms) if ends_ms else 0


def turn_at_ms(subscription: Subscription, *, grace_ms: int = 0) -> int:
    """When the subscription needs its next decision; 0 = never."""
    ends_ms = subscription.period_ends_at_ms
    if not subscription.status.usable or ends_ms == 0:
        return 0
    waits = subscription.status is SubscriptionStatus.PAST_DUE and subscription.paid_until_ms <= ends_ms
    leaves = subscription.cancel_at_period_end or subscription.next_plan is not None
    return ends_ms + grace_ms if waits and not leaves else ends_ms


def decide(catalog: Catalog, subscription: Subscription, now_ms: int) -> Decision:
    """What follows at ``now_ms``.

    A plan that the catalog no longer has ends: nobody can say what it would grant.
    """
    due_ms = turn_at_ms(subscription, grace_ms=catalog.grace_ms)
    if due_ms == 0 or now_ms < due_ms:
        return Stay()
    plan = catalog.plans.get(subscription.plan)
    if plan is None:
        return Ended(replace(subscription, status=SubscriptionStatus.EXPIRED, cancel_at_period_end=False))
    if subscription.paid_until_ms > subscription.period_ends_at_ms:
        moved = renewed(plan, subscription, min(now_ms, subscription.paid_until_ms - 1))
        if now_ms < moved.period_ends_at_ms:
            return NextPeriod(moved, _grants(plan, moved))
        subscription = moved  # the last paid period, which nobody used
    if subscription.cancel_at_period_end:
        return _end(catalog, plan, subscription, now_ms, SubscriptionStatus.CANCELLED)
    following = catalog.plans.get(subscription.next_plan or "")
    if following is not None:
        return _change(catalog, following, subscription, now_ms)
    match plan.renews:
        case "by_itself":
            moved = renewed(plan, subscription, now_ms)
            return NextPeriod(moved, _grants(plan, moved))
        case "when_paid":
            if now_ms < subscription.period_ends_at_ms + catalog.grace_ms:
                return PastDue(replace(subscription, status=SubscriptionStatus.PAST_DUE))
            return _end(catalog, plan, subscription, now_ms, SubscriptionStatus.EXPIRED)
        case "never":
            return _end(catalog, plan, subscription, now_ms, SubscriptionStatus.EXPIRED)


def renewed(plan: Plan, subscription: Subscription, now_ms: int) -> Subscription:
    """The same plan in the period that holds ``now_ms``, at its newest version (rules 2 and 5)."""
    end_ms = subscription.period_ends_at_ms
    anchor_ms = _anchor_ms(plan, subscription, end_ms)
    starts_ms, ends_ms = bounds(plan.period, anchor_ms, max(now_ms, end_ms), plan.time_zone)
    return replace(
        subscription,
        plan_version=plan.version,
        status=SubscriptionStatus.ACTIVE,
        anchor_at_ms=anchor_ms,
        period_starts_at_ms=starts_ms,
        period_ends_at_ms=_as_paid(subscription.paid_until_ms, starts_ms, ends_ms),
        trial_ends_at_ms=0,
    )


def _anchor_ms(plan: Plan, subscription: Subscription, end_ms: int) -> int:
    """From where the periods after ``end_ms`` count: the anchor, unless ``end_ms`` is not one of its turns."""
    anchor_ms = subscription.anchor_at_ms
    return anchor_ms if bounds(plan.period, anchor_ms, end_ms, plan.time_zone)[0] == end_ms else end_ms


def _as_paid(paid_until_ms: int, starts_ms: int, ends_ms: int) -> int:
    """A payment's own end counts where it is near the period's: a provider's months are not always ours."""
    near = starts_ms < paid_until_ms and abs(paid_until_ms - ends_ms) * 2 < ends_ms - starts_ms
    return paid_until_ms if near else ends_ms


def goes_on(plan: Plan, subscription: Subscription) -> bool:
    """Whether the running period is followed by another one of the same plan, if nobody does anything."""
    if subscription.paid_until_ms > subscription.period_ends_at_ms:
        return True
    leaves = subscription.cancel_at_period_end or subscription.next_plan is not None
    return plan.renews == "by_itself" and not leaves


def refills_at_ms(catalog: Catalog, subscription: Subscription) -> int:
    """When this plan's next allowance comes, if nothing is changed and what is due is paid; 0 = it does not: a trial's
    end is no reset."""
    plan = catalog.plans.get(subscription.plan)
    if plan is None or not subscription.status.usable:
        return 0
    leaves = plan.renews == "never" or subscription.cancel_at_period_end or subscription.next_plan is not None
    return subscription.period_ends_at_ms if goes_on(plan, subscription) or not leaves else 0


def resets_at_ms(catalog: Catalog, subscription: Subscription, wallet: str) -> int:
    """When a wallet gets its next allowance; 0 = it does not: a gift's end, and a trial's, is no reset."""
    plan = catalog.plans.get(subscription.plan)
    return refills_at_ms(catalog, subscription) if plan is not None and wallet in plan.allowance else 0


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
    ended = replace(subscription, status=status, cancel_at_period_end=False, next_plan=None)
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


def end_now(catalog: Catalog, subscription: Subscription, now_ms: int) -> Fallback | Ended:
    """What follows when the subscription is ended by hand at this instant, whatever was paid for."""
    stopped = replace(subscription, period_ends_at_ms=now_ms, paid_until_ms=min(subscription.paid_until_ms, now_ms))
    plan = catalog.plans.get(subscription.plan)
    if plan is None:
        return Ended(replace(stopped, status=SubscriptionStatus.CANCELLED, cancel_at_period_end=False, next_plan=None))
    return _end(catalog, plan, stopped, now_ms, SubscriptionStatus.CANCELLED)


def _change(catalog: Catalog, following: Plan, subscription: Subscription, now_ms: int) -> Decision:
    """The plan that was chosen begins where the old one ended; one that renews when paid waits for its payment."""
    starts_ms = subscription.period_ends_at_ms
    moved, grants = begin(catalog, following, subscription_id=subscription.id, now_ms=starts_ms)
    if following.renews == "when_paid":
        waiting = replace(moved, status=SubscriptionStatus.PAST_DUE, period_ends_at_ms=starts_ms)
        moved, grants = replace(waiting, paid_until_ms=starts_ms), ()
    later = decide(catalog, moved, now_ms)
    return Changed(moved, grants) if isinstance(later, Stay) else later


def _grants(plan: Plan, subscription: Subscription) -> tuple[NewGrant, ...]:
    return period_grants(
        plan,
        subscription.terms,
        subscription.id,
        starts_at_ms=subscription.period_starts_at_ms,
        ends_at_ms=subscription.period_ends_at_ms,
    )
