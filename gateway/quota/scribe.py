"""The way of a charge from this worker into SQL, and back to Redis as a confirmation.

Rules
1. Every settled charge is kept in memory and written within ``FLUSH_S``, whether or not Redis answered its settle.
2. A commit whose answer was lost is repeated: SQL knows the ids it has. A confirm is repeated until answered.
3. Memory is bounded: over ``KEPT_MAX`` new work is refused (``full``); settles never are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from gateway.domain.charges import ChargeRow, Committed, Unreadable
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from limits import model as engine_model
from limits.engine import CONFIRMS_PER_CALL, Engine
from limits.errors import EngineUnavailable, LimitsError

log = logging.getLogger(__name__)

FLUSH_S = 0.1  # one transaction for all that ends meanwhile: its price is shared
BATCH_MAX = 500
RETRY_S = 0.5
CALLS_AT_ONCE = 64
KEPT_MAX = 50_000
_STATES = {state.value: state for state in engine_model.ChargeState}


class ChargeWriter(Protocol):
    async def commit(self, rows: Sequence[ChargeRow]) -> list[Committed]: ...

    async def set_aside(self, charges: Sequence[Unreadable]) -> list[Committed]: ...


def confirm_of(committed: Committed) -> engine_model.Confirm:
    """What SQL decided, in the engine's words."""
    return engine_model.Confirm(committed.account_id, committed.hold_id, _STATES[committed.state], committed.changes)


class Scribe:
    """Writes charges in batches, then confirms them."""

    def __init__(self, writer: ChargeWriter, engine: Engine, metrics: Metrics) -> None:
        self._writer = writer
        self._engine = engine
        self._metrics = metrics
        self._rows: deque[tuple[ChargeRow, float]] = deque()
        self._confirms: dict[tuple[str, str], engine_model.Confirm] = {}  # by account and hold
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.store_up = True

    @property
    def kept(self) -> int:
        """Charges in memory that SQL or Redis has not answered yet."""
        return len(self._rows) + len(self._confirms)

    @property
    def full(self) -> bool:
        return self.kept >= KEPT_MAX

    def add(self, row: ChargeRow) -> None:
        """Never blocks, never refuses: a charge that was earned is kept."""
        self._rows.append((row, time.monotonic()))
        if self._idle.is_set():
            self._wake()

    async def write(self, rows: Sequence[ChargeRow]) -> None:
        """Commit and queue the confirms (also for entries found in the outbox). Raises StoreUnavailable."""
        self._confirm_soon(await self._writer.commit(rows))

    async def set_aside(self, charges: Sequence[Unreadable]) -> None:
        """Keep what cannot be read for the audit, and let Redis forget it. Raises StoreUnavailable."""
        self._confirm_soon(await self._writer.set_aside(charges))

    def _confirm_soon(self, committed: Iterable[Committed]) -> None:
        for item in committed:
            self._keep(confirm_of(item))
        self._wake()

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()

    async def decide(self, row: ChargeRow) -> None:
        """Commit one charge now and tell Redis at once, or, while it is away, as soon as it answers: for those who must
        know what SQL made of it. Raises StoreUnavailable: perhaps booked, repeat."""
        committed = await self._writer.commit([row])
        try:
            await self._engine.confirm(confirm_of(committed[0]))
        except EngineUnavailable:
            self._confirm_soon(committed)

    async def run(self) -> None:
        """Write and confirm until cancelled; never loses what is in memory to an exception of a dependency."""
        if self.kept:  # started again after a failure
            self._wake()
        else:
            self._idle.set()
        while True:
            await self._work.wait()
            self._work.clear()
            await asyncio.sleep(FLUSH_S)
            wrote = await self._flush_rows()
            confirmed = await self._flush_confirms()
            if self._rows or self._confirms:
                self._work.set()
                if not (wrote and confirmed):
                    await asyncio.sleep(RETRY_S)
            else:
                self._idle.set()

    async def drained(self) -> None:
        """Wait until everything known so far is written and confirmed."""
        await self._idle.wait()

    async def _flush_rows(self) -> bool:
        """One batch at a time, in order; False when the database did not answer."""
        while self._rows:
            batch = list(islice(self._rows, BATCH_MAX))
            try:
                await self.write([row for row, _ in batch])
            except StoreUnavailable:
                if self.store_up:
                    log.warning("the database is away: charges wait in memory and in the outbox")
                self.store_up = False
                return False
            if not self.store_up:
                log.warning("the database is back")
            self.store_up = True
            now_s = time.monotonic()
            for _, added_s in batch:
                self._rows.popleft()
                self._metrics.settle_lag.observe((), now_s - added_s)
        return True

    async def _flush_confirms(self) -> bool:
        """Confirms leave together, each once, an account's in one call; those unanswered stay, behind the others: a
        server that is away must not keep the rest from theirs."""
        calls = list(_calls(self._confirms.values()))
        self._confirms = {}
        failed: list[engine_model.Confirm] = []
        while calls:
            some, calls = calls[:CALLS_AT_ONCE], calls[CALLS_AT_ONCE:]
            results = await asyncio.gather(*(self._confirm(call) for call in some))
            for call, done in zip(some, results, strict=True):
                failed += () if done else call
            if not any(results):
                break
        for confirm in (*(item for call in calls for item in call), *failed):
            self._keep(confirm)
        return not failed

    async def _confirm(self, call: Sequence[engine_model.Confirm]) -> bool:
        """Whether Redis answered. What it rejects is dropped: its entry in the outbox tells of it again."""
        try:
            await self._engine.confirm(*call)
        except EngineUnavailable:
            return False
        except (LimitsError, ValueError) as error:
            if len(call) > 1:  # one of them, and no reason to keep the others waiting
                return all([await self._confirm([item]) for item in call])
            log.error("the charge of call %s cannot be confirmed", call[0].hold_id, exc_info=error)
        return True

    def _keep(self, confirm: engine_model.Confirm) -> None:
        """Of two answers about one charge the one that says more: the outbox's finder and its owner may both ask."""
        key = (confirm.account, confirm.hold_id)
        known = self._confirms.get(key)
        if known is None or len(confirm.deltas) > len(known.deltas):
            self._confirms[key] = confirm


def _calls(confirms: Iterable[engine_model.Confirm]) -> Iterator[list[engine_model.Confirm]]:
    """Confirms by account, at most ``CONFIRMS_PER_CALL`` each; second calls come after all first ones."""
    accounts: dict[str, list[engine_model.Confirm]] = {}
    for confirm in confirms:
        accounts.setdefault(confirm.account, []).append(confirm)
    most = max(map(len, accounts.values()), default=0)
    for first in range(0, most, CONFIRMS_PER_CALL):
        for of_account in accounts.values():
            if call := of_account[first : first + CONFIRMS_PER_CALL]:
                yield call
