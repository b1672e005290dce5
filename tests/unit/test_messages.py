"""Laws of the words of a refusal: true for what is known, silent about what is not, checked before they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from gateway.domain.messages import DEFAULTS, Facts, Message, problems, render
from gateway.domain.plans import Catalog
from gateway.domain.units import Meter
from tests.support.catalogs import catalog, plan, trial

TOKENS = Meter("tokens", 0)
FIELDS = problems("{none}")[0][0].removeprefix("a field: one of ").split(", ")
CREDITS = Meter("credits", 6, label="credit", tokens_per_unit=2000)
RESET_MS = 1_764_504_000_000  # 2025-11-30T12:00:00Z


def offered(messages: Mapping[str, Mapping[str, str]] | None = None, *, paid: int = 3) -> Catalog:
    plans = [
        plan(name, price=Decimal(price), allowance={"tokens": amount})
        for name, price, amount in [("lite", 15, 200_000), ("pro", 30, 500_000), ("business", 200, 4_000_000)][:paid]
    ]
    return catalog(trial(allowance={"tokens": 6000}), *plans, messages=messages or {})


def facts(**changes: Any) -> Facts:
    base: dict[str, Any] = {"plan": offered().plans["trial"], "meter": TOKENS, "wallet": "tokens"}
    return Facts(**{**base, **changes})


@pytest.mark.parametrize(
    ("reason", "known", "text"),
    [
        (
            "trial_expired",
            facts(),
            "Your 7-day free trial has expired. Please upgrade to Lite, Pro, or Business plan to continue.",
        ),
        (
            "insufficient_tokens",
            facts(available=500, needed=1401),
            "Insufficient tokens. You have 500 tokens remaining, but this request needs ~1500 tokens.",
        ),
        (
            "limit_exceeded",
            facts(plan=offered().plans["lite"], resets_at_ms=RESET_MS),
            "You have no tokens left. Your allowance resets at 2025-11-30T12:00:00Z. Larger plans: Pro or Business.",
        ),
        # a trial does not reset, and nothing is larger than the largest plan
        ("limit_exceeded", facts(), "You have no tokens left. Larger plans: Lite, Pro, or Business."),
        ("limit_exceeded", facts(plan=offered().plans["business"]), "You have no tokens left."),
        (
            "rate_limited",
            facts(meter=None, unit="requests", scope="user", limit=5, window_s=60, wait_s=17),
            "The user limit of 5 requests per minute is reached. Try again in 17 seconds.",
        ),
        (
            "rate_limited",
            facts(meter=None, unit="uses", scope="user", limit=5, window_s=30),
            "The user limit of 5 uses per 30 seconds is reached.",
        ),
        (
            "budget_exceeded",
            facts(scope="team", available=3, limit=10, needed=8, estimated=False, resets_at_ms=RESET_MS - 1),
            "The team budget has 3 of 10 tokens left, but this request needs ~8 tokens. "
            "It resets at 2025-11-30T12:00:00Z.",
        ),
    ],
)
def test_our_own_words(reason: str, known: Facts, text: str) -> None:
    assert render(offered(), reason, known) == Message(text)


@pytest.mark.parametrize(("paid", "listed"), [(2, "Lite or Pro"), (1, "Lite"), (0, "a paid")])
def test_plans_are_listed_as_a_person_would(paid: int, listed: str) -> None:
    sentences = render(
        offered({"trial_expired": {"text": "Take {plans.paid.labels:or} plan"}}, paid=paid), "trial_expired", facts()
    )
    assert sentences.text == f"Take {listed} plan"


def test_the_configs_words_stand_before_ours() -> None:
    words = {
        "title": "Insufficient credits",
        "text": "You have {available} credits remaining ({available.tokens} tokens)",
    }
    message = render(offered({"limit_exceeded": words}), "limit_exceeded", facts(meter=CREDITS, available=2_500_000))
    assert message == Message("You have 2.5 credits remaining (5000 tokens)", "Insufficient credits")


@pytest.mark.parametrize("reason", sorted(DEFAULTS))
def test_every_reason_can_be_told_whatever_is_known(reason: str) -> None:
    for known in (Facts(), facts(), facts(available=1, needed=2, limit=3, scope="key", feature="f", model="m")):
        text = render(offered(), reason, known).text
        assert text.endswith(".")
        assert "{" not in text


@pytest.mark.parametrize("template", [text for sentences in DEFAULTS.values() for text in sentences])
def test_our_own_templates_have_no_problems(template: str) -> None:
    assert problems(template) == []


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_can_be_told_whatever_is_known(name: str) -> None:
    words = {"limit_exceeded": {"text": f"<{{{name}}}>"}}
    assert problems(words["limit_exceeded"]["text"]) == []
    assert render(offered(words), "limit_exceeded", Facts()).text not in ("<>", f"<{{{name}}}>")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{balance} left", "found '{balance}'"),
        ("{available.__class__}", "found '{available.__class__}'"),
        ("{available!r}", "found '{available!r}'"),
        ("{plans.paid.labels}", "found '{plans.paid.labels}'"),
        ("{}", "found '{}'"),
        ("{available", "expected every brace"),
        ("available}", "expected every brace"),
        ("{{available}}", "expected every brace"),
    ],
)
def test_a_template_with_an_unknown_field_is_found_before_it_is_needed(template: str, said: str) -> None:
    assert said in "\n".join(f"expected {expected}, found {found}" for expected, found in problems(template))
