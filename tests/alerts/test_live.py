"""Live events: whoever listens hears what happens to its account, on whichever worker it happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.billing.alerts import live
from gateway.billing.alerts.live import Event, Listener, LiveEvents
from gateway.billing.http import events as route
from gateway.domain.accounts import AccountStatus
from gateway.quota.keys import KeyHasher, display_prefix, new_key
from gateway.store.alerts import Alert, NewAlert
from gateway.store.store import Store
from tests.alerts.test_noticing import ask, config
from tests.support import stores
from tests.support.gateways import Local, local
from tests.support.processes import eventually
from tests.support.simulators import LocalModels, in_process
from tests.support.stores import NOW_MS, Place

PATH = "/api/billing/events"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TAIL_S", 0.05)


@pytest.fixture
async def models() -> AsyncIterator[LocalModels]:
    async with in_process() as running:
        yield running


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, place: Place) -> AsyncIterator[Local]:
    async with local(models.url, valkey_url, place.folder, text=config(models, place)) as running:
        yield running


@dataclass
class Heard:
    """An event stream as a browser reads it."""

    answer: aiohttp.ClientResponse

    async def next(self) -> dict[str, Any] | None:
        """The next event, None at the end of the stream."""
        found: dict[str, Any] = {}
        async for raw in self.answer.content:
            line = raw.decode().rstrip("\n")
            name, _, value = line.partition(": ")
            if line and not line.startswith(":"):
                found[name] = orjson.loads(value) if name == "data" else value
            elif "data" in found:
                return found
        return None

    async def until(self, name: str) -> dict[str, Any]:
        while (event := await self.next()) is not None:
            if event["event"] == name:
                return event
        raise AssertionError(f"the stream ended before {name}")


@contextlib.asynccontextmanager
async def listening(
    gateway: Local, key: str, *, last: int | None = None, query: str = "", **more: str
) -> AsyncIterator[Heard]:
    """``more``: further headers."""
    headers = {"Authorization": f"Bearer {key}", **more, **({} if last is None else {"Last-Event-ID": str(last)})}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
        session.get(gateway.url + PATH + query, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        yield Heard(answer)


async def test_balance_warning_and_refusal_are_heard_as_they_happen(gateway: Local) -> None:
    key, _ = await gateway.account("trial")
    other, _ = await gateway.account("trial")
    async with listening(gateway, key) as heard:
        assert heard.answer.headers["Content-Type"] == "text/event-stream"
        first = await heard.next()
        assert first is not None and (first["event"], "id" in first) == ("balance", False)
        tokens = {"available": "6000", "held": "0", "used": "0", "granted": "6000"}
        assert tokens.items() <= first["data"]["wallets"][0].items()
        assert await ask(gateway, other, "output=10") == 200
        assert await ask(gateway, key, "output=5600 overrun") == 200
        assert float((await heard.until("balance"))["data"]["wallets"][0]["used"]) >= 5600
        assert await ask(gateway, key, "output=5", bound=5000) == 429
        told = [await heard.next() for _ in range(3)]
    assert [each and (each["event"], each["data"]["kind"]) for each in told] == [
        ("warning", "threshold"),
        ("warning", "threshold"),
        ("refused", "refused"),
    ]
    assert all(each and int(each["id"]) == each["data"]["id"] for each in told)
    assert told[2] and told[2]["data"]["detail"]["reason"] == "insufficient_tokens"


async def test_a_balance_is_told_as_whoever_asks_for_it_sees_it(gateway: Local) -> None:
    """Also the time of its reset, which a trial has none of, and after a change of plan."""
    key, account = await gateway.account("trial")
    quota, store = gateway.worker.gateway.quota, gateway.worker.store

    async def asked(session: aiohttp.ClientSession) -> list[Any]:
        async with session.get(
            f"{gateway.url}/api/billing/balance", headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            wallets = (await answer.json())["wallets"]
        return [(wallet["wallet"], wallet["available"], wallet["resets_at"]) for wallet in wallets]

    async with aiohttp.ClientSession() as session, listening(gateway, key) as heard:
        resets = []
        for plan in (None, "pro"):
            if plan is not None:
                await store.subscriptions.subscribe(account.id, plan, now_ms=quota.clock.now_ms())
                await quota.turner.push(account.id)
            wallets = (await heard.until("balance"))["data"]["wallets"]
            told = {(wallet["wallet"], wallet["available"], wallet["resets_at"]) for wallet in wallets}
            assert set(await asked(session)) <= told
            resets.append(wallets[0]["resets_at"] is not None)
    assert resets == [False, True]


async def test_what_happens_on_one_worker_is_heard_on_another(
    gateway: Local, models: LocalModels, valkey_url: str, place: Place
) -> None:
    key, _ = await gateway.account("trial")
    folder = place.folder / "second"
    folder.mkdir()
    text = config(models, place)
    if place.backend == "sqlite":
        text = text.replace("database: embedded", f"database: sqlite:////{gateway.installation.data}/tollgate.db")
    async with local(models.url, valkey_url, folder, text=text) as second, listening(second, key) as heard:
        assert await ask(gateway, key, "output=5", bound=50_000) == 429
        assert (await heard.until("refused"))["data"]["detail"]["reason"] == "call_too_large"


async def test_whoever_comes_back_hears_what_it_missed_once(gateway: Local) -> None:
    key, account = await gateway.account("trial")
    store = gateway.worker.store.alerts
    for number in range(3):
        await store.raise_all([NewAlert(account.id, "spike", str(number), {"unit": "tokens"}, NOW_MS)])
    first = (await store.since(0))[0].id
    async with listening(gateway, key, last=first) as heard:
        assert (await heard.next() or {})["event"] == "balance"
        missed = [await heard.next() for _ in range(2)]
        await store.raise_all([NewAlert(account.id, "spike", "new", {"unit": "tokens"}, NOW_MS)])
        ids = [int(each["id"]) for each in missed if each] + [int((await heard.until("alert"))["id"])]
    assert ids == sorted(set(ids)) and len(ids) == 3 and min(ids) > first


@pytest.mark.parametrize("last", ["", "x", "-1", "9" * 30])
async def test_a_last_id_that_is_none_is_as_none(last: str, gateway: Local) -> None:
    key, _ = await gateway.account("trial")
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            gateway.url + PATH + "?limit=1", headers={"Authorization": f"Bearer {key}", "Last-Event-ID": last}
        ) as answer,
    ):
        assert (answer.status, (await answer.read()).count(b"event: ")) == (200, 1)


async def test_a_quiet_stream_shows_signs_of_life_and_ends_with_its_key(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "HEARTBEAT_S", 0.05)
    key, account = await gateway.account("trial")
    async with listening(gateway, key) as heard:
        (found,) = (await gateway.worker.store.keys.list(account_id=account.id)).items
        while not (await heard.answer.content.readline()).startswith(b": still here"):
            pass
        await gateway.worker.store.keys.revoke(found.id, now_ms=NOW_MS)
        assert await heard.next() is None
    assert len(gateway.worker.frame.live) == 0


async def test_a_service_keys_stream_ends_with_the_account_that_it_named(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "HEARTBEAT_S", 0.05)
    worker, key = gateway.worker, new_key()
    await worker.store.keys.create(
        digest=KeyHasher(gateway.installation.secret).digest(key), prefix=display_prefix(key), now_ms=NOW_MS
    )
    _, account = await gateway.account("trial")
    async with listening(gateway, key, **{"Tollgate-Account": account.id}) as heard:
        while not (await heard.answer.content.readline()).startswith(b": still here"):
            pass
        await worker.store.accounts.set_status(account.id, AccountStatus.SUSPENDED, now_ms=NOW_MS)
        assert await heard.next() is None
    assert len(worker.frame.live) == 0


async def test_listeners_are_bounded_and_leave_room_when_they_go(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PER_ACCOUNT_MAX", 2)
    key, _ = await gateway.account("trial")
    other, _ = await gateway.account("trial")
    async with (
        listening(gateway, key),
        listening(gateway, key),
        listening(gateway, other),
        aiohttp.ClientSession() as session,
    ):
        answer = await session.get(gateway.url + PATH, headers={"Authorization": f"Bearer {key}"})
        assert (answer.status, (await answer.json())["error"]["code"]) == (429, "too_many_listeners")
        assert answer.headers["x-should-retry"] == "true"
    await eventually(lambda: len(gateway.worker.frame.live) == 0, what="all have left")
    async with listening(gateway, key):
        pass


async def test_streams_end_when_the_worker_does(gateway: Local) -> None:
    key, _ = await gateway.account("trial")
    async with listening(gateway, key) as heard:
        await heard.next()
        gateway.worker.frame.live.close()
        assert await heard.next() is None


async def test_whoever_does_not_read_is_cut_off(gateway: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "SEND_S", 0.2)
    key, account = await gateway.account("trial")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]), limit=1024)
    writer.write(f"GET {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    await reader.readline()
    hub = gateway.worker.frame.live
    (listener,) = hub._listeners[account.id]
    while not listener.closed and len(hub):
        listener.put(Event("alert", {"text": "x" * 100_000}))
        await asyncio.sleep(0)
    await eventually(lambda: len(hub) == 0, what="the reader that does not read is let go")
    writer.close()


def test_what_waits_for_a_listener_is_bounded() -> None:
    listener = Listener("a")
    for _ in range(live.WAITING_MAX):
        listener.put(Event("alert", {}))
    assert not listener.closed
    listener.put(Event("alert", {}))
    assert listener.closed and len(listener.waiting) == live.WAITING_MAX


class Late:
    """A table in which smaller ids become visible after larger ones, as on PostgreSQL."""

    def __init__(self) -> None:
        self.ids: list[int] = [1]
        self.asked = 0

    async def newest(self) -> int:
        return max(self.ids)

    async def since(self, after: int, *, account_id: str | None = None, limit: int = 1000) -> tuple[Alert, ...]:
        self.asked += 1
        found = sorted(number for number in self.ids if number > after)
        return tuple(Alert(number, "a", "spike", {}, NOW_MS) for number in found[:limit])


async def test_an_id_that_becomes_visible_late_is_told_once_like_all_others() -> None:
    table = Late()
    hub = LiveEvents(table, None, None, lambda: stores.CATALOG)  # type: ignore[arg-type]
    one, two = await hub.listen("a"), await hub.listen("a")
    asked = table.asked
    for more in ([3, 5], [2], [], [4, 6]):
        table.ids += more
        await hub._tail()
    assert table.asked == asked + 4, "one query a round, however many listen"
    for listener in (one, two):
        assert [event.id for event in listener.waiting] == [3, 5, 2, 4, 6]


async def test_nobody_listens_and_nothing_is_asked(store: Store) -> None:
    hub = LiveEvents(store.alerts, None, store.accounts, lambda: stores.CATALOG)  # type: ignore[arg-type]
    run = asyncio.create_task(hub.run())
    listener = await hub.listen("a")
    hub.leave(listener)
    await eventually(lambda: hub._floor is None, what="the tail rests")
    run.cancel()
