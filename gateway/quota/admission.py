"""An admitted call: what it may use, under which offer, and the bill that its outcome makes. Pure.

Rules
1. The bill is computed from the outcome alone: the hold only says which grants it falls on.
2. What exceeds the hold falls on the last grant it took from and is counted as overrun.
3. What a plan in shadow let pass is recorded with its refusal and its price (``waived``), and charged nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from gateway.domain import plans, turns
from gateway.domain.accounts import Caller
from gateway.domain.charges import SETTLED, BudgetLine, ChargeRow, GrantLine
from gateway.domain.plans import Catalog, Plan
from gateway.domain.usage import Basis, Outcome, Usage, billed
from gateway.errors import Refusal
from gateway.quota.translate import Work, price_of_usage
from limits import model as engine
from limits.values import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What a usage record says of a call besides its numbers."""

    route: str
    model: str | None
    job: str | None = None
    job_type: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Admission:
    """A hold with everything needed to end it."""

    hold: engine.Hold
    caller: Caller
    catalog: Catalog
    plan: Plan
    work: Work
    facts: Facts
    reserved: engine.Reserved
    clamped_to: int | None = None  # output tokens per choice, when the bound was lowered
    shadowed: Refusal | None = None  # what its plan in shadow let pass: nothing is held, nothing will be charged
    wallet: str = field(init=False)
    held: int = field(init=False)  # what the hold took from the wallet, in meter steps
    view: engine.WalletView | None = field(init=False)  # the wallet after the hold; None for a free call

    def __post_init__(self) -> None:
        self.wallet = self.work.feature.wallet
        self.held = 0
        for take in self.hold.takes:
            self.held += take.amount
        self.view = None
        for view in self.reserved.wallets:
            if view.wallet == self.wallet:
                self.view = view

    @property
    def remaining(self) -> int:
        """Available in the wallet after this hold."""
        return self.view.available if self.view is not None else 0

    @property
    def resets_at_ms(self) -> int:
        """When the wallet gets its next allowance; 0 = it does not, or the call is free."""
        account = self.caller.account
        if self.view is None or account is None:
            return 0
        at_ms = turns.resets_at_ms(self.catalog, account.subscription, self.wallet)
        if 0 < at_ms <= self.hold.created_at_ms:  # a period granted ahead has begun by itself: its grant's end
            return self.view.resets_at_ms
        return at_ms

    def warning(self, charged: int = 0) -> str | None:
        """``at 91.7% of quota``, from the lowest configured threshold on: what was spent and what other calls hold, and
        what this one came to where that is known. Its own hold is not spent yet."""
        view, thresholds = self.view, self.catalog.warn_at_permille
        if view is None or not thresholds or not view.capacity:
            return None
        permille = (view.capacity - view.available - self.held + charged) * 1000 // view.capacity
        return f"at {permille // 10}.{permille % 10}% of quota" if permille >= thresholds[0] else None

    def tightest(self) -> dict[str, tuple[int, int, int]]:
        """(limit, remaining, resets_at_ms) of the window with the least left, of each kind that has one."""
        tightest: dict[str, tuple[int, int, int]] = {}
        for window, (remaining, resets_at_ms) in zip(
            self.hold.demand.form.windows, self.reserved.windows, strict=False
        ):
            if window.name not in tightest or remaining < tightest[window.name][1]:
                tightest[window.name] = (window.limit, remaining, resets_at_ms)
        return tightest


@dataclass(frozen=True, slots=True)
class Bill:
    """What a call costs: the usage row, which is the charge, and the windows' real use."""

    row: ChargeRow
    window_actuals: tuple[int | None, ...]
    released: bool  # nothing was served: the hold is released, nothing is written


def bill_of(
    admission: Admission, outcome: Outcome, *, status: int, end: str, upstream: str | None, now_ms: int
) -> Bill:
    """Price an outcome. ``now_ms`` is the server's time."""
    hold, work, wallet, shadowed = admission.hold, admission.work, admission.wallet, admission.shadowed
    found = billed(outcome, work.estimate)
    card = work.card(wallet)
    usage, basis = found or (Usage(), Basis.PROVIDER)
    price = plans.pricing(work.feature, card).price(usage, work.uses) if found and not work.free else 0
    charged = price if shadowed is None else 0
    takes = engine.split(hold.takes, charged) if charged and hold.takes else ()
    budgets, windows = [], []
    for budget in hold.demand.form.budgets if found else ():
        amount = charged if budget.meter == wallet else price_of_usage(work, budget.meter, usage)
        if amount:
            budgets.append(BudgetLine(budget.number, budget.starts_at_ms, amount))
    tokens = usage.total
    for window in hold.demand.form.windows:
        windows.append(tokens if window.name == "tokens" else None)
    row = ChargeRow(
        hold_id=hold.hold_id,
        account_id=hold.account,
        state=SETTLED,
        created_at_ms=hold.created_at_ms,
        ended_at_ms=now_ms,
        route=admission.facts.route,
        model=admission.facts.model,
        upstream=upstream,
        plan=admission.plan.name,
        feature=work.feature.name,
        wallet=wallet,
        card_version=card.version if card is not None else "",
        usage=usage,
        basis=basis,
        held=admission.held,
        charged=charged,
        overrun=max(0, charged - admission.held),
        lines=tuple([GrantLine(take.wallet, take.number, take.amount) for take in takes]),
        budgets=tuple(budgets),
        status=status,
        end=end,
        key_id=admission.caller.key_id,
        team_id=admission.caller.team_id,
        user_id=admission.caller.user_id,
        job=admission.facts.job,
        job_type=admission.facts.job_type,
        metadata=admission.facts.metadata,
        shadow=None if shadowed is None else shadowed.code,
        waived=0 if shadowed is None else price,
    )
    return Bill(row, tuple(windows), released=found is None)
