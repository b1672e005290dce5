"""From plans and prices to the engine's limits: one call's demand vector, and a snapshot's load.

Pure: the engine's vocabulary on one side, the domain's on the other, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gateway.domain import periods, plans
from gateway.domain.accounts import AccountSnapshot, Budget, Caller
from gateway.domain.plans import Catalog, Feature, Limits, Model, Plan
from gateway.domain.rates import RateCard
from gateway.domain.usage import Usage
from gateway.errors import PriceMissing
from limits import model as engine

MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Work:
    """What a call may cost, in model tokens: the bound it is admitted on."""

    feature: Feature
    model: Model | None  # None: work outside the proxy
    input_tokens: int
    output_tokens: int  # bound × choices
    uses: int = 1
    free: bool = False  # counted by the rate limits only (count_tokens)

    def with_output(self, output_tokens: int) -> Work:
        return Work(self.feature, self.model, self.input_tokens, output_tokens, self.uses, self.free)


def card_for(work: Work, meter: str) -> RateCard | None:
    return work.model.card(meter) if work.model is not None else None


def price_of_bound(work: Work, meter: str, *, own_wallet: bool) -> int:
    """What the call costs at most in ``meter`` steps. Raises PriceMissing when it has no price for the model."""
    card = card_for(work, meter)
    if own_wallet:
        if isinstance(work.feature.price, plans.ByCard) and card is None:
            raise PriceMissing
        return plans.demand(work.feature, card, work.input_tokens, work.output_tokens, work.uses)
    if card is None:
        raise PriceMissing
    return card.bound(Usage(input=work.input_tokens, output=work.output_tokens))


def price_of_usage(work: Work, meter: str, usage: Usage, *, own_wallet: bool) -> int:
    """What the call really costs in ``meter`` steps."""
    card = card_for(work, meter)
    if own_wallet:
        return plans.charge(work.feature, card, usage, work.uses)
    assert card is not None, "a budget's meter was priced at admission"
    return card.price(usage)


def scopes_of(caller: Caller) -> dict[str, engine.Scope]:
    """The scopes this call falls into, widest first."""
    assert caller.account is not None
    scopes = {"account": engine.Scope(engine.ScopeKind.ACCOUNT, caller.account.id)}
    if caller.team_id is not None:
        scopes["team"] = engine.Scope(engine.ScopeKind.TEAM, caller.team_id)
    if caller.user_id is not None:
        scopes["user"] = engine.Scope(engine.ScopeKind.USER, caller.user_id)
    scopes["key"] = engine.Scope(engine.ScopeKind.KEY, caller.key_id)
    return scopes


def demand_of(caller: Caller, plan: Plan, work: Work, now_ms: int) -> engine.Demand:
    """The whole vector of one call: wallet, budgets, windows and concurrency of every scope it falls into."""
    scopes = scopes_of(caller)
    windows: list[engine.WindowDemand] = []
    concurrency: list[engine.ConcurrencyDemand] = []
    for kind, limits in plan.limits.items():
        scope = scopes.get(kind)
        if scope is not None:
            windows += _windows(scope, limits, work)
            if limits.concurrent is not None:
                concurrency.append(engine.ConcurrencyDemand(scope, limits.concurrent))
    if work.free:
        return engine.Demand((), (), tuple(w for w in windows if w.name == "requests"), tuple(concurrency))
    input_only = work.with_output(0)
    amount = price_of_bound(work, work.feature.wallet, own_wallet=True)
    abandon = _abandon(plan, amount, price_of_bound(input_only, work.feature.wallet, own_wallet=True))
    wallet = engine.WalletDemand(work.feature.wallet, amount, 0, abandon)
    budgets = tuple(
        _budget(budget, scopes[budget.scope], plan, work, input_only, now_ms)
        for budget in caller.budgets
        if budget.scope in scopes and scopes[budget.scope].id == budget.scope_id
    )
    return engine.Demand((wallet,), budgets, tuple(windows), tuple(concurrency))


def _abandon(plan: Plan, amount: int, input_amount: int) -> int:
    """The provisional charge of a hold whose worker died after the first byte."""
    match plan.on_abandon:
        case "release":
            return 0
        case "hold":
            return amount
        case "estimate":
            return min(input_amount, amount)


def _budget(
    budget: Budget, scope: engine.Scope, plan: Plan, work: Work, input_only: Work, now_ms: int
) -> engine.BudgetDemand:
    own = budget.meter == work.feature.wallet
    start_ms, end_ms = periods.bounds(budget.period, budget.anchor_at_ms, now_ms, budget.time_zone)
    amount = price_of_bound(work, budget.meter, own_wallet=own)
    abandon = _abandon(plan, amount, price_of_bound(input_only, budget.meter, own_wallet=own))
    return engine.BudgetDemand(
        budget.number, scope, budget.meter, budget.amount, amount, start_ms, end_ms, abandon
    )


def _windows(scope: engine.Scope, limits: Limits, work: Work) -> list[engine.WindowDemand]:
    windows = []
    if limits.requests_per_minute is not None:
        windows.append(engine.WindowDemand(scope, "requests", MINUTE_MS, limits.requests_per_minute, 1))
    if limits.tokens_per_minute is not None and not work.free:
        tokens = work.input_tokens + work.output_tokens
        windows.append(engine.WindowDemand(scope, "tokens", MINUTE_MS, limits.tokens_per_minute, tokens))
    if limits.uses is not None and not work.free:
        windows.append(
            engine.WindowDemand(scope, "uses", limits.uses.per_s * 1000, limits.uses.max, work.uses)
        )
    return windows


def snapshot_of(snapshot: AccountSnapshot) -> engine.Snapshot:
    """What SQL knows of an account, as the engine loads it."""
    wallets: dict[str, list[engine.Grant]] = {}
    for grant in snapshot.grants:
        wallets.setdefault(grant.wallet, []).append(
            engine.Grant(
                grant.number, grant.amount, grant.priority, grant.starts_at_ms, grant.expires_at_ms, grant.used
            )
        )
    return engine.Snapshot(
        account=snapshot.account_id,
        seq=snapshot.seq,
        rev=snapshot.rev,
        turn_at_ms=snapshot.turn_at_ms,
        period_at_ms=snapshot.period_starts_at_ms,
        wallets=tuple(engine.WalletState(name, tuple(grants)) for name, grants in sorted(wallets.items())),
        budgets=tuple(engine.BudgetState(use.number, use.starts_at_ms, use.used) for use in snapshot.budgets),
    )


def clamp_output(work: Work, refused: engine.Refused, choices: int) -> int | None:
    """The largest output bound per choice that the deciding slot can pay, or None when output cannot help there.

    Found by bisection over the real price function, so that it is exact for every card and rounding.
    """
    if not depends_on_output(refused) or cost_in(work.with_output(0), refused) > refused.available:
        return None
    low, high = 0, work.output_tokens // choices
    while low < high:
        middle = (low + high + 1) // 2
        if cost_in(work.with_output(middle * choices), refused) <= refused.available:
            low = middle
        else:
            high = middle - 1
    return low


def depends_on_output(refused: engine.Refused) -> bool:
    """Whether the slot that refused asks for less when the output bound is lower."""
    return refused.slot in ("wallet", "budget", "tokens")


def cost_in(work: Work, refused: engine.Refused) -> int:
    """What the slot that refused would be asked for."""
    if refused.slot == "tokens":
        return work.input_tokens + work.output_tokens
    if refused.slot not in ("wallet", "budget"):
        return refused.needed
    return price_of_bound(work, refused.meter, own_wallet=refused.meter == work.feature.wallet)


def refused_at(refused: engine.Refused, needed: int) -> engine.Refused:
    """The same refusal, measured at a smaller demand: what is said to a client whose call cannot be clamped further."""
    if needed > refused.limit:
        verdict = engine.Verdict.TOO_LARGE
    elif refused.slot == "tokens":
        verdict = engine.Verdict.RATE
    elif needed > refused.limit - refused.used:
        verdict = engine.Verdict.LASTING
    else:
        verdict = engine.Verdict.HELD
    return replace(refused, needed=needed, verdict=verdict)


def allowance_of(catalog: Catalog, plan: Plan, terms: Mapping[str, object], wallet: str) -> int | None:
    """A plan's allowance in a wallet, with an account's own terms; None = unlimited."""
    amount = plan.allowance.get(wallet, 0)
    if amount == plans.CUSTOM:
        custom = terms.get("allowance")
        value = custom.get(wallet, 0) if isinstance(custom, Mapping) else 0
        return int(value)
    if amount == plans.UNLIMITED:
        return None
    return int(amount)
