"""Buying, and what Stripe tells of it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from gateway.billing.http.models import ErrorBody, Name, NoQuery, Strict
from gateway.billing.http.route import Answer, Call, Raw, Route, Who
from gateway.billing.stripe.checkout import start_purchase
from gateway.billing.stripe.webhooks import BODY_BYTES_MAX
from gateway.store.stripe_events import KEPT


class PurchaseBody(Strict):
    plan: Name | None = None
    package: Name | None = None
    periods: Annotated[int, Field(ge=1, le=120)] = 1


class PurchaseAnswer(Strict):
    url: str
    session: str
    what: str


class ReceivedAnswer(Strict):
    received: bool
    state: str
    why: str


async def purchase(call: Call[NoQuery, PurchaseBody]) -> PurchaseAnswer:
    body = call.body
    bought = await start_purchase(
        call.office.desk, call.account.id, plan=body.plan, package=body.package, periods=body.periods
    )
    return PurchaseAnswer(url=bought.url, session=bought.session, what=bought.what)


async def stripe_webhook(call: Call[NoQuery, bytes]) -> Answer:
    taken = await call.office.stripe.receive(call.body, call.request.headers.get("Stripe-Signature"))
    answer = {"received": True, "state": taken.state, "why": taken.why}
    return Answer(answer, status=202 if taken.state == KEPT else 200)


ROUTES: Final = (
    Route("POST", "/api/billing/purchase", Who.KEY, purchase, PurchaseAnswer,
          "A page where a plan or a package is paid.", body=PurchaseBody, others={409: ErrorBody}, idempotent=True),
    Route("POST", "/webhooks/stripe", Who.PUBLIC, stripe_webhook, ReceivedAnswer,
          "What Stripe tells of payments; signed by it.", body=Raw(None), body_bytes_max=BODY_BYTES_MAX,
          others={202: ReceivedAnswer, 404: ErrorBody}),
)  # fmt: skip
