"""Against a Stripe that nobody here wrote: its own objects, its own signatures, its own order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.billing.office import Office, office_at
from gateway.billing.stripe.sync import Differs, Sync
from tests.support import stores
from tests.support.localstripe import POOR_IBAN, LocalStripe, localstripe
from tests.support.processes import eventually
from tests.support.stripe_apis import SECRET_KEY, WEBHOOK_SECRET, Paid, paid


@pytest.fixture
def stripe() -> Iterator[LocalStripe]:
    with localstripe(SECRET_KEY) as server:
        product = server.post("/v1/products", name="Starter")["id"]
        price = {"id": "price_pro", "amount": 2900, "currency": "usd", "interval": "month", "product": product}
        server.post("/v1/plans", **price)
        yield server


@pytest.fixture
async def shop(stripe: LocalStripe, valkey_url: str, tmp_path: Path) -> AsyncIterator[Paid]:
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with paid(valkey_url, tmp_path, url=stripe.url) as running:
        stripe.tell(f"{running.apis.gateway.url}/webhooks/stripe", WEBHOOK_SECRET)
        yield running


def office(running: Paid) -> Office:
    return office_at(running.apis.gateway.worker.frame.desk)


async def told(running: Paid, *types: str) -> None:
    """Wait until its webhooks of these kinds came."""

    async def came() -> bool:
        page = await office(running).stripe.events()
        return {each.event.type for each in page.items} >= set(types)

    await eventually(came, what=f"webhooks {types}", within_s=60)


async def synced(running: Paid, *, apply: bool = False) -> list[Differs]:
    comparison = Sync(office(running).desk, days=1)
    found = []
    for event in await comparison.events(lambda: None):
        difference = await comparison.compare(event)
        if difference is not None:
            found.append(await comparison.heal(event, difference) if apply else difference)
    return found


async def test_a_subscription_runs_fails_is_refunded_and_ends(shop: Paid, stripe: LocalStripe) -> None:
    key, acme = await shop.customer()
    customer = await asyncio.to_thread(stripe.customer)
    await office(shop).stripe.link(customer, acme.account or "")
    subscription = (
        await asyncio.to_thread(stripe.post, "/v1/subscriptions", customer=customer, items=[{"plan": "price_pro"}])
    )["id"]
    await told(shop, "invoice.payment_succeeded", "customer.subscription.created")
    assert await shop.standing(key) == ("starter", "active", "1000")
    assert await synced(shop) == []

    charge = stripe.ask("GET", "/v1/charges")["data"][0]["id"]
    await asyncio.to_thread(stripe.post, "/v1/refunds", charge=charge, amount=1450)
    [refund] = await synced(shop)
    assert (refund.what, refund.stripe, refund.ours) == ("refund", "refunded 1450", "refunded 0")
    [healed] = await synced(shop, apply=True)
    assert healed.healed == "done"
    assert await shop.standing(key) == ("starter", "active", "500")

    await asyncio.to_thread(stripe.ask, "DELETE", f"/v1/subscriptions/{subscription}")
    await told(shop, "customer.subscription.deleted")
    assert await shop.standing(key) == ("free", "active", "100")
    assert await synced(shop) == []
    async for audited in shop.apis.gateway.worker.store.ledger.audit():
        assert audited.differences == ()


async def test_what_was_missed_is_found_and_healed(shop: Paid, stripe: LocalStripe) -> None:
    """Its webhooks went nowhere for a while: a subscription and its payment are not known."""
    stripe.tell("http://127.0.0.1:9/nowhere", WEBHOOK_SECRET)
    key, acme = await shop.customer()
    customer = await asyncio.to_thread(stripe.customer)
    await office(shop).stripe.link(customer, acme.account or "")
    await asyncio.to_thread(stripe.post, "/v1/subscriptions", customer=customer, items=[{"plan": "price_pro"}])
    assert sorted(each.what for each in await synced(shop)) == ["invoice", "subscription"]
    assert await shop.standing(key) == ("trial", "trialing", "6000")
    assert {each.healed for each in await synced(shop, apply=True)} == {"done"}
    assert await synced(shop) == []
    assert await shop.standing(key) == ("starter", "active", "1000")


async def test_what_cannot_be_paid_grants_nothing_and_is_told(shop: Paid, stripe: LocalStripe) -> None:
    key, acme = await shop.customer()
    customer = await asyncio.to_thread(partial(stripe.customer, iban=POOR_IBAN))
    await office(shop).stripe.link(customer, acme.account or "")
    await asyncio.to_thread(stripe.post, "/v1/subscriptions", customer=customer, items=[{"plan": "price_pro"}])
    await told(shop, "invoice.payment_failed")
    assert await shop.standing(key) == ("trial", "trialing", "6000")
    [payment] = (await shop.apis.gateway.worker.store.payments.list()).items
    assert (payment.state.value, payment.amount, payment.what) == ("failed", 2900, "starter")
    alerts = (await shop.apis.gateway.worker.store.alerts.list(kind="payment_failed")).items
    assert len(alerts) == 1
