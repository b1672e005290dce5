"""A hold as SQL keeps it, and the charges that it can come to. Pure.

Rules
1. What is kept is the whole hold: enough to bring it back into a Redis that forgot it, to extend it and to end it.
2. A charge falls on what the hold took, whenever it comes and whoever works it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from gateway.domain.charges import SETTLED, BudgetLine, ChargeRow, GrantLine, decode, lapsed
from gateway.domain.usage import Basis, Usage
from gateway.store.metering import HoldRow
from limits import model as engine

METERED: Final = "metered"  # the metadata's member that says how much it was


def written(hold: engine.Hold) -> dict[str, Any]:
    """The hold as a document."""
    demand = hold.demand
    return {
        "created_at_ms": hold.created_at_ms,
        "lease_ms": hold.lease_ms,
        "takes": [[take.wallet, take.number, take.amount] for take in hold.takes],
        "starts_ms": list(hold.window_starts_ms),
        "wallets": [[each.wallet, each.amount, each.minimum, each.abandon] for each in demand.wallets],
        "budgets": [
            [each.number, *_scope(each.scope), each.meter, each.limit, each.amount, each.starts_at_ms, each.ends_at_ms,
             each.abandon]
            for each in demand.budgets
        ],
        "windows": [
            [*_scope(each.scope), each.name, each.length_ms, each.limit, each.amount] for each in demand.windows
        ],
        "concurrency": [[*_scope(each.scope), each.limit] for each in demand.concurrency],
    }  # fmt: skip


def read(row: HoldRow) -> engine.Hold:
    """The hold of a row. Whoever keeps one has begun its work: a lapse charges."""
    kept: Mapping[str, Any] = row.hold
    demand = engine.Demand(
        wallets=tuple(engine.WalletDemand(*each) for each in kept["wallets"]),
        budgets=tuple(
            engine.BudgetDemand(number, _scope_of(kind, scope_id), *rest)
            for number, kind, scope_id, *rest in kept["budgets"]
        ),
        windows=tuple(
            engine.WindowDemand(_scope_of(kind, scope_id), *rest) for kind, scope_id, *rest in kept["windows"]
        ),
        concurrency=tuple(
            engine.ConcurrencyDemand(_scope_of(kind, scope_id), limit) for kind, scope_id, limit in kept["concurrency"]
        ),
    )
    return engine.Hold(
        account=row.account_id,
        hold_id=row.id,
        version=row.version,
        created_at_ms=kept["created_at_ms"],
        lease_ms=kept["lease_ms"],
        takes=tuple(engine.Take(*each) for each in kept["takes"]),
        demand=demand,
        window_starts_ms=tuple(kept["starts_ms"]),
        note=row.note,
        first_byte=True,
    )


def note(row: HoldRow) -> ChargeRow:
    """Who it is for and what it is, as its usage row will say."""
    return decode(row.note)


def held(hold: engine.Hold) -> int:
    """What it holds, in steps of its wallet."""
    return sum(take.amount for take in hold.takes)


def meters(row: HoldRow) -> frozenset[str]:
    """The meters that its end is charged in: its wallet's, and those of the budgets it falls under."""
    return frozenset(each[0] for each in row.hold["wallets"]) | frozenset(each[3] for each in row.hold["budgets"])


def more(row: HoldRow, by_meter: Mapping[str, int], limits: Mapping[int, int], *, abandons: bool) -> engine.Demand:
    """What an extension asks for on top. ``limits``: of the budgets as they are now, by number."""
    demand = read(row).demand
    steps = {meter: (amount, amount if abandons else 0) for meter, amount in by_meter.items()}
    budgets = []
    for budget in demand.budgets:
        amount, abandon = steps.get(budget.meter, (0, 0))
        limit = limits.get(budget.number, budget.limit)
        budgets.append(replace(budget, amount=amount, abandon=abandon, limit=limit))
    wallets = []
    for wallet in demand.wallets:
        amount, abandon = steps.get(wallet.wallet, (0, 0))
        wallets.append(engine.WalletDemand(wallet.wallet, amount, 0, abandon))
    return engine.Demand(tuple(wallets), tuple(budgets))


def settled(
    row: HoldRow,
    *,
    charged: int,
    by_meter: Mapping[str, int],
    usage: Usage,
    basis: Basis,
    end: str,
    now_ms: int,
    quantity: str | None,
) -> ChargeRow:
    """The charge of a hold that ended. ``by_meter``: what it costs in the meters of its budgets."""
    hold, facts = read(row), note(row)
    waived = charged if facts.shadow is not None else 0
    charged -= waived
    lines = engine.split(hold.takes, charged) if charged and hold.takes else ()
    budgets = tuple(
        BudgetLine(budget.number, budget.starts_at_ms, amount)
        for budget in hold.demand.budgets
        if (amount := by_meter.get(budget.meter, 0))
    )
    return replace(
        facts,
        state=SETTLED,
        created_at_ms=hold.created_at_ms,
        ended_at_ms=now_ms,
        usage=usage,
        basis=basis,
        held=held(hold),
        charged=charged,
        overrun=max(0, charged - held(hold)),
        lines=tuple(GrantLine(line.wallet, line.number, line.amount) for line in lines),
        budgets=budgets,
        status=200,
        end=end,
        waived=waived,
        metadata=facts.metadata if quantity is None else {**facts.metadata, METERED: quantity},
    )


def abandoned(row: HoldRow, *, now_ms: int) -> ChargeRow:
    """What it is charged when nobody ever said how it ended, and Redis does not know it any more."""
    hold = read(row)
    lines = engine.split(hold.takes, row.abandon) if hold.takes else ()
    budgets = [
        BudgetLine(budget.number, budget.starts_at_ms, budget.abandon)
        for budget in hold.demand.budgets
        if budget.abandon
    ]
    taken = [GrantLine(line.wallet, line.number, line.amount) for line in lines]
    facts = replace(note(row), created_at_ms=hold.created_at_ms, held=held(hold))
    return lapsed(facts, lines=taken, budgets=budgets, ended_at_ms=now_ms)


def _scope(scope: engine.Scope) -> tuple[str, str]:
    return scope.kind.value, scope.id


def _scope_of(kind: str, scope_id: str) -> engine.Scope:
    return engine.Scope(engine.ScopeKind(kind), scope_id)
