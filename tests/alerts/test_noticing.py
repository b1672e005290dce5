"""What calls give rise to telling somebody: once per period, whoever notices, and never in a call's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest

from gateway.domain.accounts import Account, AccountStatus, Subscription, SubscriptionStatus
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota.notices import Notices
from gateway.store.alerts import Alert, NewAlert
from tests.support import catalogs
from tests.support.calls import CHAT
from tests.support.gateways import Local, config_text, local
from tests.support.processes import eventually, free_port
from tests.support.receivers import Receiver
from tests.support.scrape import scrape
from tests.support.simulators import LocalModels, in_process
from tests.support.stores import NOW_MS, Place

SECRET = "0123456789abcdef"


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


def rules(text: str, receiver: Receiver) -> str:
    return f'warn_at: [0.8, 0.9, 1.0], {text}webhook: {{url: "{receiver.url}", secret: "${{S:-{SECRET}}}"}}'


def config(models: LocalModels, place: Place, **changes: str) -> str:
    text = config_text(models.url, port=free_port(), admin=free_port(), database=place.url, **changes)
    return text.replace("server: {", f'server: {{secret: "${{S:-{SECRET * 2}}}", ', 1)


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, place: Place, receiver: Receiver) -> AsyncIterator[Local]:
    text = config(models, place, alerts=rules("refused: true, ", receiver))
    async with local(models.url, valkey_url, place.folder, text=text) as running:
        yield running


async def ask(gateway: Local, key: str, steering: str, *, bound: int = 100) -> int:
    body = CHAT.body(steering, **{CHAT.bound: bound})
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + CHAT.path, json=body, headers=CHAT.headers(key)) as answer,
    ):
        await answer.read()
    await gateway.settled()
    return answer.status


async def alerts(gateway: Local, *, news: bool = False) -> list[Alert]:
    return [alert for alert in await gateway.worker.store.alerts.since(0) if alert.is_news is news]


async def test_a_threshold_is_told_once_even_when_redis_forgets_that_it_told(
    gateway: Local, receiver: Receiver
) -> None:
    """A refused call finds all thresholds passed; after a flush the engine finds them anew, the database does not."""
    key, _ = await gateway.account("trial", external_id="org-1")
    assert await ask(gateway, key, "output=5600 overrun") == 200
    assert await ask(gateway, key, "output=5", bound=5000) == 429
    await gateway.worker.client.execute("FLUSHALL")
    gateway.worker.gateway.quota.notices._told.clear()  # as another worker, or this one after a restart
    assert await ask(gateway, key, "output=5", bound=5000) == 429
    told = [(alert.kind, alert.detail.get("percent")) for alert in await alerts(gateway)]
    assert sorted(told, key=str) == [("refused", None), ("threshold", "80"), ("threshold", "90")]
    assert sorted(call.json["type"] for call in receiver.received) == ["alert.refused"] + ["alert.threshold"] * 2
    assert {call.json["data"]["account"]["external_id"] for call in receiver.received} == {"org-1"}
    page = await scrape(gateway)
    assert page.series("tollgate_alerts_total") == {("threshold",): 2, ("refused",): 1}
    assert page.series("tollgate_alert_deliveries_total") == {("webhook", "sent"): 3}


async def test_a_refused_call_tells_its_account_the_way_out(gateway: Local, receiver: Receiver) -> None:
    key, _ = await gateway.account("trial")
    assert await ask(gateway, key, "output=5990 overrun") == 200
    for _ in range(3):
        assert await ask(gateway, key, "output=5", bound=9) == 429
    refused = [call.json["data"] for call in receiver.received if call.json["type"] == "alert.refused"]
    assert [each["detail"]["reason"] for each in refused] == ["limit_exceeded"]
    assert refused[0]["detail"]["plans"] == ["Pro", "Cut", "Drain"]
    assert refused[0]["text"].startswith("You have no tokens left.")
    assert len(await alerts(gateway, news=True)) == 1, "of the two that follow, one is news in its minute"


async def test_refusals_are_no_alerts_unless_asked_for_but_news_to_listeners(
    models: LocalModels, valkey_url: str, place: Place
) -> None:
    async with local(models.url, valkey_url, place.folder, text=config(models, place)) as gateway:
        key, _ = await gateway.account("trial")
        for _ in range(3):
            assert await ask(gateway, key, "output=5", bound=50_000) == 429
        assert await alerts(gateway) == []
        (news,) = await alerts(gateway, news=True)
        assert (news.kind, news.detail["reason"], news.detail["scope"]) == ("refused", "call_too_large", "account")


async def test_what_only_asks_for_patience_is_no_alert(gateway: Local) -> None:
    key, _ = await gateway.account("trial")
    held = asyncio.create_task(ask(gateway, key, "output=5 ttfb=300", bound=5_900))
    await eventually(lambda: len(gateway.worker.gateway.quota.holds) > 0, what="the first call holds")
    async with aiohttp.ClientSession() as session:
        body = CHAT.body("output=5", **{CHAT.bound: 5_900})
        async with session.post(gateway.url + CHAT.path, json=body, headers=CHAT.headers(key)) as answer:
            assert answer.status == 429
    await held
    assert await alerts(gateway) == []
    assert [alert.detail["reason"] for alert in await alerts(gateway, news=True)] == ["held_elsewhere"]


def account_on_trial() -> Account:
    subscription = Subscription(
        "s1", "trial", "v1", SubscriptionStatus.TRIALING, NOW_MS, NOW_MS, NOW_MS + 1, NOW_MS + 1
    )
    return Account("a1", "Acme", None, None, AccountStatus.ACTIVE, 1, subscription, NOW_MS)


class Away:
    """A database that comes back."""

    def __init__(self) -> None:
        self.is_away = True
        self.asked = asyncio.Event()
        self.written: list[NewAlert] = []

    async def raise_all(self, new: Sequence[NewAlert]) -> None:
        self.asked.set()
        if self.is_away:
            raise StoreUnavailable
        self.written += new


async def test_a_full_queue_drops_counts_and_says_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    store, metrics = Away(), Metrics(None)
    notices = Notices(store, metrics, lambda: NOW_MS, queue_max=5)
    catalog = catalogs.catalog(catalogs.trial())
    account = account_on_trial()
    for permille in range(100, 900, 100):
        notices.threshold(account, catalog, "tokens", permille)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert b'tollgate_alerts_dropped_total{kind="threshold"} 3.0' in metrics.render()
    store.is_away = False
    run = asyncio.create_task(notices.run())
    await notices.drained()
    run.cancel()
    assert len(store.written) == 5


async def test_what_was_noticed_waits_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.quota.notices.RETRY_S", 0.01)
    store = Away()
    raised = asyncio.Event()
    notices = Notices(store, Metrics(None), lambda: NOW_MS, raised=raised.set)
    run = asyncio.create_task(notices.run())
    notices.threshold(account_on_trial(), catalogs.catalog(catalogs.trial()), "tokens", 900)
    await store.asked.wait()
    assert not raised.is_set()
    store.is_away = False
    await raised.wait()
    run.cancel()
    assert [(new.kind, new.detail["percent"]) for new in store.written] == [("threshold", "90")]
