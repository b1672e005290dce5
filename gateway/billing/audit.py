"""The audit: Redis = ledger = balances, account by account; and Redis made anew from SQL.

Rules
1. The audit changes nothing. What it reports it has seen at rest: an account that is charged meanwhile is looked at
   again until it holds still, and is said to be moving if it never does.
2. Redis is compared where it counts: an account that must be loaded before its next call will be loaded from SQL.
3. A rebuild is safe while serving: holds and charges on their way stay, only sums and grants are taken from SQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from gateway.billing.desk import Desk
from gateway.domain.accounts import AccountSnapshot, GrantState
from gateway.domain.grants import is_open
from gateway.errors import QuotaUnavailable
from gateway.quota.states import States
from gateway.store.ledger import Difference

LOOK_AGAIN_S: Final = 0.1
LOOKS: Final = 30
REBUILDS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Audited:
    """One account. ``loaded``: Redis had it and was compared; ``moving``: it was charged all the while."""

    account_id: str
    charges: int
    loaded: bool
    moving: bool
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """Redis and SQL side by side. ``progress`` differs between two looks when something went on between them."""

    differences: tuple[Difference, ...]
    progress: tuple[int, ...]


class AuditService:
    """Comparing, and making anew."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def audit(self, account_ref: str | None = None) -> AsyncIterator[Audited]:
        """One account, or all in the order of their creation. Raises AccountNotFound, QuotaUnavailable (no Redis),
        StoreUnavailable."""
        states = self._states()
        account_id = None if account_ref is None else (await self._desk.account(account_ref)).id
        async for found in self._desk.store.ledger.audit(account_id):
            looks = await self._compare(states, found.account_id)
            last = looks[-1].differences if looks else ()
            moving = bool(last) and looks[0].progress != looks[-1].progress
            differences = found.differences if moving else (*found.differences, *last)
            yield Audited(found.account_id, found.charges, bool(looks), moving, differences)

    async def count(self) -> int:
        """How many accounts there are. Raises StoreUnavailable."""
        return sum((await self._desk.store.accounts.counts()).values())

    async def rebuild(self) -> AsyncIterator[str]:
        """Load each account into Redis from SQL; yields those that are done. Raises QuotaUnavailable,
        StoreUnavailable."""
        states = self._states()
        group: list[str] = []
        async for account_id in self._desk.store.accounts.ids():
            group.append(account_id)
            if len(group) == REBUILDS_AT_ONCE:
                await asyncio.gather(*map(states.rebuild, group))
                for each in group:
                    yield each
                group = []
        await asyncio.gather(*map(states.rebuild, group))
        for each in group:
            yield each

    async def _compare(self, states: States, account_id: str) -> list[_Look]:
        """Look until there is no difference; empty when Redis has nothing that counts."""
        looks: list[_Look] = []
        if await states.loaded(account_id, ()) is None:
            return looks
        for _ in range(LOOKS):
            look = await self._look(states, account_id)
            if look is None:
                return []
            looks.append(look)
            if not look.differences:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        return looks

    async def _look(self, states: States, account_id: str) -> _Look | None:
        snapshot = await self._desk.store.state.snapshot(account_id)
        wallets = tuple(sorted({grant.wallet for grant in snapshot.grants}))
        view = await states.loaded(account_id, wallets)
        if view is None:
            return None
        counted = {grant.number: grant for _, grants in view.wallets for grant in grants}
        budgets = {number: (starts, count, pending) for number, starts, count, pending, _ in view.budgets}
        found: list[Difference] = []

        def compare(what: str, expected: int | str, there: int | str) -> None:
            if expected != there:
                found.append(Difference(account_id, f"Redis: {what}", expected, there))

        compare("last seq", snapshot.seq, view.seq)
        for grant in _open_grants(snapshot, view.server_ms):
            there = counted.get(grant.number)
            compare(f"amount of grant {grant.number}", grant.amount, "missing" if there is None else there.amount)
            if there is not None:
                compare(f"posted on grant {grant.number}", grant.used, there.counted + there.pending)
                compare(f"pending on grant {grant.number}", 0, there.pending)
        for use in snapshot.budgets:
            starts_at_ms, count, pending = budgets.get(use.number, (use.starts_at_ms, 0, 0))
            if starts_at_ms == use.starts_at_ms:
                compare(f"used of budget {use.number}", use.used, count + pending)
        pendings = tuple(grant.pending for grant in counted.values())
        return _Look(tuple(found), (snapshot.seq, view.seq, *pendings))

    def _states(self) -> States:
        if self._desk.states is None:
            raise QuotaUnavailable
        return self._desk.states


def _open_grants(snapshot: AccountSnapshot, now_ms: int) -> list[GrantState]:
    return [grant for grant in snapshot.grants if is_open(grant, now_ms)]
