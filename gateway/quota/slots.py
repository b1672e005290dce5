"""How every slot of a call's demand stands, whatever decides: what explain shows beside the decision. Pure.

Each slot is asked for alone, dry, and for more than it can have: the engine's refusal then reports its numbers, from
the same checks that every reserve goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from limits import model as engine
from limits.values import dataclass

_Asked = engine.WalletDemand | engine.BudgetDemand | engine.WindowDemand | engine.ConcurrencyDemand


@dataclass(frozen=True, slots=True)
class Slot:
    """One limit that the call falls under. Amounts in steps of ``meter``, or plain counts where it is empty."""

    name: str  # wallet | budget | requests | tokens | uses | concurrency
    scope: str  # account | team | user | key
    meter: str
    window_s: int  # of requests, tokens and uses
    limit: int
    used: int
    held: int
    needed: int
    resets_at_ms: int  # 0 = it does not, or it is unused

    @property
    def available(self) -> int:
        return self.limit - self.used - self.held

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


def probes(demand: engine.Demand) -> tuple[engine.Demand, ...]:
    """A demand per slot that no account can meet, in the order of ``slots_of``."""
    return (
        *(engine.Demand(wallets=(replace(each, amount=engine.AMOUNT_MAX),)) for each in demand.wallets),
        *(engine.Demand(budgets=(replace(each, amount=engine.AMOUNT_MAX),)) for each in demand.budgets),
        *(engine.Demand(windows=(replace(each, amount=engine.AMOUNT_MAX),)) for each in demand.windows),
        *(engine.Demand(concurrency=(replace(each, limit=0),)) for each in demand.concurrency),
    )


def slots_of(
    demand: engine.Demand, refused: Sequence[engine.Refused], resets_at_ms: Callable[[str], int]
) -> tuple[Slot, ...]:
    """What the refusals of ``probes`` say of this demand's slots, and ``resets_at_ms`` of its wallets."""
    asked: tuple[_Asked, ...] = (*demand.wallets, *demand.budgets, *demand.windows, *demand.concurrency)
    return tuple(_slot(each, told, resets_at_ms) for each, told in zip(asked, refused, strict=True))


def _slot(asked: _Asked, told: engine.Refused, resets_at_ms: Callable[[str], int]) -> Slot:
    scope = "account" if told.scope is None else told.scope.kind.value
    match asked:
        case engine.WalletDemand():
            needed = max(asked.amount, asked.minimum)
            resets = resets_at_ms(told.meter)
            return Slot("wallet", scope, told.meter, 0, told.limit, told.used, told.held, needed, resets)
        case engine.BudgetDemand():
            return Slot(
                "budget", scope, told.meter, 0, told.limit, told.used, told.held, asked.amount, told.resets_at_ms
            )
        case engine.WindowDemand():
            resets = told.resets_at_ms if told.used else 0
            length_s = asked.length_ms // 1000
            return Slot(asked.name, scope, "", length_s, told.limit, told.used, 0, asked.amount, resets)
        case engine.ConcurrencyDemand():
            return Slot("concurrency", scope, "", 0, asked.limit, 0, told.held, 1, 0)
