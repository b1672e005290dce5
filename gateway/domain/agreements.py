"""What Stripe's subscription makes of ours: the pure rules, the same for whatever order events come in.

Rules
1. The newest period that was paid is the one that counts; when it was told of changes nothing.
2. Where several have a say, the later one counts: a payment of another of Stripe's subscriptions, or a move by hand.
3. Past due is what has an unpaid invoice behind its newest paid one, or what Stripe called so after that was paid.

Not here: rows (``store.agreements``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gateway.domain.accounts import Subscription, SubscriptionStatus
from gateway.domain.payments import Payment, PaymentState
from gateway.domain.periods import bounds, end_of
from gateway.domain.plans import Plan
from limits.values import dataclass

OWING: Final = frozenset(("past_due", "unpaid"))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one of Stripe's subscriptions. ``subscription_id`` is ours that follows it; ``seen_at_ms`` is
    when Stripe said what is in ``status`` and ``cancel_at_period_end``."""

    id: str
    account_id: str
    subscription_id: str | None
    plan: str
    status: str
    cancel_at_period_end: bool
    seen_at_ms: int
    started_at_ms: int
    ended_at_ms: int


def told_again(known: Known, told: Known) -> Known:
    """An older word changes nothing; an end is final. Stripe's clock has seconds: of two words of one second always the
    same one counts."""
    newer = max(known, told, key=lambda each: (each.seen_at_ms, each.cancel_at_period_end, each.status))
    ends = [each.ended_at_ms for each in (known, told) if each.ended_at_ms]
    return replace(
        newer,
        subscription_id=known.subscription_id,
        started_at_ms=known.started_at_ms or told.started_at_ms,
        ended_at_ms=min(ends, default=0),
    )


def paid_of(payments: Sequence[Payment]) -> tuple[Payment, ...]:
    """Those that were paid, refunded ones included, the oldest period first."""
    return tuple(each for each in payments if each.was_paid and each.ends_at_ms)


def first_period(plan: Plan, payment: Payment) -> tuple[int, int]:
    """The period that the payment grants: its own bounds, or the first of several that it pays for at once."""
    if payment.periods == 1:
        return payment.starts_at_ms, payment.ends_at_ms
    return bounds(plan.period, payment.starts_at_ms, payment.starts_at_ms, plan.time_zone)


def end_ms(plan: Plan, payment: Payment) -> int:
    """Where the time ends that the payment pays for: its own end, or that of as many periods as it pays at once."""
    if payment.periods == 1:
        return payment.ends_at_ms
    return end_of(plan.period, payment.starts_at_ms, payment.starts_at_ms, payment.periods, plan.time_zone)


def paid_until_ms(plan: Plan, paid: Sequence[Payment]) -> int:
    """Where what is paid, and not given back, ends."""
    ends = [end_ms(plan, each) for each in paid if each.state is PaymentState.PAID]
    return max(ends, default=paid[-1].starts_at_ms)


def is_newer(latest: Payment, now: Subscription) -> bool:
    """Whether the payment is for something that the subscription is not at yet."""
    if now.plan != latest.what or now.period_ends_at_ms == now.period_starts_at_ms:  # elsewhere, or waiting to begin
        return latest.starts_at_ms >= now.period_starts_at_ms
    return latest.starts_at_ms > now.period_starts_at_ms


def is_owing(known: Known, payments: Sequence[Payment], latest: Payment) -> bool:
    """Rule 3."""
    unpaid = any(each.state is PaymentState.FAILED and each.starts_at_ms >= latest.ends_at_ms for each in payments)
    return unpaid or (known.status in OWING and known.seen_at_ms > latest.paid_at_ms)


def at(
    plan: Plan, subscription: Subscription, known: Known, payments: Sequence[Payment], *, turns: bool = True
) -> Subscription:
    """The subscription in the newest paid period, as Stripe's is. Nothing else of it changes.

    Without ``turns`` it stays in its period, and the clock turns it as far as it is paid.
    """
    paid = paid_of(payments)
    latest = paid[-1]
    moved = replace(
        subscription,
        anchor_at_ms=paid[0].starts_at_ms,
        paid_until_ms=paid_until_ms(plan, paid),
        cancel_at_period_end=known.cancel_at_period_end,
    )
    if turns and is_newer(latest, subscription):
        starts_ms, ends_ms = first_period(plan, latest)
        moved = replace(
            moved,
            plan_version=plan.version,
            status=SubscriptionStatus.ACTIVE,
            period_starts_at_ms=starts_ms,
            period_ends_at_ms=ends_ms,
            next_plan=None,
            trial_ends_at_ms=0,
        )
    owing = is_owing(known, payments, latest)
    if owing and moved.status is SubscriptionStatus.ACTIVE:
        return replace(moved, status=SubscriptionStatus.PAST_DUE)
    if not owing and moved.status is SubscriptionStatus.PAST_DUE:
        return replace(moved, status=SubscriptionStatus.ACTIVE)
    return moved
