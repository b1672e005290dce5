"""How grants reach Redis: load a stale account, turn a finished period, deliver what the database changed.

Rules
1. ``load`` is the only way in: one consistent snapshot of SQL, under the ticket that made the account stale.
2. One load per account at a time in this worker; whoever comes meanwhile waits for its end.
3. A push is deleted only after the account was marked stale: from then on no reserve passes before a load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from uuid_utils import uuid4

from gateway.domain.accounts import AccountSnapshot
from gateway.domain.turns import Turned
from gateway.metrics import Metrics
from gateway.quota.translate import snapshot_of
from gateway.store.moves import Taken
from limits.engine import Engine
from limits.errors import LimitsError
from limits.model import Stale

log = logging.getLogger(__name__)


class StateStore(Protocol):
    async def snapshot(self, account_id: str) -> AccountSnapshot: ...

    async def snapshots(self, account_ids: Sequence[str]) -> Sequence[AccountSnapshot]: ...

    async def turn(self, account_id: str, *, now_ms: int, taken: Taken | None = None) -> Turned: ...

    def rolling(self) -> tuple[str, ...]: ...

    async def pushes(self, *, limit: int, after: int = 0) -> Sequence[tuple[int, str]]: ...

    async def delete_pushes(self, ids: Sequence[int]) -> None: ...


def nonce() -> str:
    """A ticket: unguessable and never repeated (a random number made inside Redis would repeat after a restart)."""
    return uuid4().hex[:16]


class Turner:
    """Loads, turns and pushes."""

    def __init__(self, engine: Engine, store: StateStore, metrics: Metrics) -> None:
        self._engine = engine
        self._store = store
        self._metrics = metrics
        self._passed = 0  # the last push of the last delivery, where it has to begin behind it
        self._flights: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def load(self, account_id: str, ticket: str) -> None:
        """Bring the snapshot of an account that Redis did not have. Raises StoreUnavailable, EngineUnavailable."""
        await self._once((account_id, "load"), lambda: self._rebuild(account_id, ticket))

    async def turn(self, account_id: str, now_ms: int) -> None:
        """Let SQL decide what follows a finished period, then load it. Raises StoreUnavailable, EngineUnavailable."""
        await self._once((account_id, "turn"), lambda: self._turn(account_id, now_ms))

    async def push(self, account_id: str) -> None:
        """Mark stale under a new ticket and load: what an account's change in SQL needs to count at once."""
        ticket = await self._engine.mark_stale(account_id, ticket=nonce())
        await self._load(account_id, ticket)

    async def push_all(self, account_ids: Sequence[str]) -> None:
        """The same for many accounts: a few statements, two writes. Raises StoreUnavailable, EngineUnavailable."""
        tickets = await asyncio.gather(*(self._engine.mark_stale(each, ticket=nonce()) for each in account_ids))
        standing = dict(zip(account_ids, tickets, strict=True))
        snapshots = await self._store.snapshots(account_ids)
        loads = (self._engine.load(snapshot_of(each), ticket=standing[each.account_id]) for each in snapshots)
        await asyncio.gather(*loads)

    async def catch_up(self, account_id: str) -> None:
        """A push by whoever finds Redis behind the database. Raises StoreUnavailable, EngineUnavailable."""
        await self._once((account_id, "push"), lambda: self.push(account_id))

    async def deliver_pushes(self, *, limit: int = 100) -> int:
        """Deliver some of what is waiting in SQL; answers how many accounts. Those that cannot be delivered, however
        many, keep no other waiting: the next delivery begins behind them, and comes to them again at the end."""
        waiting = await self._store.pushes(limit=limit, after=self._passed)
        accounts = list(dict.fromkeys(account_id for _, account_id in waiting))
        failed = False
        for account_id in accounts:
            try:
                ticket = await self._engine.mark_stale(account_id, ticket=nonce())
                await self._store.delete_pushes([push_id for push_id, owner in waiting if owner == account_id])
                await self._load(account_id, ticket)
            except LimitsError as error:  # where it lies is away, or it cannot be loaded
                failed = True
                log.warning("what changed of account %s has not reached Redis: %s", account_id, error)
        self._passed = waiting[-1][0] if failed and len(waiting) == limit else 0
        return len(accounts)

    async def _load(self, account_id: str, ticket: str) -> bool:
        snapshot = await self._store.snapshot(account_id)
        return await self._engine.load(snapshot_of(snapshot), ticket=ticket)

    async def _rebuild(self, account_id: str, ticket: str) -> None:
        if await self._load(account_id, ticket):
            self._metrics.rebuilds.add((), 1)

    async def _turn(self, account_id: str, now_ms: int) -> None:
        taken = await self._taken(account_id)
        self.count(await self._store.turn(account_id, now_ms=now_ms, taken=taken))
        await self.push(account_id)

    async def _taken(self, account_id: str) -> Taken | None:
        """What calls have taken of the grants whose rest may roll over: after its end nothing more is taken of a
        period. None when nothing rolls over, or Redis does not know."""
        wallets = self._store.rolling()
        if not wallets:
            return None
        view = await self._engine.peek(account_id, ticket=nonce(), wallets=wallets)
        if isinstance(view, Stale):
            await self._rebuild(account_id, view.ticket)
            view = await self._engine.peek(account_id, ticket=nonce(), wallets=wallets)
        if isinstance(view, Stale):
            return None
        states = [grant for _, grants in view.wallets for grant in grants]
        return Taken({grant.number: (grant.counted + grant.pending, grant.held) for grant in states})

    def count(self, turned: Turned) -> None:
        """A period turned, and perhaps the plan changed with it. Whoever finds it done counts nothing."""
        if turned.outcome != "stay":
            self._metrics.period_turns.add((turned.plan, turned.outcome), 1)
        if turned.to != turned.plan:
            self._metrics.subscription_changes.add((turned.plan, turned.to or "none", turned.outcome), 1)

    async def _once(self, key: tuple[str, str], work: Callable[[], Awaitable[None]]) -> None:
        """Single flight: the work runs as its own task, so that a caller who leaves does not stop it for the others."""
        task = self._flights.get(key)
        if task is None:

            async def run() -> None:
                await work()

            task = asyncio.create_task(run())
            self._flights[key] = task
            task.add_done_callback(lambda _: self._flights.pop(key, None))
        await asyncio.shield(task)
