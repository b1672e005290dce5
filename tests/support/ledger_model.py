"""The database's part of the charge protocol as a small pure model: it decides states and seqs, and makes snapshots.

What ``gateway.store`` does in SQL, in memory: each change of a hold's charge gets the account's next seq and its delta;
a charge moves none → lapsed → settled, each once, in whatever order it arrives; ids it has get the deltas they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from limits.model import (
    BudgetLine,
    BudgetState,
    Charge,
    ChargeState,
    Confirm,
    Delta,
    Grant,
    Snapshot,
    Take,
    WalletState,
)


@dataclass(slots=True)
class Book:
    """One account's rows."""

    seq: int = 0
    rev: int = 1
    turn_at_ms: int = 0
    period_at_ms: int = 0
    grants: dict[int, tuple[str, Grant]] = field(default_factory=dict)
    revoked: set[int] = field(default_factory=set)
    charges: dict[str, Charge] = field(default_factory=dict)
    deltas: dict[str, list[Delta]] = field(default_factory=dict)


class Ledger:
    """All accounts' books."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}

    def book(self, account: str) -> Book:
        return self.books.setdefault(account, Book())

    def grant(
        self,
        account: str,
        wallet: str,
        amount: int,
        *,
        priority: int = 0,
        starts_at_ms: int = 0,
        expires_at_ms: int = 0,
    ) -> int:
        """A new grant; its number."""
        book = self.book(account)
        number = len(book.grants) + 1
        book.grants[number] = (wallet, Grant(number, amount, priority, starts_at_ms, expires_at_ms))
        return number

    def commit(self, charge: Charge) -> Confirm:
        """Decide what a charge changes; answers the state and every delta that its id has so far."""
        book = self.book(charge.account)
        before = book.charges.get(charge.hold_id)
        deltas = book.deltas.setdefault(charge.hold_id, [])
        if before is None or (before.state is ChargeState.LAPSED and charge.state is ChargeState.SETTLED):
            book.seq += 1
            book.charges[charge.hold_id] = charge
            reversed_lines = [replace(line, amount=-line.amount) for line in before.lines] if before else []
            reversed_budgets = [replace(line, amount=-line.amount) for line in before.budgets] if before else []
            deltas.append(
                Delta(
                    book.seq,
                    _merged_lines((*reversed_lines, *charge.lines)),
                    _merged_budgets((*reversed_budgets, *charge.budgets)),
                )
            )
        return Confirm(charge.account, charge.hold_id, book.charges[charge.hold_id].state, tuple(deltas))

    def counted(self, account: str, *, up_to_seq: int | None = None) -> tuple[Counter[int], Counter[tuple[int, int]]]:
        """Sums per grant and per (budget, start)."""
        grants: Counter[int] = Counter()
        budgets: Counter[tuple[int, int]] = Counter()
        for deltas in self.book(account).deltas.values():
            for delta in deltas:
                if up_to_seq is None or delta.seq <= up_to_seq:
                    for line in delta.lines:
                        grants[line.number] += line.amount
                    for item in delta.budgets:
                        budgets[(item.number, item.starts_at_ms)] += item.amount
        return grants, budgets

    def snapshot(self, account: str, now_ms: int) -> Snapshot:
        """One consistent read: open and coming grants with their sums, every budget period."""
        book = self.book(account)
        sums, budgets = self.counted(account)
        wallets: dict[str, list[Grant]] = {}
        for number, (wallet, grant) in book.grants.items():
            if number not in book.revoked and not 0 < grant.expires_at_ms <= now_ms:
                wallets.setdefault(wallet, []).append(replace(grant, counted=sums[number]))
        return Snapshot(
            account=account,
            seq=book.seq,
            rev=book.rev,
            turn_at_ms=book.turn_at_ms,
            period_at_ms=book.period_at_ms,
            wallets=tuple(WalletState(wallet, tuple(grants)) for wallet, grants in wallets.items()),
            budgets=tuple(BudgetState(number, starts, counted) for (number, starts), counted in budgets.items()),
        )


def _merged_lines(lines: Iterable[Take]) -> tuple[Take, ...]:
    sums: Counter[tuple[str, int]] = Counter()
    for line in lines:
        sums[(line.wallet, line.number)] += line.amount
    return tuple(Take(wallet, number, amount) for (wallet, number), amount in sums.items() if amount)


def _merged_budgets(lines: Sequence[BudgetLine]) -> tuple[BudgetLine, ...]:
    sums: Counter[tuple[int, int]] = Counter()
    for line in lines:
        sums[(line.number, line.starts_at_ms)] += line.amount
    return tuple(BudgetLine(number, starts, amount) for (number, starts), amount in sums.items() if amount)
