"""Amounts put into wallets and taken out again, by hand."""

from __future__ import annotations

from gateway.billing.accounts import MemberService
from gateway.billing.desk import Desk, amount
from gateway.domain.accounts import Account, GrantState
from gateway.domain.units import Meter
from gateway.errors import RequestError
from gateway.store.grants import Adjusted


class GrantService:
    """Gifts and adjustments."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def grant(
        self,
        account_ref: str,
        text: str,
        *,
        wallet: str | None = None,
        reason: str = "",
        expires_at_ms: int = 0,
        key: str | None = None,
        user: str | None = None,
    ) -> tuple[Meter, GrantState]:
        """A gift to an account, or to a user, whose budget in this meter rises with it. The same ``key`` again answers
        the grant that is there.

        Raises AccountNotFound, NotFound (user), RequestError (amount, wallet, an end in the past), BadRequest,
        StoreUnavailable.
        """
        desk = self._desk
        meter = desk.meter(wallet)
        steps = amount(meter, text, param="amount")
        account = await desk.account(account_ref)
        now_ms = desk.now_ms()
        if 0 < expires_at_ms <= now_ms:
            raise RequestError("The grant's end must be in the future.", param="expires")
        made = await desk.store.grants.add(
            account.id,
            wallet=meter.name,
            amount=steps,
            now_ms=now_ms,
            key=key,
            expires_at_ms=expires_at_ms,
            user_id=None if user is None else (await MemberService(desk).user(account.id, user)).id,
            reason=reason,
            actor=desk.actor,
        )
        await desk.deliver(account.id)
        return meter, made

    async def list(self, account_ref: str) -> tuple[GrantState, ...]:
        """All grants it was ever given, the oldest first. Raises AccountNotFound, StoreUnavailable."""
        account = await self._desk.account(account_ref)
        return await self._desk.store.grants.list(account.id)

    async def adjust(
        self, account_ref: str, text: str, *, wallet: str | None = None, reason: str = ""
    ) -> tuple[Meter, Adjusted]:
        """Raise or lower what a wallet has. What is raised ends with the period where the plan grants the wallet, and
        stays otherwise; lowering takes at most what is left.

        Raises AccountNotFound, RequestError (amount, wallet), BadRequest (amount 0), StoreUnavailable.
        """
        desk = self._desk
        meter = desk.meter(wallet)
        steps = amount(meter, text, param="amount", signed=True)
        account = await desk.account(account_ref)
        adjusted = await desk.store.grants.adjust(
            account.id,
            wallet=meter.name,
            amount=steps,
            now_ms=desk.now_ms(),
            expires_at_ms=self._period_end_ms(account, meter.name),
            held=await desk.held(account.id),
            reason=reason,
            actor=desk.actor,
        )
        await desk.deliver(account.id)
        return meter, adjusted

    async def set_used(self, account_ref: str, text: str, *, wallet: str | None = None, reason: str = "") -> Account:
        """Make this the used amount of what the plan granted for the running period. Raises AccountNotFound,
        RequestError (amount, wallet), BadRequest (more than was granted), StoreUnavailable."""
        desk = self._desk
        meter = desk.meter(wallet)
        account = await desk.account(account_ref)
        changed = await desk.store.corrections.set_used(
            account.id,
            wallet=meter.name,
            used=amount(meter, text, param="used"),
            now_ms=desk.now_ms(),
            reason=reason,
            actor=desk.actor,
        )
        await desk.deliver(account.id)
        return changed

    async def revoke(self, account_ref: str, number: int, *, reason: str = "") -> GrantState:
        """End a grant and take back what is left of it. Raises AccountNotFound, NotFound, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        ended = await desk.store.grants.revoke(
            account.id,
            number,
            now_ms=desk.now_ms(),
            held=await desk.held(account.id),
            reason=reason,
            actor=desk.actor,
        )
        await desk.deliver(account.id)
        return ended

    def _period_end_ms(self, account: Account, wallet: str) -> int:
        plan = self._desk.catalog().plans.get(account.subscription.plan)
        granted = plan is not None and wallet in plan.allowance
        return account.subscription.period_ends_at_ms if granted and account.subscription.status.usable else 0
