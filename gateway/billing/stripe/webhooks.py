"""Stripe's webhooks, and what operators do with events that were kept.

Rules
1. Nothing is read before its signature is verified, and nothing stored before it is read.
2. An event is done when its transaction is: then it is answered 200. What went wrong on our side is answered 5xx, and
   Stripe sends it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gateway.billing.desk import Desk, shown
from gateway.billing.stripe.client import plain, stripe_client
from gateway.billing.stripe.reading import read
from gateway.billing.stripe.verify import verify
from gateway.domain.agreements import Known
from gateway.domain.stripe import Access, Event, Refunded
from gateway.errors import NotFound, PaymentProviderUnavailable, PaymentsNotConfigured, RequestError, TollgateError
from gateway.store.common import Page, storable
from gateway.store.stripe_events import KEPT, StoredEvent, Taken

BODY_BYTES_MAX: Final = 1024 * 1024
LOOK_UP_S: Final = 5.0


class StripeService:
    """Events: taken as they come, looked at and let go by operators."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def receive(self, payload: bytes, signature: str | None) -> Taken:
        """Take a webhook's body.

        Raises NotFound (payments are off), BadRequest (signature, not an event), StoreUnavailable.
        """
        desk, access = self._desk, self._desk.stripe()
        if access is None:
            raise NotFound("There is no such route.")
        verify(payload, signature, access.webhook_secrets, now_s=desk.now_ms() / 1000)
        return await self.take(read(payload), access)

    async def take(self, event: Event, access: Access) -> Taken:
        """Take an event that is known to be Stripe's: from a webhook, or fetched. Raises StoreUnavailable."""
        desk = self._desk
        try:
            event = await self._placed(event, access)
            held = await self._held(event)
            taken = await desk.store.stripe.take(event, livemode=access.livemode, now_ms=desk.now_ms(), held=held)
        except TollgateError:
            raise
        except Exception as error:
            await desk.store.stripe.failed(event, type(error).__name__, now_ms=desk.now_ms())
            raise
        await self._told(taken)
        return taken

    async def events(self, *, kept: bool = False, cursor: str | None = None, limit: int = 100) -> Page[StoredEvent]:
        """Events, the newest first; ``kept``: those that an operator should look at. Raises BadRequest,
        StoreUnavailable."""
        states = (KEPT, "failed") if kept else ()
        return await self._desk.store.stripe.list(states=states, cursor=cursor, limit=limit)

    async def retry(self, event_id: str, *, accept: bool = False) -> Taken:
        """Let a kept event try again; ``accept``: its amount is right, whatever the price says.

        Raises NotFound, Conflict (it is done), PaymentsNotConfigured, StoreUnavailable.
        """
        desk, access = self._desk, access_of(self._desk)
        placed = await self._placed((await desk.store.stripe.event(event_id)).event, access)
        taken = await desk.store.stripe.retry(
            placed,
            livemode=access.livemode,
            accept=accept,
            now_ms=desk.now_ms(),
            actor=desk.actor,
            held=await self._held(placed),
        )
        await self._told(taken)
        return taken

    async def ignore(self, event_id: str, *, reason: str = "") -> Taken:
        """Put a kept event aside for good. Raises NotFound, Conflict (it is done), StoreUnavailable."""
        desk = self._desk
        return await desk.store.stripe.ignore(event_id, reason=reason, now_ms=desk.now_ms(), actor=desk.actor)

    async def link(self, customer: str, account_ref: str) -> tuple[Taken, ...]:
        """Note whose a customer at Stripe is; the events that waited for that go on, and are answered.

        Raises AccountNotFound, RequestError (no customer's id), Conflict (another account's), PaymentsNotConfigured,
        StoreUnavailable.
        """
        desk = self._desk
        if not customer.startswith("cus_") or not storable(customer):
            raise RequestError(f"expected a customer's id (cus_…), found {shown(customer)}", param="customer")
        account = await desk.account(account_ref)
        resumed = await desk.store.stripe.link(
            customer,
            account.id,
            livemode=access_of(desk).livemode,
            now_ms=desk.now_ms(),
            actor=desk.actor,
            held={account.id: await desk.held(account.id)},
        )
        for taken in resumed:
            await self._told(taken)
        return resumed

    async def agreements(self, account_ref: str) -> tuple[Known, ...]:
        """The account's subscriptions at Stripe. Raises AccountNotFound, StoreUnavailable."""
        return await self._desk.store.stripe.agreements((await self._desk.account(account_ref)).id)

    async def _placed(self, event: Event, access: Access) -> Event:
        """A refund of an invoice: newer versions of the API name the invoice nowhere in the charge, so Stripe is asked.
        If that fails the event is kept, and an operator's retry finds it later."""
        fact = event.fact
        if not isinstance(fact, Refunded) or fact.intent is None or fact.invoice is not None:
            return event
        if await self._desk.store.stripe.payment([fact.intent]) is not None:
            return event
        try:
            async with stripe_client(access, within_s=LOOK_UP_S) as client:
                payment = {"type": "payment_intent", "payment_intent": fact.intent}
                found = await client.v1.invoice_payments.list_async({"payment": payment, "limit": 1})
        except PaymentProviderUnavailable:
            return event
        invoices = [plain(each).get("invoice") for each in found.data]
        return replace(event, fact=replace(fact, invoice=invoices[0])) if invoices and invoices[0] else event

    async def _held(self, event: Event) -> dict[str, Mapping[int, int]]:
        """What open holds have of the account that the event is about: a refund does not take it."""
        account_id = await self._desk.store.stripe.concerned(event)
        return {} if account_id is None else {account_id: await self._desk.held(account_id)}

    async def _told(self, taken: Taken) -> None:
        """Redis and the counters, after the commit."""
        for account_id in taken.changed:
            await self._desk.deliver(account_id)
        if self._desk.metrics is not None:
            for kind, outcome in taken.counted:
                self._desk.metrics.payments.add((kind, outcome), 1)


def access_of(desk: Desk) -> Access:
    """Raises PaymentsNotConfigured."""
    access = desk.stripe()
    if access is None:
        raise PaymentsNotConfigured
    return access
