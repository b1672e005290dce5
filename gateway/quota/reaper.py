"""What somebody must look after when nobody calls: charges left in the outbox, dead leases, pushes, lost confirms.

One worker of the whole installation holds the reaper's lease at a time; all its work is idempotent, so that two of them
for a moment do no harm. It rests while SQL is away.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gateway.domain.charges import BudgetLine, ChargeRow, GrantLine, Unreadable, decode, lapsed
from gateway.domain.turns import Turned
from gateway.errors import QuotaUnavailable, StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota.drift import Drift
from gateway.quota.rounds import Rounds
from gateway.quota.scribe import Scribe
from gateway.quota.turn import Turner
from gateway.quota.versions import Versions
from gateway.quota.watch import Watch
from limits.engine import Engine
from limits.errors import EngineUnavailable, LimitsError
from limits.model import ChargeState, OutboxEntry

log = logging.getLogger(__name__)

TICK_S = 1.0
LEASE_MS = 3_000  # with a tick, less than a third of any amnesty: a reaper's death must not look like an outage
ABANDONED_AFTER_MS = 5_000
SET_ASIDE_AFTER_MS = 300_000  # half of the age at which the outbox refuses calls
ENTRIES_AT_ONCE = 200
LAPSES_AT_ONCE = 50
ROUND_TICKS = 4  # each partition is looked at this often, in ticks
COMPARE_EVERY_TICKS = 5
SEQS_AT_ONCE = 256
LOOKED_AT_ONCE = 1_000
COUNTED_WITHIN_MS = 10_000  # by then Redis should have counted what SQL has
ACCOUNTS_EVERY_TICKS = 30
AHEAD_EVERY_TICKS = 60
KEPT_EVERY_TICKS = 10
BEGUN_EVERY_TICKS = 5


class SeqStore(Protocol):
    async def last_seqs(self, *, older_than_ms: int, newer_than_ms: int) -> Sequence[tuple[str, int]]: ...

    async def seqs_after(self, account_id: str, *, older_than_ms: int, limit: int) -> Sequence[tuple[str, int]]: ...


class AccountStore(Protocol):
    async def counts(self) -> Mapping[tuple[str, str], int]: ...


class AheadStore(Protocol):
    """Grants of periods that are about to start, inserted while the database is there."""

    async def due_ahead(self, *, now_ms: int, limit: int, skip: int) -> Sequence[str]: ...

    async def over(self, *, now_ms: int, limit: int, skip: int) -> Sequence[str]: ...

    async def begun_ahead(self, *, now_ms: int, limit: int, skip: int) -> Sequence[str]: ...

    async def ahead(self, account_id: str, *, now_ms: int) -> Turned | None: ...


class Tender(Protocol):
    """Holds that no worker renews."""

    async def tend(self, now_ms: int) -> None: ...


class Reaper:
    """The holder of the reaper's lease, or a worker waiting for it."""

    def __init__(
        self,
        engine: Engine,
        *,
        seqs: SeqStore,
        drift: Drift,
        accounts: AccountStore,
        periods: AheadStore,
        keeper: Tender,
        scribe: Scribe,
        turner: Turner,
        versions: Versions,
        watch: Watch,
        metrics: Metrics,
        partitions: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._seqs = seqs
        self._drift = drift
        self._accounts = accounts
        self._periods = periods
        self._keeper = keeper
        self._now_ms = now_ms
        self._scribe = scribe
        self._turner = turner
        self._versions = versions
        self._watch = watch
        self._metrics = metrics
        self._partitions = partitions
        self._owner = secrets.token_hex(8)
        # Periods granted ahead that have begun: what their turn brings besides, such as a rest of the last one.
        self._begun = Rounds("the turn", periods.begun_ahead, turner.turn)
        self._over = Rounds("the end of the period", periods.over, turner.turn)  # that nobody has noticed
        self._ahead = Rounds("the next period", periods.due_ahead, self._grant_ahead)
        self._ticks = 0
        self._looked: str | None = ""  # the last account that this leader has looked back at; None = at all of them
        self._look_again = False  # not all of them could be told
        self._lapses: list[frozenset[str]] = [frozenset()] * partitions  # charged ones, as last seen in each outbox

    async def run(self) -> None:
        """Tick until cancelled; an outage of Redis or SQL skips a tick."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                if await self._engine.lead("reaper", self._owner, LEASE_MS):
                    await self.tick()
                else:
                    self._looked = ""  # whoever leads next looks at all accounts once
            except (EngineUnavailable, QuotaUnavailable, StoreUnavailable) as error:
                log.debug("reaper: skipped a tick: %s", type(error).__name__)

    async def tick(self) -> None:
        """Pushes, and a share of the partitions: all of them in ``ROUND_TICKS``. Raises EngineUnavailable,
        StoreUnavailable."""
        self._ticks += 1
        await self._turner.deliver_pushes()
        share = range(self._ticks % ROUND_TICKS, self._partitions, ROUND_TICKS)
        tended = await asyncio.gather(*(self._tend(partition) for partition in share), return_exceptions=True)
        if self._ticks % COMPARE_EVERY_TICKS == 0:
            await self._compare()
        if self._ticks % ACCOUNTS_EVERY_TICKS == 1:
            counts = await self._accounts.counts()
            self._metrics.accounts.replace({(plan, status): number for (plan, status), number in counts.items()})
        if self._ticks % BEGUN_EVERY_TICKS == 1:
            await self._begun.go(self._now_ms())
        if self._ticks % KEPT_EVERY_TICKS == 2:
            await self._keeper.tend(self._now_ms())
        if self._ticks % AHEAD_EVERY_TICKS == 1:
            await self._over.go(self._now_ms())
            await self._ahead.go(self._now_ms())
            await self._versions.follow_all()
        await self._watch.look()
        for failure in tended:  # of one partition, and no reason to leave the rest undone
            if failure is not None:
                raise failure

    async def _compare(self) -> None:
        """Redis beside SQL, for accounts that were charged lately: have all charges been counted, and rightly?"""
        seqs = await self._seqs.last_seqs(older_than_ms=COUNTED_WITHIN_MS, newer_than_ms=60_000)
        await self._sync(seqs)
        await self._look_back()
        await self._drift.check([account_id for account_id, _ in seqs])

    async def _look_back(self) -> None:
        """A new leader does not know what the last one saw: once, and some at a time, it looks at every account."""
        if self._looked is None:
            return
        seqs = await self._seqs.seqs_after(self._looked, older_than_ms=COUNTED_WITHIN_MS, limit=LOOKED_AT_ONCE)
        self._look_again = not await self._sync(seqs) or self._look_again
        if len(seqs) == LOOKED_AT_ONCE:
            self._looked = seqs[-1][0]
        else:
            self._looked, self._look_again = "" if self._look_again else None, False

    async def _sync(self, seqs: Sequence[tuple[str, int]]) -> bool:
        """Tell Redis the last seqs; whether it knows them all. One whose server is away keeps no other waiting."""
        failed: list[tuple[str, BaseException]] = []
        for first in range(0, len(seqs), SEQS_AT_ONCE):
            some = seqs[first : first + SEQS_AT_ONCE]
            told = await asyncio.gather(
                *(self._engine.sync_seq(account_id, seq) for account_id, seq in some), return_exceptions=True
            )
            failed += [(some[place][0], error) for place, error in enumerate(told) if isinstance(error, BaseException)]
        for account_id, error in failed:
            if not isinstance(error, LimitsError):
                raise error
            log.warning("account %s cannot be compared with the ledger: %s", account_id, error)
        return not failed

    async def _grant_ahead(self, account_id: str, now_ms: int) -> None:
        """The next period's grants, up to a day early: a turn then survives an outage of the database, and is made up
        for when it is there."""
        turned = await self._periods.ahead(account_id, now_ms=now_ms)
        if turned is not None:
            self._turner.count(turned)
            await self._turner.push(account_id)

    async def _tend(self, partition: int) -> None:
        """Lapse what is due, and commit what lies too long in the outbox, whoever wrote it.

        A lapse that charges is counted when its charge is first seen in the outbox: calls of its account lapse leases
        too.
        """
        entries = await self._engine.outbox(partition, older_than_ms=ABANDONED_AFTER_MS, count=ENTRIES_AT_ONCE)
        rows, unreadable = _sorted_out(entries, self._now_ms())
        if rows:
            await self._scribe.write(rows)
        if unreadable:
            await self._scribe.set_aside(unreadable)
        lapses = frozenset(entry.charge.hold_id for entry in entries if entry.charge.state is ChargeState.LAPSED)
        if news := lapses - self._lapses[partition]:
            self._metrics.holds_lapsed.add(("charged",), len(news))
        self._lapses[partition] = lapses
        for _, _, is_charged in await self._engine.sweep(partition, count=LAPSES_AT_ONCE):
            if not is_charged:
                self._metrics.holds_lapsed.add(("released",), 1)


def _sorted_out(entries: Sequence[OutboxEntry], now_ms: int) -> tuple[list[ChargeRow], list[Unreadable]]:
    """Those that can be read, and those that could not be for so long that nobody will: what a newer release wrote
    waits for one, but not until its age keeps every call of its partition out."""
    rows, unreadable = [], []
    for entry in entries:
        charge = entry.charge
        try:
            rows.append(row_of(entry, ended_at_ms=now_ms - entry.age_ms))
        except ValueError as error:
            log.error("the charge of call %s in the outbox cannot be read: %s", charge.hold_id, error)
            if entry.age_ms >= SET_ASIDE_AFTER_MS:
                why = f"unreadable: {error}"
                state = charge.state.value
                unreadable.append(Unreadable(charge.hold_id, charge.account, state, why, charge.payload))
    return rows, unreadable


def row_of(entry: OutboxEntry, *, ended_at_ms: int) -> ChargeRow:
    """The usage row of an outbox entry: as its worker wrote it, or its note with what the lapse charges."""
    charge = entry.charge
    row = decode(charge.payload)
    if charge.state is ChargeState.SETTLED:
        return row
    lines = [GrantLine(line.wallet, line.number, line.amount) for line in charge.lines]
    budgets = [BudgetLine(line.number, line.starts_at_ms, line.amount) for line in charge.budgets]
    return lapsed(row, lines=lines, budgets=budgets, ended_at_ms=ended_at_ms)
