"""From the engine's "no" to the error a client meets: reason, message, and the facts beside it. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

from gateway.domain import messages, plans, turns
from gateway.domain.accounts import Subscription
from gateway.domain.periods import rfc3339
from gateway.domain.plans import Catalog, Feature, Plan
from gateway.domain.units import Meter
from gateway.errors import (
    BudgetExceeded,
    CallTooLarge,
    ConcurrencyLimited,
    FeatureNotInPlan,
    HeldElsewhere,
    InsufficientTokens,
    LimitExceeded,
    ModelNotInPlan,
    RateLimited,
    Refusal,
    RefusalDetail,
    SubscriptionInactive,
    TrialExpired,
)
from limits import model as engine
from limits.values import dataclass

RETRY_AFTER_MAX_S = 60
MINUTE_S = 60
HELD_RETRY_S = 2

_HINTS: Mapping[str, str] = {
    "limit_exceeded": "Wait for the reset, buy more, or move to a larger plan.",
    "insufficient_tokens": "Lower max_tokens or the input, buy more, or move to a larger plan.",
    "budget_exceeded": "Ask whoever manages this budget, or wait for its next period.",
    "call_too_large": "Lower max_tokens or the input: this call can never fit.",
    "held_elsewhere": "Other calls in flight hold what is left. Try again when they have ended.",
    "rate_limited": "Slow down; the window opens again at resets_at.",
    "concurrency_limited": "Wait for one of the running calls to end.",
    "trial_expired": "Choose a plan.",
    "subscription_inactive": "Renew or choose a plan.",
    "feature_not_in_plan": "Move to a plan that includes it.",
    "model_not_in_plan": "Choose another model, or move to a plan that includes it.",
}
_EXACT_HINTS: Mapping[str, str] = {  # where no model's tokens are paid for
    "insufficient_tokens": "Use less at once, buy more, or move to a larger plan.",
    "call_too_large": "Use less at once: this much can never fit.",
}
_NO_RESET_HINT = "Buy more, or move to a larger plan."


@dataclass(frozen=True, slots=True)
class Situation:
    """Who was refused, under which offer."""

    catalog: Catalog
    plan: Plan
    subscription: Subscription
    feature: Feature


def objection(
    catalog: Catalog, plan: Plan, subscription: Subscription, feature: str, model: str | None
) -> Refusal | None:
    """Why the plan refuses this call whatever its wallets hold: it does not include the feature, or the model by its
    name, or the subscription does not allow calls."""
    if plan.features is not None and feature not in plan.features and _is_known(catalog, feature):
        offers = tuple(other for other in catalog.plans.values() if _has_feature(other, feature))
        return _excluded(FeatureNotInPlan, offers, catalog, messages.Facts(plan=plan, feature=feature, model=model))
    if plan.models is not None and model is not None and not _matches(plan.models, model):
        offers = tuple(other for other in catalog.plans.values() if _has_model(other, model))
        return _excluded(ModelNotInPlan, offers, catalog, messages.Facts(plan=plan, feature=feature, model=model))
    if subscription.status.usable:
        return None
    reason = turns.inactive_reason(catalog, subscription)
    kind = TrialExpired if reason == TrialExpired.code else SubscriptionInactive
    return _excluded(kind, plans.paid_plans(catalog), catalog, messages.Facts(plan=plan))


def _excluded(kind: type[Refusal], offers: tuple[Plan, ...], catalog: Catalog, facts: messages.Facts) -> Refusal:
    assert facts.plan is not None, "a plan excludes"
    detail = RefusalDetail(scope="account", hint=_HINTS[kind.code], plans=_labels(offers, facts.plan))
    text = messages.render(catalog, kind.code, facts)
    return kind(text.text, title=text.title, detail=detail)


def _is_known(catalog: Catalog, feature: str) -> bool:
    return feature in catalog.features or feature in catalog.services


def _has_feature(plan: Plan, feature: str) -> bool:
    return plan.features is None or feature in plan.features


def _has_model(plan: Plan, model: str) -> bool:
    return plan.models is None or _matches(plan.models, model)


@lru_cache(maxsize=1024)
def _matches(patterns: tuple[str, ...], model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


def kind_of(refused: engine.Refused) -> type[Refusal]:
    """The reason, by verdict and slot. Nothing left at all beats "can never fit"."""
    match refused.verdict:
        case engine.Verdict.RATE:
            return RateLimited
        case engine.Verdict.CONCURRENCY:
            return ConcurrencyLimited
        case engine.Verdict.HELD:
            return HeldElsewhere
        case engine.Verdict.TOO_LARGE | engine.Verdict.LASTING:
            left = refused.limit - refused.used
            if refused.verdict is engine.Verdict.TOO_LARGE and left > 0:
                return CallTooLarge
            if refused.slot == "budget":
                return BudgetExceeded
            return LimitExceeded if left <= 0 else InsufficientTokens


def refusal(situation: Situation, refused: engine.Refused) -> Refusal:
    """The error for a refused reserve; amounts formatted in the slot's meter."""
    kind = kind_of(refused)
    meter = situation.catalog.meters.get(refused.meter)
    wallet = refused.meter if refused.slot == "wallet" else None
    offers = plans.larger_plans(situation.catalog, situation.plan, wallet) if wallet and not kind.retry else ()
    scope = refused.scope.kind.value if refused.scope is not None else "account"
    free = refused.available if kind.retry else refused.limit - refused.used
    retry_after_s = _retry_after_s(kind, refused)
    resets_at_ms = refused.resets_at_ms
    if wallet:  # a trial's end is not a reset
        resets_at_ms = turns.resets_at_ms(situation.catalog, situation.subscription, wallet)
    written = meter or Meter(refused.slot, 0)
    estimated = not isinstance(situation.feature.price, plans.PerUse | plans.Fixed)
    detail = RefusalDetail(
        scope=scope,
        limit=written.format(refused.limit),
        used=written.format(refused.used),
        held=written.format(refused.held),
        needed=written.format(refused.needed),
        available=written.format(max(0, free)),
        resets_at=rfc3339(resets_at_ms) if resets_at_ms else None,
        hint=_hint(kind, estimated=estimated, resets=resets_at_ms > 0),
        plans=_labels(offers, situation.plan),
    )
    facts = messages.Facts(
        plan=situation.plan,
        meter=meter,
        unit="" if meter else refused.slot,
        wallet=wallet,
        available=max(0, free),
        needed=refused.needed,
        used=refused.used,
        limit=refused.limit,
        resets_at_ms=resets_at_ms,
        window_s=_window_s(situation.plan, refused),
        estimated=estimated,
        wait_s=retry_after_s,
        scope=scope,
    )
    text = messages.render(situation.catalog, kind.code, facts)
    return kind(text.text, title=text.title, detail=detail, retry_after_s=retry_after_s)


def _hint(kind: type[Refusal], *, estimated: bool, resets: bool) -> str:
    if kind is LimitExceeded and not resets:
        return _NO_RESET_HINT
    return _HINTS[kind.code] if estimated else _EXACT_HINTS.get(kind.code, _HINTS[kind.code])


def _window_s(plan: Plan, refused: engine.Refused) -> int:
    """How long the window is that refused: only ``uses`` have another length than a minute."""
    limits = plan.limits.get(refused.scope.kind.value) if refused.scope is not None else None
    return limits.uses.per_s if refused.slot == "uses" and limits is not None and limits.uses else MINUTE_S


def _labels(offers: tuple[Plan, ...], here: Plan) -> tuple[str, ...]:
    return tuple(plan.label for plan in offers if plan.name != here.name)


def _retry_after_s(kind: type[Refusal], refused: engine.Refused) -> int | None:
    """Whole seconds, 1 to 60, jittered so that those refused together do not come back together."""
    if not kind.retry:
        return None
    wait_s = HELD_RETRY_S
    if refused.verdict is engine.Verdict.RATE and refused.resets_at_ms:
        wait_s = -(-(refused.resets_at_ms - refused.server_ms) // 1000)
    jitter_s = random.randint(0, max(1, wait_s // 10))  # noqa: S311  # not a secret
    return max(1, min(RETRY_AFTER_MAX_S, wait_s + jitter_s))
