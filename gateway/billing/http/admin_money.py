"""``/admin/v1``: plans, subscriptions, grants and adjustments."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from gateway.billing.desk import shown
from gateway.billing.http.admin_accounts import shown_account
from gateway.billing.http.answers import (
    AccountAnswer,
    AdjustedAnswer,
    ChangeAnswer,
    GrantAnswer,
    PlanAnswer,
    PlansAnswer,
)
from gateway.billing.http.models import Amount, Instant, Name, NoQuery, Strict, Text
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.subscriptions import PERIODS_MAX, Terms, price_units
from gateway.billing.views import View, change_view, grant_view, plan_view
from gateway.errors import NotFound

Reason = Annotated[Text, Field(max_length=500, description="For the ledger and the audit log.")]
Entitlement = str | int | bool
Key = Annotated[Name, Field(description="What names this act: the same one again changes nothing.")]


class SubscribeBody(Strict):
    plan: Name
    price: Annotated[Amount | None, Field(description="The account's own price.")] = None
    allowance: Annotated[
        dict[Name, Name], Field(default_factory=dict, description="The account's own allowance: wallet → amount.")
    ]
    entitlements: Annotated[
        dict[Name, Entitlement], Field(default_factory=dict, description="Beside the plan's, or instead of one.")
    ]
    anchor_at: Annotated[Instant | None, Field(description="Where its periods start from. Default: now.")] = None
    ends_at: Annotated[Instant | None, Field(description="When the first period ends.")] = None


class RenewBody(Strict):
    plan: Name | None = None
    periods: Annotated[int, Field(ge=1, le=PERIODS_MAX)] = 1
    key: Key | None = None
    prepaid: Annotated[bool, Field(description="For as many periods as the plan's prepay says.")] = False
    until: Annotated[Instant | None, Field(description="Where the payment says that its periods end.")] = None
    paid: Annotated[Amount | None, Field(description="What was paid. Default: the plan's price.")] = None


class ChangeBody(Strict):
    plan: Name
    at_end: Annotated[
        bool | None, Field(description="At the end of what is paid, or at once. Default: a smaller plan at the end.")
    ] = None
    price: Annotated[Amount | None, Field(description="The account's own price.")] = None
    allowance: Annotated[
        dict[Name, Name], Field(default_factory=dict, description="The account's own allowance: wallet → amount.")
    ]
    entitlements: Annotated[dict[Name, Entitlement], Field(default_factory=dict)]
    prorate: Annotated[bool, Field(description="Credit what is left of the old plan's price.")] = True


class RefundBody(Strict):
    key: Annotated[Name, Field(description="The payment, as renew was told it.")]


class CancelBody(Strict):
    now: Annotated[bool, Field(description="At once instead of with what is paid of it.")] = False


class ExtendBody(Strict):
    ends_at: Instant


class GrantBody(Strict):
    amount: Amount
    wallet: Annotated[Name | None, Field(description="Needed when there is more than one meter.")] = None
    reason: Reason = ""
    expires_at: Instant | None = None
    key: Key | None = None
    user: Annotated[Name | None, Field(description="For a user, whose budget in this meter rises with it.")] = None


class AdjustBody(Strict):
    amount: Annotated[Amount, Field(description="With its sign.")]
    wallet: Annotated[Name | None, Field(description="Needed when there is more than one meter.")] = None
    reason: Reason = ""


class UsedBody(Strict):
    used: Amount
    wallet: Annotated[Name | None, Field(description="Needed when there is more than one meter.")] = None
    reason: Reason = ""


class RevokeBody(Strict):
    reason: Reason = ""


class GrantsAnswer(Strict):
    items: list[GrantAnswer]


async def plans(call: Call[NoQuery, None]) -> View:
    catalog = call.office.desk.catalog()
    return {"items": [plan_view(plan, catalog) for plan in catalog.plans.values()]}


async def plan(call: Call[NoQuery, None]) -> View:
    catalog = call.office.desk.catalog()
    found = catalog.plans.get(call.path("plan"))
    if found is None:
        raise NotFound(f"There is no plan {shown(call.path('plan'))}.", param="plan")
    return plan_view(found, catalog)


async def subscribe(call: Call[NoQuery, SubscribeBody]) -> View:
    body = call.body
    changed = await call.office.subscriptions.subscribe(
        call.path("account"),
        body.plan,
        terms=Terms(body.price, body.allowance, body.entitlements),
        anchor_ms=body.anchor_at,
        ends_at_ms=body.ends_at,
    )
    return shown_account(call, changed)


async def change(call: Call[NoQuery, ChangeBody]) -> View:
    body, desk = call.body, call.office.desk
    done = await call.office.subscriptions.change(
        call.path("account"),
        body.plan,
        at_end=body.at_end,
        terms=Terms(body.price, body.allowance, body.entitlements),
        prorate=body.prorate,
    )
    return change_view(done, desk.catalog(), desk.now_ms())


async def restart(call: Call[NoQuery, None]) -> View:
    return shown_account(call, await call.office.subscriptions.restart(call.path("account")))


async def check(call: Call[NoQuery, None]) -> View:
    return shown_account(call, await call.office.subscriptions.check(call.path("account")))


async def refund(call: Call[NoQuery, RefundBody]) -> View:
    return shown_account(call, await call.office.subscriptions.refund(call.path("account"), call.body.key))


async def renew(call: Call[NoQuery, RenewBody]) -> View:
    body = call.body
    changed = await call.office.subscriptions.renew(
        call.path("account"),
        plan=body.plan,
        periods=body.periods,
        prepaid=body.prepaid,
        key=body.key,
        until_ms=body.until,
        paid=None if body.paid is None else price_units(body.paid, call.office.desk.catalog().currency),
    )
    return shown_account(call, changed)


async def cancel(call: Call[NoQuery, CancelBody]) -> View:
    return shown_account(call, await call.office.subscriptions.cancel(call.path("account"), now=call.body.now))


async def resume(call: Call[NoQuery, None]) -> View:
    return shown_account(call, await call.office.subscriptions.resume(call.path("account")))


async def extend(call: Call[NoQuery, ExtendBody]) -> View:
    changed = await call.office.subscriptions.extend(call.path("account"), ends_at_ms=call.body.ends_at)
    return shown_account(call, changed)


async def grants(call: Call[NoQuery, None]) -> View:
    meters = call.office.desk.catalog().meters
    found = await call.office.grants.list(call.path("account"))
    return {"items": [grant_view(each, meters.get(each.wallet)) for each in found]}


async def grant(call: Call[NoQuery, GrantBody]) -> View:
    body = call.body
    meter, made = await call.office.grants.grant(
        call.path("account"),
        body.amount,
        wallet=body.wallet,
        reason=body.reason,
        expires_at_ms=body.expires_at or 0,
        key=body.key,
        user=body.user,
    )
    return grant_view(made, meter)


async def set_used(call: Call[NoQuery, UsedBody]) -> View:
    body = call.body
    changed = await call.office.grants.set_used(call.path("account"), body.used, wallet=body.wallet, reason=body.reason)
    return shown_account(call, changed)


async def revoke(call: Call[NoQuery, RevokeBody]) -> View:
    number = call.path("number")
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise NotFound("There is no such grant in this account.", param="number")
    ended = await call.office.grants.revoke(call.path("account"), int(number), reason=call.body.reason)
    return grant_view(ended, call.office.desk.catalog().meters.get(ended.wallet))


async def adjust(call: Call[NoQuery, AdjustBody]) -> View:
    body = call.body
    meter, done = await call.office.grants.adjust(
        call.path("account"), body.amount, wallet=body.wallet, reason=body.reason
    )
    return {
        "wallet": meter.name,
        "asked": meter.format(meter.parse(body.amount, signed=True)),
        "adjusted": meter.format(done.amount),
        "balance": meter.format(done.balance),
    }


_ONE: Final = "/admin/v1/accounts/{account}"
_SUBSCRIPTION: Final = f"{_ONE}/subscription"
ROUTES: Final = (
    Route("GET", "/admin/v1/plans", Who.ADMIN, plans, PlansAnswer, "List the config's plans."),
    Route("GET", "/admin/v1/plans/{plan}", Who.ADMIN, plan, PlanAnswer, "Show a plan."),
    Route("POST", _SUBSCRIPTION, Who.ADMIN, subscribe, AccountAnswer,
          "Move it to a plan: its period starts anew, nothing of it is used.", body=SubscribeBody),
    Route("POST", f"{_SUBSCRIPTION}/change", Who.ADMIN, change, ChangeAnswer,
          "Move it to a larger plan at once, to a smaller one at the end of what is paid.", body=ChangeBody),
    Route("POST", f"{_SUBSCRIPTION}/restart", Who.ADMIN, restart, AccountAnswer,
          "Start the plan's period anew, with nothing of it used."),
    Route("POST", f"{_SUBSCRIPTION}/check", Who.ADMIN, check, AccountAnswer,
          "Let end what is over and begin what follows; answers the account."),
    Route("POST", f"{_SUBSCRIPTION}/refund", Who.ADMIN, refund, AccountAnswer,
          "Take back what is left of what a payment granted, and end what it paid for.", body=RefundBody),
    Route("POST", f"{_SUBSCRIPTION}/renew", Who.ADMIN, renew, AccountAnswer, "Note a payment for its next periods.",
          body=RenewBody),
    Route("POST", f"{_SUBSCRIPTION}/cancel", Who.ADMIN, cancel, AccountAnswer,
          "Let it end with what is paid of it, or at once.", body=CancelBody),
    Route("POST", f"{_SUBSCRIPTION}/resume", Who.ADMIN, resume, AccountAnswer,
          "Take back a cancellation or change of plan that has not come yet."),
    Route("POST", f"{_SUBSCRIPTION}/extend", Who.ADMIN, extend, AccountAnswer,
          "Move the running period's end, a trial's with it.", body=ExtendBody),
    Route("GET", f"{_ONE}/grants", Who.ADMIN, grants, GrantsAnswer, "List all its grants, the oldest first."),
    Route("POST", f"{_ONE}/grants", Who.ADMIN, grant, GrantAnswer, "Give an amount.", body=GrantBody, status=201),
    Route("POST", f"{_ONE}/grants/{{number}}/revoke", Who.ADMIN, revoke, GrantAnswer,
          "End a grant and take back what is left of it.", body=RevokeBody),
    Route("POST", f"{_ONE}/used", Who.ADMIN, set_used, AccountAnswer,
          "Say what counts as used of the plan's running period.", body=UsedBody),
    Route("POST", f"{_ONE}/adjustments", Who.ADMIN, adjust, AdjustedAnswer,
          "Raise or lower what a wallet has; lowering takes at most what is left.", body=AdjustBody, status=201),
)  # fmt: skip
