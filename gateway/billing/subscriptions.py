"""An account's place on a plan, moved by people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.billing.desk import Desk, amount, shown
from gateway.domain.accounts import Account
from gateway.domain.plans import UNLIMITED
from gateway.domain.units import UnitError, exact
from gateway.errors import RequestError


@dataclass(frozen=True, slots=True)
class Terms:
    """What one account was promised besides the plan. Amounts as texts: plain decimals or ``unlimited``."""

    price: str | None = None
    allowance: Mapping[str, str] = field(default_factory=dict)  # wallet → amount


class SubscriptionService:
    """Moves to another plan, and of a period's end."""

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
        await desk.deliver(account.id)
        return changed

    async def cancel(self, account_ref: str) -> Account:
        """Let it end with its period. Raises AccountNotFound, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.subscriptions.cancel(account.id, now_ms=desk.now_ms(), actor=desk.actor)
        await desk.deliver(account.id)
        return changed

    async def extend(self, account_ref: str, *, ends_at_ms: int) -> Account:
        """Move the running period's end, a trial's with it. Raises AccountNotFound, BadRequest, StoreUnavailable."""
        desk = self._desk
        account = await desk.account(account_ref)
        changed = await desk.store.subscriptions.extend(
            account.id, ends_at_ms=ends_at_ms, now_ms=desk.now_ms(), actor=desk.actor
        )
        await desk.deliver(account.id)
        return changed

    def _terms(self, terms: Terms | None) -> dict[str, object]:
        """As the store keeps them: steps per wallet, the price as its plain decimal. Raises RequestError."""
        kept: dict[str, object] = {}
        if terms is None:
            return kept
        if terms.price is not None:
            try:
                price = exact(terms.price, expected="a price such as 49.90")
            except UnitError as error:
                raise RequestError(f"price: {error}", param="price") from error
            if price < 0:
                raise RequestError("price: expected a price such as 49.90, 0 or more", param="price")
            kept["price"] = terms.price
        if terms.allowance:
            kept["allowance"] = {
                wallet: UNLIMITED if text == UNLIMITED else amount(self._desk.meter(wallet), text, param="allowance")
                for wallet, text in terms.allowance.items()
            }
        return kept
