"""An account's place on a plan, moved by people and by payments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from gateway.billing.desk import Desk, amount, shown
from gateway.billing.stripe.checkout import cancel_at_stripe, resume_at_stripe
from gateway.domain.accounts import Account
from gateway.domain.money import minor_units
from gateway.domain.plans import UNLIMITED
from gateway.domain.units import UnitError, exact
from gateway.errors import QuotaUnavailable, RequestError
from gateway.store.common import new_id
from gateway.store.renewals import Payment
from gateway.store.subscriptions import Change

PERIODS_MAX: Final = 120
_OUTCOMES: Final = {"renew": "given", "past_due": "failed", "refund": "refunded"}  # of a plan's payments told by hand


@dataclass(frozen=True, slots=True)
class Terms:
    """What one account was promised besides the plan. Amounts as texts: plain decimals or ``unlimited``."""

    price: str | None = None
    allowance: Mapping[str, str] = field(default_factory=dict)  # wallet → amount
    entitlements: Mapping[str, object] = field(default_factory=dict)  # beside the plan's, or instead of one of them


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
        self._check_plan(plan)
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

    async def change(
        self,
        account_ref: str,
        plan: str,
        *,
        at_end: bool | None = None,
        terms: Terms | None = None,
        prorate: bool = True,
    ) -> Change:
        """Move to another plan: to a larger one at once, to a smaller one at the end of what is paid; ``at_end`` says
        otherwise. To the plan that it is on: takes back a cancellation, or a change that has not come yet.

        ``prorate``: what is left of the old plan's price is credited. Raises AccountNotFound, RequestError (plan),
        BadRequest (terms, a trial that it has had, an end that never comes), StoreUnavailable.
        """
        desk = self._desk
        account = await desk.account(account_ref)
        self._check_plan(plan)
        change = await desk.store.subscriptions.change(
            account.id,
            plan,
            now_ms=desk.now_ms(),
            at_end=at_end,
            terms=self._terms(terms),
            prorate=prorate,
            actor=desk.actor,
        )
        await self._moved(account, change.account, "change")
        return change

    async def restart(self, account_ref: str) -> Account:
        """The plan's period starts anew now, with nothing of it used, at the account's own terms. Raises
        AccountNotFound, BadRequest (the config no longer has the plan), StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        subscription = account.subscription
        changed = await desk.store.subscriptions.subscribe(
            account.id, subscription.plan, now_ms=desk.now_ms(), terms=subscription.terms, actor=desk.actor
        )
        return await self._moved(account, changed, "restart")

    async def check(self, account_ref: str) -> Account:
        """The account as it is at this instant: what is over has ended, what follows has begun. Raises
        AccountNotFound, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        if desk.states is not None:
            try:
                await desk.states.view(account.id, ())
            except QuotaUnavailable:  # the database alone can tell, but for a rest that rolls over
                await desk.store.subscriptions.turn(account.id, now_ms=desk.now_ms())
        else:
            await desk.store.subscriptions.turn(account.id, now_ms=desk.now_ms())
        return await desk.account(account.id)

    async def refund(self, account_ref: str, key: str) -> Account:
        """The payment ``key`` was paid back: what is left of what it granted is taken back, and what it paid for ends.
        Twice is as once. Raises AccountNotFound, NotFound (it has paid for nothing), StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.renewals.refund(
            account.id, key, now_ms=desk.now_ms(), held=await desk.held(account.id), actor=desk.actor
        )
        return await self._moved(account, changed, "refund")

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
        AccountNotFound, BadRequest (plan, terms, nothing to renew), RequestError (periods, until), StoreUnavailable.
        """
        desk = self._desk
        if not 1 <= periods <= PERIODS_MAX:
            raise RequestError(f"periods: expected 1 to {PERIODS_MAX}", param="periods")
        if until_ms is not None and until_ms <= desk.now_ms():
            raise RequestError("What is paid must end in the future: it would buy nothing.", param="until")
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
        """Let it end with what is paid of it, or at once; what Stripe takes the payments of is cancelled there. Raises
        AccountNotFound, PaymentsNotConfigured, PaymentProviderUnavailable and …Refused, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        if await cancel_at_stripe(desk, account, at_once=now):
            return await desk.account(account.id)
        changed = await desk.store.subscriptions.cancel(
            account.id, now_ms=desk.now_ms(), immediately=now, actor=desk.actor
        )
        return await self._moved(account, changed, "cancel")

    async def resume(self, account_ref: str) -> Account:
        """Take back a cancellation, or a change of plan, that has not come yet. Raises AccountNotFound, Conflict (it
        has ended), and as ``cancel``."""
        desk = self._desk
        account = await desk.account(account_ref)
        if await resume_at_stripe(desk, account):
            return await desk.account(account.id)
        changed = await desk.store.subscriptions.resume(account.id, now_ms=desk.now_ms(), actor=desk.actor)
        return await self._moved(account, changed, "resume")

    async def move_trial_end(self, account_ref: str, *, ends_at_ms: int) -> Account:
        """As ``extend``, for an account that is or was on a trial. Raises RequestError when it is on none, and as
        ``extend``."""
        account = await self._desk.account(account_ref)
        if account.subscription.trial_ends_at_ms == 0:
            raise RequestError("The account is on no trial.", param="trial_ends_at")
        return await self.extend(account.id, ends_at_ms=ends_at_ms)

    async def extend(self, account_ref: str, *, ends_at_ms: int) -> Account:
        """Move the running period's end, a trial's with it. Raises AccountNotFound, BadRequest, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.subscriptions.extend(
            account.id, ends_at_ms=ends_at_ms, now_ms=desk.now_ms(), actor=desk.actor
        )
        await desk.deliver(account.id)
        return changed

    def _check_plan(self, plan: str) -> None:
        plans = self._desk.catalog().plans
        if plan not in plans:
            raise RequestError(f"There is no plan {shown(plan)}; there is: {', '.join(plans)}.", param="plan")

    async def _moved(self, before: Account, after: Account, cause: str) -> Account:
        self._desk.moved(before, after, cause)
        if self._desk.metrics is not None and cause in _OUTCOMES and before.rev != after.rev:
            self._desk.metrics.payments.add(("plan", _OUTCOMES[cause]), 1)
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
        if terms.entitlements:
            kept["entitlements"] = dict(terms.entitlements)
        return kept


def price_units(text: str, currency: str) -> int:
    """A price in the currency's smallest unit. Raises RequestError."""
    try:
        if exact(text, expected="a price such as 49.90") < 0:
            raise UnitError("a price such as 49.90, 0 or more", text)
        return minor_units(Decimal(text), currency)
    except UnitError as error:
        raise RequestError(f"price: {error}", param="price") from error
