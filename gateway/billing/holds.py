"""What is in flight, for operators: an account's open holds, and the end of one that nobody ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.billing.desk import Desk, shown
from gateway.errors import NotFound, QuotaUnavailable
from gateway.quota.states import OpenHold, States


@dataclass(frozen=True, slots=True)
class InFlight:
    """A hold, and what it keeps of each wallet, in steps."""

    hold: OpenHold
    held: Mapping[str, int]


class HoldService:
    """Looking at holds, and releasing them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, account_ref: str) -> tuple[InFlight, ...]:
        """The oldest first. Raises AccountNotFound, QuotaUnavailable, StoreUnavailable."""
        account = await self._desk.account(account_ref)
        holds = await self._states().open_holds(account.id)
        wallets = {grant.number: grant.wallet for grant in await self._desk.store.grants.list(account.id)}
        return tuple(InFlight(hold, _held(hold, wallets)) for hold in holds)

    async def release(self, account_ref: str, hold_id: str, *, reason: str = "") -> None:
        """Give back what a hold keeps, without a charge. The hold of a call that lives comes back with its next
        renewal, and is settled as ever: this is for what nobody will end.

        Raises AccountNotFound, NotFound (no such open hold), QuotaUnavailable, StoreUnavailable.
        """
        desk = self._desk
        account = await desk.account(account_ref)
        states = self._states()
        if hold_id not in {hold.hold_id for hold in await states.open_holds(account.id)}:
            raise NotFound(f"This account has no open hold {shown(hold_id)}.", param="hold")
        await desk.store.ledger.note(
            "release_hold",
            account_id=account.id,
            actor=desk.actor,
            now_ms=desk.now_ms(),
            detail={"hold": hold_id, "reason": reason},
        )
        if await desk.store.metering.get(account.id, hold_id) is not None:
            await desk.store.metering.remove(hold_id)  # else its worker would say in Redis that it is still open
        await states.release(account.id, hold_id)

    def _states(self) -> States:
        if self._desk.states is None:
            raise QuotaUnavailable
        return self._desk.states


def _held(hold: OpenHold, wallets: Mapping[int, str]) -> Mapping[str, int]:
    held: dict[str, int] = {}
    for number, amount in hold.takes:
        wallet = wallets.get(number, "")
        held[wallet] = held.get(wallet, 0) + amount
    return held
