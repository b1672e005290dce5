"""What Redis holds of an account, for those who serve no call: services, reports, the audit, a rebuild.

Rules
1. Telling Redis of a change is a courtesy: the change is in SQL with a push that the reaper delivers, so that Redis
   being away is an answer here, not an error.
2. ``view`` is what a call would see now: a stale account is loaded first, a finished period turned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.errors import QuotaUnavailable, StoreUnavailable
from gateway.quota.turn import Turner, nonce
from limits.engine import Engine
from limits.errors import EngineUnavailable
from limits.model import AccountView as AccountView  # what ``view`` answers, for those who may not know the engine
from limits.model import OpenHold as OpenHold
from limits.model import Stale

ATTEMPTS_MAX = 8  # another one may make the account stale, or turn it, between two of our steps


class States:
    """Accounts as Redis knows them."""

    def __init__(self, engine: Engine, turner: Turner) -> None:
        self._engine = engine
        self._turner = turner

    async def deliver(self, account_id: str) -> bool:
        """Tell Redis that SQL changed; False when that has to wait for the reaper."""
        try:
            await self._turner.push(account_id)
        except (EngineUnavailable, StoreUnavailable):
            return False
        return True

    async def open_holds(self, account_id: str) -> tuple[OpenHold, ...]:
        """What is in flight, the oldest first. Raises QuotaUnavailable."""
        try:
            return await self._engine.open_holds(account_id)
        except EngineUnavailable as error:
            raise QuotaUnavailable from error

    async def release(self, account_id: str, hold_id: str) -> bool:
        """End a hold without a charge; False when it is not open. Raises QuotaUnavailable."""
        try:
            return await self._engine.release_id(account_id, hold_id)
        except EngineUnavailable as error:
            raise QuotaUnavailable from error

    async def rebuild(self, account_ids: Sequence[str]) -> None:
        """Load the accounts from SQL, whatever Redis holds. Raises QuotaUnavailable, StoreUnavailable."""
        try:
            await self._turner.push_all(account_ids)
        except EngineUnavailable as error:
            raise QuotaUnavailable from error

    async def loaded(self, account_ids: Sequence[str], wallets: tuple[str, ...]) -> dict[str, AccountView]:
        """Those of the accounts that lie in Redis and need no load before they count. Raises QuotaUnavailable."""
        peeks = (self._engine.peek(each, ticket=nonce(), wallets=wallets) for each in account_ids)
        try:
            views = await asyncio.gather(*peeks)
        except EngineUnavailable as error:
            raise QuotaUnavailable from error
        found = zip(account_ids, views, strict=True)
        return {account_id: view for account_id, view in found if isinstance(view, AccountView)}

    async def view(self, account_id: str, wallets: tuple[str, ...]) -> AccountView:
        """The account as its next call would find it. Raises QuotaUnavailable, AccountNotFound, StoreUnavailable."""
        try:
            for _ in range(ATTEMPTS_MAX):
                view = await self._engine.peek(account_id, ticket=nonce(), wallets=wallets)
                if isinstance(view, Stale):
                    await self._turner.load(account_id, view.ticket)
                elif 0 < view.turn_at_ms <= view.server_ms:
                    await self._turner.turn(account_id, view.server_ms)
                else:
                    return view
        except EngineUnavailable as error:
            raise QuotaUnavailable from error
        raise QuotaUnavailable
