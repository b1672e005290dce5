"""What a refusal tells a person: templates from the config, or our own words for every reason.

Rules
1. A template is text with ``{fields}``; every field is known when the config is read, so that none can fail later.
2. Our own words are sentences, and one whose facts are unknown is left out: a trial does not "reset at never".
3. Amounts are plain decimals of their meter; an estimated need is rounded up to the next 100, as behind a "~".

Not here: status codes and error bodies (``errors``, ``providers``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from gateway.domain.periods import rfc3339
from gateway.domain.plans import Catalog, Plan, larger_plans, paid_plans
from gateway.domain.units import Meter
from limits.values import dataclass

DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "account_suspended": ("This account is suspended.",),
        "trial_expired": (
            "Your {plan.days}-day free trial has expired.",
            "Please upgrade to {plans.paid.labels:or} plan to continue.",
        ),
        "subscription_inactive": (
            "Your {plan.label} plan is not active. Renew it or choose another plan to continue.",
        ),
        "feature_not_in_plan": ("{feature} is not available on the {plan.label} plan.",),
        "model_not_in_plan": ("{model} is not available on the {plan.label} plan.",),
        "limit_exceeded": (
            "You have no {unit} left.",
            "Your allowance resets at {resets_at}.",
            "Larger plans: {plans.larger.labels:or}.",
        ),
        "insufficient_tokens": (
            "Insufficient {unit}. You have {available} {unit} remaining, but this request needs ~{needed} {unit}.",
        ),
        "budget_exceeded": (
            "The {scope} budget has {available} of {limit} {unit} left, but this request needs ~{needed} {unit}.",
            "It resets at {resets_at}.",
        ),
        "call_too_large": (
            "This request needs ~{needed} {unit}, but the limit never holds more than {limit}.",
            "Ask for less at once.",
        ),
        "held_elsewhere": (
            "Other requests in flight hold what this one needs: {available} {unit} are free, ~{needed} are needed.",
            "Try again shortly.",
        ),
        "rate_limited": (
            "The {scope} limit of {limit} {unit} per {window} is reached.",
            "Try again in {seconds} seconds.",
        ),
        "concurrency_limited": (
            "The {scope} limit of {limit} requests at once is reached.",
            "Try again when one has finished.",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a refusal; amounts in steps of ``meter``, or plain counts of ``unit`` where it is None."""

    plan: Plan | None = None
    meter: Meter | None = None
    unit: str = ""  # only without a meter: requests, tokens, uses
    wallet: str | None = None  # whose allowance makes a plan larger
    available: int | None = None
    needed: int | None = None
    estimated: bool = True  # the need is an estimate: rounded
    used: int | None = None
    limit: int | None = None
    resets_at_ms: int = 0  # 0 = never
    window_s: int | None = None
    wait_s: int | None = None
    scope: str | None = None  # account | team | user | key
    feature: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    text: str
    title: str | None = None


def render(catalog: Catalog, reason: str, facts: Facts) -> Message:
    """The words for ``reason``: the config's if it has any, else ours. ``reason`` is one of ``DEFAULTS``."""
    own = catalog.messages.get(reason)
    if own is not None:
        title = own.get("title")
        return Message(
            text=_fill(own["text"], catalog, facts, strict=False) or "",
            title=None if title is None else _fill(title, catalog, facts, strict=False),
        )
    first, *others = DEFAULTS[reason]
    sentences = [_fill(first, catalog, facts, strict=False)]
    sentences += [_fill(other, catalog, facts, strict=True) for other in others]
    return Message(" ".join(sentence for sentence in sentences if sentence))


def problems(template: str) -> list[tuple[str, str]]:
    """What is wrong with a template: (expected, found); empty when it can be rendered for any facts."""
    if re.search(r"[{}]", _FIELD.sub("", template)):
        return [("every brace to enclose a field", repr(template))]
    unknown = [name for name in _FIELD.findall(template) if name not in _FIELDS]
    return [(f"a field: one of {', '.join(_FIELDS)}", f"'{{{name}}}'") for name in unknown]


def _fill(template: str, catalog: Catalog, facts: Facts, *, strict: bool) -> str | None:
    """The template with its facts; None when one is unknown and ``strict``, else a neutral word stands for it."""
    values = {name: _FIELDS[name](catalog, facts) for name in _FIELD.findall(template)}
    if strict and None in values.values():
        return None
    return _FIELD.sub(lambda match: values[match[1]] or _UNKNOWN.get(match[1], "-"), template)


def _amount(facts: Facts, steps: int | None) -> str | None:
    if steps is None:
        return None
    return facts.meter.format(steps) if facts.meter else str(steps)


def _needed(_: Catalog, facts: Facts) -> str | None:
    if facts.needed is None:
        return None
    if facts.meter is None:
        return str(facts.needed)
    return facts.meter.roundly(facts.needed) if facts.estimated else facts.meter.format(facts.needed)


def _tokens(_: Catalog, facts: Facts) -> str | None:
    if facts.available is None:
        return None
    return facts.meter.tokens(facts.available) if facts.meter else str(facts.available)


def _window(_: Catalog, facts: Facts) -> str | None:
    if facts.window_s is None:
        return None
    return "minute" if facts.window_s == 60 else f"{facts.window_s} seconds"


def _larger(catalog: Catalog, facts: Facts) -> list[str]:
    if facts.plan is None or facts.wallet is None:
        return []
    return [plan.label for plan in larger_plans(catalog, facts.plan, facts.wallet)]


def _paid(catalog: Catalog, facts: Facts) -> list[str]:
    return [plan.label for plan in paid_plans(catalog) if plan != facts.plan]


def _listed(labels: Sequence[str], word: str) -> str | None:
    """ "Lite, Pro, or Business", "Lite or Pro", "Lite"; None for nothing."""
    if len(labels) < 3:
        return f" {word} ".join(labels) or None
    return f"{', '.join(labels[:-1])}, {word} {labels[-1]}"


_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_FIELDS: Final[Mapping[str, Callable[[Catalog, Facts], str | None]]] = MappingProxyType(
    {
        "available": lambda _, facts: _amount(facts, facts.available),
        "available.tokens": _tokens,
        "needed": _needed,
        "used": lambda _, facts: _amount(facts, facts.used),
        "limit": lambda _, facts: _amount(facts, facts.limit),
        "unit": lambda _, facts: facts.meter.unit if facts.meter else facts.unit or None,
        "plan.label": lambda _, facts: facts.plan.label if facts.plan else None,
        "plan.days": lambda _, facts: str(facts.plan.period.days) if facts.plan else None,
        "resets_at": lambda _, facts: rfc3339(facts.resets_at_ms) if facts.resets_at_ms else None,
        "plans.paid.labels:or": lambda catalog, facts: _listed(_paid(catalog, facts), "or"),
        "plans.paid.labels:and": lambda catalog, facts: _listed(_paid(catalog, facts), "and"),
        "plans.larger.labels:or": lambda catalog, facts: _listed(_larger(catalog, facts), "or"),
        "plans.larger.labels:and": lambda catalog, facts: _listed(_larger(catalog, facts), "and"),
        "scope": lambda _, facts: facts.scope,
        "feature": lambda _, facts: facts.feature,
        "model": lambda _, facts: facts.model,
        "window": _window,
        "seconds": lambda _, facts: None if facts.wait_s is None else str(facts.wait_s),
    }
)
_UNKNOWN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "resets_at": "never",
        "unit": "units",
        "plans.paid.labels:or": "a paid",
        "plans.larger.labels:or": "a larger",
    }
)
