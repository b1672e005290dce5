"""Alerts reach whoever must know: each once, whoever fails meanwhile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.billing.alerts.courier import Courier, Patience
from gateway.billing.alerts.webhook import WebhookSender
from gateway.domain import tidings
from gateway.domain.accounts import Account, Subscription, SubscriptionStatus
from gateway.domain.alerts import Channels, Mail, RapidUse, Webhook, words_of
from gateway.errors import LimitExceeded
from gateway.metrics import Metrics
from gateway.quota.notices import refusal_detail
from gateway.quota.refusals import Situation
from gateway.quota.watch_use import rapid_use
from gateway.store.alerts import NewAlert
from gateway.store.store import Store
from tests.support import catalogs, receivers, stores
from tests.support.receivers import MailServer, Receiver
from tests.support.stores import NOW_MS, Clock, Place

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
TLS = Path(__file__).resolve().parents[1] / "data" / "tls"
PATIENCE = Patience(first_ms=1000, longest_ms=8000, give_up_ms=60_000)


async def raised(store: Store, *keys: str, **account: str) -> Account:
    """An account with an alert per key."""
    found = await store.accounts.create(account.pop("name", "Acme"), now_ms=NOW_MS, **account)
    detail = {"wallet": "tokens", "unit": "tokens", "percent": "90", "plan": "Trial", "resets_at": None}
    await store.alerts.raise_all([NewAlert(found.id, "threshold", key, detail, NOW_MS) for key in keys])
    return found


@contextlib.asynccontextmanager
async def courier(store: Store, clock: Clock, channels: Channels, **options: Any) -> AsyncIterator[Courier]:
    running = Courier(
        store.alerts,
        Metrics(None),
        lambda: channels,
        clock,
        patience=options.pop("patience", PATIENCE),
        webhooks=WebhookSender(timeout_s=options.pop("timeout_s", 5.0)),
        **options,
    )
    try:
        yield running
    finally:
        await running.close()


def hook(receiver: Receiver) -> Channels:
    return Channels(webhook=Webhook(receiver.url, SECRET))


async def states(store: Store) -> list[tuple[str, str, int, str]]:
    page = await store.alerts.list()
    return [(d.channel, d.state, d.attempts, d.last_error) for record in page.items for d in record.deliveries]


async def test_a_webhook_says_what_happened_and_is_signed(store: Store, clock: Clock, receiver: Receiver) -> None:
    account = await raised(store, "1", name="Acme & Söhne", external_id="org-7")
    async with courier(store, clock, hook(receiver)) as running:
        await running.work()
        await running.work()
    (call,) = receiver.calls
    assert call.json == {
        "type": "alert.threshold",
        "timestamp": "2025-11-20T00:53:20.000Z",
        "data": {
            "id": call.id,
            "account": {"id": account.id, "external_id": "org-7", "name": "Acme & Söhne"},
            "title": "90% of your tokens are used",
            "text": "You have used 90% of your tokens on the Trial plan.",
            "detail": {"wallet": "tokens", "unit": "tokens", "percent": "90", "plan": "Trial", "resets_at": None},
        },
    }
    assert call.headers["content-type"] == "application/json"
    assert call.headers["webhook-timestamp"] == str(NOW_MS // 1000)
    signed = f"{call.id}.{call.headers['webhook-timestamp']}.".encode() + call.body
    digest = hmac.digest(b"0123456789abcdef0123456789abcdef", signed, hashlib.sha256)
    assert call.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert await states(store) == [("webhook", "sent", 1, "")]


@pytest.mark.parametrize(
    ("outcome", "said", "timeout_s"),
    [
        ("500", "HTTP 500", 30.0),
        ("429", "HTTP 429", 30.0),
        ("404", "HTTP 404", 30.0),
        ("redirect", "HTTP 307", 30.0),
        ("reset", "ServerDisconnectedError", 30.0),
        ("hang", "timeout", 1.0),
    ],
)
async def test_what_did_not_arrive_is_sent_again_under_the_same_id(
    outcome: str, said: str, timeout_s: float, store: Store, clock: Clock, receiver: Receiver
) -> None:
    await raised(store, "1")
    receiver.next = [outcome, "ok"]
    async with courier(store, clock, hook(receiver), timeout_s=timeout_s) as running:
        await running.work()
        assert await states(store) == [("webhook", "pending", 1, said)]
        await running.work()
        assert len(receiver.calls) == 1, "it waits for its time"
        clock.now_ms += 1000
        await running.work()
    assert len({call.id for call in receiver.calls}) == 1
    assert len({call.body for call in receiver.calls}) == 1
    assert receiver.elsewhere == 0
    assert await states(store) == [("webhook", "sent", 2, "")]


async def test_an_endless_answer_is_not_read(store: Store, clock: Clock, receiver: Receiver) -> None:
    await raised(store, "1")
    receiver.next = ["flood"]
    async with courier(store, clock, hook(receiver)) as running:
        await running.work()
    assert await states(store) == [("webhook", "sent", 1, "")]


async def test_pauses_grow_and_after_a_day_it_is_given_up(
    store: Store, clock: Clock, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await raised(store, "1")
    receiver.next = ["500"] * 100
    pauses = []
    async with courier(store, clock, hook(receiver)) as running:
        await running.work()
        while (await states(store))[0][1] == "pending":
            (delivery,) = (await store.alerts.list()).items[0].deliveries
            pauses.append(delivery.next_at_ms - clock.now_ms)
            clock.now_ms = delivery.next_at_ms
            await running.work()
    for attempt, pause_ms in enumerate(pauses):
        whole_ms = min(8000, 1000 * 2**attempt)
        assert whole_ms // 2 <= pause_ms <= whole_ms
    assert clock.now_ms <= NOW_MS + PATIENCE.give_up_ms
    assert (await states(store))[0][1] == "failed"
    assert [record.levelname for record in caplog.records if "given up" in record.getMessage()] == ["ERROR"]
    assert "canary-url" not in caplog.text


async def test_a_receiver_that_is_gone_is_not_asked_again(store: Store, clock: Clock, receiver: Receiver) -> None:
    await raised(store, "1")
    receiver.next = ["410"]
    async with courier(store, clock, hook(receiver)) as running:
        await running.work()
    assert await states(store) == [("webhook", "failed", 1, "HTTP 410")]


async def test_nobody_there_is_told_without_the_url(store: Store, clock: Clock, receiver: Receiver) -> None:
    await raised(store, "1")
    channels = Channels(webhook=Webhook("http://127.0.0.1:1/hooks?token=canary-url", SECRET))
    async with courier(store, clock, channels) as running:
        await running.work()
    assert await states(store) == [("webhook", "pending", 1, "ClientConnectorError")]


async def test_two_couriers_send_each_alert_once(
    place: Place, store: Store, clock: Clock, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await raised(store, *(str(number) for number in range(30)))
    async with (
        stores.opened(place.url, place.folder, clock=clock) as second,
        courier(store, clock, hook(receiver)) as one,
        courier(second, clock, hook(receiver)) as two,
    ):
        await asyncio.gather(one.work(), two.work(), one.work(), two.work())
    assert len(receiver.calls) == len({call.id for call in receiver.calls}) == 30
    assert len([record for record in caplog.records if record.getMessage().startswith("alert threshold")]) == 30
    assert {state for _, state, _, _ in await states(store)} == {"sent"}


async def test_whoever_dies_while_sending_leaves_it_to_the_next(
    place: Place, store: Store, clock: Clock, receiver: Receiver
) -> None:
    """It had arrived: the receiver sees the same id twice, which is how it knows."""
    await raised(store, "1")
    receiver.next = ["hang"]
    async with courier(store, clock, hook(receiver), timeout_s=60, lease_ms=5000) as dying:
        work = asyncio.create_task(dying.work())
        await receiver.until(lambda seen: len(seen.calls) == 1)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    async with (
        stores.opened(place.url, place.folder, clock=clock) as second,
        courier(second, clock, hook(receiver), lease_ms=5000) as other,
    ):
        await other.work()
        assert len(receiver.calls) == 1, "the claim still stands"
        clock.now_ms += 5000
        await other.work()
    assert [call.id for call in receiver.calls] == [receiver.calls[0].id] * 2
    assert await states(store) == [("webhook", "sent", 2, "")]


async def test_a_channel_that_is_taken_away_keeps_nothing_waiting(
    store: Store, clock: Clock, receiver: Receiver
) -> None:
    await raised(store, "1")
    receiver.next = ["500"]
    async with courier(store, clock, hook(receiver)) as running:
        await running.work()
    clock.now_ms += 1000
    async with courier(store, clock, Channels()) as running:
        await running.work()
    assert await states(store) == [("webhook", "failed", 2, "this channel is no longer configured")]


# --- e-mail --------------------------------------------------------------------------------------------------------


def post(server: MailServer, scheme: str = "smtp", login: str = "") -> Channels:
    return Channels(mail=Mail(f"{scheme}://{login}127.0.0.1:{server.port}", "billing@tollgate.test"))


async def test_an_e_mail_goes_to_the_account_and_says_the_same(
    store: Store, clock: Clock, mail_server: MailServer
) -> None:
    account = await raised(store, "1", name="Acme Söhne", email="owner@acme.test")
    await raised(store, "2")  # without an address
    async with courier(store, clock, post(mail_server)) as running:
        await running.work()
    (letter,) = mail_server.letters
    assert mail_server.recipients == ["owner@acme.test"]
    assert (letter["From"], letter["To"]) == ("billing@tollgate.test", "owner@acme.test")
    assert letter["Subject"] == "90% of your tokens are used"
    assert letter["Message-ID"].startswith(f"<alert_{account.id}_")
    lines = letter.get_content().splitlines()
    assert lines[:3] == ["Hello Acme Söhne,", "", "You have used 90% of your tokens on the Trial plan."]
    assert await states(store) == [("email", "sent", 1, "")]


@pytest.mark.parametrize(
    ("name", "email", "arrives"),
    [
        ("Evil", "a@b.test\r\nBcc: all@victims.test", False),
        ("Evil", "a@b.test,all@victims.test", False),
        ("Evil", "-oQ/tmp@b.test", False),
        ("Evil", "nobody", False),
        ("Plain", "a@b.test", True),
    ],
)
async def test_no_name_or_address_adds_a_header_or_a_recipient(
    name: str, email: str, arrives: bool, store: Store, clock: Clock, mail_server: MailServer
) -> None:
    account = await raised(store, "1", name=name)
    async with store.database.write() as connection:  # past what accounts accept today
        await connection.exec_driver_sql(
            "UPDATE accounts SET email = '" + email.replace("'", "''") + f"' WHERE id = '{account.id}'"
        )
    async with courier(store, clock, post(mail_server)) as running:
        await running.work()
    assert mail_server.recipients == (["a@b.test"] if arrives else [])
    assert not any("victims" in line for line in mail_server.said)
    assert await states(store) == [("email", "sent", 1, "") if arrives else ("email", "failed", 1, "not an address")]


@pytest.mark.parametrize(
    ("reply", "state", "said"),
    [
        ("451 4.3.0 later", "pending", "recipient refused, SMTP 451"),
        ("550 5.1.1 canary-words", "failed", "recipient refused, SMTP 550"),
    ],
)
async def test_a_refused_recipient_is_tried_again_only_if_that_can_help(
    reply: str, state: str, said: str, store: Store, clock: Clock, mail_server: MailServer
) -> None:
    await raised(store, "1", email="owner@acme.test")
    mail_server.next = [reply]
    async with courier(store, clock, post(mail_server)) as running:
        await running.work()
    assert await states(store) == [("email", state, 1, said)]


async def test_credentials_are_used_and_never_told(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await raised(store, "1", email="owner@acme.test")
    with caplog.at_level(logging.DEBUG):
        async with receivers.mail(wants=("us er", "canary@pass")) as server:
            async with courier(store, clock, post(server, login="us%20er:canary%40wrong@")) as running:
                await running.work()
            assert await states(store) == [("email", "pending", 1, "SMTP 535")]
            clock.now_ms += 1000
            async with courier(store, clock, post(server, login="us%20er:canary%40pass@")) as running:
                await running.work()
            assert len(server.letters) == 1
    assert "canary" not in caplog.text
    assert "canary" not in repr(post(server, login="u:canary@"))


def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem", TLS / "server.key")
    return context


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
@pytest.mark.parametrize("is_trusted", [True, False])
async def test_letters_are_encrypted_for_a_server_that_proves_who_it_is(
    scheme: str, is_trusted: bool, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "server.pem"))
    await raised(store, "1", email="owner@acme.test")
    options: dict[str, Any] = {"smtps": tls()} if scheme == "smtps" else {"tls": tls()}
    async with (
        receivers.mail(wants=("user", "canary"), **options) as server,
        courier(store, clock, post(server, scheme, "user:canary@")) as running,
    ):
        await running.work()
        assert server.encrypted == ([True] if is_trusted else [])
        assert is_trusted or not any("AUTH" in line for line in server.said)
    told = ("email", "sent", 1, "") if is_trusted else ("email", "pending", 1, "SSLCertVerificationError")
    assert await states(store) == [told]


async def test_no_password_is_sent_in_the_clear_to_another_machine(store: Store, clock: Clock) -> None:
    await raised(store, "1", email="owner@acme.test")
    async with receivers.mail(wants=("user", "canary")) as server:
        elsewhere = Channels(mail=Mail(f"smtp://user:canary@0.0.0.0:{server.port}", "billing@tollgate.test"))
        async with courier(store, clock, elsewhere) as running:
            await running.work()
        assert not any("AUTH" in line for line in server.said)
    assert await states(store) == [("email", "pending", 1, "SMTPNotSupportedError")]


# --- what the docs say -----------------------------------------------------------------------------------------------

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "billing.md").read_text(encoding="utf-8")


async def test_the_docs_example_is_what_is_sent_and_their_code_verifies_it(
    store: Store, clock: Clock, receiver: Receiver
) -> None:
    account = await raised(store, "1", external_id="org-7")
    async with courier(store, clock, hook(receiver)) as running:
        await running.work()
    (call,) = receiver.calls
    (example,) = [orjson.loads(text) for text in re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL) if "alert." in text]
    example["data"].update(id=call.id)
    example["data"]["account"].update(id=account.id)
    assert call.json == example
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "is_genuine" in text]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["is_genuine"](SECRET, call.headers, call.body)
    assert not names["is_genuine"](SECRET, call.headers, call.body + b" ")
    assert not names["is_genuine"]("whsec_AAAA", call.headers, call.body)


def test_the_docs_name_the_details_that_there_are() -> None:
    catalog = catalogs.catalog(catalogs.trial(), catalogs.plan("pro"))
    subscription = Subscription("s", "trial", "v", SubscriptionStatus.TRIALING, NOW_MS, NOW_MS, NOW_MS + 9, NOW_MS + 9)
    situation = Situation(catalog, catalog.plans["trial"], subscription, catalog.features["general"])
    details = {
        "threshold": tidings.threshold(catalog, subscription, "tokens", 900),
        "low_balance": tidings.low_balance(catalog, "tokens", available=1, mark=2),
        "trial_ending": tidings.trial_ending(catalog, subscription),
        "trial_expired": tidings.trial_expired(catalog, "trial", ended_at_ms=NOW_MS, following=None),
        "refused": refusal_detail(situation, LimitExceeded()),
        "payment_failed": tidings.payment_failed(catalog, "pro", "in_1"),
        "rapid_use": rapid_use(RapidUse(5, 60), "a", None, NOW_MS).detail,
        "spike": tidings.spike(catalog, "tokens", used=1, usual=1, since_ms=NOW_MS, calls=1),
    }
    for kind, detail in details.items():
        (row,) = [line for line in DOCS.splitlines() if line.startswith(f"| `{kind}` | `")]
        assert re.findall(r"`(\w+)`", row)[1:] == list(detail), kind
        assert "-" not in words_of(kind, detail).title
