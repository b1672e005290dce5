"""From the engine's "no" to the error a client meets: reason, message, and the facts beside it. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.domain import messages, plans
from gateway.domain.accounts import Subscription, SubscriptionStatus
from gateway.domain.plans import Catalog, Plan
from gateway.domain.units import AMOUNT_MAX, Meter
from gateway.errors import (
    BudgetExceeded,
    CallTooLarge,
    ConcurrencyLimited,
    HeldElsewhere,
    InsufficientTokens,
    LimitExceeded,
    RateLimited,
    Refusal,
    RefusalDetail,
    SubscriptionInactive,
    TrialExpired,
)
from limits import model as engine

RETRY_AFTER_MAX_S = 60
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
}


@dataclass(frozen=True, slots=True)
class Situation:
    """Who was refused, under which offer."""

    catalog: Catalog
    plan: Plan
    subscription: Subscription


def rfc3339(at_ms: int) -> str | None:
    """UTC with seconds; None for "never"."""
    if not at_ms:
        return None
    return datetime.fromtimestamp(at_ms // 1000, UTC).isoformat().replace("+00:00", "Z")


def inactive(situation: Situation) -> Refusal:
    """The subscription does not allow calls: its trial or its paid time is over."""
    kind: type[Refusal] = SubscriptionInactive
    if situation.subscription.trial_ends_at_ms and situation.subscription.status is SubscriptionStatus.EXPIRED:
        kind = TrialExpired
    labels = tuple(plan.label for plan in larger_plans(situation, wallet=None))
    detail = RefusalDetail(scope="account", hint=_HINTS[kind.code], plans=labels)
    text = messages.render(situation.catalog, kind.code, situation.plan, {})
    return kind(text.text, title=text.title, detail=detail)


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
    meter = situation.catalog.meters.get(refused.meter) or Meter(refused.slot, 0)
    wallet = refused.meter if refused.slot == "wallet" else None
    offers = larger_plans(situation, wallet) if not kind.retry and refused.slot == "wallet" else ()
    scope = refused.scope.kind.value if refused.scope is not None else "account"
    lasting = max(0, refused.limit - refused.used)
    shown = refused.available if kind.retry else lasting
    detail = RefusalDetail(
        scope=scope,
        limit=meter.format(refused.limit),
        used=meter.format(refused.used),
        held=meter.format(refused.held),
        needed=meter.format(refused.needed),
        available=meter.format(max(0, shown)),
        resets_at=rfc3339(refused.resets_at_ms),
        hint=_HINTS[kind.code],
        plans=tuple(plan.label for plan in offers),
    )
    fields = {
        "available": meter.format(max(0, shown)),
        "available.tokens": str(meter.tokens_of(max(0, shown))),
        "needed": meter.approximately(refused.needed),
        "resets_at": detail.resets_at or "never",
    }
    text = messages.render(situation.catalog, kind.code, situation.plan, fields)
    return kind(text.text, title=text.title, detail=detail, retry_after_s=_retry_after_s(kind, refused))


def _retry_after_s(kind: type[Refusal], refused: engine.Refused) -> int | None:
    """Whole seconds, 1 to 60, jittered so that those refused together do not come back together."""
    if not kind.retry:
        return None
    wait_s = HELD_RETRY_S
    if refused.verdict is engine.Verdict.RATE and refused.resets_at_ms:
        wait_s = -(-(refused.resets_at_ms - refused.server_ms) // 1000)
    jitter_s = random.randint(0, max(1, wait_s // 10))  # noqa: S311  # not a secret
    return max(1, min(RETRY_AFTER_MAX_S, wait_s + jitter_s))


def larger_plans(situation: Situation, wallet: str | None) -> tuple[Plan, ...]:
    """Plans that would help: paid ones, or those that grant more of this wallet than the present one."""
    here = situation.plan

    def size(plan: Plan) -> int:
        amount = plan.allowance.get(wallet, 0) if wallet else 0
        return amount if isinstance(amount, int) else AMOUNT_MAX

    chosen = []
    for plan in situation.catalog.plans.values():
        if plan.name == here.name:
            continue
        paid = plan.price == plans.CUSTOM or plan.price > 0
        if (paid and wallet is None) or (wallet is not None and size(plan) > size(here)):
            chosen.append(plan)
    return tuple(chosen)
