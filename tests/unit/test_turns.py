"""Laws of a period's end: the same answer for everybody who asks, and nothing granted for time that nobody used."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.accounts import Subscription, SubscriptionStatus
from gateway.domain.periods import Period, bounds
from gateway.domain.plans import Catalog, Plan, is_trial
from gateway.domain.turns import (
    Changed,
    Ended,
    Fallback,
    NextPeriod,
    PastDue,
    Stay,
    begin,
    decide,
    end_now,
    goes_on,
    inactive_reason,
    pay,
    refills_at_ms,
    turn_at_ms,
)
from gateway.errors import BadRequest
from tests.support.catalogs import DAY_MS, catalog, plan, trial

T0 = 1_760_000_000_000
MONTH_MS = 30 * DAY_MS
PRO = plan("pro", price=Decimal(30))
CATALOG = catalog(trial(), PRO)


def started(on: Plan, within: Catalog = CATALOG, **changes: Any) -> Subscription:
    subscription, _ = begin(within, on, subscription_id="s1", now_ms=T0)
    return replace(subscription, **changes)


def test_a_new_account_starts_on_its_trial() -> None:
    subscription, grants = begin(CATALOG, CATALOG.plans["trial"], subscription_id="s1", now_ms=T0)
    assert subscription.status is SubscriptionStatus.TRIALING
    assert subscription.trial_ends_at_ms == subscription.period_ends_at_ms == T0 + 7 * DAY_MS
    assert [(each.amount, each.expires_at_ms) for each in grants] == [(6_000_000, T0 + 7 * DAY_MS)]


def test_a_move_to_another_plan_starts_a_new_period_now() -> None:
    subscription, grants = begin(CATALOG, PRO, subscription_id="s1", now_ms=T0 + 5)
    assert (subscription.status, subscription.trial_ends_at_ms) == (SubscriptionStatus.ACTIVE, 0)
    assert (subscription.period_starts_at_ms, subscription.period_ends_at_ms) == (T0 + 5, T0 + 5 + MONTH_MS)
    assert grants[0].starts_at_ms == T0 + 5


def test_an_anchor_and_an_end_can_be_given() -> None:
    subscription, _ = begin(CATALOG, PRO, subscription_id="s1", now_ms=T0 + 5, anchor_ms=T0)
    assert (subscription.period_starts_at_ms, subscription.period_ends_at_ms) == (T0, T0 + MONTH_MS)
    subscription, grants = begin(CATALOG, PRO, subscription_id="s1", now_ms=T0, ends_at_ms=T0 + 9)
    assert subscription.period_ends_at_ms == grants[0].expires_at_ms == T0 + 9


def test_nothing_follows_before_the_end() -> None:
    assert decide(CATALOG, started(PRO), T0 + MONTH_MS - 1) == Stay()


def test_the_next_period_starts_where_the_last_one_ended() -> None:
    decision = decide(CATALOG, started(PRO), T0 + MONTH_MS)
    assert isinstance(decision, NextPeriod)
    assert decision.subscription.period_starts_at_ms == T0 + MONTH_MS
    assert [(each.starts_at_ms, each.expires_at_ms) for each in decision.grants] == [(T0 + MONTH_MS, T0 + 2 * MONTH_MS)]


@given(st.integers(0, 400), st.integers(0, MONTH_MS - 1))
def test_periods_nobody_used_are_skipped_and_the_anchor_stays(periods: int, into_ms: int) -> None:
    now = T0 + MONTH_MS + periods * MONTH_MS + into_ms
    decision = decide(CATALOG, started(PRO), now)
    assert isinstance(decision, NextPeriod)
    assert decision.subscription.period_starts_at_ms == T0 + MONTH_MS + periods * MONTH_MS
    assert len(decision.grants) == 1
    assert decide(CATALOG, decision.subscription, now) == Stay()  # deciding again grants nothing


def test_whoever_notices_a_turn_decides_the_same() -> None:
    first, second = (decide(CATALOG, started(PRO), T0 + MONTH_MS + later) for later in (0, 1000))
    assert first == second


def test_a_period_whose_end_was_moved_anchors_the_next_ones() -> None:
    moved = started(PRO, period_ends_at_ms=T0 + MONTH_MS + 77)
    decision = decide(CATALOG, moved, T0 + 2 * MONTH_MS)
    assert isinstance(decision, NextPeriod)
    assert decision.subscription.anchor_at_ms == decision.subscription.period_starts_at_ms == T0 + MONTH_MS + 77


def test_a_trial_ends_and_blocks() -> None:
    decision = decide(CATALOG, started(CATALOG.plans["trial"]), T0 + 7 * DAY_MS)
    assert isinstance(decision, Ended)
    assert decision.subscription.status is SubscriptionStatus.EXPIRED
    assert inactive_reason(CATALOG, decision.subscription) == "trial_expired"
    assert decide(CATALOG, decision.subscription, T0 + 900 * DAY_MS) == Stay()
    assert turn_at_ms(decision.subscription) == 0


def test_once_never_turns() -> None:
    within = catalog(plan("free", period=Period("once")))
    subscription = started(within.plans["free"], within)
    assert (subscription.status, subscription.period_ends_at_ms) == (SubscriptionStatus.ACTIVE, 0)
    assert decide(within, subscription, T0 + 10_000 * DAY_MS) == Stay()


def test_a_lapsed_plan_falls_back_where_it_ended() -> None:
    free = plan("free")
    within = catalog(free, plan("pro", renews="never", ends="free"))
    subscription = started(within.plans["pro"], within, terms={"allowance": {"tokens": 5}})
    decision = decide(within, subscription, T0 + MONTH_MS + 3)
    assert isinstance(decision, Fallback)
    assert (decision.subscription.plan, decision.subscription.status) == ("free", SubscriptionStatus.ACTIVE)
    assert decision.subscription.period_starts_at_ms == T0 + MONTH_MS
    assert decision.subscription.terms == {}  # the old plan's terms end with it
    late = decide(within, subscription, T0 + 4 * MONTH_MS)
    assert isinstance(late, Fallback)
    assert late.subscription.period_starts_at_ms == T0 + 4 * MONTH_MS
    assert len(late.grants) == 1


def test_a_chain_of_plans_that_end_is_followed_to_the_one_that_covers_now() -> None:
    within = catalog(
        plan("last", renews="never"),
        plan("middle", renews="never", ends="last"),
        plan("first", renews="never", ends="middle"),
    )
    subscription = started(within.plans["first"], within)
    in_middle, in_last, after = (decide(within, subscription, T0 + n * MONTH_MS) for n in (1, 2, 3))
    assert isinstance(in_middle, Fallback)
    assert in_middle.subscription.plan == "middle"
    assert isinstance(in_last, Fallback)
    assert in_last.subscription.plan == "last"
    assert isinstance(after, Ended)
    assert (after.subscription.plan, after.subscription.period_ends_at_ms) == ("last", T0 + 3 * MONTH_MS)


def test_a_cancelled_subscription_ends_with_its_period() -> None:
    subscription = started(PRO, cancel_at_period_end=True)
    assert decide(CATALOG, subscription, T0 + MONTH_MS - 1) == Stay()
    decision = decide(CATALOG, subscription, T0 + MONTH_MS)
    assert isinstance(decision, Ended)
    assert decision.subscription.status is SubscriptionStatus.CANCELLED
    assert inactive_reason(CATALOG, decision.subscription) == "subscription_inactive"


def test_an_unpaid_plan_is_past_due_for_the_grace_time_and_then_ends() -> None:
    within = catalog(plan("free"), plan("paid", renews="when_paid", ends="free"), grace_ms=5)
    subscription = started(within.plans["paid"], within)
    due = decide(within, subscription, T0 + MONTH_MS)
    assert isinstance(due, PastDue)
    assert due.subscription.status is SubscriptionStatus.PAST_DUE
    assert turn_at_ms(due.subscription, grace_ms=5) == T0 + MONTH_MS + 5
    assert decide(within, due.subscription, T0 + MONTH_MS + 4) == Stay()
    assert isinstance(decide(within, due.subscription, T0 + MONTH_MS + 5), Fallback)
    assert isinstance(decide(replace(within, grace_ms=0), subscription, T0 + MONTH_MS), Fallback)


def test_a_plan_that_was_removed_from_the_config_ends() -> None:
    decision = decide(catalog(trial()), started(PRO), T0 + MONTH_MS)
    assert isinstance(decision, Ended)
    assert inactive_reason(catalog(trial()), decision.subscription) == "subscription_inactive"


def test_a_usable_subscription_has_no_reason_to_refuse() -> None:
    assert inactive_reason(CATALOG, started(PRO)) is None


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (trial(), True),
        (trial(ends="pro"), True),  # the default plan of its catalog
        (plan("pro", renews="never", ends="trial"), False),  # a paid month whose price is taken elsewhere
        (plan("free", period=Period("once"), renews="never"), False),
        (plan("pro", price=Decimal(30), renews="never"), False),
        (plan("pro", price="custom", renews="never"), False),
        (plan("pro"), False),
    ],
)
def test_a_trial_is_free_ends_and_is_what_new_accounts_start_on(candidate: Plan, expected: bool) -> None:
    assert is_trial(CATALOG, candidate) is expected


def test_only_a_plan_that_goes_on_has_a_next_allowance_to_wait_for() -> None:
    pro, free = started(PRO), started(CATALOG.plans["trial"])
    assert refills_at_ms(CATALOG, pro) == T0 + MONTH_MS
    assert refills_at_ms(CATALOG, free) == 0
    assert refills_at_ms(CATALOG, replace(pro, cancel_at_period_end=True)) == 0
    assert refills_at_ms(CATALOG, replace(pro, status=SubscriptionStatus.EXPIRED)) == 0
    assert refills_at_ms(catalog(trial()), pro) == 0


PAID = plan("paid", renews="when_paid", price=Decimal(9), ends="free", period=Period("month"))
SHOP = catalog(plan("free", period=Period("once")), PAID, PRO, grace_ms=5 * DAY_MS)


@given(st.integers(1, 24), st.integers(0, 3_000))
def test_what_is_paid_is_granted_once_per_period_and_then_waits(periods: int, step_hours: int) -> None:
    """Noticed at every turn, or now and then: no period twice, none beyond what is paid."""
    subscription, grants = begin(SHOP, PAID, subscription_id="s1", now_ms=T0, periods=periods)
    keys, now = {grant.key for grant in grants}, T0
    while now < subscription.paid_until_ms:
        now = min(now + (step_hours + 1) * 3_600_000, subscription.paid_until_ms)
        decision = decide(SHOP, subscription, now)
        if isinstance(decision, NextPeriod):
            assert not keys & {grant.key for grant in decision.grants}
            keys |= {grant.key for grant in decision.grants}
            subscription = decision.subscription
            assert subscription.period_starts_at_ms <= now < subscription.period_ends_at_ms
    assert len(keys) <= periods
    assert isinstance(decide(SHOP, subscription, subscription.paid_until_ms), PastDue)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_payments_add_up_whenever_they_come(payments: list[int]) -> None:
    at_once = pay(PAID, started(PAID, SHOP), periods=sum(payments))
    one_by_one = started(PAID, SHOP)
    for periods in payments:
        one_by_one = pay(PAID, one_by_one, periods=periods)
    assert one_by_one == at_once


def test_a_payment_after_the_period_ends_past_due() -> None:
    due = decide(SHOP, started(PAID, SHOP), started(PAID, SHOP).period_ends_at_ms)
    assert isinstance(due, PastDue)
    paid = pay(PAID, due.subscription, periods=1)
    assert paid.status is SubscriptionStatus.ACTIVE
    decision = decide(SHOP, paid, due.subscription.period_ends_at_ms + DAY_MS)
    assert isinstance(decision, NextPeriod)
    assert decision.subscription.period_starts_at_ms == due.subscription.period_ends_at_ms


def test_what_never_ends_cannot_be_paid_further() -> None:
    free = SHOP.plans["free"]
    with pytest.raises(BadRequest):
        pay(free, started(free, SHOP), periods=1)


@pytest.mark.parametrize(("off_days", "expected"), [(1, 1), (-1, -1), (0, 0), (200, 0)])
def test_a_payments_own_end_counts_where_it_is_near(off_days: int, expected: int) -> None:
    running = started(PRO, SHOP)
    until = running.period_ends_at_ms + MONTH_MS + off_days * DAY_MS
    decision = decide(SHOP, pay(PRO, running, periods=1, until_ms=until), running.period_ends_at_ms)
    assert isinstance(decision, NextPeriod)
    ends = decision.subscription.period_ends_at_ms
    assert ends == running.period_ends_at_ms + MONTH_MS + expected * DAY_MS


def test_a_chosen_plan_begins_where_the_old_one_ends() -> None:
    leaving = started(PRO, SHOP, next_plan="free")
    assert refills_at_ms(SHOP, leaving) == 0 and not goes_on(PRO, leaving)
    decision = decide(SHOP, leaving, leaving.period_ends_at_ms + 3 * DAY_MS)
    assert isinstance(decision, Changed)
    assert (decision.subscription.plan, decision.subscription.next_plan) == ("free", None)
    assert decision.subscription.period_starts_at_ms == leaving.period_ends_at_ms


def test_a_chosen_plan_that_is_paid_waits_for_its_payment_and_then_ends() -> None:
    leaving = started(PRO, SHOP, next_plan="paid")
    end = leaving.period_ends_at_ms
    decision = decide(SHOP, leaving, end + DAY_MS)
    assert isinstance(decision, Changed) and decision.grants == ()
    assert decision.subscription.status is SubscriptionStatus.PAST_DUE
    assert decide(SHOP, decision.subscription, end + 5 * DAY_MS - 1) == Stay()
    late = decide(SHOP, leaving, end + 5 * DAY_MS)
    assert isinstance(late, Fallback) and late.subscription.plan == "free"
    paid = decide(SHOP, pay(PAID, decision.subscription, periods=1), end + 2 * DAY_MS)
    assert isinstance(paid, NextPeriod) and paid.subscription.period_starts_at_ms == end


def test_a_chosen_plan_that_the_config_lost_is_not_waited_for() -> None:
    assert isinstance(decide(SHOP, started(PRO, SHOP, next_plan="gone"), T0 + MONTH_MS), NextPeriod)


def test_ending_now_falls_back_from_now_on_whatever_was_paid() -> None:
    paid = pay(PAID, started(PAID, SHOP), periods=11)
    ended = end_now(SHOP, paid, T0 + DAY_MS)
    assert isinstance(ended, Fallback)
    assert (ended.subscription.plan, ended.subscription.period_starts_at_ms) == ("free", T0 + DAY_MS)
    assert isinstance(end_now(catalog(PRO), started(PRO), T0 + DAY_MS), Ended)
    gone = end_now(catalog(plan("other")), started(PRO), T0 + DAY_MS)
    assert gone.subscription.status is SubscriptionStatus.CANCELLED


def test_a_cancellation_needs_no_grace() -> None:
    failed = started(PAID, SHOP, status=SubscriptionStatus.PAST_DUE, cancel_at_period_end=True)
    assert isinstance(decide(SHOP, failed, failed.period_ends_at_ms), Fallback)


@given(st.integers(-800, 800), st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC"]))
def test_months_that_are_paid_end_where_the_calendar_says(day: int, zone: str) -> None:
    """Across clock changes and short months, the twelfth month ends where a year does."""
    monthly = plan("paid", renews="when_paid", period=Period("month"), time_zone=zone)
    subscription, _ = begin(catalog(monthly), monthly, subscription_id="s1", now_ms=T0 + day * DAY_MS, periods=12)
    year = bounds(Period("year"), T0 + day * DAY_MS, T0 + day * DAY_MS, zone)
    assert subscription.paid_until_ms == year[1]
