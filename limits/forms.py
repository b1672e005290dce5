"""Demands of which only some amounts differ from call to call: packed once, filled in for each.

Rules
1. A form is a demand some of whose amounts are blanks: ``blank(0)``, ``blank(1)`` … All else in it stands fast.
2. A filled form is a demand like any other; its slots are spelled out only where somebody looks at their amounts, or
   where one of those is too large for the form's narrow values.

Not here: which amounts those are, and when a form is out of date (the caller knows).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

from limits import codec
from limits.model import BudgetDemand, ConcurrencyDemand, Demand, WalletDemand, WindowDemand


def blank(index: int) -> int:
    """Where the call's amount of this index goes."""
    return -1 - index


class Form:
    """A demand with ``blanks`` blanks. Raises ValueError for what is no demand."""

    def __init__(self, demand: Demand, blanks: int) -> None:
        self.demand = demand
        self._layout = codec.laid_out(demand, blanks)
        self._amounts = struct.Struct("<B" + blanks * "IH")
        self._blocks, self._rest = self._layout.slots[0], self._layout.slots[self._amounts.size :]
        self._narrow = codec.NARROW if self._blocks < codec.WIDE else 0  # amounts below it are packed in their places

    def fill(self, *amounts: int) -> Filled:
        """The demand with these amounts, one for each blank. Raises ValueError."""
        halves: list[int] = []
        for amount in amounts:
            if not 0 <= amount < self._narrow:
                codec.check_amounts(amounts)
                return Filled(self.demand, amounts)
            halves += (amount & 0xFFFFFFFF, amount >> 32)
        same = self._layout
        slots = self._amounts.pack(self._blocks, *halves) + self._rest
        packed = codec.Layout(
            slots, same.limits, same.fields, same.settled, same.budgets, same.windows, same.concurrency, same.lengths_ms
        )
        return Filled(self.demand, amounts, packed)


class Filled(Demand):
    """A form with its amounts: equal to the demand that it spells out."""

    __slots__ = ("_amounts", "_spelled", "form")
    form: Demand
    _amounts: Sequence[int]
    _spelled: Demand | None

    def __init__(self, form: Demand, amounts: Sequence[int], packed: codec.Layout | None = None) -> None:
        self.form = form
        self._amounts = amounts
        self._spelled = None
        object.__setattr__(self, "packed", packed)  # a demand is frozen

    @property
    def wallets(self) -> tuple[WalletDemand, ...]:
        return self._spelled_out().wallets

    @property
    def budgets(self) -> tuple[BudgetDemand, ...]:
        return self._spelled_out().budgets

    @property
    def windows(self) -> tuple[WindowDemand, ...]:
        return self._spelled_out().windows

    @property
    def concurrency(self) -> tuple[ConcurrencyDemand, ...]:
        return self.form.concurrency

    def __eq__(self, other: object) -> bool:
        return self._spelled_out() == (other._spelled_out() if isinstance(other, Filled) else other)

    def __hash__(self) -> int:
        return hash(self._spelled_out())

    def _spelled_out(self) -> Demand:
        if self._spelled is None:
            form, given = self.form, self._given
            spelled = Demand(
                tuple(replace(item, amount=given(item.amount), abandon=given(item.abandon)) for item in form.wallets),
                tuple(replace(item, amount=given(item.amount), abandon=given(item.abandon)) for item in form.budgets),
                tuple(replace(item, amount=given(item.amount)) for item in form.windows),
                form.concurrency,
            )
            self._spelled = spelled
            return spelled
        return self._spelled

    def _given(self, amount: int) -> int:
        return self._amounts[-1 - amount] if amount < 0 else amount
