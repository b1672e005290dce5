"""From plans and prices to the engine's limits: one call's demand vector, and a snapshot's load.

Pure: the engine's vocabulary on one side, the domain's on the other, no I/O.
"""

from __future__ import annotations

from dataclasses import field, replace

from gateway.domain import periods, plans
from gateway.domain.accounts import AccountSnapshot, Caller
from gateway.domain.plans import Catalog, Feature, Limits, Model, Plan, Pricing
from gateway.domain.rates import RateCard
from gateway.domain.usage import Usage
from gateway.errors import PriceMissing
from limits import codec
from limits import model as engine
from limits.forms import Form, blank
from limits.values import dataclass

MINUTE_MS = 60_000
_TOKENS, _USES = blank(0), blank(1)  # of every form


@dataclass(frozen=True, slots=True)
class Work:
    """What a call may cost, in model tokens: the bound it is admitted on."""

    feature: Feature
    model: Model | None  # None: work outside the proxy
    input_tokens: int
    output_tokens: int  # bound × choices
    uses: int = 1
    free: bool = False  # counted by the rate limits only (count_tokens)
    minimum: int = 0  # what must be available for it to begin, in steps of the wallet
    input_expected: int | None = None  # tokens, about, where the bound is one of bytes; None: it was counted

    estimate: Usage = field(init=False, repr=False, compare=False)  # what to charge when nobody tells more: its input

    def __post_init__(self) -> None:
        known = self.input_tokens if self.input_expected is None else self.input_expected
        object.__setattr__(self, "estimate", Usage(known))

    def with_output(self, output_tokens: int) -> Work:
        return replace(self, output_tokens=output_tokens)

    def card(self, meter: str) -> RateCard | None:
        """The model's card in ``meter``, if there is a model and it has one."""
        return self.model.card(meter) if self.model is not None else None

    def pricing(self, meter: str) -> Pricing:
        """What prices this work in ``meter``: its feature's price, or for a budget in another meter the model's card.

        Raises PriceMissing."""
        card = self.card(meter)
        if meter == self.feature.wallet:
            return plans.pricing(self.feature, card)
        if card is None:
            raise PriceMissing
        return card


def price_of_bound(work: Work, meter: str) -> int:
    """What the call costs at most, in ``meter`` steps. Raises PriceMissing when the model has no price in it."""
    return work.pricing(meter).bound(work.input_tokens, work.output_tokens, work.uses)


def price_of_usage(work: Work, meter: str, usage: Usage) -> int:
    """What the call really costs, in ``meter`` steps. Raises PriceMissing, but not for what was admitted in it."""
    return work.pricing(meter).price(usage, work.uses)


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


@dataclass(frozen=True, slots=True)
class _Form:
    """The demand of a wallet's calls while none of its budgets turns: its blanks are tokens, uses, and per meter what
    is held and what an abandoned call owes."""

    form: Form
    meters: tuple[str, ...]  # the wallet's first
    from_ms: int
    till_ms: int


class Shape:
    """What of a demand vector does not depend on the size of the call: whose limits and budgets there are to meet.

    One per caller, plan and feature, kept as long as none of them changes; ``demand`` fills in a call's amounts.
    """

    def __init__(self, caller: Caller, plan: Plan, card_meters: frozenset[str]) -> None:
        scopes = scopes_of(caller)
        self._plan = plan
        self._card_meters = card_meters
        windows: list[engine.WindowDemand] = []
        by_tokens: list[engine.WindowDemand] = []
        concurrency: list[engine.ConcurrencyDemand] = []
        for kind, limits in plan.limits.items():
            if kind in scopes:
                scope = scopes[kind]
                windows += _counted_windows(scope, limits)
                if limits.tokens_per_minute is not None:
                    limit = limits.tokens_per_minute
                    by_tokens.append(engine.WindowDemand(scope, "tokens", MINUTE_MS, limit, _TOKENS))
                if limits.concurrent is not None:
                    concurrency.append(engine.ConcurrencyDemand(scope, limits.concurrent))
        self._windows, self._concurrency = (*windows, *by_tokens), tuple(concurrency)
        requests = tuple(window for window in windows if window.name == "requests")
        self._free = engine.Demand((), (), requests, self._concurrency)
        self._budgets = [
            (budget, scopes[budget.scope])
            for budget in caller.budgets
            if budget.scope in scopes and scopes[budget.scope].id == budget.scope_id
        ]
        self._forms: dict[tuple[str, int, bool], _Form] = {}

    def demand(self, work: Work, now_ms: int) -> engine.Demand:
        """The whole vector of one call: wallet, budgets, windows and concurrency. Raises PriceMissing."""
        if work.free:
            return self._free
        key = (work.feature.wallet, work.minimum, work.model is not None)
        form = self._forms.get(key)
        if form is None or not form.from_ms <= now_ms < form.till_ms:
            form = self._forms[key] = self._form(work, now_ms)
        amounts = [work.input_tokens + work.output_tokens, work.uses]
        for meter in form.meters:
            pricing = work.pricing(meter)
            amount = pricing.bound(work.input_tokens, work.output_tokens, work.uses)
            amounts += (amount, plans.abandoned(self._plan, pricing, work.estimate, held=amount, uses=work.uses))
        return form.form.fill(*amounts)

    def _form(self, work: Work, now_ms: int) -> _Form:
        wallet = work.feature.wallet
        met = [each for each in self._budgets if each[0].meter == wallet or self._is_spent(each[0].meter, work)]
        meters = tuple(dict.fromkeys((wallet, *(budget.meter for budget, _ in met))))
        blanks = {meter: (blank(2 + 2 * place), blank(3 + 2 * place)) for place, meter in enumerate(meters)}
        from_ms, till_ms, budgets = 0, codec.TIME_MAX, []
        for budget, scope in met:
            starts_ms, ends_ms = periods.bounds(budget.period, budget.anchor_at_ms, now_ms, budget.time_zone)
            from_ms, till_ms = max(from_ms, starts_ms), min(till_ms, ends_ms or till_ms)
            till_ms = min([till_ms, *(until_ms for _, until_ms in budget.raises if until_ms > now_ms)])
            amount, abandon = blanks[budget.meter]
            ceiling = budget.ceiling(now_ms)
            budgets.append(
                engine.BudgetDemand(budget.number, scope, budget.meter, ceiling, amount, starts_ms, ends_ms, abandon)
            )
        amount, abandon = blanks[wallet]
        demand = engine.Demand(
            (engine.WalletDemand(wallet, amount, work.minimum, abandon),),
            tuple(budgets),
            self._windows,
            self._concurrency,
        )
        return _Form(Form(demand, 2 + 2 * len(meters)), meters, from_ms, till_ms)

    def _is_spent(self, meter: str, work: Work) -> bool:
        """Whether work that another wallet pays costs something in this meter: a model's call, where cards price it.
        What no card prices is spent by its own features and services alone."""
        return work.model is not None and meter in self._card_meters


def _counted_windows(scope: engine.Scope, limits: Limits) -> list[engine.WindowDemand]:
    """The windows of a scope that count calls, not tokens."""
    windows = []
    if limits.requests_per_minute is not None:
        windows.append(engine.WindowDemand(scope, "requests", MINUTE_MS, limits.requests_per_minute, 1))
    if limits.uses is not None:
        windows.append(engine.WindowDemand(scope, "uses", limits.uses.per_s * 1000, limits.uses.max, _USES))
    return windows


class Shapes:
    """Shapes of recent callers under one catalog, bounded. A call that began before a reload brings the one before it:
    what is laid out for the one must not serve the other."""

    def __init__(self, entries_max: int = 20_000) -> None:
        self._entries_max = entries_max
        self._known: dict[tuple[str | int | None, ...], Shape] = {}
        self._catalog: Catalog | None = None

    def of(self, caller: Caller, plan: Plan, catalog: Catalog) -> Shape:
        account = caller.account
        assert account is not None, "a demand is an account's"
        if catalog is not self._catalog:
            self._known, self._catalog = {}, catalog
        key = (caller.key_id, caller.user_id, caller.team_id, account.id, account.rev, plan.name, plan.version)
        shape = self._known.get(key)
        if shape is None:
            if len(self._known) >= self._entries_max:
                self._known.clear()
            shape = self._known[key] = Shape(caller, plan, catalog.card_meters)
        return shape


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


def clamp_output(work: Work, refused: engine.Refused, choices: int) -> int:
    """The largest output bound per choice that the deciding slot can pay; -1 when not even no output fits."""
    if refused.slot == "tokens":
        affordable = min(work.output_tokens, refused.available - work.input_tokens)
    else:
        affordable = plans.output_affordable(
            work.pricing(refused.meter),
            input_tokens=work.input_tokens,
            available=refused.available,
            output_max=work.output_tokens,
        )
    return affordable // choices if affordable >= 0 else -1


def depends_on_output(refused: engine.Refused) -> bool:
    """Whether the slot that refused asks for less when the output bound is lower."""
    return refused.slot in ("wallet", "budget", "tokens")


def cost_in(work: Work, refused: engine.Refused) -> int:
    """What the slot that refused would be asked for."""
    if refused.slot == "tokens":
        return work.input_tokens + work.output_tokens
    return price_of_bound(work, refused.meter)


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
