"""How the oracle admits a demand: every slot checked, the deciding refusal kept, nothing taken until asked.

Rules
1. A lasting reason beats a passing one, then the narrowest scope, then the first slot: wallets, budgets, then scope by
   scope (in the order in which windows, then concurrency limits name them) its concurrency, then its windows.
2. When a hold grows, a slot that asks for nothing is not checked, and live holds aren't either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from limits import keys
from limits.model import (
    AMOUNT_MAX,
    BudgetDemand,
    ConcurrencyDemand,
    Demand,
    Hold,
    Refused,
    Scope,
    Take,
    Verdict,
    WalletDemand,
    WalletView,
    WindowDemand,
)
from limits.oracle_state import Account, Wallet, WindowUse

TAKES_MAX: Final = 128  # the grants that a hold's first wallets may name; each further wallet names one

_MINUTE_MS: Final = 60_000
_LASTING: Final = (Verdict.LASTING, Verdict.TOO_LARGE)


class Check:
    """One demand against one account at one time."""

    def __init__(
        self, account: Account, now_ms: int, demand: Demand, warn_at: Sequence[int], *, growing: Hold | None = None
    ) -> None:
        self._account, self._now_ms, self._demand, self._growing = account, now_ms, demand, growing
        self.refused: Refused | None = None
        self._rank = -1
        self.takes: tuple[Take, ...] = ()
        self.crossed: tuple[tuple[str, int], ...] = ()
        self._views: list[WalletView] = []
        self._uses: list[WindowUse] = []
        self.windows: tuple[tuple[int, int], ...] = ()
        self.window_starts_ms: tuple[int, ...] = ()
        for wallet in demand.wallets:
            self._check_wallet(wallet, warn_at)
        for bucket in dict.fromkeys(budget.number // keys.BUDGETS_PER_BUCKET for budget in demand.budgets):
            for budget in demand.budgets:  # bucket by bucket: of two that refuse alike the first one decides
                if budget.number // keys.BUDGETS_PER_BUCKET == bucket:
                    self._check_budget(budget)
        self._check_scopes()
        self.refused = self._with_warnings()

    def views(self) -> tuple[WalletView, ...]:
        return tuple(self._views)

    def take(self) -> None:
        """Take all of it: the point of no return."""
        account = self._account
        for take in self.takes:
            account.wallets[take.wallet].grants[take.number].held += take.amount
        for budget in self._demand.budgets:
            is_over = account.has_later(budget.number, budget.starts_at_ms)
            if budget.amount or not (self._idle(budget.amount) or is_over):  # nothing begins no period that is over
                account.budget(budget.number, budget.starts_at_ms).held += budget.amount
        for window, use in zip(self._demand.windows, self._uses, strict=True):
            if not self._idle(window.amount):
                key = (window.scope, window.name, window.length_ms)
                account.windows[key] = WindowUse(use.starts_at_ms, use.used + window.amount)
        if self._growing is None:
            for limit in self._demand.concurrency:
                account.live[limit.scope] = account.live.get(limit.scope, 0) + 1

    def _idle(self, amount: int) -> bool:
        return self._growing is not None and amount == 0

    def _check_wallet(self, demand: WalletDemand, warn_at: Sequence[int]) -> None:
        wallet = self._account.wallets.get(demand.wallet, Wallet())
        opened = wallet.burn_order(self._now_ms)
        capacity = sum(grant.amount for _, grant in opened)
        posted = sum(grant.counted + grant.pending for _, grant in opened)
        held = sum(grant.held for _, grant in opened)
        resets_at_ms = min((g.expires_at_ms for _, g in opened if g.expires_at_ms), default=0)
        available, needed = capacity - posted - held, max(demand.amount, demand.minimum)
        self._warn(demand.wallet, wallet, posted, capacity, warn_at)
        self._views.append(WalletView(demand.wallet, available - demand.amount, capacity, resets_at_ms))
        if self._idle(demand.amount):
            return
        if available < needed:
            verdict = Verdict.LASTING if needed > capacity - posted else Verdict.HELD
            if demand.amount > capacity > 0:
                verdict = Verdict.TOO_LARGE
            self._refuse(
                verdict, "wallet", None, demand.wallet, capacity, posted, held, needed, available, resets_at_ms
            )
            return
        left, takes = demand.amount, list[Take]()
        for number, grant in opened:
            last = len(self.takes) + len(takes) >= TAKES_MAX - 1
            part = left if last and grant.free > 0 else min(left, grant.free)
            if part > 0 or (demand.amount == 0 and not takes):
                takes.append(Take(demand.wallet, number, max(part, 0)))
                left -= max(part, 0)
        self.takes += tuple(takes)

    def _warn(self, name: str, wallet: Wallet, posted: int, capacity: int, warn_at: Sequence[int]) -> None:
        """Thresholds that posted passed for the first time in this period; remembered even when the call is refused."""
        if capacity <= 0 or posted <= 0:
            return
        period_ms = self._account.period_at_ms
        level = wallet.warned_level if wallet.warned_period_ms == period_ms else 0
        passed = [limit for limit in warn_at if level < limit <= permille(posted, capacity)]
        if passed:
            self.crossed += tuple((name, limit) for limit in passed)
            wallet.warned_period_ms, wallet.warned_level = period_ms, passed[-1]

    def _check_budget(self, demand: BudgetDemand) -> None:
        if self._idle(demand.amount):
            return
        account, key = self._account, (demand.number, demand.starts_at_ms)
        sums = account.budgets.get(key)
        used, held = (sums.counted + sums.pending, sums.held) if sums is not None else (0, 0)
        if sums is None and account.has_later(*key):
            used = demand.limit  # a period left behind
        available = demand.limit - used - held
        if demand.amount > available:
            verdict = Verdict.LASTING if demand.amount > demand.limit - used else Verdict.HELD
            if demand.amount > demand.limit:
                verdict = Verdict.TOO_LARGE
            self._refuse(
                verdict, "budget", demand.scope, demand.meter,
                demand.limit, used, held, demand.amount, available, demand.ends_at_ms,
            )  # fmt: skip

    def _check_scopes(self) -> None:
        windows, limits = self._demand.windows, self._demand.concurrency
        uses = {id(window): self._use(window) for window in windows}
        for scope in dict.fromkeys((*(item.scope for item in windows), *(item.scope for item in limits))):
            for limit in limits:
                if limit.scope == scope and self._growing is None:
                    self._check_concurrency(limit)
            for window in windows:
                if window.scope == scope and not self._idle(window.amount):
                    self._check_window(window, uses[id(window)])
        self._uses = [uses[id(window)] for window in windows]
        self.windows = tuple(
            (max(0, window.limit - use.used - window.amount), use.starts_at_ms + window.length_ms)
            for window, use in zip(windows, self._uses, strict=True)
        )
        before = self._growing.window_starts_ms if self._growing is not None else (0,) * len(windows)
        self.window_starts_ms = tuple(
            start if self._idle(window.amount) else use.starts_at_ms
            for window, use, start in zip(windows, self._uses, before, strict=True)
        )

    def _use(self, window: WindowDemand) -> WindowUse:
        """The window that runs now: aligned to its first use, rolling forward only."""
        use = self._account.windows.get((window.scope, window.name, window.length_ms))
        if use is None or self._now_ms >= use.starts_at_ms + window.length_ms:
            return WindowUse(self._now_ms, 0)
        return use

    def _check_concurrency(self, limit: ConcurrencyDemand) -> None:
        live = self._account.live.get(limit.scope, 0)
        if live + 1 > limit.limit:
            verdict = Verdict.CONCURRENCY if limit.limit >= 1 else Verdict.TOO_LARGE
            self._refuse(verdict, "concurrency", limit.scope, "", limit.limit, 0, live, 1, limit.limit - live, 0)

    def _check_window(self, window: WindowDemand, use: WindowUse) -> None:
        available = window.limit - use.used
        if window.amount > available:
            resets_at_ms = use.starts_at_ms + window.length_ms
            verdict = Verdict.LASTING if resets_at_ms - self._now_ms > _MINUTE_MS else Verdict.RATE
            if window.amount > window.limit:
                verdict = Verdict.TOO_LARGE
            self._refuse(
                verdict, window.name, window.scope, "",
                window.limit, use.used, 0, window.amount, available, resets_at_ms,
            )  # fmt: skip

    def _refuse(
        self, verdict: Verdict, slot: str, scope: Scope | None, meter: str,
        limit: int, used: int, held: int, needed: int, available: int, resets_at_ms: int,
    ) -> None:  # fmt: skip
        rank = (10 if verdict in _LASTING else 0) + (keys.NARROWNESS[scope.kind] if scope is not None else 0)
        if rank > self._rank:
            self._rank = rank
            self.refused = Refused(
                verdict, slot, scope, meter, limit, used, held, needed, available, resets_at_ms, self._now_ms
            )

    def _with_warnings(self) -> Refused | None:
        return replace(self.refused, crossed=self.crossed) if self.refused is not None else None


def permille(used: int, capacity: int) -> int:
    """Rounded down, at most 65,535; large numbers lose ten bits first, as the scripts do it to stay exact."""
    if capacity <= 0 or used <= 0:
        return 1000 if capacity <= 0 < used else 0
    if used >= AMOUNT_MAX // 1024 + 1:
        used, capacity = used >> 10, max(1, capacity >> 10)
    return min(65_535, used * 1000 // capacity)
