"""An installation that sells everything which is metered by API: services, features of all prices, credits."""

from __future__ import annotations

from typing import Any

from gateway.billing.audit import AuditService
from gateway.domain.accounts import Account
from tests.support.apis import Apis, Reply
from tests.support.gateways import config_text
from tests.support.processes import free_port

METERS = """meters:
  minutes: {decimals: 3}
  credits: {decimals: 6, tokens_per_unit: 2000, name: credit}
  leads: {decimals: 0}
"""
SERVICES = """services:
  outbound_call: {wallet: minutes, per: minute, price: 2.0, minimum_balance: 10, increment: 1s}
  sms: {wallet: minutes, per: message, price: 0.5}
features:
  code_review: {wallet: credits, price: {per_use: 1}}
  import_leads: {wallet: leads, price: {per_use: 5, bulk: [{from: 10, per_use: 4}]}}
  sized: {wallet: minutes, price: {per_1k_tokens: 0.5, minimum: 2}}
"""
PLANS = """
  voice: {label: Voice, price: 9, period: 30d, allowance: {minutes: 100}}
  credits: {label: Credits, price: 0, period: 30d, allowance: {credits: 5}}
  suite: {label: Suite, price: 9, period: 30d, allowance: {leads: 100, minutes: 100}, features: [import_leads, sized],
          limits: {user: {uses: {max: 5, per: 60s}}}}
  bulk: {label: Bulk, price: 9, period: 30d, allowance: {leads: 1000, tokens: 1000000}}
  none: {label: None, price: 0, period: 30d, allowance: {leads: 0}, features: []}
  free: {label: Free, price: 0, period: 30d, allowance: {minutes: 100}, on_abandon: release}
  watched: {label: Watched, price: 0, period: 30d, allowance: {minutes: 1}, shadow: true}"""
MESSAGES = """messages:
  limit_exceeded:
    title: "Insufficient credits"
    text: "You have {available} credits remaining ({available.tokens} tokens)"
"""


def sold(models_url: str = "http://127.0.0.1:9", *, messages: str = "", **changes: Any) -> str:
    """The whole config."""
    text = config_text(models_url, **{"port": free_port(), "admin": free_port(), "plans": PLANS.strip("\n"), **changes})
    text = text.replace("meters:\n", METERS).replace("features:\n", SERVICES)
    return text + messages


async def account_with(running: Apis, plan: str = "voice", **options: Any) -> tuple[str, Account]:
    return await running.gateway.account(plan, **options)


async def use(running: Apis, key: str, body: Any, *, idempotency_key: str | None = None, **headers: str) -> Reply:
    sent = {**headers, **({"Idempotency-Key": idempotency_key} if idempotency_key else {})}
    return await running.call("POST", "/api/v1/usage", key=key, json=body, headers=sent)


async def charged(running: Apis, account: Account) -> list[tuple[str, str, int]]:
    """(feature, state, amount) of every line of the account's bill, the oldest first, once all is written."""
    await running.gateway.settled()
    page = await running.gateway.worker.store.usage.list(account.id)
    return [(record.feature, record.state, record.charged) for record in reversed(page.items)]


async def adds_up(running: Apis, account: Account) -> None:
    """Redis, ledger and balances agree: difference 0."""
    await running.gateway.settled()
    async for audited in AuditService(running.gateway.worker.frame.desk).audit(account.id):
        assert not audited.differences and not audited.moving
