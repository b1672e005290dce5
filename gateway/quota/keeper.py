"""Looks after holds that no worker renews: back into a Redis that forgot them, and charged when nobody ends them.

Rules
1. A Redis that lost its data gets back every kept hold whose lease runs, for as long as the lease still runs.
2. A lease that is over lapses in Redis, like a call's. Only what Redis forgot for good is charged from SQL, some time
   later: the first of the two counts, and whatever its client says afterwards corrects it.
3. All of it may be done by several workers at once.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final, Protocol

from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota import kept
from gateway.quota.scribe import Scribe
from gateway.store.metering import HoldRow
from limits.engine import Engine
from limits.model import Hold

log = logging.getLogger(__name__)

DAY_MS: Final = 86_400_000
OVERDUE_MAX_MS: Final = 7 * DAY_MS
KEPT_MS: Final = 90 * DAY_MS  # for so long after its lease a hold can still be settled
PAGE: Final = 500
LEASE_MIN_MS: Final = 1_000


class HoldStore(Protocol):
    async def live(self, *, now_ms: int, after: str = "", limit: int = 500) -> tuple[HoldRow, ...]: ...

    async def overdue(self, *, from_ms: int, to_ms: int, limit: int = 100) -> tuple[HoldRow, ...]: ...

    async def forget(self, *, before_ms: int) -> None: ...


class AnswerStore(Protocol):
    async def forget(self, *, now_ms: int) -> None: ...


class Keeper:
    """Works on the rows that ``Metered`` keeps. ``patience_ms``: how long after its lease a hold is left to Redis."""

    def __init__(
        self,
        engine: Engine,
        holds: HoldStore,
        answers: AnswerStore,
        scribe: Scribe,
        metrics: Metrics,
        *,
        patience_ms: int,
    ) -> None:
        self._engine = engine
        self._holds = holds
        self._answers = answers
        self._scribe = scribe
        self._metrics = metrics
        self._patience_ms = patience_ms

    async def bring_back(self, now_ms: int) -> None:
        """Into a Redis that may have forgotten them. Raises EngineUnavailable."""
        after = ""
        try:
            while rows := await self._holds.live(now_ms=now_ms, after=after, limit=PAGE):
                partitions: dict[int, list[Hold]] = {}
                for row in rows:
                    hold = replace(kept.read(row), lease_ms=max(LEASE_MIN_MS, row.lease_ends_at_ms - now_ms))
                    partitions.setdefault(self._engine.partition(row.account_id), []).append(hold)
                for partition, holds in partitions.items():
                    await self._engine.renew(partition, holds)
                after = rows[-1].id
        except StoreUnavailable:
            log.warning("the database is away: kept holds are not brought back, and are charged when they end")

    async def tend(self, now_ms: int) -> None:
        """Charge what is overdue, and forget what is long over. Raises StoreUnavailable."""
        due_ms = now_ms - self._patience_ms
        rows = await self._holds.overdue(from_ms=now_ms - OVERDUE_MAX_MS, to_ms=due_ms)
        if rows:
            await self._scribe.write([kept.abandoned(row, now_ms=now_ms) for row in rows])
            self._metrics.holds_lapsed.add(("charged",), len(rows))
        await self._holds.forget(before_ms=now_ms - KEPT_MS)
        await self._answers.forget(now_ms=now_ms)
