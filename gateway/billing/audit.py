"""The audit: Redis = ledger = balances, account by account; and Redis made anew from SQL.

Rules
1. The audit changes nothing. What it reports it has seen at rest: an account that is charged meanwhile is looked at
   again until it holds still, and is said to be moving if it never does.
2. Redis is compared where it counts: an account that must be loaded before its next call will be loaded from SQL.
3. A rebuild is safe while serving: holds and charges on their way stay, only sums and grants are taken from SQL.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from gateway.billing.desk import Desk
from gateway.domain.accounts import AccountSnapshot, GrantState
from gateway.domain.grants import is_open
from gateway.errors import QuotaUnavailable
from gateway.quota.states import AccountView, States
from gateway.store.audit import Difference

LOOK_AGAIN_S: Final = 0.1
LOOKS: Final = 30
AT_ONCE: Final = 256
T = TypeVar("T")


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
        async for group in _grouped(self._desk.store.ledger.audit(account_id)):
            looks = await self._compare(states, [found.account_id for found in group])
            for found in group:
                seen = looks.get(found.account_id, [])
                last = seen[-1].differences if seen else ()
                moving = bool(last) and seen[0].progress != seen[-1].progress
                differences = found.differences if moving else (*found.differences, *last)
                yield Audited(found.account_id, found.charges, bool(seen), moving, differences)

    async def note(self, action: str, *, detail: Mapping[str, object]) -> None:
        """A line of the audit log about an act on the installation. Raises StoreUnavailable."""
        desk = self._desk
        await desk.store.ledger.note(action, account_id=None, actor=desk.actor, now_ms=desk.now_ms(), detail=detail)

    async def count(self) -> int:
        """How many accounts there are. Raises StoreUnavailable."""
        return sum((await self._desk.store.accounts.counts()).values())

    async def rebuild(self) -> AsyncIterator[str]:
        """Load each account into Redis from SQL; yields those that are done. Raises QuotaUnavailable,
        StoreUnavailable."""
        states = self._states()
        async for group in _grouped(self._desk.store.accounts.ids()):
            await states.rebuild(group)
            for each in group:
                yield each

    async def _compare(self, states: States, account_ids: Sequence[str]) -> Mapping[str, list[_Look]]:
        """Look until there is no difference; nothing is said of accounts of which Redis has nothing that counts."""
        looks: dict[str, list[_Look]] = defaultdict(list)
        differing = list(account_ids)
        for _ in range(LOOKS):
            seen = await self._look(states, differing)
            for account_id in set(differing) - seen.keys():
                looks.pop(account_id, None)
            for account_id, look in seen.items():
                looks[account_id].append(look)
            differing = [account_id for account_id, look in seen.items() if look.differences]
            if not differing:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        return looks

    async def _look(self, states: States, account_ids: Sequence[str]) -> dict[str, _Look]:
        """Redis and SQL side by side, for those accounts that Redis has."""
        snapshots = await self._desk.store.state.snapshots(account_ids)
        wallets = tuple(sorted({grant.wallet for snapshot in snapshots for grant in snapshot.grants}))
        views = await states.loaded([each.account_id for each in snapshots], wallets)
        there = ((each, views.get(each.account_id)) for each in snapshots)
        return {each.account_id: _side_by_side(each, view) for each, view in there if view is not None}

    def _states(self) -> States:
        if self._desk.states is None:
            raise QuotaUnavailable
        return self._desk.states


def _side_by_side(snapshot: AccountSnapshot, view: AccountView) -> _Look:
    counted = {grant.number: grant for _, grants in view.wallets for grant in grants}
    budgets = {number: (starts, count, pending) for number, starts, count, pending, _ in view.budgets}
    found: list[Difference] = []

    def compare(what: str, expected: int | str, there: int | str) -> None:
        if expected != there:
            found.append(Difference(snapshot.account_id, f"Redis: {what}", expected, there))

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


def _open_grants(snapshot: AccountSnapshot, now_ms: int) -> list[GrantState]:
    return [grant for grant in snapshot.grants if is_open(grant, now_ms)]


async def _grouped(items: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    """At most ``AT_ONCE`` at a time, in order."""
    group: list[T] = []
    async for item in items:
        group.append(item)
        if len(group) == AT_ONCE:
            yield group
            group = []
    if group:
        yield group
