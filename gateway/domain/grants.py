"""Grants: what a plan gives per period, in which order a wallet burns, and what a changed plan adjusts.

Rules
1. Everything in a wallet is a grant; a period's allowance is a grant that ends with the period.
2. Burn-down: smaller priority first, then earliest expiry (never = last), then oldest (smallest number).
   The engine's scripts sort by the same three numbers.
3. A grant's ``key`` is unique within its account: whoever notices a turn first inserts it, everybody else finds it.
   ``once`` is keyed by the plan alone, so that an account gets it once for ever, whatever it subscribes to in between.
   Keys that operators choose have a prefix of their own: none of them can stand in the way of one of ours.
4. Default priorities burn what is lost soonest first and what was paid for apart last.

Not here: rows and transactions (``store``), and when a period is over (``turns``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from gateway.domain.accounts import GrantState
from gateway.domain.plans import CUSTOM, UNLIMITED, Amount, Plan, Rollover
from gateway.domain.units import AMOUNT_MAX, UNLIMITED_AMOUNT
from gateway.errors import BadRequest
from limits.values import dataclass

PRIORITY: Final[Mapping[str, int]] = MappingProxyType(
    {
        "trial": 10,
        "rollover": 20,  # the rest of the last period, before this period's own
        "plan": 30,
        "adjustment": 30,  # changes what the plan gives, so it burns with it
        "gift": 40,
        "bonus": 50,
        "package": 60,  # paid for and usually without an end
        "overage": 70,  # paid for when it is used: last
    }
)
BESIDE_ALLOWANCE: Final = ("overage", "rollover")  # a period has these besides what its plan allows
BY_HAND: Final = "gift:"  # before the keys that operators choose
_NEVER: Final = 2**63


@dataclass(frozen=True, slots=True)
class NewGrant:
    """A grant to be inserted, if its ``key`` is not in the account yet. ``expires_at_ms`` 0 = never."""

    key: str
    wallet: str
    amount: int
    source: str
    priority: int
    starts_at_ms: int
    expires_at_ms: int
    unit_price: str = ""  # of overage: what a step of it costs, as a fraction of the currency's smallest unit


def burn_key(grant: GrantState) -> tuple[int, int, int]:
    """Sorts grants in the order in which they are used up (rule 2)."""
    return grant.priority, grant.expires_at_ms or _NEVER, grant.number


def burn_order(grants: Iterable[GrantState], wallet: str, now_ms: int) -> tuple[GrantState, ...]:
    """The wallet's open grants, the first to burn first."""
    return tuple(sorted((grant for grant in grants if grant.wallet == wallet and is_open(grant, now_ms)), key=burn_key))


def is_open(grant: GrantState, now_ms: int) -> bool:
    """Started and not yet ended: half-open, like every period."""
    return grant.starts_at_ms <= now_ms and not 0 < grant.expires_at_ms <= now_ms


def allowance(plan: Plan, terms: Mapping[str, object]) -> dict[str, int]:
    """What the plan grants per period and wallet, in steps: the subscription's own terms before the plan's.

    ``terms["allowance"]`` maps wallets to steps or ``"unlimited"``. Raises BadRequest ``terms_missing`` when the plan
    says ``custom`` and the terms name no amount.
    """
    own = terms.get("allowance") or {}
    if not isinstance(own, Mapping):
        raise BadRequest("invalid_terms", "terms.allowance must map wallets to amounts", param="terms.allowance")
    merged = {**plan.allowance, **own}
    return {wallet: _steps(wallet, amount, plan) for wallet, amount in merged.items()}


def _steps(wallet: str, amount: Amount, plan: Plan) -> int:
    if amount == UNLIMITED:
        return UNLIMITED_AMOUNT
    if amount == CUSTOM:
        raise BadRequest(
            "terms_missing",
            f"Plan {plan.name} has a custom allowance of {wallet}: name the amount when subscribing.",
            param=f"allowance.{wallet}",
        )
    if not isinstance(amount, int) or isinstance(amount, bool) or not 0 <= amount <= AMOUNT_MAX:
        raise BadRequest("invalid_terms", f"The allowance of {wallet} is not an amount.", param=f"allowance.{wallet}")
    return amount


def period_grants(
    plan: Plan, terms: Mapping[str, object], subscription_id: str, *, starts_at_ms: int, ends_at_ms: int
) -> tuple[NewGrant, ...]:
    """The allowance of one period as grants, in the plan's order of wallets, and its overage; nothing for an amount of
    0.

    ``ends_at_ms`` 0 = never, for ``period: once``. Raises BadRequest as ``allowance`` does.
    """
    once = plan.period.kind == "once"
    stem = f"once:{plan.name}" if once else f"{subscription_id}:{plan.name}:{starts_at_ms}"
    granted = tuple(
        NewGrant(
            key=f"{stem}:{wallet}",
            wallet=wallet,
            amount=amount,
            source=plan.grant_source,
            priority=PRIORITY[plan.grant_source],
            starts_at_ms=starts_at_ms,
            expires_at_ms=ends_at_ms,
        )
        for wallet, amount in allowance(plan, terms).items()
        if amount
    )
    overage = tuple(
        NewGrant(
            key=f"{stem}:{wallet}:overage",
            wallet=wallet,
            amount=extra.cap,
            source="overage",
            priority=PRIORITY["overage"],
            starts_at_ms=starts_at_ms,
            expires_at_ms=ends_at_ms,
            unit_price=str(extra.price),
        )
        for wallet, extra in plan.overage.items()
        if extra.cap
    )
    return granted + overage


def rollover_grants(
    plan: Plan, terms: Mapping[str, object], subscription_id: str, unused: Mapping[str, int], *,
    starts_at_ms: int, ends_at_ms: int,
) -> tuple[NewGrant, ...]:  # fmt: skip
    """What the last period left, as far as the plan carries it into the one that starts now. ``unused`` is in steps."""
    allowed = allowance(plan, terms)
    rests = {wallet: min(unused.get(wallet, 0), rule.limit(allowed.get(wallet, 0))) for wallet, rule in _rolling(plan)}
    return tuple(
        NewGrant(
            key=f"{subscription_id}:{plan.name}:{starts_at_ms}:{wallet}:rollover",
            wallet=wallet,
            amount=rest,
            source="rollover",
            priority=PRIORITY["rollover"],
            starts_at_ms=starts_at_ms,
            expires_at_ms=ends_at_ms,
        )
        for wallet, rest in rests.items()
        if rest > 0
    )


def _rolling(plan: Plan) -> Iterable[tuple[str, Rollover]]:
    """An endless allowance has no rest."""
    return ((wallet, rule) for wallet, rule in plan.rollover.items() if plan.allowance.get(wallet) != UNLIMITED)


def adjustment_key(subscription_id: str, *, starts_at_ms: int, version: str, wallet: str) -> str:
    """The key of a changed plan's adjustment: once per subscription, period and plan version."""
    return f"{subscription_id}:{starts_at_ms}:{version}:{wallet}"


def adjustment(*, old: int, new: int, granted: int, used: int, held: int) -> int:
    """What a changed allowance adds to the running period's grants of a wallet, in steps; negative takes away.

    ``granted`` is the sum of the period's grants now, ``used`` and ``held`` what charges and open holds took of them.
    A smaller allowance never takes away what is used or held: granted + result >= used + held, or nothing is taken.
    """
    if new >= old:
        return new - old
    return max(new - old, min(0, used + held - granted))
