"""How much room an account has beside one call: whether the call needs to be counted before it is held.

Rules
1. Room is what this worker last saw in Redis, at most ``SEEN_S`` ago. It only decides how exactly a call is bounded:
   whether it may run is the reserve's alone, and one that is refused on a rough bound is counted and asked again.
2. A call is next to nothing when its bound is at most a ``SHARE``-th of what is left in its wallet and in each budget
   in scope, and of each limit in tokens per minute.
3. What cannot be seen is no room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from time import monotonic

from gateway.domain.accounts import Caller
from gateway.domain.plans import Plan
from gateway.errors import PriceMissing
from gateway.quota.translate import Work, price_of_bound, scopes_of
from gateway.quota.turn import nonce
from limits.engine import BUCKETS_PEEKED_MAX, Engine
from limits.errors import EngineUnavailable
from limits.model import AccountView

SEEN_S = 5.0
SHARE = 100
_REMEMBERED_MAX = 4_096
_BUDGETS_SEEN_MAX = BUCKETS_PEEKED_MAX * 8


class Room:
    """What was lately seen of the accounts that send large calls."""

    def __init__(self, engine: Engine, *, now_s: Callable[[], float] = monotonic) -> None:
        self._engine = engine
        self._now_s = now_s
        self._seen: OrderedDict[tuple[str, str], tuple[float, AccountView | None]] = OrderedDict()

    async def is_ample(self, caller: Caller, plan: Plan, work: Work) -> bool:
        """Whether ``work`` is next to nothing for its caller."""
        assert caller.account is not None, "room is an account's"
        view = await self._view(caller.account.id, work.feature.wallet)
        if view is None:
            return False
        try:
            return all(amount * SHARE <= room for amount, room in _left(view, caller, plan, work))
        except PriceMissing:
            return False  # whoever admits it will say so

    async def _view(self, account_id: str, wallet: str) -> AccountView | None:
        """None for what is not known: Redis is away or must load the account first, or there is too much to see."""
        key = (account_id, wallet)
        seen_s, view = self._seen.get(key, (-SEEN_S, None))
        if self._now_s() - seen_s < SEEN_S:
            return view
        try:
            found = await self._engine.peek(account_id, ticket=nonce(), wallets=(wallet,))
        except EngineUnavailable:
            return None
        view = found if isinstance(found, AccountView) and len(found.budgets) < _BUDGETS_SEEN_MAX else None
        self._seen[key] = (self._now_s(), view)
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return view


def _left(view: AccountView, caller: Caller, plan: Plan, work: Work) -> Iterator[tuple[int, int]]:
    """(What the call asks for, what is left) for all that its size counts against. Raises PriceMissing."""
    wallet, scopes = work.feature.wallet, scopes_of(caller)
    for shown, _ in view.wallets:
        yield price_of_bound(work, wallet), shown.available
    used: dict[int, int] = {}
    for number, _, counted, pending, held in view.budgets:  # of all periods the fullest: perhaps not the present one
        used[number] = max(used.get(number, 0), counted + pending + held)
    for budget in caller.budgets:
        if budget.scope in scopes and scopes[budget.scope].id == budget.scope_id:
            yield price_of_bound(work, budget.meter), budget.ceiling(view.server_ms) - used.get(budget.number, 0)
    for kind, limits in plan.limits.items():
        if kind in scopes and limits.tokens_per_minute is not None:
            yield work.input_tokens + work.output_tokens, limits.tokens_per_minute
