"""Stripe's webhooks through the real listener: what is believed, what is kept, and what follows."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.billing.office import office_at
from gateway.store import stripe_effects
from tests.support import stores
from tests.support.stores import Place
from tests.support.stripe_apis import OLD_SECRET, SECRET_KEY, WEBHOOK_SECRET, Paid, paid, signature
from tests.support.stripe_month import DAY_S, Body, Shop, raw

MONTH_S = 30 * DAY_S
HOUR_S = 3600


@pytest.fixture
async def shop(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Paid]:
    """On an empty database, SQLite and PostgreSQL."""
    if place.backend == "sqlite":
        (tmp_path / "data").mkdir()
        stores.copy_sqlite(tmp_path / "data")
    async with paid(valkey_url, tmp_path, database=place.url) as running:
        yield running


@pytest.fixture
async def one(valkey_url: str, tmp_path: Path) -> AsyncIterator[Paid]:
    """On an empty SQLite: for what no database changes."""
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with paid(valkey_url, tmp_path) as running:
        yield running


def first_month(acme: Shop, number: int = 1, **changes: Any) -> Body:
    """The invoice of the month that began when the customer signed up."""
    paid_for = changes.pop("paid", True)
    return acme.invoice(number, acme.start_s + 2, acme.start_s, acme.start_s + MONTH_S, paid=paid_for, **changes)


async def events_of(running: Paid) -> list[tuple[str, str]]:
    page = await running.apis.gateway.worker.store.stripe.list()
    return [(each.state, each.why) for each in page.items]


async def assert_balanced(running: Paid) -> None:
    async for audited in running.apis.gateway.worker.store.ledger.audit():
        assert audited.differences == ()


async def test_a_plan_is_bought_fails_recovers_and_ends_and_a_package_is_refunded(shop: Paid) -> None:
    """Billing system B6, from sign-up to cancellation; the balance counts in Redis at once."""
    key, acme = await shop.customer()
    assert await shop.standing(key) == ("trial", "trialing", "6000")
    assert await shop.tell(acme.checkout(acme.start_s + 1), first_month(acme), acme.updated(acme.start_s + 3)) == [
        "done", "done", "done",
    ]  # fmt: skip
    assert await shop.standing(key) == ("starter", "active", "1000")
    await shop.tell(acme.package(acme.start_s + 4, "growth", 1800))
    assert await shop.standing(key) == ("starter", "active", "3200")
    failed = acme.invoice(2, acme.start_s + 5, acme.start_s + MONTH_S, acme.start_s + 2 * MONTH_S, paid=False)
    await shop.tell(failed, acme.updated(acme.start_s + 6, "past_due"))
    assert await shop.standing(key) == ("starter", "past_due", "3200")
    kinds = [alert.alert.kind for alert in (await shop.apis.gateway.worker.store.alerts.list()).items]
    assert kinds.count("payment_failed") == 1
    recovered = acme.invoice(2, acme.start_s + 7, acme.start_s + MONTH_S, acme.start_s + 2 * MONTH_S, paid=True)
    await shop.tell(recovered, acme.updated(acme.start_s + 8))
    assert await shop.standing(key) == ("starter", "active", "3200")
    await shop.tell(acme.refund(acme.start_s + 9, "pi_acme_1", 1800, 1800))
    await shop.tell(acme.updated(acme.start_s + 10, gone=True))
    assert await shop.standing(key) == ("free", "active", "100")
    await assert_balanced(shop)


async def test_one_event_told_by_many_at_once_counts_once(shop: Paid) -> None:
    key, acme = await shop.customer()
    payload = raw(acme.package(acme.start_s, "growth", 1800))
    answers = await asyncio.gather(*(shop.send(payload) for _ in range(12)))
    assert {(answer.status, answer.json()["state"]) for answer in answers} == {(200, "done")}
    assert (await shop.standing(key))[2] == "8200"
    assert await events_of(shop) == [("done", "")]
    await assert_balanced(shop)


HOSTILE: list[tuple[str, Callable[[bytes], str]]] = [
    ("no header", lambda payload: ""),
    ("garbage", lambda payload: "garbage"),
    ("no time", lambda payload: signature(payload).partition(",")[2]),
    ("two times", lambda payload: f"t=1,{signature(payload)}"),
    ("only scheme v0", lambda payload: signature(payload).replace("v1=", "v0=")),
    ("another secret", lambda payload: signature(payload, "whsec_other")),
    ("no secret", lambda payload: signature(payload, " ").strip()),
    ("another body", lambda payload: signature(payload + b" ")),
    ("the same, spelled anew", lambda payload: signature(json.dumps(json.loads(payload), indent=1).encode())),
    ("301 s old", lambda payload: signature(payload, at_s=int(time.time()) - 301)),
    ("301 s ahead", lambda payload: signature(payload, at_s=int(time.time()) + 302)),
    ("a time that is none", lambda payload: signature(payload).replace("t=", "t=1e")),
]


async def test_what_is_not_signed_by_stripe_is_refused_and_not_stored(one: Paid) -> None:
    key, acme = await one.customer()
    payload = raw(acme.package(acme.start_s, "growth", 1800))
    for what, header in HOSTILE:
        answer = await one.send(payload, header(payload))
        assert (answer.status, answer.code) == (400, "invalid_signature"), what
        assert WEBHOOK_SECRET.encode() not in answer.body
    assert await events_of(one) == []
    assert (await one.standing(key))[2] == "6000"


@pytest.mark.parametrize(
    "header",
    [
        lambda payload: signature(payload, at_s=int(time.time()) - 290),
        lambda payload: signature(payload, at_s=int(time.time()) + 290),
        lambda payload: signature(payload, OLD_SECRET),  # ours is being replaced
        lambda payload: f"{signature(payload, 'whsec_other')},{signature(payload).partition(',')[2]}",  # Stripe's is
    ],
)
async def test_what_is_signed_lately_with_one_of_our_secrets_is_believed(
    one: Paid, header: Callable[[bytes], str]
) -> None:
    _, acme = await one.customer()
    payload = raw(acme.checkout(acme.start_s))
    assert (await one.send(payload, header(payload))).json() == {"received": True, "state": "done", "why": ""}


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"{}", b'"event"', b'{"object":"event"}', b'{"object":"event","id":"","type":"x"}', b"\xff\xfe"],
)
async def test_what_is_signed_and_no_event_is_refused(one: Paid, payload: bytes) -> None:
    at_s = int(time.time())
    mac = hmac.new(WEBHOOK_SECRET.encode(), b"%d." % at_s + payload, hashlib.sha256)
    answer = await one.send(payload, f"t={at_s},v1={mac.hexdigest()}")
    assert (answer.status, answer.code) == (400, "invalid_event")
    assert await events_of(one) == []


async def test_a_body_of_two_megabytes_is_refused_before_its_signature_is_looked_at(one: Paid) -> None:
    payload = b'{"pad":"' + b"x" * 2_000_000 + b'"}'
    answer = await one.apis.call("POST", "/webhooks/stripe", data=io.BytesIO(payload))
    assert (answer.status, answer.code) == (413, "body_too_large")


async def test_events_of_other_kinds_are_answered_and_ignored(one: Paid) -> None:
    _, acme = await one.customer()
    one_off = first_month(acme)
    one_off["data"]["object"]["parent"] = None
    bodies = [
        acme.event("customer.created", acme.start_s, {"id": "cus_x", "object": "customer"}),
        acme.package(acme.start_s, "growth", 1800, metadata={}),  # an invoice's own intent
        one_off,
        {**acme.checkout(acme.start_s), "data": {"object": {"id": "cs", "metadata": None}}},  # somebody else's page
    ]
    assert await one.tell(*bodies) == ["ignored"] * 4
    assert await one.tell(*bodies) == ["ignored"] * 4
    assert sorted(why for _, why in await events_of(one)) == [
        "not_for_a_package", "not_of_a_subscription", "not_our_checkout", "type_not_used",
    ]  # fmt: skip


def kept_cases() -> dict[str, tuple[str, Callable[[Shop], Body]]]:
    """Why it is kept, and the event."""
    return {
        "live": ("other_mode", lambda acme: {**first_month(acme), "livemode": True}),
        "less": ("other_amount", lambda acme: first_month(acme, amount=2899)),
        "more": ("other_amount", lambda acme: first_month(acme, amount=9900)),
        "discounted": ("other_amount", lambda acme: first_month(acme, amount_paid=1450)),
        "free of charge": ("other_amount", lambda acme: first_month(acme, amount=0)),
        "currency": ("other_currency", lambda acme: first_month(acme, currency="eur")),
        "price": ("unknown_price", lambda acme: first_month(acme, price="price_other")),
        "package as plan": ("unknown_price", lambda acme: first_month(acme, price="price_growth", amount=1800)),
        "proration": ("prorated", lambda acme: first_month(acme, proration=True)),
        "package amount": ("other_amount", lambda acme: acme.package(acme.start_s, "growth", 1)),
        "package unknown": ("unknown_package", lambda acme: acme.package(acme.start_s, "nothing", 1800)),
        "package without price": ("no_price", lambda acme: acme.package(acme.start_s, "private", 700)),
        "refund of nothing": (
            "unknown_payment",
            lambda acme: acme.refund(acme.start_s, "pi_none", 1, 1, invoice="in_x"),
        ),
    }


@pytest.mark.parametrize("case", kept_cases())
async def test_what_cannot_be_believed_is_kept_and_grants_nothing(one: Paid, case: str) -> None:
    why, body = kept_cases()[case]
    key, acme = await one.customer()
    event = body(acme)
    answer = await one.send(raw(event))
    assert (answer.status, answer.json()) == (202, {"received": True, "state": "kept", "why": why})
    assert (await one.send(raw(event))).status == 202
    assert await events_of(one) == [("kept", why)]
    assert await one.standing(key) == ("trial", "trialing", "6000")
    assert (await one.apis.gateway.worker.store.payments.list()).items == ()


async def test_an_unknown_customers_events_wait_for_the_customer_to_be_linked(one: Paid) -> None:
    key, acme = await one.customer(is_named=False)
    growth = acme.package(acme.start_s + 4, "growth", 1800)
    growth["data"]["object"]["metadata"].pop("tollgate_account")
    assert await one.tell(first_month(acme), acme.updated(acme.start_s + 3), growth) == ["kept"] * 3
    assert await one.standing(key) == ("trial", "trialing", "6000")
    assert await one.tell(acme.checkout(acme.start_s + 1)) == ["done"]
    assert await one.standing(key) == ("starter", "active", "3200")
    assert {state for state, _ in await events_of(one)} == {"done"}


async def test_one_accounts_customer_is_not_anothers(one: Paid) -> None:
    key, acme = await one.customer()
    other_key, other = await one.customer("other")
    await one.tell(acme.checkout(acme.start_s))
    stolen = acme.package(acme.start_s, "growth", 1800, metadata={
        "tollgate_account": other.account, "tollgate_package": "growth",
    })  # fmt: skip
    assert await one.tell(stolen) == ["kept"]
    assert sorted(await events_of(one)) == [("done", ""), ("kept", "customer_of_another_account")]
    assert (await one.standing(key))[2] == (await one.standing(other_key))[2] == "6000"


async def test_one_accounts_subscription_at_stripe_grants_nothing_to_another(one: Paid) -> None:
    _, acme = await one.customer()
    other_key, other = await one.customer("other")
    assert await one.tell(first_month(acme)) == ["done"]
    invoice, updated = first_month(other), other.updated(other.start_s + 3)
    details = invoice["data"]["object"]["parent"]["subscription_details"]
    details["subscription"] = updated["data"]["object"]["id"] = acme.subscription
    assert await one.tell(invoice, updated) == ["kept", "kept"]
    assert {why for state, why in await events_of(one) if state == "kept"} == {"subscription_of_another_account"}
    assert await one.standing(other_key) == ("trial", "trialing", "6000")
    assert [each.account_id for each in (await one.apis.gateway.worker.store.payments.list()).items] == [acme.account]


async def test_what_dies_between_its_steps_leaves_nothing_and_is_done_when_it_comes_again(
    shop: Paid, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, acme = await shop.customer()
    body = acme.package(acme.start_s, "growth", 1800)
    granting = stripe_effects.grant_package

    async def grants_and_dies(*arguments: Any, **options: Any) -> Any:
        await granting(*arguments, **options)
        raise RuntimeError("between dedupe and commit")

    monkeypatch.setattr(stripe_effects, "grant_package", grants_and_dies)
    assert (await shop.send(raw(body))).status == 500
    assert await events_of(shop) == [("failed", "RuntimeError")]
    assert (await shop.standing(key))[2] == "6000"
    assert (await shop.apis.gateway.worker.store.payments.list()).items == ()
    monkeypatch.undo()
    assert await shop.tell(body, body) == ["done", "done"]
    assert (await shop.standing(key))[2] == "8200"
    await assert_balanced(shop)


async def test_a_stale_word_does_not_bring_back_what_was_deleted(one: Paid) -> None:
    key, acme = await one.customer()
    await one.tell(first_month(acme), acme.updated(acme.start_s + 9, gone=True), acme.updated(acme.start_s + 3))
    assert await one.standing(key) == ("free", "active", "100")


async def test_a_year_paid_ahead_is_granted_month_by_month(one: Paid) -> None:
    """E7: a discounted price for twelve periods; what it grants now is one of them."""
    key, acme = await one.customer()
    year = acme.invoice(
        1, acme.start_s + 2, acme.start_s, acme.start_s + 365 * DAY_S, paid=True, price="price_pro_year", amount=27_840
    )
    assert await one.tell(year) == ["done"]
    assert await one.standing(key) == ("starter", "active", "1000")
    subscription = (await one.apis.get("/api/billing/subscription", key=key)).json()
    month_days = (_seconds(subscription["period_ends_at"]) - _seconds(subscription["period_starts_at"])) / DAY_S
    paid_days = (_seconds(subscription["paid_until"]) - _seconds(subscription["period_starts_at"])) / DAY_S
    assert 360 <= paid_days <= 366
    assert 28 <= month_days <= 31


async def test_payments_are_counted(one: Paid) -> None:
    _, acme = await one.customer()
    await one.tell(first_month(acme, paid=False), first_month(acme), acme.package(acme.start_s, "growth", 1))
    await one.tell(acme.package(acme.start_s, "growth", 1800), acme.refund(acme.start_s, "pi_acme_1", 1800, 900))
    text = one.apis.gateway.worker.metrics.render().decode()
    counted = {line for line in text.splitlines() if line.startswith("tollgate_payments_total{")}
    assert counted == {
        'tollgate_payments_total{kind="plan",outcome="failed"} 1.0',
        'tollgate_payments_total{kind="plan",outcome="paid"} 1.0',
        'tollgate_payments_total{kind="package",outcome="kept"} 1.0',
        'tollgate_payments_total{kind="package",outcome="paid"} 1.0',
        'tollgate_payments_total{kind="package",outcome="refunded"} 1.0',
    }


async def test_nothing_of_a_card_and_no_secret_is_kept_or_logged(
    one: Paid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, acme = await one.customer()
    await one.tell(acme.checkout(acme.start_s), first_month(acme), acme.refund(acme.start_s, "pi_acme_in1", 2900, 100))
    await one.send(raw(acme.checkout(acme.start_s)), "t=1,v1=00")
    written = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    for canary in ("4242", "Canary Holder", "card.canary", SECRET_KEY, WEBHOOK_SECRET, OLD_SECRET):
        assert canary not in caplog.text
        assert canary.encode() not in written
    assert b"evt_acme_" in written  # it was the right place to look


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


async def test_a_refund_leaves_what_calls_hold(shop: Paid) -> None:
    """Of a plan and a package that Stripe was paid for, and of a package that was given by hand."""
    _, acme = await shop.customer()
    packages = office_at(shop.apis.gateway.worker.frame.desk).packages
    store = shop.apis.gateway.worker.store
    account = await store.accounts.by_ref(acme.account or "")
    assert account is not None
    await shop.tell(first_month(acme), acme.package(acme.start_s + 4, "growth", 1800))
    _, given = await packages.give(account.id, "growth")
    await shop.apis.held(account, 5_400_000)
    before = [grant.amount for grant in await store.grants.list(account.id)]
    assert {1_000_000, 2_000_000, 200_000} < set(before)
    refunds = (
        acme.refund(acme.start_s + 5, "pi_acme_1", 1800, 1800),
        acme.refund(acme.start_s + 6, "pi_month", 2900, 2900, invoice="in_acme_1"),
    )
    assert await shop.tell(*refunds) == ["done", "done"]
    await packages.refund(given.payment.id)
    assert [grant.amount for grant in await store.grants.list(account.id)] == before
    await assert_balanced(shop)
