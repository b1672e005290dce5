"""An account's place on a plan, moved by people and by payments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from gateway.billing.desk import Desk, amount, shown
from gateway.domain.accounts import Account
from gateway.domain.money import minor_units
from gateway.domain.plans import UNLIMITED
from gateway.domain.units import UnitError, exact
from gateway.errors import RequestError
from gateway.store.common import new_id
from gateway.store.renewals import Payment

PERIODS_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class Terms:
    """What one account was promised besides the plan. Amounts as texts: plain decimals or ``unlimited``."""

    price: str | None = None
    allowance: Mapping[str, str] = field(default_factory=dict)  # wallet → amount


class SubscriptionService:
    """Moves to another plan, payments, cancellations, and of a period's end."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def subscribe(
        self,
        account_ref: str,
        plan: str,
        *,
        terms: Terms | None = None,
        anchor_ms: int | None = None,
        ends_at_ms: int | None = None,
    ) -> Account:
        """Move the account to the plan now: the period starts anew, nothing of it is used.

        Raises AccountNotFound, BadRequest (plan, terms), RequestError, StoreUnavailable.
        """
        desk = self._desk
        account = await desk.account(account_ref)
        if plan not in desk.catalog().plans:
            raise RequestError(
                f"There is no plan {shown(plan)}; there is: {', '.join(desk.catalog().plans)}.", param="plan"
            )
        now_ms = desk.now_ms()
        if ends_at_ms is not None and ends_at_ms <= now_ms:
            raise RequestError("The period's end must be in the future.", param="ends_at")
        changed = await desk.store.subscriptions.subscribe(
            account.id,
            plan,
            now_ms=now_ms,
            terms=self._terms(terms),
            anchor_ms=anchor_ms,
            ends_at_ms=ends_at_ms,
            actor=desk.actor,
        )
        return await self._moved(account, changed, "subscribe")

    async def renew(
        self,
        account_ref: str,
        *,
        plan: str | None = None,
        periods: int = 1,
        prepaid: bool = False,
        key: str | None = None,
        until_ms: int | None = None,
        paid: int | None = None,
    ) -> Account:
        """A payment arrived for ``periods`` periods of the account's plan, or of ``plan``, which then starts if the
        account is on another one. It is paid further, is not past due, and is granted the period that is due.
        ``prepaid``: for as many periods as the plan's prepay says.

        ``key`` names the payment: the same one again changes nothing. ``until_ms``: where the payment says that its
        periods end; ``paid``: what was paid, in the currency's smallest unit (None: the plan's price). Raises
        AccountNotFound, BadRequest (plan, terms, nothing to renew), RequestError (periods), StoreUnavailable.
        """
        desk = self._desk
        if not 1 <= periods <= PERIODS_MAX:
            raise RequestError(f"periods: expected 1 to {PERIODS_MAX}", param="periods")
        account = await desk.account(account_ref)
        payment = Payment(key or new_id(), plan, periods, prepaid, until_ms, paid)
        changed = await desk.store.renewals.renew(account.id, payment, now_ms=desk.now_ms(), actor=desk.actor)
        return await self._moved(account, changed, "renew")

    async def payment_failed(self, account_ref: str, *, key: str | None = None) -> Account:
        """The payment for what comes next failed: past due, for ``stripe.grace`` after the period's end. Nothing
        changes when the payment ``key`` has arrived meanwhile. Raises AccountNotFound, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.renewals.payment_failed(account.id, now_ms=desk.now_ms(), key=key, actor=desk.actor)
        return await self._moved(account, changed, "past_due")

    async def cancel(self, account_ref: str, *, now: bool = False) -> Account:
        """Let it end with what is paid of it, or at once. Raises AccountNotFound, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.subscriptions.cancel(
            account.id, now_ms=desk.now_ms(), immediately=now, actor=desk.actor
        )
        return await self._moved(account, changed, "cancel")

    async def resume(self, account_ref: str) -> Account:
        """Take back a cancellation, or a change of plan, that has not come yet. Raises AccountNotFound, Conflict (it
        has ended), StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.subscriptions.resume(account.id, now_ms=desk.now_ms(), actor=desk.actor)
        return await self._moved(account, changed, "resume")

    async def extend(self, account_ref: str, *, ends_at_ms: int) -> Account:
        """Move the running period's end, a trial's with it. Raises AccountNotFound, BadRequest, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.subscriptions.extend(
            account.id, ends_at_ms=ends_at_ms, now_ms=desk.now_ms(), actor=desk.actor
        )
        await desk.deliver(account.id)
        return changed

    async def _moved(self, before: Account, after: Account, cause: str) -> Account:
        self._desk.moved(before, after, cause)
        await self._desk.deliver(after.id)
        return after

    def _terms(self, terms: Terms | None) -> dict[str, object]:
        """As the store keeps them: steps per wallet, the price as its plain decimal. Raises RequestError."""
        kept: dict[str, object] = {}
        if terms is None:
            return kept
        if terms.price is not None:
            price_units(terms.price, self._desk.catalog().currency)
            kept["price"] = terms.price
        if terms.allowance:
            kept["allowance"] = {
                wallet: UNLIMITED if text == UNLIMITED else amount(self._desk.meter(wallet), text, param="allowance")
                for wallet, text in terms.allowance.items()
            }
        return kept


def price_units(text: str, currency: str) -> int:
    """A price in the currency's smallest unit. Raises RequestError."""
    try:
        exact(text, expected="a price such as 49.90")
        return minor_units(Decimal(text), currency)
    except UnitError as error:
        raise RequestError(f"price: {error}", param="price") from error
