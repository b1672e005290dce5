"""What somebody must look after when nobody calls: charges left in the outbox, dead leases, pushes, lost confirms.

One worker of the whole installation holds the reaper's lease at a time; all its work is idempotent, so that two of them
for a moment do no harm. It rests while SQL is away.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.domain.charges import BudgetLine, ChargeRow, GrantLine, decode, lapsed
from gateway.domain.turns import Turned
from gateway.errors import QuotaUnavailable, StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota.scribe import Scribe
from gateway.quota.turn import Turner
from gateway.quota.versions import Versions
from limits.engine import Engine
from limits.errors import EngineUnavailable
from limits.model import ChargeState, OutboxEntry

log = logging.getLogger(__name__)

TICK_S = 1.0
LEASE_MS = 3_000  # with a tick, less than a third of any amnesty: a reaper's death must not look like an outage
ABANDONED_AFTER_MS = 5_000
ENTRIES_AT_ONCE = 200
LAPSES_AT_ONCE = 50
ROUND_TICKS = 4  # each partition is looked at this often, in ticks
SEQS_EVERY_TICKS = 5
AHEAD_EVERY_TICKS = 60


class SeqStore(Protocol):
    async def last_seqs(self, *, older_than_ms: int, newer_than_ms: int) -> Sequence[tuple[str, int]]: ...


class AheadStore(Protocol):
    """Grants of periods that are about to start, inserted while the database is there."""

    async def due_ahead(self, *, now_ms: int, limit: int = 100) -> Sequence[str]: ...

    async def begun_ahead(self, *, now_ms: int, limit: int = 100) -> Sequence[str]: ...

    async def ahead(self, account_id: str, *, now_ms: int) -> Turned | None: ...


class Reaper:
    """The holder of the reaper's lease, or a worker waiting for it."""

    def __init__(
        self,
        engine: Engine,
        *,
        seqs: SeqStore,
        periods: AheadStore,
        scribe: Scribe,
        turner: Turner,
        versions: Versions,
        metrics: Metrics,
        partitions: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._seqs = seqs
        self._periods = periods
        self._now_ms = now_ms
        self._scribe = scribe
        self._turner = turner
        self._versions = versions
        self._metrics = metrics
        self._partitions = partitions
        self._owner = secrets.token_hex(8)
        self._ticks = 0
        self._waiting = [0] * ROUND_TICKS

    async def run(self) -> None:
        """Tick until cancelled; an outage of Redis or SQL skips a tick."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                if await self._engine.lead("reaper", self._owner, LEASE_MS):
                    await self.tick()
            except (EngineUnavailable, QuotaUnavailable, StoreUnavailable) as error:
                log.debug("reaper: skipped a tick: %s", type(error).__name__)

    async def tick(self) -> None:
        """Pushes, and a share of the partitions: all of them in ``ROUND_TICKS``. Raises EngineUnavailable,
        StoreUnavailable."""
        self._ticks += 1
        await self._turner.deliver_pushes()
        share = range(self._ticks % ROUND_TICKS, self._partitions, ROUND_TICKS)
        self._waiting[self._ticks % ROUND_TICKS] = sum(
            await asyncio.gather(*(self._tend(partition) for partition in share))
        )
        self._metrics.outbox_entries.set((), sum(self._waiting))
        if self._ticks % SEQS_EVERY_TICKS == 0:
            for account_id, seq in await self._seqs.last_seqs(older_than_ms=10_000, newer_than_ms=60_000):
                await self._engine.sync_seq(account_id, seq)
        if self._ticks % AHEAD_EVERY_TICKS == 1:
            await self._grant_ahead()
            await self._versions.follow_all()

    async def _grant_ahead(self) -> None:
        """The next period's grants, up to a day early: a turn then survives an outage of the database, and is made up
        for when it is there."""
        now_ms = self._now_ms()
        for account_id in await self._periods.begun_ahead(now_ms=now_ms):
            await self._turner.turn(account_id, now_ms)
        for account_id in await self._periods.due_ahead(now_ms=now_ms):
            turned = await self._periods.ahead(account_id, now_ms=now_ms)
            if turned is not None:
                self._turner.count(turned)
                await self._turner.push(account_id)

    async def _tend(self, partition: int) -> int:
        """Lapse what is due, and commit what lies too long in the outbox, whoever wrote it."""
        await self._engine.sweep(partition, count=LAPSES_AT_ONCE)
        entries = await self._engine.outbox(partition, older_than_ms=ABANDONED_AFTER_MS, count=ENTRIES_AT_ONCE)
        if entries:
            now_ms = self._now_ms()
            await self._scribe.write([row_of(entry, ended_at_ms=now_ms - entry.age_ms) for entry in entries])
            for entry in entries:
                self._metrics.holds_lapsed.add((entry.charge.state.value,), 1)
        return len(entries)


def row_of(entry: OutboxEntry, *, ended_at_ms: int) -> ChargeRow:
    """The usage row of an outbox entry: as its worker wrote it, or its note with what the lapse charges."""
    charge = entry.charge
    row = decode(charge.payload)
    if charge.state is ChargeState.SETTLED:
        return row
    lines = [GrantLine(line.wallet, line.number, line.amount) for line in charge.lines]
    budgets = [BudgetLine(line.number, line.starts_at_ms, line.amount) for line in charge.budgets]
    return lapsed(row, lines=lines, budgets=budgets, ended_at_ms=ended_at_ms)
