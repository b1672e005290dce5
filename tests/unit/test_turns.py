"""Laws of a period's end: the same answer for everybody who asks, and nothing granted for time that nobody used."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.accounts import Subscription, SubscriptionStatus
from gateway.domain.periods import Period
from gateway.domain.plans import Catalog, Plan, is_trial
from gateway.domain.turns import (
    Ended,
    Fallback,
    NextPeriod,
    PastDue,
    Stay,
    begin,
    decide,
    inactive_reason,
    refills_at_ms,
    turn_at_ms,
)
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
