"""Laws of demands: whatever is remembered of other calls and times, a demand is the one that a new shape makes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.domain.accounts import Account, AccountStatus, Budget, Caller, Subscription, SubscriptionStatus
from gateway.domain.periods import Period
from gateway.domain.plans import Feature, Limits, Model, PerUse, Plan, UsesLimit
from gateway.quota.translate import Shapes, Work, clamp_output, price_of_bound
from limits.model import Refused, Scope, ScopeKind, Verdict
from tests.support.catalogs import card, catalog, plan

HOUR_MS = 3_600_000
T0_MS = 500_000 * HOUR_MS  # every hourly budget begins a period here
RAISED_UNTIL_MS = T0_MS + HOUR_MS // 2
LIMITS = {
    "account": Limits(requests_per_minute=90, tokens_per_minute=20_000),
    "team": Limits(concurrent=3),
    "user": Limits(uses=UsesLimit(5, 60)),
    "key": Limits(requests_per_minute=9),
}
PRO = plan("pro", limits=LIMITS)
OFFERED = catalog(PRO, cards={"default": card(), "money": card(name="money", meter="usd")})
GENERAL = OFFERED.features[OFFERED.default_feature]
JOB = Feature("job", GENERAL.wallet, PerUse(5))
SUBSCRIPTION = Subscription("s", "pro", "v1", SubscriptionStatus.ACTIVE, 0, 0, 0, 0)
ACME = Account("acme", "Acme", None, None, AccountStatus.ACTIVE, 1, SUBSCRIPTION, 0)
HOURLY = Period("fixed", 3_600)
RAISES = ((700, RAISED_UNTIL_MS),)
BUDGETS = (
    Budget(1, "key", "key", "tokens", 10_000, HOURLY, T0_MS, raises=RAISES),
    Budget(2, "team", "red", "tokens", 20_000, HOURLY, T0_MS),
    Budget(3, "user", "ann", "usd", 30_000, Period("once"), T0_MS),
)
CALLER = Caller("key", ACME, None, None, BUDGETS)
MODEL = Model("gpt-*", (), ("a",), (card(), card(name="money", meter="usd")), 100, 10)
WORK = Work(GENERAL, MODEL, 250, 1000)
LATER = replace(CALLER, account=replace(ACME, rev=2), budgets=(replace(BUDGETS[0], amount=5_000),))

Call = tuple[Caller, Plan, Work, int]
CALLS: dict[str, Call] = {
    "a call": (CALLER, PRO, WORK, T0_MS),
    "another size": (CALLER, PRO, replace(WORK, input_tokens=3, output_tokens=4), T0_MS),
    "a team": (replace(CALLER, team_id="red"), PRO, WORK, T0_MS),
    "another team": (replace(CALLER, team_id="blue"), PRO, WORK, T0_MS),
    "a user": (replace(CALLER, user_id="ann"), PRO, WORK, T0_MS),
    "another user": (replace(CALLER, user_id="bob"), PRO, WORK, T0_MS),
    "another key": (replace(CALLER, key_id="other"), PRO, WORK, T0_MS),
    "another account": (replace(CALLER, account=replace(ACME, id="b")), PRO, WORK, T0_MS),
    "a newer account": (LATER, PRO, WORK, T0_MS),
    "another plan": (CALLER, replace(PRO, name="team", limits={}), WORK, T0_MS),
    "another version": (CALLER, replace(PRO, version="v2", limits={"key": LIMITS["key"]}), WORK, T0_MS),
    "another wallet": (CALLER, PRO, replace(WORK, feature=Feature("general", "usd", GENERAL.price)), T0_MS),
    "work without a model": (replace(CALLER, user_id="ann"), PRO, replace(WORK, model=None, feature=JOB), T0_MS),
    "a minimum": (CALLER, PRO, replace(WORK, minimum=5_000), T0_MS),
    "a free call": (replace(CALLER, user_id="ann"), PRO, replace(WORK, free=True), T0_MS),
    "a clock that went back": (CALLER, PRO, WORK, T0_MS - 1),
    "the last moment of a gift": (CALLER, PRO, WORK, RAISED_UNTIL_MS - 1),
    "a gift that is over": (CALLER, PRO, WORK, RAISED_UNTIL_MS),
    "the last moment of a period": (CALLER, PRO, WORK, T0_MS + HOUR_MS - 1),
    "the next period": (CALLER, PRO, WORK, T0_MS + HOUR_MS),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_demand_is_what_a_new_shape_makes_of_it_whatever_came_before(call: str) -> None:
    shapes = Shapes()
    for name in (*CALLS, call):
        caller, of_plan, work, now_ms = CALLS[name]
        made = Shapes().of(caller, of_plan, OFFERED).demand(work, now_ms)
        assert shapes.of(caller, of_plan, OFFERED).demand(work, now_ms) == made, name


def test_a_budget_is_met_at_the_ceiling_and_in_the_period_of_the_moment() -> None:
    shapes = Shapes()
    met = []
    for now_ms in (T0_MS, RAISED_UNTIL_MS - 1, RAISED_UNTIL_MS, T0_MS + HOUR_MS - 1, T0_MS + HOUR_MS, T0_MS):
        (budget,) = shapes.of(CALLER, PRO, OFFERED).demand(WORK, now_ms).budgets
        met.append((budget.limit, budget.starts_at_ms - T0_MS))
    assert met == [(10_700, 0), (10_700, 0), (10_000, 0), (10_000, 0), (10_000, HOUR_MS), (10_700, 0)]


def test_a_call_that_is_free_of_charge_counts_as_a_request_and_a_live_call_only() -> None:
    caller = replace(CALLER, user_id="ann", team_id="red")
    demand = Shapes().of(caller, PRO, OFFERED).demand(replace(WORK, free=True), T0_MS)
    assert (demand.wallets, demand.budgets, len(demand.concurrency)) == ((), (), 1)
    assert [window.name for window in demand.windows] == ["requests", "requests"]


@pytest.mark.parametrize(
    ("available", "choices", "bound"),
    [
        (249, 1, -1),  # not even the input
        (250, 1, 0),
        (251, 1, 1),
        (1_249, 1, 999),
        (9_999, 1, 1_000),  # no more than was asked for
        (261, 4, 2),
    ],
)
@pytest.mark.parametrize("slot", ["tokens", "wallet"])
def test_what_can_still_be_paid_bounds_each_choice_of_an_answer(
    slot: str, available: int, choices: int, bound: int
) -> None:
    """A wallet is asked in steps, tokens a minute in tokens."""
    per_token = 1 if slot == "tokens" else price_of_bound(WORK, GENERAL.wallet) // 1_250
    scope = None if slot == "wallet" else Scope(ScopeKind.KEY, "key")
    meter = GENERAL.wallet if slot == "wallet" else ""
    refused = Refused(Verdict.HELD, slot, scope, meter, 0, 0, 0, 0, available * per_token, 0, T0_MS)
    assert clamp_output(WORK, refused, choices) == bound
