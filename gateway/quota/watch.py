"""What time brings about and no call: looked for by the holder of the reaper's lease.

Rules
1. A trial that is about to end is told of once, by ``domain.alerts``' rule; one that has ended is turned, whether or
   not anybody calls, and its turn tells of it.
2. News that nobody needs any more is removed.
3. Unusual use is told of (``watch_use``).
4. Everything here is idempotent: two holders for a moment do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.domain import alerts, tidings
from gateway.domain.accounts import Subscription
from gateway.domain.plans import Catalog
from gateway.quota.rounds import Rounds
from gateway.quota.turn import Turner
from gateway.quota.watch_use import UseWatch
from gateway.store.alerts import NewAlert

TRIALS_EVERY_LOOKS: Final = 2
NEWS_EVERY_LOOKS: Final = 60


class WatchStore(Protocol):
    async def trials_over(self, *, now_ms: int, limit: int, skip: int) -> Sequence[str]: ...

    async def trials_ending(self, *, now_ms: int) -> Sequence[tuple[str, Subscription]]: ...

    async def raise_all(self, new: Sequence[NewAlert]) -> None: ...

    async def remove_old_news(self, *, now_ms: int) -> None: ...


class Watch:
    """One look a second."""

    def __init__(
        self,
        store: WatchStore,
        turner: Turner,
        use: UseWatch,
        *,
        catalog: Callable[[], Catalog],
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._use = use
        self._over = Rounds("the end of the trial", store.trials_over, turner.turn)
        self._catalog = catalog
        self._now_ms = now_ms
        self._looks = 0

    async def look(self) -> None:
        """Raises StoreUnavailable."""
        self._looks += 1
        now_ms = self._now_ms()
        if self._looks % TRIALS_EVERY_LOOKS == 1:
            await self._trials(now_ms)
        if self._looks % NEWS_EVERY_LOOKS == 1:
            await self._store.remove_old_news(now_ms=now_ms)
        await self._store.raise_all(await self._use.look(now_ms))

    async def _trials(self, now_ms: int) -> None:
        await self._over.go(now_ms)
        catalog = self._catalog()
        ending = await self._store.trials_ending(now_ms=now_ms)
        await self._store.raise_all(
            [
                NewAlert(
                    account_id,
                    alerts.TRIAL_ENDING,
                    alerts.trial_key(subscription),
                    tidings.trial_ending(catalog, subscription),
                    now_ms,
                )
                for account_id, subscription in ending
            ]
        )
