"""``/admin/v1``: packages given by hand, and what was paid."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from gateway.billing.http.answers import PackagesAnswer
from gateway.billing.http.models import Amount, IdPageQuery, Name, NoQuery, PageOf, Strict, Text, When
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.money_views import given_view, package_view, payment_view
from gateway.billing.views import View


class GivenGrant(Strict):
    number: int
    wallet: str
    amount: str
    source: str
    expires_at: When | None


class GivenAnswer(Strict):
    """``new`` is false when this payment had given it before."""

    payment: str
    package: str
    new: bool
    grants: list[GivenGrant]


class PaymentAnswer(Strict):
    id: str
    account: str
    at: When
    provider: str
    reference: str
    kind: str
    what: str
    amount: str
    refunded: str
    currency: str
    state: Literal["pending", "due", "failed", "paid", "refunded"]
    livemode: bool
    pays_from: When | None
    pays_until: When | None
    reason: str


class GiveBody(Strict):
    package: Name
    payment: Annotated[
        Name | None, Field(description="Your own name of the payment: the same one again gives nothing.")
    ] = None
    reason: Annotated[Text, Field(max_length=500)] = ""


class RefundBody(Strict):
    amount: Annotated[Amount | None, Field(description="How much so far, in the currency. Default: all.")] = None
    reason: Annotated[Text, Field(max_length=500)] = ""


async def packages(call: Call[NoQuery, None]) -> View:
    catalog = call.office.desk.catalog()
    return {"items": [package_view(package, catalog) for package in call.office.packages.list()]}


async def give(call: Call[NoQuery, GiveBody]) -> View:
    body = call.body
    _, given = await call.office.packages.give(
        call.path("account"), body.package, payment=body.payment, reason=body.reason
    )
    return given_view(given, call.office.desk.catalog())


async def payments_of_account(call: Call[IdPageQuery, None]) -> View:
    return await _payments(call, call.path("account"))


async def payments(call: Call[IdPageQuery, None]) -> View:
    return await _payments(call, None)


async def _payments(call: Call[IdPageQuery, None], account_ref: str | None) -> View:
    page = await call.office.packages.payments(account_ref, cursor=call.query.cursor, limit=call.query.limit)
    return {"items": [payment_view(payment) for payment in page.items], "next": page.next}


async def refund(call: Call[NoQuery, RefundBody]) -> View:
    body = call.body
    return payment_view(
        await call.office.packages.refund(call.path("payment"), refunded=body.amount, reason=body.reason)
    )


_ONE: Final = "/admin/v1/accounts/{account}"
ROUTES: Final = (
    Route("GET", "/admin/v1/packages", Who.ADMIN, packages, PackagesAnswer, "List what can be bought once."),
    Route("POST", f"{_ONE}/packages", Who.ADMIN, give, GivenAnswer,
          "Give a package that was paid elsewhere, or is a present.", body=GiveBody),
    Route("GET", f"{_ONE}/payments", Who.ADMIN, payments_of_account, PageOf[PaymentAnswer],
          "Its payments, the newest first.", query=IdPageQuery),
    Route("GET", "/admin/v1/payments", Who.ADMIN, payments, PageOf[PaymentAnswer], "All payments, the newest first.",
          query=IdPageQuery),
    Route("POST", "/admin/v1/payments/{payment}/refund", Who.ADMIN, refund, PaymentAnswer,
          "Take back what a payment granted, once its money was given back.", body=RefundBody),
)  # fmt: skip
