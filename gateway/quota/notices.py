"""What calls give rise to telling somebody: noticed on the hot path, written behind it.

Rules
1. Noticing never waits and never fails: it is a look-up and an append. A full queue drops what comes, counts it and
   says so in the log once a minute.
2. The database decides what is new (``store.alerts``): this worker's memory of what it told only saves it the asking.
3. A refusal is an alert once per account, reason, wallet and period if the config asks for it, unless waiting a minute
   would help; and news for those who listen live, at most once a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.domain import alerts, tidings
from gateway.domain.accounts import Account
from gateway.domain.plans import Catalog
from gateway.errors import Refusal, StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota.refusals import Situation
from gateway.store.alerts import NewAlert

log = logging.getLogger(__name__)

QUEUE_MAX: Final = 10_000
REMEMBERED_MAX: Final = 50_000
BATCH_MAX: Final = 500
FLUSH_S: Final = 0.1
RETRY_S: Final = 1.0
NEWS_EVERY_MS: Final = 60_000
NEWS_KEPT_MS: Final = 3_600_000
COMPLAIN_EVERY_S: Final = 60.0
_TEXT_MAX: Final = 500


class AlertStore(Protocol):
    async def raise_all(self, new: Sequence[NewAlert]) -> None: ...


class Notices:
    """A bounded queue between calls and the database. ``raised`` is told when something was written."""

    def __init__(
        self,
        store: AlertStore,
        metrics: Metrics,
        now_ms: Callable[[], int],
        *,
        raised: Callable[[], None] = lambda: None,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._now_ms = now_ms
        self._raised = raised
        self._queue: deque[NewAlert] = deque()
        self._queue_max = queue_max
        self._told: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._complained_s = -COMPLAIN_EVERY_S

    def threshold(self, account: Account, catalog: Catalog, wallet: str, permille: int) -> None:
        """An account's use passed one of ``alerts.warn_at``."""
        subscription, now_ms = account.subscription, self._now_ms()
        key = f"{wallet}:{permille}:{alerts.period_of(subscription, now_ms)}"
        if not self._is_new(account.id, alerts.THRESHOLD, key):
            return
        detail = tidings.threshold(catalog, subscription, wallet, permille)
        self._add(NewAlert(account.id, alerts.THRESHOLD, key, detail, now_ms))

    def refused(self, account_id: str, situation: Situation, refusal: Refusal) -> None:
        """A call was refused for what the account has or may."""
        now_ms, wallet = self._now_ms(), situation.feature.wallet
        wanted = situation.catalog.alerts.refused and not refusal.retry
        period = alerts.period_of(situation.subscription, now_ms)
        key = f"{refusal.code}:{wallet}:{period}"
        if wanted and self._is_new(account_id, alerts.REFUSED, key):
            self._add(NewAlert(account_id, alerts.REFUSED, key, refusal_detail(situation, refusal), now_ms))
            return  # whoever listens hears of the alert
        minute = f"{refusal.code}:{wallet}:news:{now_ms // NEWS_EVERY_MS}"
        if self._is_new(account_id, alerts.REFUSED, minute):
            detail = refusal_detail(situation, refusal)
            until_ms = now_ms + NEWS_KEPT_MS
            self._add(NewAlert(account_id, alerts.REFUSED, minute, detail, now_ms, news_until_ms=until_ms))

    def _is_new(self, account_id: str, kind: str, key: str) -> bool:
        """As far as this worker remembers."""
        about = (account_id, kind, key)
        if about in self._told:
            return False
        if len(self._queue) >= self._queue_max:
            self._drop(kind)
            return False
        self._told[about] = None
        if len(self._told) > REMEMBERED_MAX:
            self._told.popitem(last=False)
        return True

    def _drop(self, kind: str) -> None:
        self._metrics.alerts_dropped.add((kind,), 1)
        now_s = time.monotonic()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            log.error("alerts are dropped: %d wait already for the database", len(self._queue))

    def _add(self, new: NewAlert) -> None:
        self._queue.append(new)
        self._idle.clear()
        self._work.set()

    async def run(self) -> None:
        """Write what was noticed until cancelled; while the database is away it waits in the queue."""
        while True:
            await self._work.wait()
            self._work.clear()
            await asyncio.sleep(FLUSH_S)
            while self._queue:
                batch = [self._queue[index] for index in range(min(BATCH_MAX, len(self._queue)))]
                try:
                    await self._store.raise_all(batch)
                except StoreUnavailable:
                    await asyncio.sleep(RETRY_S)
                    continue
                for _ in batch:
                    self._queue.popleft()
                self._raised()
            self._idle.set()

    async def drained(self) -> None:
        """Wait until everything noticed so far is written."""
        await self._idle.wait()


def refusal_detail(situation: Situation, refusal: Refusal) -> dict[str, object]:
    """What the refused caller was told: with the way out of it."""
    detail = refusal.detail
    return {
        "reason": refusal.code,
        "title": refusal.title,
        "message": refusal.message[:_TEXT_MAX],
        **tidings.wallet_of(situation.catalog, situation.feature.wallet),
        "feature": situation.feature.name,
        "plan": situation.plan.label,
        "scope": detail.scope if detail is not None else None,
        "needed": detail.needed if detail is not None else None,
        "available": detail.available if detail is not None else None,
        "resets_at": detail.resets_at if detail is not None else None,
        "plans": list(detail.plans) if detail is not None else [],
    }
