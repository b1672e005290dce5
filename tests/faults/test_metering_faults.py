"""Work outside the proxy while things die: nothing is charged twice, nothing that was used is lost."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.charges import ChargeRow
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.quota.keeper import Keeper
from gateway.store.grants import Grants
from gateway.store.idempotency import Begun, Idempotency
from tests.support import stores
from tests.support.apis import Apis, apis
from tests.support.family import kill9, workers
from tests.support.gateways import Served, served
from tests.support.metering import account_with, adds_up, charged, sold, use
from tests.support.processes import eventually, wait_until
from tollgate import Client

CALL = {"service": "outbound_call", "quantity": 5}


@pytest.fixture
async def shop(valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, text=sold()) as started:
        yield started


def test_a_server_killed_again_and_again_charges_each_use_once(tmp_path: Path) -> None:
    """The client repeats what got no answer, with the same key: uses and whole holds, through two deaths."""
    with served(tmp_path, sold(workers=1)) as server:
        account = server.cli("accounts", "create", "Acme", "--plan", "voice")["id"]
        server.cli("grant", account, "100000", "--wallet", "minutes", "--reason", "test")
        key = server.cli("keys", "create", account)["key"]
        client = Client(server.url, key, patience=90)

        def one(number: int) -> None:
            if number % 3:
                client.use(service="sms", quantity=2, job=str(number))
                return
            with client.hold(service="outbound_call", quantity=1, ttl=60, job=str(number)) as hold:
                hold.extend(quantity=1)
                hold.settle(quantity="90s")

        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(one, number) for number in range(60)]
            for part in (8, 30):
                wait_until(
                    lambda part=part: sum(each.done() for each in done) >= part, what="some are done", within_s=60
                )
                for pid in workers(server):
                    kill9(pid)
            for each in done:
                each.result(100)
        client.close()
        rows = _charges(server)
        charges = {job: steps for job, _, steps in rows}
        assert len(rows) == len(charges) == 60, "each once"
        assert charges == {str(number): 1000 if number % 3 else 3000 for number in range(60)}
        assert server.cli("audit")["difference"] == 0


def _charges(server: Served) -> list[tuple[str, str, int]]:
    """(job, state, steps) of every line of the bill, read beside the server."""
    with closing(sqlite3.connect(f"file:{server.data / 'tollgate.db'}?mode=ro", uri=True)) as database:
        return database.execute("SELECT job, state, charged FROM usage ORDER BY committed_at_ms").fetchall()


async def test_a_request_whose_worker_died_after_the_charge_is_found_by_its_repeat(
    shop: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, account = await account_with(shop)

    async def die(self: Idempotency, begun: Begun, **_: Any) -> None:
        await self.leave(begun)

    body = [{"service": "sms", "quantity": 7}, {"service": "sms", "quantity": 1}]
    with monkeypatch.context() as patched:
        patched.setattr(Idempotency, "finish", die)
        first = await use(shop, key, body, idempotency_key="k1")
        hold = await shop.call("POST", "/api/v1/holds", key=key, json=CALL, headers={"Idempotency-Key": "k2"})
        hold_id = hold.json()["id"]
        extend = f"/api/v1/holds/{hold_id}/extend"
        grown = await shop.call("POST", extend, key=key, json={"quantity": 1}, headers={"Idempotency-Key": "k3"})
    again = await use(shop, key, body, idempotency_key="k1")
    assert "Tollgate-Replayed" not in again.headers
    assert [item["id"] for item in again.json()["items"]] == [item["id"] for item in first.json()["items"]]
    assert [item["charged"] for item in again.json()["items"]] == ["3.5", "0.5"]
    held = await shop.call("POST", "/api/v1/holds", key=key, json=CALL, headers={"Idempotency-Key": "k2"})
    assert held.json()["id"] == hold_id
    once = await shop.call("POST", extend, key=key, json={"quantity": 1}, headers={"Idempotency-Key": "k3"})
    assert once.json()["held"] == grown.json()["held"] == "12"
    assert await charged(shop, account) == [("sms", "settled", 3500), ("sms", "settled", 500)]
    await adds_up(shop, account)


async def test_a_use_whose_answer_cannot_be_told_is_not_charged(shop: Apis, monkeypatch: pytest.MonkeyPatch) -> None:
    key, account = await account_with(shop)

    async def away(*_: object) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(Grants, "used", away)
        assert (await use(shop, key, {"service": "sms"})).code == "store_unavailable"
    assert await charged(shop, account) == []
    assert (await use(shop, key, {"service": "sms"})).json()["creditInfo"]["totalTokensUsed"] == "0.5"
    await adds_up(shop, account)


async def test_of_a_list_that_could_not_be_finished_the_repeat_does_the_rest(
    shop: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, account = await account_with(shop)
    scribe = shop.gateway.worker.gateway.quota.scribe
    decide, body = scribe.decide, [{"service": "sms", "quantity": 7}, {"service": "sms"}]

    async def decide_large(row: ChargeRow) -> None:
        if row.charged < 1000:
            raise StoreUnavailable
        await decide(row)

    with monkeypatch.context() as patched:
        patched.setattr(scribe, "decide", decide_large)
        assert (await use(shop, key, body, idempotency_key="k1")).code == "store_unavailable"
    again = await use(shop, key, body, idempotency_key="k1")
    assert [item["charged"] for item in again.json()["items"]] == ["3.5", "0.5"]
    assert await charged(shop, account) == [("sms", "settled", 3500), ("sms", "settled", 500)]
    await adds_up(shop, account)


async def test_a_request_that_died_before_the_charge_is_charged_by_its_repeat(
    shop: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, account = await account_with(shop)
    scribe = shop.gateway.worker.gateway.quota.scribe

    async def die(_: object) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(scribe, "decide", die)
        assert (await use(shop, key, {"service": "sms"}, idempotency_key="k1")).code == "store_unavailable"
    assert (await use(shop, key, {"service": "sms"}, idempotency_key="k1")).json()["charged"] == "0.5"
    assert await charged(shop, account) == [("sms", "settled", 500)]
    await adds_up(shop, account)


async def test_holds_come_back_into_a_redis_that_lost_everything(shop: Apis) -> None:
    key, account = await account_with(shop)
    worker = shop.gateway.worker
    hold_id = (await shop.call("POST", "/api/v1/holds", key=key, json={**CALL, "ttl": 600})).json()["id"]
    await worker.client.execute("FLUSHALL")
    await use(shop, key, {"service": "sms"})  # whoever calls next finds out

    async def is_back() -> bool:
        return [hold.hold_id for hold in await worker.engine.open_holds(account.id)] == [hold_id]

    await eventually(is_back, what="the hold is back")
    grown = await shop.call("POST", f"/api/v1/holds/{hold_id}/extend", key=key, json={"quantity": 1})
    assert grown.json()["held"] == "12"
    settled = await shop.call("POST", f"/api/v1/holds/{hold_id}/settle", key=key, json={"quantity": 6})
    assert settled.json()["charged"] == "12"
    assert await charged(shop, account) == [("sms", "settled", 500), ("outbound_call", "settled", 12_000)]
    await adds_up(shop, account)


@pytest.mark.parametrize("verb", ["extend", "settle", "release"])
async def test_a_hold_that_redis_has_lost_is_extended_and_ended_all_the_same(shop: Apis, verb: str) -> None:
    key, account = await account_with(shop)
    hold_id = (await shop.call("POST", "/api/v1/holds", key=key, json=CALL)).json()["id"]
    await shop.gateway.worker.client.execute("FLUSHALL")
    path = f"/api/v1/holds/{hold_id}"
    assert (await shop.call("POST", f"{path}/{verb}", key=key, json={})).status == 200
    if verb == "extend":
        assert (await shop.call("POST", f"{path}/extend", key=key, json={"quantity": 1})).json()["held"] == "12"
        assert (await shop.call("POST", f"{path}/settle", key=key, json={})).json()["charged"] == "12"
    total = {"extend": 12_000, "settle": 10_000, "release": 0}[verb]
    assert sum(line[2] for line in await charged(shop, account)) == total
    await adds_up(shop, account)


async def test_a_hold_that_redis_forgot_for_good_is_charged_by_its_lease_from_sql(shop: Apis) -> None:
    key, account = await account_with(shop)
    worker = shop.gateway.worker
    quota, store = worker.gateway.quota, worker.store
    hold_id = (await shop.call("POST", "/api/v1/holds", key=key, json={**CALL, "ttl": "60s"})).json()["id"]
    await worker.engine.release_id(account.id, hold_id)
    keeper = Keeper(worker.engine, store.metering, store.idempotency, quota.scribe, Metrics(None), patience_ms=30_000)
    await keeper.tend(quota.clock.now_ms() + 80_000)
    assert await charged(shop, account) == []  # its client may still be there
    for _ in range(2):
        await keeper.tend(quota.clock.now_ms() + 100_000)
    assert await charged(shop, account) == [("outbound_call", "lapsed", 10_000)]
    await adds_up(shop, account)
    settled = await shop.call("POST", f"/api/v1/holds/{hold_id}/settle", key=key, json={"quantity": "61.2s"})
    assert settled.json()["charged"] == "2.067"
    assert sum(line[2] for line in await charged(shop, account)) == 2067
    await adds_up(shop, account)
