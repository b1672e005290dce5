"""What a customer may do about its own plan: take one that costs nothing, go to where one is paid, or leave.

Rules
1. A plan with a price begins when its payment has arrived, never by asking for it. One whose price is agreed with each
   account is an operator's to give.
2. A free plan that allows more of everything begins at once, every other one at the end of the running period: going
   to and fro fills no wallet twice. A trial is had once.
   For the same reason one that comes again for nothing is left with its period, never in the middle of it.
3. Whoever pays by subscription elsewhere leaves that first: else it would go on being paid.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.billing.desk import Desk, shown
from gateway.billing.stripe.checkout import Purchase, check_single, start_purchase
from gateway.billing.subscriptions import SubscriptionService
from gateway.domain.accounts import Account
from gateway.domain.plans import CUSTOM, allows_more, is_trial
from gateway.errors import BadRequest, RequestError


@dataclass(frozen=True, slots=True)
class Chosen:
    """When the plan takes effect, or where it is paid first."""

    at_ms: int = 0
    purchase: Purchase | None = None


async def choose(desk: Desk, account_ref: str, name: str, *, periods: int = 1) -> Chosen:
    """Raises AccountNotFound, RequestError (no such plan), BadRequest (not for sale, a trial that it has had),
    PaymentsNotConfigured, Conflict (it pays for another plan), PaymentProviderUnavailable and …Refused,
    StoreUnavailable."""
    plans = desk.catalog().plans
    plan = plans.get(name)
    if plan is None:
        raise RequestError(f"There is no plan {shown(name)}; there is: {', '.join(plans)}.", param="plan")
    account = await desk.account(account_ref)
    current, service = account.subscription, SubscriptionService(desk)
    if current.plan == name and current.status.usable and periods == 1:
        if current.cancel_at_period_end or current.next_plan is not None:
            await service.resume(account.id)
        return Chosen(current.period_starts_at_ms)
    if plan.price == CUSTOM:
        raise BadRequest("not_for_sale", f"Plan {plan.label} is agreed with each customer: ask for it.", param="plan")
    if plan.price > 0:
        return Chosen(purchase=await start_purchase(desk, account.id, plan=name, periods=periods))
    await check_single(desk, account)
    running = plans.get(current.plan)
    waits = current.period_ends_at_ms > 0 and running is not None and not allows_more(plan, running)
    change = await service.change(account.id, name, at_end=waits)
    return Chosen(change.at_ms)


async def leave(desk: Desk, account_ref: str, *, now: bool) -> Account:
    """Let the plan end with what is paid of it, or at once; a free one that could be taken again with its period.

    Raises AccountNotFound, PaymentsNotConfigured, PaymentProviderUnavailable and …Refused, StoreUnavailable.
    """
    account, catalog = await desk.account(account_ref), desk.catalog()
    plan = catalog.plans.get(account.subscription.plan)
    is_free = plan is not None and plan.price == 0 and not is_trial(catalog, plan)
    with_its_period = is_free and account.subscription.period_ends_at_ms > 0
    return await SubscriptionService(desk).cancel(account.id, now=now and not with_its_period)
