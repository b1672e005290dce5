"""What the oracle remembers: accounts, partitions and their parts, as plain mutable Python. See ``oracle``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Final

from limits.model import Charge, ChargeState, Hold, OfBudget, OfChange, OfGrant, Scope, Snapshot
from limits.values import dataclass

LAPSES_PER_RESERVE: Final = 4
ORPHAN_AGE_MS: Final = 5_000
_EPOCH_MS, _UNIT_MS = 1_767_225_600_000, 256
Entry = tuple[int, int]


def due_of(lease_end_ms: int) -> int:
    """When the lease index holds a lease for over: the end of its unit of 256 ms."""
    return _EPOCH_MS + _UNIT_MS * max(0, -(-(lease_end_ms - _EPOCH_MS) // _UNIT_MS))


@dataclass(slots=True)
class Grant:
    """Without an amount: a placeholder for one that the database has not told yet, or names no more."""

    amount: int = 0
    counted: int = 0
    pending: int = 0
    held: int = 0
    starts_at_ms: int = 0
    expires_at_ms: int = 1
    priority: int = 0

    def is_open(self, now_ms: int) -> bool:
        return self.starts_at_ms <= now_ms and (not self.expires_at_ms or self.expires_at_ms > now_ms)

    @property
    def free(self) -> int:
        return self.amount - self.counted - self.pending - self.held


@dataclass(slots=True)
class Wallet:
    warned_period_ms: int = 0
    warned_level: int = 0
    grants: dict[int, Grant] = field(default_factory=dict)

    def burn_order(self, now_ms: int) -> list[tuple[int, Grant]]:
        """Open grants: by priority, then earliest expiry, then oldest."""
        opened = [(number, grant) for number, grant in self.grants.items() if grant.is_open(now_ms)]
        return sorted(opened, key=lambda item: (item[1].priority, item[1].expires_at_ms or 2**63, item[0]))


@dataclass(slots=True)
class OpenHold:
    hold: Hold
    due_ms: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A pending charge and its entry in the outbox."""

    state: ChargeState
    entry: Entry
    lines: tuple[OfGrant, ...]
    budgets: tuple[OfBudget, ...]


@dataclass(slots=True)
class BudgetSums:
    counted: int = 0
    pending: int = 0
    held: int = 0

    def __iter__(self) -> Iterator[int]:
        return iter((self.counted, self.pending, self.held))


@dataclass(slots=True)
class WindowUse:
    starts_at_ms: int
    used: int


@dataclass(slots=True)
class Partition:
    """The record, the amnesty, and the outbox in order."""

    stamp: str
    created_ms: int
    amnesty_until_ms: int = 0
    beat_ms: int = 0
    outbox: dict[Entry, Charge] = field(default_factory=dict)
    last_entry: Entry = (0, 1)

    @property
    def record(self) -> str:
        return f"{self.stamp}:{self.created_ms}"

    def append(self, now_ms: int, charge: Charge) -> Entry:
        """Ids only grow, also when the clock goes back."""
        last_ms, last_number = self.last_entry
        self.last_entry = (now_ms, 0) if now_ms > last_ms else (last_ms, last_number + 1)
        self.outbox[self.last_entry] = charge
        return self.last_entry


@dataclass(slots=True)
class Account:
    """``stamp`` is None while stale by a push; ``ticket`` is (stamp, nonce)."""

    stamp: str | None = None
    ticket: tuple[str, str] | None = None
    rev: int = 0
    seq: int = 0
    turn_at_ms: int = 0
    period_at_ms: int = 0
    due_ms: int = 0
    wallets: dict[str, Wallet] = field(default_factory=dict)
    budgets: dict[tuple[int, int], BudgetSums] = field(default_factory=dict)
    live: dict[Scope, int] = field(default_factory=dict)
    windows: dict[tuple[Scope, str, int], WindowUse] = field(default_factory=dict)
    holds: dict[str, OpenHold] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    kept: dict[int, OfChange] = field(default_factory=dict)

    def grant(self, wallet: str, number: int) -> Grant:
        return self.wallets.setdefault(wallet, Wallet()).grants.setdefault(number, Grant())

    def budget(self, number: int, starts_at_ms: int) -> BudgetSums:
        """A period that begins ends those before it that owe nothing."""
        key = (number, starts_at_ms)
        if key not in self.budgets:
            self.budgets[key] = BudgetSums(held=1)  # something, so that it isn't itself taken for ended
            for other in self.ended(number):
                del self.budgets[other]
            self.budgets[key] = BudgetSums()
        return self.budgets[key]

    def ended(self, number: int) -> list[tuple[int, int]]:
        """Periods of a budget that have a later one and owe nothing."""
        return [
            (number, starts)
            for (other, starts), sums in self.budgets.items()
            if other == number and not sums.pending and not sums.held and self.has_later(number, starts)
        ]

    def has_later(self, number: int, starts_at_ms: int) -> bool:
        return any(other == number and starts > starts_at_ms for other, starts in self.budgets)

    def add(self, lines: Sequence[OfGrant], budgets: Sequence[OfBudget], *, counted: int = 0, pending: int = 0) -> None:
        """A charge's amounts, times a sign. Placeholders for what raises pending only."""
        for line in lines:
            wallet = self.wallets.get(line.wallet)
            if pending > 0 or (wallet is not None and line.number in wallet.grants):
                grant = self.grant(line.wallet, line.number)
                grant.counted += counted * line.amount
                grant.pending += pending * line.amount
        for item in budgets:
            known = (item.number, item.starts_at_ms) in self.budgets
            if known or (item.amount and (pending > 0 or (counted > 0 and not self._over(item)))):
                sums = self.budget(item.number, item.starts_at_ms)
                sums.counted += counted * item.amount
                sums.pending += pending * item.amount

    def _over(self, item: OfBudget) -> bool:
        return self.has_later(item.number, item.starts_at_ms)

    def put(self, hold: Hold) -> None:
        """A hold's slots, unchecked; its windows stay as they are."""
        for take in hold.takes:
            self.grant(take.wallet, take.number).held += take.amount
        for budget in hold.demand.budgets:
            if budget.amount:
                self.budget(budget.number, budget.starts_at_ms).held += budget.amount
        for concurrency in hold.demand.concurrency:
            self.live[concurrency.scope] = self.live.get(concurrency.scope, 0) + 1

    def lift(self, hold: Hold) -> None:
        """The same taken off again. What held nothing may be gone."""
        for take in hold.takes:
            if take.amount:
                self.grant(take.wallet, take.number).held -= take.amount
        for budget in hold.demand.budgets:
            if budget.amount:
                self.budget(budget.number, budget.starts_at_ms).held -= budget.amount
        for concurrency in hold.demand.concurrency:
            self.live[concurrency.scope] -= 1

    def free(self, hold_id: str, window_actuals: Sequence[int | None]) -> Hold:
        """End a hold: nothing of it is held any more. Windows it was taken from, if they still run, are corrected."""
        hold = self.holds.pop(hold_id).hold
        self.lift(hold)
        for window, starts_at_ms, used in zip(
            hold.demand.windows, hold.window_starts_ms, window_actuals or [None] * len(hold.demand.windows), strict=True
        ):
            use = self.windows.get((window.scope, window.name, window.length_ms))
            if use is not None and used is not None and use.starts_at_ms == starts_at_ms:
                use.used = max(0, use.used + used - window.amount)
        return hold

    def load_budgets(self, snapshot: Snapshot) -> None:
        fresh = {(item.number, item.starts_at_ms): BudgetSums(item.counted) for item in snapshot.budgets}
        for key, sums in self.budgets.items():
            if key in fresh:
                fresh[key].pending, fresh[key].held = sums.pending, sums.held
            elif sums.pending or sums.held:
                fresh[key] = BudgetSums(0, sums.pending, sums.held)
        self.budgets = fresh

    def absorb(self) -> None:
        """The watermark moves over what is kept above it, as long as there is no gap."""
        while self.kept.pop(self.seq + 1, None) is not None:
            self.seq += 1
