"""The part of Stripe's API that opens Checkout pages and stops subscriptions, as strict as Stripe is about it.

Nothing else of Stripe's that can be had knows Checkout on the Node that is here (see ``localstripe`` for the rest).
What is asked must be what Stripe's reference allows, or it is answered 400 as there.
Source: https://docs.stripe.com/api/checkout/sessions/create, …/subscriptions/update, …/invoice-payment/list.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

RECURRING = ("price_pro", "price_pro_year", "price_plus")
ONE_TIME = ("price_growth", "price_pros")


@dataclass
class Checkout:
    """What was asked of it."""

    key: str
    url: str = ""
    customers: list[dict[str, str]] = field(default_factory=list)
    sessions: list[dict[str, str]] = field(default_factory=list)
    subscriptions: dict[str, dict[str, Any]] = field(default_factory=dict)
    invoices: dict[str, str] = field(default_factory=dict)  # payment intent → invoice
    once: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: int = 0  # status that everything is answered with
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded])
        app.router.add_post("/v1/customers", self._customer)
        app.router.add_post("/v1/checkout/sessions", self._session)
        app.router.add_post("/v1/subscriptions/{id}", self._update)
        app.router.add_delete("/v1/subscriptions/{id}", self._cancel)
        app.router.add_get("/v1/invoice_payments", self._payments)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.broken:
            return refused(self.broken, "api_error", "broken")
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return refused(401, "invalid_request_error", "Invalid API Key provided")
        if not request.headers.get("Stripe-Version"):
            return refused(400, "invalid_request_error", "no version")
        try:
            answer: web.StreamResponse = await handler(request)
        except (AssertionError, KeyError) as error:
            return refused(400, "invalid_request_error", f"{error!r}")
        return answer

    async def _customer(self, request: web.Request) -> web.Response:
        asked = await form(request)
        assert set(asked) <= {"name", "email", "metadata[tollgate_account]"}, asked
        key = request.headers["Idempotency-Key"]
        if key not in self.once:
            self.customers.append(asked)
            self.once[key] = {"id": f"cus_{next(self._ids)}", "object": "customer"}
        return web.json_response(self.once[key])

    async def _session(self, request: web.Request) -> web.Response:
        asked = await form(request)
        mode = asked["mode"]
        inner = {"payment": "payment_intent_data", "subscription": "subscription_data"}[mode]
        known = {"mode", "customer", "client_reference_id", "success_url", "cancel_url"}
        known |= {"line_items[0][price]", "line_items[0][quantity]"}
        more = [
            name for name in asked if name not in known and not name.startswith(("metadata[", f"{inner}[metadata]["))
        ]
        assert not more, more
        assert asked["customer"] in {each["id"] for each in self.once.values()}
        assert asked["line_items[0][price]"] in (RECURRING if mode == "subscription" else ONE_TIME)
        assert asked["line_items[0][quantity]"] == "1" and asked["success_url"].startswith("https://")
        self.sessions.append(asked)
        number = len(self.sessions)
        page = f"https://checkout.test/pay/{number}"
        return web.json_response({"id": f"cs_test_{number}", "object": "checkout.session", "url": page})

    async def _update(self, request: web.Request) -> web.Response:
        asked = await form(request)
        assert set(asked) == {"cancel_at_period_end"}, asked
        subscription = self.subscriptions[request.match_info["id"]]
        subscription["cancel_at_period_end"] = {"true": True, "false": False}[asked["cancel_at_period_end"].lower()]
        return web.json_response(subscription)

    async def _cancel(self, request: web.Request) -> web.Response:
        subscription = self.subscriptions[request.match_info["id"]]
        subscription |= {"status": "canceled", "ended_at": subscription["start_date"] + 9}
        return web.json_response(subscription)

    async def _payments(self, request: web.Request) -> web.Response:
        assert request.query["payment[type]"] == "payment_intent"
        invoice = self.invoices.get(request.query["payment[payment_intent]"])
        data = [{"id": "inpay_1", "object": "invoice_payment", "invoice": invoice}] if invoice else []
        return web.json_response({"object": "list", "data": data, "has_more": False, "url": "/v1/invoice_payments"})


async def form(request: web.Request) -> dict[str, str]:
    assert request.content_type == "application/x-www-form-urlencoded", request.content_type
    return {name: str(value) for name, value in (await request.post()).items()}


def refused(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": {"type": kind, "message": message}}, status=status)


@asynccontextmanager
async def checkout(key: str) -> AsyncIterator[Checkout]:
    """On the test's loop."""
    server = Checkout(key)
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
