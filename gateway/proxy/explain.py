"""What would be decided about a call, and why, without making it: ``POST /api/v1/explain`` and ``tollgate explain``.

Rules
1. The same path as a call: authenticate → parse → count → admit, the last one dry. Nothing is taken, forwarded,
   created or charged.
2. A question is either the request that the app would send, ``{"route", "body"}``, whose headers are the question's
   own; or its facts, ``{"feature", "model", "input_tokens", "output_tokens", "uses"}``.
3. What a call would be answered besides a refusal (a bad key, a bad body, no price, an outage), explain answers too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson

from gateway.config.model import Config
from gateway.domain.accounts import Caller
from gateway.domain.periods import rfc3339
from gateway.domain.plans import ByCard, Feature, Fixed, PerThousandTokens, PerUse
from gateway.domain.units import AMOUNT_MAX, Meter, is_endless
from gateway.edge import status_of
from gateway.errors import RequestError
from gateway.providers.registry import ADAPTERS
from gateway.providers.tokens import Counter
from gateway.proxy.admit import Bound, ask_of, counted
from gateway.proxy.parse import Asked, asked_of, feature_named, model_of
from gateway.quota.admission import Admission, Facts
from gateway.quota.service import Ask, Judgement, Quota
from gateway.quota.slots import Slot
from gateway.quota.translate import Work, price_of_bound
from limits.values import dataclass

View = dict[str, Any]
Refresh = Callable[[Caller], Awaitable[Caller]]

ROUTE: Final = "/api/v1/explain"
_REQUEST: Final = frozenset({"route", "body"})
_FACTS: Final = frozenset({"feature", "model", "input_tokens", "output_tokens", "uses"})


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about: the ask that a call would make, and what was counted for it."""

    ask: Ask
    asked: Asked | None = None  # of a whole request
    bound: Bound | None = None


async def explain(
    config: Config,
    quota: Quota,
    counter: Counter,
    document: Any,
    *,
    headers: Mapping[str, str],
    caller: Caller,
    refresh: Refresh,
) -> View:
    """The decision and its reasons. Raises what the call itself would meet, but for refusals."""
    question = await _question(config, counter, document, headers=headers, caller=caller, refresh=refresh)
    return _view(question, await quota.judge(question.ask), config)


async def _question(
    config: Config, counter: Counter, document: Any, *, headers: Mapping[str, str], caller: Caller, refresh: Refresh
) -> Question:
    if not isinstance(document, dict):
        raise RequestError("Send a JSON object: a request's route and body, or its facts.")
    unknown = sorted(document.keys() - (_REQUEST if "route" in document else _FACTS))
    if unknown:
        raise RequestError(f"There is no field {unknown[0][:60]!r} here.", param=unknown[0][:60])
    if "route" not in document:
        return Question(_ask_of_facts(config, document, headers=headers, caller=caller, refresh=refresh))
    adapter = ADAPTERS.get(document["route"]) if isinstance(document["route"], str) else None
    if adapter is None:
        raise RequestError(f"route: expected one of {', '.join(ADAPTERS)}.", param="route")
    asked = asked_of(config, adapter, orjson.dumps(document.get("body")), headers)
    bound = await counted(counter, asked)
    return Question(ask_of(asked, bound, caller, refresh), asked, bound)


def _ask_of_facts(
    config: Config, facts: Mapping[str, Any], *, headers: Mapping[str, str], caller: Caller, refresh: Refresh
) -> Ask:
    name = _text(facts, "model")
    model = None if name is None else model_of(config, name)
    feature = feature_named(config, _text(facts, "feature") or headers.get("Tollgate-Feature"), param="feature")
    if model is None and not isinstance(feature.price, PerUse):
        raise RequestError(f"Name the model: {feature.name} is priced by what a model uses.", param="model")
    output_tokens = 0 if model is None else _count(facts, "output_tokens", default=model.output_default)
    if model is not None:
        output_tokens = min(output_tokens, model.output_max)
    work = Work(
        feature, model, _count(facts, "input_tokens", default=0), output_tokens, uses=_count(facts, "uses", default=1)
    )
    return Ask(
        caller=caller,
        catalog=config.catalog,
        work=work,
        model=name,
        facts=Facts(route="explain", model=name),
        choices=1,
        output_floor=0,
        lease_ms=int(config.settings.lease_s * 1000),
        refresh=refresh,
    )


def _text(facts: Mapping[str, Any], name: str) -> str | None:
    value = facts.get(name)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{name}: expected a name.", param=name)
    return value


def _count(facts: Mapping[str, Any], name: str, *, default: int) -> int:
    value = facts.get(name, default)
    least = 1 if name == "uses" else 0
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= AMOUNT_MAX:
        raise RequestError(f"{name}: expected a whole number, {least} or more.", param=name)
    return value


def _view(question: Question, judgement: Judgement, config: Config) -> View:
    decided, work = judgement.decided, judgement.work
    admission = decided if isinstance(decided, Admission) else None
    refusal = decided if not isinstance(decided, Admission) else decided.shadowed
    meter = config.catalog.meters[work.feature.wallet]
    status = 200 if isinstance(decided, Admission) else status_of(decided, config.settings.quota_status)
    detail = refusal.detail if refusal is not None else None
    return {
        "decision": "refused" if admission is None else "admitted" if refusal is None else "admitted_in_shadow",
        "status": status,
        "reason": refusal.code if refusal is not None else None,
        "message": refusal.message if refusal is not None else None,
        "retry": refusal.retry if refusal is not None else None,
        "scope": detail.scope if detail is not None else None,
        "hint": detail.hint if detail is not None else None,
        "plans": list(detail.plans) if detail is not None else [],
        **_who(judgement),
        "feature": _feature(work.feature, meter),
        "model": _model(question, work),
        "tokens": _tokens(question, admission, work),
        "cost": {"wallet": meter.name, "needed": "0" if work.free else meter.format(price_of_bound(work, meter.name))},
        "limits": [_slot(each, config.catalog.meters.get(each.meter)) for each in judgement.slots],
    }


def _who(judgement: Judgement) -> View:
    caller, plan = judgement.caller, judgement.plan
    account = caller.account
    assert account is not None, "who is judged has an account"
    subscription = account.subscription
    ends_at_ms = subscription.period_ends_at_ms
    return {
        "key": {"id": caller.key_id, "service": caller.service, "team": caller.team_id, "user": caller.user_id},
        "account": {"id": account.id, "name": account.name, "external_id": account.external_id},
        "plan": {
            "name": plan.name,
            "label": plan.label,
            "version": plan.version,
            "shadow": plan.shadow,
            "status": subscription.status.value,
            "period_ends_at": rfc3339(ends_at_ms) if ends_at_ms else None,
        },
    }


def _feature(feature: Feature, meter: Meter) -> View:
    match feature.price:
        case PerUse(amount, bulk):
            steps = [{"from": each.start, "per_use": meter.format(each.per_use)} for each in bulk]
            price: View = {"per_use": meter.format(amount), "bulk": steps}
        case PerThousandTokens(rate, minimum):
            price = {"per_1k_tokens": meter.format(rate), "minimum": meter.format(minimum)}
        case ByCard():
            price = {"rates": True}
        case Fixed(amount):
            price = {"per_use": meter.format(amount)}
    return {"name": feature.name, "wallet": feature.wallet, "price": price}


def _model(question: Question, work: Work) -> View | None:
    if work.model is None:
        return None
    card = work.card(work.feature.wallet)
    return {
        "name": question.ask.model,
        "rule": work.model.match,
        "upstreams": list(work.model.upstreams),
        "card": {"name": card.name, "version": card.version} if card is not None else None,
        "output_max": work.model.output_max,
    }


def _tokens(question: Question, admission: Admission | None, work: Work) -> View:
    """``output`` is the bound that was decided on, of all choices; ``clamped_to`` of each, when it was lowered."""
    call = question.asked.call if question.asked is not None else None
    return {
        "counted": question.bound is not None,
        "input": work.input_tokens,
        "output": work.output_tokens,
        "output_asked": call.output_tokens_asked if call is not None else None,
        "choices": question.ask.choices,
        "clamped_to": admission.clamped_to if admission is not None else None,
    }


def _slot(slot: Slot, meter: Meter | None) -> View:
    """Amounts as plain decimals of the meter; of windows and concurrency, counts."""
    written = meter or Meter(slot.name, 0)
    endless = is_endless(slot.limit)
    return {
        "limit_of": slot.name,
        "scope": slot.scope,
        "meter": slot.meter or None,
        "window_s": slot.window_s or None,
        "limit": "unlimited" if endless else written.format(slot.limit),
        "used": written.format(slot.used),
        "held": written.format(slot.held),
        "needed": written.format(slot.needed),
        "available": "unlimited" if endless else written.format(slot.available),
        "fits": slot.fits,
        "resets_at": rfc3339(slot.resets_at_ms) if slot.resets_at_ms else None,
    }
