"""This worker's live holds: leases renewed, first bytes told, all of them re-asserted after Redis lost them.

Rules
1. Twice a second each partition with live holds gets one beat. It carries the holds whose first byte is news and those
   whose lease is a third over; when the partition's record changed, it carries all of them.
2. A partition whose record changed takes no new reserve of this worker before its holds are re-asserted.
3. A hold leaves this registry before its settle or release is sent, so that no beat can bring it back.
4. What one partition costs does not grow with the holds of the others: when Redis has forgotten, all must be
   re-asserted within a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from limits.engine import Engine
from limits.errors import EngineUnavailable
from limits.model import Hold
from limits.values import dataclass

BEAT_S = 0.5
HOLDS_PER_BEAT_MAX = 512


@dataclass(slots=True)
class _Live:
    hold: Hold
    partition: int
    taken_at_s: float
    renewed_at_s: float
    first_byte: bool = False
    told_first_byte: bool = False

    def now(self) -> Hold:
        """The hold as Redis should know it."""
        return replace(self.hold, first_byte=True) if self.first_byte else self.hold


def _nothing() -> None:
    """Nobody wants to know."""


class Holds:
    """The registry and its beat."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.on_other_record: Callable[[], object] = _nothing
        self.stale: set[int] = set()  # partitions whose record changed since their holds were sent
        self._live: dict[str, _Live] = {}
        self._of: defaultdict[int, dict[str, _Live]] = defaultdict(dict)  # the same by partition
        self._records: dict[int, str] = {}
        self._locks: dict[int, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._live)

    def oldest_age_s(self) -> float:
        """Age of the oldest live hold, seconds."""
        now_s = time.monotonic()
        return max(0.0, now_s - min((live.taken_at_s for live in self._live.values()), default=now_s))

    def add(self, hold: Hold) -> None:
        now_s, partition = time.monotonic(), self._engine.partition(hold.account)
        live = self._live[hold.hold_id] = _Live(hold, partition, now_s, now_s)
        self._of[partition][hold.hold_id] = live

    def first_byte(self, hold: Hold) -> None:
        """The upstream's first byte came: from now on a lapse charges."""
        live = self._live.get(hold.hold_id)
        if live is not None:
            live.first_byte = True

    def remove(self, hold: Hold) -> bool:
        """Take a hold out before its end is sent; answers whether its first byte came."""
        live = self._live.pop(hold.hold_id, None)
        if live is None:
            return False
        del self._of[live.partition][hold.hold_id]
        return live.first_byte

    def saw_record(self, partition: int, record: str) -> None:
        """Most replies name the partition's record: another one means that Redis forgot, or is another Redis."""
        known = self._records.get(partition)
        if known == record:
            return
        self._records[partition] = record
        if known is not None:
            if self._of[partition]:
                self.stale.add(partition)
            self.on_other_record()

    async def reassert(self, partition: int) -> None:
        """Send all live holds of a stale partition. One at a time per partition. Raises EngineUnavailable."""
        lock = self._locks.setdefault(partition, asyncio.Lock())
        async with lock:
            while partition in self.stale:
                record = self._records.get(partition)
                await self._send(partition, list(self._of[partition].values()))
                if self._records.get(partition) == record:  # else Redis forgot again in between
                    self.stale.discard(partition)

    async def beat(self) -> None:
        """One beat of every partition with live holds; all of them leave in one write."""
        now_s = time.monotonic()
        results = await asyncio.gather(
            *(
                self._beat_partition(partition, list(holds.values()), now_s)
                for partition, holds in self._of.items()
                if holds
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, EngineUnavailable):
                raise result

    async def _beat_partition(self, partition: int, holds: Sequence[_Live], now_s: float) -> None:
        if partition in self.stale:
            await self.reassert(partition)
            return
        await self._send(partition, [live for live in holds if _is_due(live, now_s)])
        if partition in self.stale:
            await self.reassert(partition)

    async def _send(self, partition: int, due: Sequence[_Live]) -> None:
        for chunk in _chunks(due, HOLDS_PER_BEAT_MAX):  # some end while an earlier chunk is under way
            sent = [(live, live.now()) for live in chunk if self._live.get(live.hold.hold_id) is live]
            state = await self._engine.renew(partition, [hold for _, hold in sent])
            now_s = time.monotonic()
            for live, hold in sent:
                live.renewed_at_s = now_s
                live.told_first_byte = live.told_first_byte or hold.first_byte
            self.saw_record(partition, state.record)

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await asyncio.sleep(BEAT_S)
            await self.beat()


def _is_due(live: _Live, now_s: float) -> bool:
    news = live.first_byte and not live.told_first_byte
    return news or now_s - live.renewed_at_s >= live.hold.lease_ms / 3000


def _chunks(items: Sequence[_Live], size: int) -> Iterator[Iterable[_Live]]:
    """Slices of at most ``size``; one empty slice when there is nothing, since an empty renew is a beat."""
    if not items:
        yield ()
    for start in range(0, len(items), size):
        yield items[start : start + size]
