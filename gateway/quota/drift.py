"""The live drift check: what Redis has counted must be what SQL says, to the last step.

Rules
1. Redis is read first, then SQL. Redis counts only what SQL has; so where SQL's seq is still Redis' watermark, each of
   them is the sum of the same charges. An account that was charged meanwhile is no difference: it is looked at later.
2. The work of a check is bounded: ``ACCOUNTS_MAX`` accounts, taking turns among those that were charged lately.
3. An account with a difference is looked at in every check until it has none, and told once.

Not here: mending. A difference is a bug of ours; ``tollgate rebuild`` loads Redis from SQL anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Final, Protocol

from gateway.domain.accounts import AccountSums
from gateway.domain.units import Meter
from gateway.metrics import Metrics
from gateway.quota.turn import nonce
from limits.engine import Engine
from limits.errors import LimitsError
from limits.model import AccountView, Stale

log = logging.getLogger(__name__)

ACCOUNTS_MAX: Final = 64
KEPT_MAX: Final = 1_000  # accounts with a difference that are remembered

Steps = Mapping[str, int]  # meter → difference in its smallest steps, absolute


class SumStore(Protocol):
    async def of(
        self, account_ids: Collection[str], *, grants_since_ms: int, budgets_since_ms: int
    ) -> Mapping[str, AccountSums]: ...


class Drift:
    """Compares, and says the sum of all differences."""

    def __init__(
        self, engine: Engine, sums: SumStore, *, meters: Callable[[], Mapping[str, Meter]], metrics: Metrics
    ) -> None:
        self._engine = engine
        self._sums = sums
        self._meters = meters
        self._metrics = metrics
        self._found: dict[str, Steps] = {}
        self._last = ""  # account of the last check's turn

    async def check(self, charged: Collection[str]) -> None:
        """Compare some of the accounts that were ``charged`` lately. Raises StoreUnavailable."""
        chosen = self._choose(charged)
        views = dict(zip(chosen, await self._views(chosen), strict=True))
        live = {account_id: view for account_id, view in views.items() if isinstance(view, AccountView)}
        sums: Mapping[str, AccountSums] = {}
        if live:
            starts = [starts_at_ms for view in live.values() for _, starts_at_ms, *_ in view.budgets]
            since_ms = min(view.server_ms for view in live.values())
            sums = await self._sums.of(live, grants_since_ms=since_ms, budgets_since_ms=min(starts, default=since_ms))
        for account_id in chosen:
            if isinstance(views[account_id], LimitsError):
                continue  # nothing can be said: a difference that is known stays known
            view, there = live.get(account_id), sums.get(account_id)
            if view is None or there is None:
                self._found.pop(account_id, None)  # it will be loaded before it counts
            elif view.seq == there.seq:
                self._note(account_id, difference(view, there))
        self._metrics.ledger_drift.set((), self._units())

    def _choose(self, charged: Collection[str]) -> list[str]:
        """Those known to differ, then the next ones in the order of their ids."""
        known = list(self._found)[:ACCOUNTS_MAX]
        others = sorted(set(charged).difference(known))
        following = [account_id for account_id in others if account_id > self._last]
        turn = [*following, *others[: len(others) - len(following)]][: ACCOUNTS_MAX - len(known)]
        self._last = turn[-1] if turn else ""
        return known + turn

    async def _views(self, accounts: Collection[str]) -> list[AccountView | Stale | LimitsError]:
        """What Redis holds of each; one whose server is away keeps no other from being compared."""
        wallets = tuple(self._meters())
        return await asyncio.gather(*(self._view(account_id, wallets) for account_id in accounts))

    async def _view(self, account_id: str, wallets: tuple[str, ...]) -> AccountView | Stale | LimitsError:
        try:
            return await self._engine.peek(account_id, ticket=nonce(), wallets=wallets)
        except LimitsError as error:
            log.warning("account %s cannot be compared with the ledger: %s", account_id, error)
            return error

    def _note(self, account_id: str, steps: Steps) -> None:
        before = self._found.pop(account_id, {})
        if not steps:
            return
        if len(self._found) < KEPT_MAX:
            self._found[account_id] = steps
        if steps != before:
            log.error("Redis and the ledger differ, in steps: %s", dict(steps), extra={"account": account_id})

    def _units(self) -> float:
        """All known differences, in whole units of their meters."""
        total: Counter[str] = Counter()
        for steps in self._found.values():
            total.update(steps)
        decimals = {name: meter.decimals for name, meter in self._meters().items()}
        return sum(float(Fraction(steps, 10 ** decimals.get(name, 0))) for name, steps in total.items())


def difference(view: AccountView, sums: AccountSums) -> Steps:
    """Per meter: how far the counted sums of grants and budget periods that both sides know lie apart."""
    steps: Counter[str] = Counter()
    for _, states in view.wallets:
        for grant in states:
            if grant.number in sums.grants:
                wallet, used = sums.grants[grant.number]
                steps[wallet] += abs(grant.counted - used)
    for number, starts_at_ms, counted, _, _ in view.budgets:
        if number in sums.meters:
            steps[sums.meters[number]] += abs(counted - sums.budgets.get((number, starts_at_ms), 0))
    return {meter: apart for meter, apart in steps.items() if apart}
