"""Between a change in SQL and its arrival in Redis: nobody is admitted who may not be, nobody refused who may."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.domain.accounts import Account
from limits.errors import EngineUnavailable
from limits.model import Reserved, Settled, Stale
from tests.support.bills import STEPS, balance, usage_rows
from tests.support.calls import ANTHROPIC
from tests.support.gateways import Local
from tests.support.processes import eventually

DAY_MS = 86_400_000


async def call(gateway: Local, key: str) -> tuple[int, str]:
    """(status, reason)."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            gateway.url + ANTHROPIC.path, json=ANTHROPIC.body("output=3"), headers=ANTHROPIC.headers(key)
        ) as answer,
    ):
        body = orjson.loads(await answer.read())
        return answer.status, "" if answer.status == 200 else ANTHROPIC.error_code(body)


async def expired_with_a_package(gateway: Local) -> tuple[str, Account]:
    """A trial that ended yesterday, and a wallet with something in it."""
    store = gateway.worker.store
    now_ms = gateway.worker.gateway.quota.clock.now_ms()
    key, account = await gateway.account("trial", ends_at_ms=now_ms - DAY_MS)
    await store.grants.add(account.id, wallet="tokens", amount=9_000 * STEPS, now_ms=now_ms, source="package")
    await store.subscriptions.turn(account.id, now_ms=now_ms)
    return key, account


@pytest.mark.parametrize("told", ["stale", "behind"])
async def test_an_inactive_subscription_is_refused_though_redis_learns_of_it_only_meanwhile(
    gateway: Local, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Another worker loads the account between our look at it and our reserve."""
    key, account = await expired_with_a_package(gateway)
    quota = gateway.worker.gateway.quota
    await quota.turner.push(account.id)
    assert await call(gateway, key) == (402, "trial_expired")
    peek = quota._engine.peek

    async def before_the_load(*args: Any, **options: Any) -> Any:
        view = await peek(*args, **options)
        assert not isinstance(view, Stale)
        return Stale("a ticket") if told == "stale" else type(view)(view.rev - 1, *_rest(view))

    monkeypatch.setattr(quota._engine, "peek", before_the_load)
    assert await call(gateway, key) == (402, "trial_expired")
    await gateway.settled()
    assert not await usage_rows(gateway, account.id)


def _rest(view: Any) -> tuple[Any, ...]:
    return tuple(getattr(view, name) for name in view.__dataclass_fields__ if name != "rev")


async def test_a_caller_newer_than_redis_is_served_before_the_push_is_delivered(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that asks the database first must not wait for whoever delivers pushes."""

    async def nobody(*, limit: int = 100) -> int:
        return 0

    key, account = await gateway.account("pro")
    monkeypatch.setattr(gateway.worker.gateway.quota.turner, "deliver_pushes", nobody)
    assert await call(gateway, key) == (200, "")
    now_ms = gateway.worker.gateway.quota.clock.now_ms()
    await gateway.worker.store.grants.add(account.id, wallet="tokens", amount=STEPS, now_ms=now_ms)
    gateway.worker.gateway.callers.doubt()
    assert await call(gateway, key) == (200, "")


async def test_a_hold_whose_reserve_was_answered_to_nobody_is_freed_when_it_can_no_longer_be_taken(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, account = await gateway.account("pro")
    engine = gateway.worker.gateway.quota._engine
    reserve = engine.reserve
    taken: list[Reserved] = []

    async def unheard(*args: Any, **options: Any) -> Any:
        reply = await reserve(*args, **options)
        if not isinstance(reply, Reserved):
            return reply
        taken.append(reply)
        raise EngineUnavailable("no answer", sent=True)

    monkeypatch.setattr(engine, "reserve", unheard)
    assert (await call(gateway, key))[0] == 503
    assert len(taken) == 1 and (await balance(gateway, account.id)).holds_open == 1
    await eventually(lambda: is_free(gateway, account.id), what="the hold is freed", within_s=30)
    assert not await usage_rows(gateway, account.id)


async def is_free(gateway: Local, account_id: str) -> bool:
    return (await balance(gateway, account_id)).holds_open == 0


async def test_before_a_partition_that_forgot_admits_anything_it_has_the_live_holds_again(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, account = await gateway.account("pro")
    assert await call(gateway, key) == (200, "")
    await gateway.settled()
    quota = gateway.worker.gateway.quota
    engine, sent = quota._engine, list[str]()
    renew, reserve = engine.renew, engine.reserve

    async def renewing(*args: Any, **options: Any) -> Any:
        sent.append("renew")
        return await renew(*args, **options)

    async def reserving(*args: Any, **options: Any) -> Any:
        sent.append("reserve")
        return await reserve(*args, **options)

    monkeypatch.setattr(quota.holds, "beat", asyncio.Event().wait)  # nobody but the call
    monkeypatch.setattr(engine, "renew", renewing)
    monkeypatch.setattr(engine, "reserve", reserving)
    quota.holds.stale.add(engine.partition(account.id))
    assert await call(gateway, key) == (200, "")
    assert sent == ["renew", "reserve"]


@pytest.mark.parametrize("known", [True, False])
async def test_a_settle_of_a_hold_that_redis_does_not_know_tells_that_it_forgot(
    gateway: Local, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    key, _ = await gateway.account("pro")
    quota = gateway.worker.gateway.quota
    settle, told = quota._engine.settle, list[str]()

    async def settled(*args: Any, **options: Any) -> Settled:
        found = await settle(*args, **options)
        assert found.known and not found.record
        return found if known else replace(found, known=False, record="another")

    monkeypatch.setattr(quota._engine, "settle", settled)
    monkeypatch.setattr(quota.holds, "on_other_record", lambda: told.append("another record"))
    assert await call(gateway, key) == (200, "")
    await gateway.settled()
    assert bool(told) is not known
