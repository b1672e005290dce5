"""What operators see: who was told of what, whether the channels work, what is used most, and who runs out soon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.billing.desk import Desk
from gateway.billing.insight import Insight, InsightService, month_until
from gateway.domain.accounts import Account
from gateway.quota.keys import KeyHasher
from gateway.store.alerts import NewAlert
from gateway.store.common import new_id
from gateway.store.store import Store
from tests.support import catalogs, receivers, stores
from tests.support.apis import Apis, apis
from tests.support.commands import CONFIG, Cli, installation
from tests.support.scrape import scrape
from tests.support.stores import DAY_MS, NOW_MS, Clock, Place, charge

CATALOG = catalogs.catalog(
    catalogs.plan("pro", allowance={"tokens": 1_000_000}),
    catalogs.plan("endless", allowance={"tokens": "unlimited"}),
)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return installation(tmp_path, capsys)


async def test_a_sample_goes_to_every_channel_and_says_what_became_of_it(cli: Cli) -> None:
    """In a real process, for the receivers live on this loop."""
    async with receivers.http() as receiver, receivers.mail() as server:
        hook = f'webhook: {{url: "{receiver.url}", secret: "${{S:-0123456789abcdef}}"}}'
        post = f'email: {{smtp: "smtp://127.0.0.1:{server.port}", from: billing@a.test}}'
        cli.config.write_text(f"{CONFIG}alerts: {{{hook}, {post}}}\n")
        receiver.next = ["ok", "503"]
        done = await asyncio.to_thread(cli.process, "alerts", "test", "--email", "me@a.test", "--json")
        assert done.json() == [
            {"channel": "webhook", "arrived": True, "error": None},
            {"channel": "email", "arrived": True, "error": None},
        ]
        assert server.recipients == ["me@a.test"]
        assert receiver.calls[0].json["data"]["id"].startswith("alert_test_")
        failed = await asyncio.to_thread(cli.process, "alerts", "test", "--email", "me@a.test")
        assert failed.code == 1
        assert "HTTP 503" in failed.out
        unsaid = await asyncio.to_thread(cli.process, "alerts", "test")
        assert (unsaid.code, unsaid.err) == (2, "tollgate: Say whom to write to: --email ADDRESS.\n")


def test_without_a_channel_there_is_nowhere_to_send_to(cli: Cli) -> None:
    done = cli("alerts", "test")
    assert (done.code, done.out) == (2, "")
    assert "nowhere to send to" in done.err


@pytest.fixture
async def running(place: Place, valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    if place.backend == "sqlite":
        (tmp_path / "data").mkdir()
        stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, database=place.url) as started:
        yield started


async def test_operators_see_each_alert_with_its_deliveries(running: Apis) -> None:
    store = running.gateway.worker.store.alerts
    _, account = await running.gateway.account("pro")
    _, other = await running.gateway.account("pro")
    detail = {"plan": "Pro", "reference": "in_1"}
    await store.raise_all([NewAlert(account.id, "payment_failed", "p1", detail, NOW_MS)])
    await store.raise_all([NewAlert(other.id, "spike", "s1", {"unit": "tokens"}, NOW_MS)])
    await store.announce(("webhook",), now_ms=NOW_MS)
    (claim, _) = await store.claim(now_ms=NOW_MS, lease_ms=1000, limit=2)
    await store.failed(claim, "HTTP 500", again_at_ms=None)

    async def listed(query: str) -> list[Any]:
        answer = await running.admin("GET", f"/admin/v1/alerts?{query}")
        assert answer.status == 200, answer.body
        items: list[Any] = answer.json()["items"]
        return items

    assert [each["kind"] for each in await listed("")] == ["spike", "payment_failed"]
    (found,) = await listed(f"account={account.id}")
    assert (found["title"], found["text"]) == ("A payment failed", "A payment failed. It was for Pro.")
    (failed,) = await listed("state=failed")
    assert failed["deliveries"] == [
        {"channel": "webhook", "state": "failed", "attempts": 1, "next_at": None, "last_error": "HTTP 500"}
    ]
    assert len(await listed("kind=spike")) == 1
    assert (await running.admin("GET", "/admin/v1/alerts?kind=nothing")).status == 400
    assert (await running.admin("GET", "/admin/v1/alerts?cursor=x")).status == 400


# --- insight ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(place: Place, clock: Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, clock=clock, catalog=CATALOG) as opened:
        yield opened


async def spend(store: Store, account: Account, amount: int, *, days_ago: int = 0, **changes: Any) -> None:
    at_ms = NOW_MS - days_ago * DAY_MS
    await store.writer.commit([charge(account, (1, amount), at_ms=at_ms, **changes)])


async def look(store: Store, account: Account | None = None) -> Insight:
    desk = Desk(
        store=store,
        catalog=lambda: CATALOG,
        hasher=KeyHasher("s" * 32),
        states=None,
        now_ms=lambda: NOW_MS,
        actor="test",
    )
    service = InsightService(desk)
    return await service.look(account and account.id, from_ms=NOW_MS - 5 * DAY_MS, to_ms=NOW_MS + 1)


async def _account(store: Store, name: str, plan: str = "pro") -> Account:
    return await store.accounts.create(name, now_ms=NOW_MS - 10 * DAY_MS, plan=plan)


async def test_what_is_used_most_comes_first(store: Store) -> None:
    one, two = await _account(store, "One"), await _account(store, "Two")
    ann = new_id()
    for _ in range(3):
        await spend(store, one, 10, feature="job", user_id=ann)
    await spend(store, two, 1000)
    found = await look(store)
    assert [(each.feature, each.calls, each.charged, each.tokens) for each in found.features] == [
        ("job", 3, 30, 30),
        ("general", 1, 1000, 1000),
    ]
    assert [(each.account_id, each.user_id, each.calls) for each in found.users] == [
        (one.id, ann, 3),
        (two.id, None, 1),
    ]
    assert [each.feature for each in (await look(store, two)).features] == ["general"]


async def test_at_risk_is_who_has_used_most_or_runs_out_within_a_week(store: Store) -> None:
    calm, used, fast = [await _account(store, name) for name in ("Calm", "Used", "Fast")]
    endless = await _account(store, "Endless", "endless")
    await spend(store, calm, 100_000)
    await spend(store, used, 800_000, days_ago=9)  # long ago: its pace is nought
    for days_ago in range(5):
        await spend(store, fast, 150_000, days_ago=days_ago)
    await spend(store, endless, 800_000)
    risks = {risk.account.name: risk for risk in (await look(store)).at_risk}
    assert set(risks) == {"Used", "Fast"}
    assert (risks["Used"].used_permille, risks["Used"].runs_out_at_ms) == (800, None)
    runs_out_ms = risks["Fast"].runs_out_at_ms
    assert runs_out_ms is not None and NOW_MS < runs_out_ms < NOW_MS + 7 * DAY_MS
    assert [risk.account.name for risk in (await look(store, fast)).at_risk] == ["Fast"]
    assert (await look(store, calm)).at_risk == ()


async def test_whose_period_ends_before_it_runs_out_is_not_at_risk(store: Store) -> None:
    """Six days' worth is left, and a new allowance comes tomorrow."""
    account = await store.accounts.create("Soon", now_ms=NOW_MS - 29 * DAY_MS)
    for days_ago in range(5):
        await spend(store, account, 80_000, days_ago=days_ago)
    assert (await look(store)).at_risk == ()


def test_by_default_it_is_the_running_month() -> None:
    assert month_until(NOW_MS, None, None) == (1_761_955_200_000, NOW_MS + 1)
    assert month_until(NOW_MS, 5, 7) == (5, 7)


async def test_operators_see_it_by_http_and_by_command(running: Apis) -> None:
    key, account = await running.gateway.account("pro", name="Acme")
    body = {"feature": "job", "quantity": 41, "user": "ann"}
    assert (await running.call("POST", "/api/v1/usage", key=key, json=body)).status == 200
    await running.gateway.settled()
    found = (await running.admin("GET", "/admin/v1/insight")).json()
    assert [(each["feature"], each["charged"]) for each in found["features"]] == [("job", "41")]
    assert found["users"][0]["account"] == account.id
    assert [(each["name"], each["wallet"], each["used_percent"], each["available"]) for each in found["at_risk"]] == [
        ("Acme", "uses", "82", "9")
    ]
    assert (await running.admin("GET", "/admin/v1/insight?account=nobody")).status == 404


async def test_refused_work_outside_the_proxy_is_counted_and_told_like_a_call(running: Apis) -> None:
    key, account = await running.gateway.account("pro")
    body = {"feature": "job", "quantity": 51}
    for _ in range(2):
        assert (await running.call("POST", "/api/v1/usage", key=key, json=body)).status == 429
    await running.gateway.settled()
    page = await scrape(running.gateway)
    assert page.sum("tollgate_denials_total", scope="account") == 2
    assert page.series("tollgate_feature_uses_total") == {("job", "refused", "pro"): 2}
    (news,) = await running.gateway.worker.store.alerts.since(0, account_id=account.id)
    assert (news.is_news, news.detail["feature"], news.detail["wallet"]) == (True, "job", "uses")


def test_the_command_says_so_when_there_is_nothing_to_see(cli: Cli) -> None:
    done = cli("insight")
    assert (done.code, done.out) == (0, "")
    assert "Nothing was used" in done.err
    assert cli.ok("insight")["features"] == []
    assert cli.ok("alerts", "list") == []
