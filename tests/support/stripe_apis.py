"""A gateway that takes payments: its config, and webhooks signed as Stripe signs them."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stripe import WebhookSignature

from tests.support.apis import NO_MODELS, Apis, Reply, apis
from tests.support.gateways import config_text
from tests.support.processes import free_port
from tests.support.stripe_month import Body, Shop, raw

SECRET_KEY = "sk_test_canary51f0"
WEBHOOK_SECRET = "whsec_canary_77b2"
OLD_SECRET = "whsec_canary_old3"
PLANS = """\
  free: {label: Free, price: 0, period: once, allowance: {tokens: 100}, grant_source: trial}
  starter:
    {label: Starter, price: 29, period: month, renews: when_paid, ends: free, allowance: {tokens: 1000},
     stripe_price: price_pro, prepay: {periods: 12, discount: 20%, stripe_price: price_pro_year}}
  plus:
    {label: Plus, price: 99, period: month, renews: when_paid, ends: free, allowance: {tokens: 9000},
     stripe_price: price_plus}
  silent: {label: Silent, price: 5, period: month, renews: when_paid, allowance: {tokens: 10}}
"""
SECTIONS = """
packages:
  growth:
    {label: Growth, price: 18, stripe_price: price_growth,
     grants: [{wallet: tokens, amount: 2000}, {wallet: tokens, amount: 200, source: bonus}]}
  private: {label: Private, price: 7, grants: [{wallet: tokens, amount: 1}]}
  pros: {label: Pros, price: 7, stripe_price: price_pros, plans: [plus], grants: [{wallet: tokens, amount: 1}]}
stripe:
  secret_key: "${TEST_STRIPE_KEY}"
  webhook_secret: "${TEST_STRIPE_WEBHOOK}"
  success_url: "https://app.example.com/paid?x=1"
  cancel_url: "https://app.example.com/billing"
  grace: 3d
  url: "URL"
"""


def stripe_config(url: str = "http://127.0.0.1:9", **changes: Any) -> str:
    """The tests' config with a plan that is paid each month, packages, and payments."""
    os.environ.update(TEST_STRIPE_KEY=SECRET_KEY, TEST_STRIPE_WEBHOOK=f"{OLD_SECRET},{WEBHOOK_SECRET}")
    text = config_text(NO_MODELS, port=free_port(), admin=free_port(), plans=PLANS, **changes)
    return text + SECTIONS.replace("URL", url)


def signature(payload: bytes, secret: str = WEBHOOK_SECRET, *, at_s: int | None = None) -> str:
    """As Stripe's own helper makes it."""
    return str(WebhookSignature.generate_signature_header(payload.decode(), secret, at_s or int(time.time())))


@dataclass(slots=True)
class Paid:
    """Both listeners, and Stripe's side of them."""

    apis: Apis

    async def send(self, payload: bytes, header: str | None = None) -> Reply:
        """A webhook's body, signed unless a header is given ("" = none)."""
        sent = {"Content-Type": "application/json; charset=utf-8"}
        sent |= {"Stripe-Signature": signature(payload) if header is None else header} if header != "" else {}
        return await self.apis.call("POST", "/webhooks/stripe", data=payload, headers=sent)

    async def tell(self, *bodies: Body) -> list[str]:
        """Send events; the state of each."""
        states = []
        for body in bodies:
            answer = await self.send(raw(body))
            assert answer.status in (200, 202), answer.body
            states.append(answer.json()["state"])
        return states

    async def customer(self, name: str = "acme", plan: str = "trial", **changes: Any) -> tuple[str, Shop]:
        """A new account's key, and its customer at Stripe."""
        key, account = await self.apis.gateway.account(plan, name=name, email=f"{name}@example.com")
        return key, Shop(name, int(time.time()) - 60, account.id, **changes)

    async def standing(self, key: str) -> tuple[str, str, str]:
        """(plan, status, available tokens)."""
        subscription = (await self.apis.get("/api/billing/subscription", key=key)).json()
        balance = (await self.apis.get("/api/billing/balance", key=key)).json()
        tokens = [wallet["available"] for wallet in balance["wallets"] if wallet["wallet"] == "tokens"]
        return subscription["plan"], subscription["status"], tokens[0] if tokens else "0"


@asynccontextmanager
async def paid(redis_url: str, folder: Path, *, url: str = "http://127.0.0.1:9", **changes: Any) -> AsyncIterator[Paid]:
    async with apis(redis_url, folder, text=stripe_config(url, **changes)) as running:
        yield Paid(running)
