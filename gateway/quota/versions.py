"""Subscriptions follow a changed config: on their account's next call, and within a minute where nobody calls.

Rules
1. The database decides: versions are registered in order, and a subscription only moves forward along them.
2. No call is refused for it: while the database is away, or has nothing to follow, the account goes on as it is and is
   asked about again after ``AGAIN_S``.
3. What open holds have taken is never taken back: the engine says just before how much that is.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from gateway.domain.plans import Catalog, Plan
from gateway.errors import AccountNotFound, BadRequest, QuotaUnavailable, TollgateError
from gateway.quota.clock import ServerClock
from gateway.quota.states import States

log = logging.getLogger(__name__)

AGAIN_S = 10.0
REMEMBERED_MAX = 10_000
FOLLOWED_AT_ONCE = 100


class PlanStore(Protocol):
    async def register(self, *, now_ms: int, returned: Collection[str] = ()) -> None: ...

    async def outdated(self, *, limit: int = 100, after: str = "") -> Sequence[str]: ...

    async def advance(self, account_id: str, *, now_ms: int, held: Mapping[int, int] | None = None) -> bool: ...


class Versions:
    """Brings subscriptions to their plans' newest version. ``catalog`` gives the running config's plans and meters."""

    def __init__(self, plans: PlanStore, states: States, *, catalog: Callable[[], Catalog], clock: ServerClock) -> None:
        self._plans = plans
        self._states = states
        self._catalog = catalog
        self._clock = clock
        self._registered: set[str] = set()
        self._passed = ""  # the last account of the last round, where the next has to begin behind it
        self._returned: set[str] = set()
        self._stays: OrderedDict[tuple[str, str], float] = OrderedDict()

    def reloaded(self, before: Catalog, after: Catalog) -> None:
        """Another config is in use here: what it changes is meant, even where it takes an older version back."""
        old = {plan.version for plan in before.plans.values()}
        self._returned = {plan.version for plan in after.plans.values()} - old
        self._stays.clear()

    async def follow(self, account_id: str, plan: Plan) -> bool:
        """Whether the account's subscription moved to this version of its plan just now."""
        asked_s = self._stays.get((account_id, plan.version))
        if asked_s is not None and time.monotonic() - asked_s < AGAIN_S:
            return False
        try:
            await self._register()
            if await self._advance(account_id):
                return True
        except TollgateError as error:  # away, or terms that the new version asks for and nobody has given
            log.warning("account %s stays on the old version of its plan: %s", account_id, error.code)
        self._stays[account_id, plan.version] = time.monotonic()
        if len(self._stays) > REMEMBERED_MAX:
            self._stays.popitem(last=False)
        return False

    async def follow_all(self) -> None:
        """Accounts that nobody calls for, some at a time. One that cannot follow, or whose server is away, keeps no
        other from it. Raises StoreUnavailable."""
        await self._register()
        outdated = await self._plans.outdated(limit=FOLLOWED_AT_ONCE, after=self._passed)
        failed = False
        for account_id in outdated:
            try:
                await self._advance(account_id)
            except (BadRequest, AccountNotFound, QuotaUnavailable) as error:
                failed = True
                log.warning("account %s stays on the old version of its plan: %s", account_id, error.code)
        self._passed = outdated[-1] if failed and len(outdated) == FOLLOWED_AT_ONCE else ""

    async def _register(self) -> None:
        versions = {plan.version for plan in self._catalog().plans.values()}
        returned = self._returned & versions
        if returned or not versions <= self._registered:
            await self._plans.register(now_ms=self._clock.now_ms(), returned=returned)
            self._registered = versions
            self._returned -= returned

    async def _advance(self, account_id: str) -> bool:
        view = await self._states.view(account_id, tuple(self._catalog().meters))
        held = {grant.number: grant.held + grant.pending for _, grants in view.wallets for grant in grants}
        if not await self._plans.advance(account_id, now_ms=self._clock.now_ms(), held=held):
            return False
        await self._states.deliver(account_id)
        return True
