"""Metrics of real calls: every answer counted once, under labels that the config knows, and our own time apart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gateway.metrics import FAMILIES
from gateway.quota.drift import Drift
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, RESPONSES, Dialect
from tests.support.gateways import Local
from tests.support.processes import eventually
from tests.support.scrape import Page, scrape
from tests.support.simulators import LocalModels
from tests.support.sockets import connection

STAGES = ("authenticate", "parse", "count", "reserve", "connect", "relay", "settle", "total")
# What only time, money or an operator brings about.
SILENT_HERE = {
    "tollgate_payments_total",
    "tollgate_shadow_denials_total",  # of plans in shadow only
    "tollgate_alert_deliveries_total",  # no channel is configured
    "tollgate_alerts_dropped_total",  # a queue that is full
    "tollgate_config_reloads_total",
    "tollgate_period_turns_total",
    "tollgate_subscription_changes_total",
    "tollgate_holds_lapsed_total",
}


async def ask(
    gateway: Local, key: str | None, steering: str = "output=5", *, dialect: Dialect = CHAT, **options: Any
) -> int:
    """One call to its end; answers the status."""
    headers = dialect.headers(key, **options.pop("headers", {}))
    body = dialect.body(steering, **options)
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + dialect.path, json=body, headers=headers) as answer,
    ):
        await answer.read()
        return answer.status


async def settled_page(gateway: Local) -> Page:
    await gateway.settled()
    return await scrape(gateway)


async def test_ordinary_use_brings_every_family_to_life(gateway: Local, models: LocalModels) -> None:
    """What stays silent is named in the docs: a family that nobody counts would be one that nobody can trust."""
    key, account = await gateway.account("cut")
    assert await ask(gateway, key, stream=True) == 200
    assert await ask(gateway, key, "output=900 overrun", dialect=ANTHROPIC, max_tokens=50) == 200
    assert await ask(gateway, await gateway.key("trial"), "output=5", max_completion_tokens=50_000) == 429
    async with connection(gateway.url) as client:  # a client that leaves in the middle
        client.send(CHAT.request(key, CHAT.body("tag=left events=50 delay=20", stream=True)))
        await client.head()
        await client.piece()
    await models.journal.ended("left")
    engine = gateway.worker.engine
    drift = Drift(
        engine, gateway.worker.store.sums, meters=lambda: gateway.installation.config.catalog.meters,
        metrics=gateway.worker.metrics,
    )  # fmt: skip
    await gateway.settled()
    await drift.check([account.id])
    trial, _ = await gateway.account("trial")
    for _ in range(2):
        await ask(gateway, trial, "output=4900 overrun", max_completion_tokens=100)
    await gateway.worker.reaper.tick()
    page = await settled_page(gateway)
    silent = {family.name for family in FAMILIES if not page.families[family.name.removesuffix("_total")].samples}
    assert silent <= SILENT_HERE


async def test_every_answer_is_counted_once_under_its_route_model_plan_and_status(gateway: Local) -> None:
    pro, trial = await gateway.key("pro"), await gateway.key("trial")
    for dialect in DIALECTS:
        assert await ask(gateway, pro, dialect=dialect) == 200
        assert await ask(gateway, pro, dialect=dialect, stream=True) == 200
    assert await ask(gateway, pro, "status=429 retry_after=1") == 429
    assert await ask(gateway, trial, max_completion_tokens=50_000) == 429
    assert await ask(gateway, None) == 401
    assert await ask(gateway, pro, model="mystery-9") == 404
    assert await ask(gateway, pro, model="gpt-future") == 200
    counted = (await settled_page(gateway)).series("tollgate_requests_total")  # (model, plan, route, status)
    assert counted == {
        ("claude-haiku-4-5", "pro", "anthropic", "200"): 2,
        ("gpt-5", "pro", "openai_chat", "200"): 2,
        ("gpt-5", "pro", "openai_responses", "200"): 2,
        ("gpt-5", "pro", "openai_chat", "429"): 1,
        ("gpt-5", "trial", "openai_chat", "429"): 1,
        ("other", "none", "openai_chat", "401"): 1,
        ("other", "pro", "openai_chat", "404"): 1,
        ("gpt-*", "pro", "openai_chat", "200"): 1,
    }


async def test_features_are_counted_by_what_became_of_their_uses(gateway: Local) -> None:
    pro, trial = await gateway.key("pro"), await gateway.key("trial")
    job = {"Tollgate_Feature": "job"}
    assert await ask(gateway, pro, headers=job) == 200
    assert await ask(gateway, pro, headers=job) == 200
    assert await ask(gateway, pro, "status=500", headers=job) == 500
    assert await ask(gateway, pro) == 200
    assert await ask(gateway, trial, headers=job) == 429
    counted = (await settled_page(gateway)).series("tollgate_feature_uses_total")  # (feature, outcome, plan)
    assert counted == {
        ("job", "complete", "pro"): 2,
        ("job", "not_served", "pro"): 1,
        ("job", "refused", "trial"): 1,
        ("general", "complete", "pro"): 1,
    }


async def test_a_plan_that_the_config_lost_is_no_label(gateway: Local) -> None:
    key = await gateway.key("cut")
    config = gateway.worker.gateway.config
    plans = {name: plan for name, plan in config.catalog.plans.items() if name != "cut"}
    gateway.worker.configure(replace(config, catalog=replace(config.catalog, plans=plans)))
    assert await ask(gateway, key) != 200
    ((_, plan, _, _),) = (await settled_page(gateway)).series("tollgate_requests_total")  # model, plan, route, status
    assert plan == "other"


async def test_every_attempt_is_counted_under_its_upstream_and_what_became_of_it(
    gateway: Local, models: LocalModels
) -> None:
    key = await gateway.key("pro")
    tried = [("output=5", 200), ("output=5", 200), ("status=429", 429), ("status=500", 500), ("reset=before", 502)]
    for steering, status in tried:
        assert await ask(gateway, key, steering) == status
    assert await ask(gateway, key, dialect=ANTHROPIC) == 200
    counted = (await settled_page(gateway)).series("tollgate_upstream_requests_total")  # (status, upstream)
    assert counted == {
        ("200", "openai"): 2,
        ("429", "openai"): 1,
        ("500", "openai"): 1,
        ("upstream_unreachable", "openai"): 1,
        ("200", "anthropic"): 1,
    }


async def test_tokens_are_counted_by_kind_and_compared_with_what_was_expected_of_them(
    gateway: Local, models: LocalModels
) -> None:
    """A cached token is input, however long it was cached for."""
    key = await gateway.key("drain")
    body = ANTHROPIC.body("input=40 output=50 cached=30 cache_write=20 cache_write_1h=10", max_tokens=200)
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + ANTHROPIC.path, json=body, headers=ANTHROPIC.headers(key)) as answer,
    ):
        assert answer.status == 200
        expected = int(answer.headers["Tollgate-Held"]) - 200
    page = await settled_page(gateway)
    kinds = page.series("tollgate_tokens_total")  # (kind, model, plan)
    told = {kind: count for (kind, _, _), count in kinds.items()}
    assert told == {"input": 40, "cache_read": 30, "cache_write": 30, "output": 50}
    assert page.sum("tollgate_estimate_ratio_sum", part="input") == pytest.approx(100 / expected)
    assert page.sum("tollgate_estimate_ratio_sum", part="output") == pytest.approx(50 / 200)


async def test_what_clients_choose_is_no_label(gateway: Local) -> None:
    """Neither names nor numbers of series are theirs to choose."""
    key = await gateway.key("pro", name="canary-account", external_id="canary-external")
    for number in range(5):
        headers = {
            "Tollgate_User": f"canary-user-{number}",
            "Tollgate_Job": f"canary-job-{number}",
            "Tollgate_Job_Type": f"canary-type-{number}",
            "Tollgate_Metadata": f'{{"canary": {number}}}',
        }
        for dialect, model in ((CHAT, f"gpt-canary-{number}"), (ANTHROPIC, f"claude-canary-{number}")):
            assert await ask(gateway, key, dialect=dialect, model=model, headers=headers, text="canary prompt") == 200
        assert await ask(gateway, key, model=f"canary-{number}") == 404
        assert await ask(gateway, key, headers={"Tollgate_Feature": f"canary-{number}"}) == 400
    page = await settled_page(gateway)
    assert "canary" not in page.text and key not in page.text
    assert {labels[0] for labels in page.series("tollgate_requests_total")} == {"gpt-*", "claude-*", "other"}


@pytest.mark.parametrize("stream", [False, True])
async def test_every_stage_of_a_call_is_timed_once_and_the_total_is_their_sum(stream: bool, gateway: Local) -> None:
    key = await gateway.key("pro")
    assert await ask(gateway, key, "output=200", stream=stream) == 200
    page = await settled_page(gateway)
    counts = {stage: page.sum("tollgate_overhead_seconds_count", stage=stage) for stage in STAGES}
    assert counts == dict.fromkeys(STAGES, 1)
    spent = {stage: page.sum("tollgate_overhead_seconds_sum", stage=stage) for stage in STAGES}
    before = sum(seconds for stage, seconds in spent.items() if stage not in ("settle", "total"))
    assert spent["total"] == pytest.approx(before)
    assert all(seconds > 0 for seconds in spent.values())
    assert page.sum("tollgate_upstream_seconds_count", upstream="openai") == 1
    assert page.sum("tollgate_first_byte_seconds_count", model="gpt-5") == 1


async def test_a_slow_provider_is_not_our_time(gateway: Local) -> None:
    key = await gateway.key("pro")
    assert await ask(gateway, key, "ttfb=300 events=4 delay=100", stream=True) == 200
    assert await ask(gateway, key, "ttfb=300 output=5", dialect=RESPONSES) == 200
    page = await settled_page(gateway)
    assert page.sum("tollgate_upstream_seconds_sum") >= 1.0
    assert page.sum("tollgate_first_byte_seconds_sum") >= 0.6
    assert page.sum("tollgate_overhead_seconds_sum", stage="relay") < 0.3
    assert page.sum("tollgate_overhead_seconds_sum", stage="connect") < 0.3


async def test_a_slow_client_is_not_our_time(gateway: Local) -> None:
    """Its body is under way for a while."""
    key = await gateway.key("pro")
    request = CHAT.request(key, CHAT.body("output=5"))
    loop = asyncio.get_running_loop()
    async with connection(gateway.url) as client:
        client.send(request[:-10])
        sent_s = loop.time()
        await eventually(lambda: loop.time() - sent_s > 0.5, what="half a second passed")
        client.send(request[-10:])
        assert (await client.head()).status == 200
    page = await settled_page(gateway)
    assert page.sum("tollgate_overhead_seconds_count", stage="parse") == 1
    assert page.sum("tollgate_overhead_seconds_sum", stage="parse") < 0.3


async def test_every_round_trip_to_redis_is_timed_under_its_script(gateway: Local) -> None:
    for _ in range(3):  # an account each: the charges of one are confirmed together
        assert await ask(gateway, await gateway.key("pro")) == 200
    page = await settled_page(gateway)
    counted = {script: count for (script,), count in page.series("tollgate_redis_seconds_count").items()}
    assert counted["settle"] == 3 and counted["confirm"] == 3
    assert counted["reserve"] == 3 + page.sum("tollgate_rebuilds_total"), "each load is followed by another try"
    assert page.sum("tollgate_settle_lag_seconds_count") == 3


async def test_charges_that_wait_for_sql_are_seen_at_the_scrape(gateway: Local, monkeypatch: Any) -> None:
    key = await gateway.key("pro")
    hindered = asyncio.Event()

    async def commit(_: Any) -> Any:
        await hindered.wait()
        return await original(_)

    writer = gateway.worker.store.writer
    original = writer.commit
    monkeypatch.setattr(type(writer), "commit", lambda _, rows: commit(rows))
    for _ in range(3):
        assert await ask(gateway, key) == 200
    await gateway.worker.gateway.tasks.drained(10)
    assert (await scrape(gateway)).sum("tollgate_outbox_entries") == 3
    hindered.set()
    assert (await settled_page(gateway)).sum("tollgate_outbox_entries") == 0


async def test_a_client_that_left_is_counted_by_what_was_then_done(gateway: Local, models: LocalModels) -> None:
    gateway.worker.gateway.drains_max = 1
    keys = [await gateway.key("drain"), await gateway.key("drain"), await gateway.key("cut")]
    for number, key in enumerate(keys):
        async with connection(gateway.url) as client:
            client.send(CHAT.request(key, CHAT.body(f"tag=left-{number} events=40 delay=20", stream=True)))
            await client.head()
            await client.piece()
    for number in range(3):
        await models.journal.ended(f"left-{number}")
    counted = (await settled_page(gateway)).series("tollgate_disconnects_total")
    assert counted == {("drain",): 1, ("cut",): 2}, "the second one found no room to be drained"


async def test_calls_in_flight_show_as_holds_and_streams(gateway: Local) -> None:
    key = await gateway.key("cut")
    async with connection(gateway.url) as client:
        client.send(CHAT.request(key, CHAT.body("events=500 delay=20", stream=True)))
        await client.head()
        page = await scrape(gateway)
        assert (page.sum("tollgate_holds_open"), page.sum("tollgate_streams_open")) == (1, 1)
        assert page.sum("tollgate_hold_age_seconds") > 0
    await eventually(lambda: not gateway.worker.gateway.open, what="the call ended")
    page = await settled_page(gateway)
    assert (page.sum("tollgate_holds_open"), page.sum("tollgate_streams_open")) == (0, 0)
    assert page.sum("tollgate_hold_age_seconds") == 0


async def test_under_load_redis_never_drifts_from_the_ledger(gateway: Local) -> None:
    """Looked at all the while, in whatever state the charges are."""
    worker = gateway.worker
    accounts = [await gateway.account("pro") for _ in range(4)]
    ids = [account.id for _, account in accounts]
    drift = Drift(
        worker.engine, worker.store.sums, meters=lambda: worker.installation.config.catalog.meters,
        metrics=worker.metrics,
    )  # fmt: skip
    headers: list[Mapping[str, str]] = [{}, {"Tollgate_Feature": "job"}]
    calls = asyncio.gather(
        *(
            ask(gateway, key, f"output={5 + number}", headers=headers[number % 2], stream=number % 3 == 0)
            for number in range(10)
            for key, _ in accounts
        )
    )
    looks = 0
    while not calls.done():
        await drift.check(ids)
        assert (await scrape(gateway)).sum("tollgate_ledger_drift_units") == 0
        looks += 1
    assert set(await calls) == {200} and looks > 3
    await gateway.settled()
    await drift.check(ids)
    assert (await scrape(gateway)).sum("tollgate_ledger_drift_units") == 0
