"""Buying: a page of Stripe's where a customer pays, and the running subscription's end and its taking back.

Rules
1. Nothing is granted here. What was paid is told by webhooks, by our account's id in the metadata.
2. An account is one customer at Stripe: made once, and linked before anything is paid.
3. Whoever has a subscription at Stripe that runs changes that one; a second one would be paid besides it.
4. A plan that Stripe takes the payments of is cancelled there first: else it would go on being paid.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Final

from gateway.billing.desk import Desk, shown
from gateway.billing.packages import package_of
from gateway.billing.stripe.client import plain, stripe_client
from gateway.billing.stripe.reading import ACCOUNT_KEY, PACKAGE_KEY, agreement_of
from gateway.billing.stripe.webhooks import StripeService, access_of
from gateway.domain.accounts import Account
from gateway.domain.agreements import Known
from gateway.domain.stripe import Access, Event
from gateway.errors import BadRequest, Conflict, RequestError
from gateway.store.common import new_id

PLAN_KEY: Final = "tollgate_plan"
OVER: Final = frozenset(("canceled", "incomplete", "incomplete_expired"))


@dataclass(frozen=True, slots=True)
class Purchase:
    """Where the customer pays."""

    url: str
    session: str
    what: str
    price: str  # Stripe's id of it


async def start_purchase(
    desk: Desk, account_ref: str, *, plan: str | None = None, package: str | None = None, periods: int = 1
) -> Purchase:
    """Open a Checkout page for a plan (one period, or as many at once as its prepay says) or a package.

    Raises AccountNotFound, PaymentsNotConfigured, BadRequest (unknown, not for sale, not for the account's plan),
    RequestError (neither or both), Conflict (it has a subscription already), PaymentProviderUnavailable and …Refused,
    StoreUnavailable.
    """
    access = access_of(desk)
    if (plan is None) == (package is None):
        raise RequestError("Name a plan or a package, and only one.", param="plan")
    account = await desk.account(account_ref)
    named = {ACCOUNT_KEY: account.id}
    if package is not None:
        price, what, named[PACKAGE_KEY] = package_of(desk, package, account).stripe_price, package, package
        mode: dict[str, Any] = {"mode": "payment", "payment_intent_data": {"metadata": named}}
    else:
        assert plan is not None
        price, what, named[PLAN_KEY] = _plan_price(desk, plan, periods), plan, plan
        await check_single(desk, account)
        mode = {"mode": "subscription", "subscription_data": {"metadata": named}}
    if not price:
        raise BadRequest(
            "not_for_sale", f"{shown(what)} has no price at Stripe: an operator can give it.", param="plan"
        )
    async with stripe_client(access) as client:
        asked = {
            **mode,
            "customer": await _customer(desk, client, account, access),
            "client_reference_id": account.id,
            "metadata": named,
            "line_items": [{"price": price, "quantity": 1}],
            "success_url": access.success_url,
            **({"cancel_url": access.cancel_url} if access.cancel_url else {}),
        }
        session = plain(await client.v1.checkout.sessions.create_async(asked))
    return Purchase(url=str(session["url"]), session=str(session["id"]), what=what, price=price)


async def cancel_at_stripe(desk: Desk, account: Account, *, at_once: bool) -> bool:
    """Stop all that Stripe takes of the account, with what is paid of it or at once; also for a plan that somebody has
    moved it away from since. Whether its running plan ends thereby. What Stripe answers is taken like the webhook that
    follows.

    Raises PaymentsNotConfigured, PaymentProviderUnavailable and …Refused, StoreUnavailable.
    """
    is_followed = False
    for known in await _running(desk, account):
        access = access_of(desk)
        async with stripe_client(access) as client:
            service = client.v1.subscriptions
            if at_once:
                answered = await service.cancel_async(known.id)
            else:
                answered = await service.update_async(known.id, {"cancel_at_period_end": True})
        await _take(desk, access, known, plain(answered))
        is_followed |= known.subscription_id == account.subscription.id
    return is_followed


async def resume_at_stripe(desk: Desk, account: Account) -> bool:
    """Take a cancellation back, as ``cancel_at_stripe`` made it."""
    known = await _followed(desk, account)
    if known is None:
        return False
    access = access_of(desk)
    async with stripe_client(access) as client:
        answered = await client.v1.subscriptions.update_async(known.id, {"cancel_at_period_end": False})
    await _take(desk, access, known, plain(answered))
    return True


async def _take(desk: Desk, access: Access, known: Known, subscription: dict[str, Any]) -> None:
    """What the API answered, as the event that it is: newer than what was said before by a clock that has seconds."""
    now_ms = max(int(time.time()) * 1000, known.seen_at_ms + 1)
    fact = agreement_of(subscription, made_ms=now_ms)
    event = Event(f"api_{new_id()}", "customer.subscription.updated", bool(subscription.get("livemode")), now_ms, fact)
    await StripeService(desk).take(event, access)


async def _followed(desk: Desk, account: Account) -> Known | None:
    """Stripe's subscription that the account's current one follows, while it runs."""
    running = await _running(desk, account)
    return next((known for known in running if known.subscription_id == account.subscription.id), None)


async def _running(desk: Desk, account: Account) -> list[Known]:
    """Stripe's subscriptions that it takes payments of the account for, the newest first."""
    known = await desk.store.stripe.agreements(account.id)
    return [
        each for each in known if not each.ended_at_ms and each.status not in OVER and each.subscription_id is not None
    ]


async def check_single(desk: Desk, account: Account) -> None:
    """Raises Conflict when Stripe takes payments for a plan of the account's."""
    for known in await _running(desk, account):
        message = f"The account pays for the plan {known.plan} already. Cancel that first, or let it end."
        raise Conflict(message, param="plan")


def _plan_price(desk: Desk, plan: str, periods: int) -> str:
    """Raises BadRequest."""
    plans = desk.catalog().plans
    if plan not in plans:
        raise BadRequest("unknown_plan", f"There is no plan {shown(plan)}.", param="plan")
    prepay = plans[plan].prepay
    if periods == 1:
        return plans[plan].stripe_price
    if prepay is None or prepay.periods != periods:
        raise BadRequest("no_prepay", f"Plan {plan} cannot be paid {periods} periods ahead.", param="periods")
    return prepay.stripe_price


async def _customer(desk: Desk, client: Any, account: Account, access: Access) -> str:
    """The account's customer, made and linked when there is none (rule 2)."""
    known = await desk.store.stripe.customer(account.id)
    if known is not None:
        return known
    asked: dict[str, Any] = {"name": account.name, "metadata": {ACCOUNT_KEY: account.id}}
    if account.email is not None:
        asked["email"] = account.email
    said = hashlib.sha256(f"{account.name}\0{account.email}".encode()).hexdigest()[:16]
    once = {"idempotency_key": f"tollgate-customer-{account.id}-{said}"}
    customer = str(plain(await client.v1.customers.create_async(asked, once))["id"])
    await desk.store.stripe.link(customer, account.id, livemode=access.livemode, now_ms=desk.now_ms(), actor=desk.actor)
    return customer
