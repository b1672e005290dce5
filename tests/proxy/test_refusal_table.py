"""Every reason for which a call is refused: its status, its words in both dialects, and whether to come again.

CONTRACT's table, row by row. A refused call reaches no model, holds nothing and takes nothing from any window.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from gateway.domain.accounts import Account, AccountStatus
from gateway.domain.periods import Period
from gateway.quota import refusals
from gateway.quota.keys import KeyHasher, display_prefix, new_key
from gateway.quota.scribe import Scribe
from tests.support.calls import ANTHROPIC, CHAT, Dialect
from tests.support.gateways import Local, local
from tests.support.processes import eventually
from tests.support.servers import valkey
from tests.support.simulators import LocalModels, anthropic_client, openai_client
from tests.support.tuning import tune, tune_models

DAY_MS = 86_400_000
PLANS = """\
  rpm: {label: Rpm, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000},
        limits: {account: {requests_per_minute: 1}}}
  tpm: {label: Tpm, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000},
        limits: {key: {tokens_per_minute: 3000}}}
  small: {label: Small, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000},
          limits: {user: {requests_per_minute: 9}, key: {tokens_per_minute: 900}}}
  one: {label: One, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100000}, on_disconnect: cut,
        limits: {account: {concurrent: 1}}}
  few: {label: Few, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 6000}, ends: block,
        on_disconnect: cut}
  paid: {label: Paid, price: 9, period: 30d, renews: never, allowance: {tokens: 6000}, ends: block}
  narrow: {label: Narrow, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 6000},
           models: [gpt-5-mini]}
  bare: {label: Bare, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 6000}, features: [job]}
"""


@pytest.fixture
async def gateway(models: LocalModels, valkey_url: str, tmp_path: Path) -> AsyncIterator[Local]:
    async with local(models.url, valkey_url, tmp_path, plans=PLANS) as running:
        yield running


@dataclass(slots=True)
class Scene:
    """A gateway about to refuse a call."""

    gateway: Local
    models: LocalModels
    dialect: Dialect
    stack: AsyncExitStack
    monkeypatch: pytest.MonkeyPatch
    key: str = ""
    account: Account | None = None

    async def on(self, plan: str) -> None:
        self.key, self.account = await self.gateway.account(plan)

    async def on_old(self, plan: str, *, days: int) -> None:
        """An account that was made so many days ago."""
        store, now_ms = self.gateway.worker.store, self.gateway.worker.gateway.quota.clock.now_ms()
        self.account = await store.accounts.create("Old", now_ms=now_ms - days * DAY_MS, plan=plan)
        self.key = new_key()
        digest = KeyHasher(self.gateway.installation.secret).digest(self.key)
        prefix = display_prefix(self.key)
        await store.keys.create(digest=digest, prefix=prefix, account_id=self.account.id, now_ms=now_ms)

    async def call(self, steering: str = "output=5", output: int = 1000) -> int:
        """A call that is served."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                self.gateway.url + self.dialect.path,
                json=self.dialect.body(f"{steering} tag=before", **{self.dialect.bound: output}),
                headers=self.dialect.headers(self.key),
            ) as answer,
        ):
            await answer.read()
            return answer.status

    async def in_flight(self, output: int = 1000) -> aiohttp.ClientResponse:
        """A call whose answer is awaited until the scene is over."""
        session = await self.stack.enter_async_context(aiohttp.ClientSession())
        answer = await session.post(
            self.gateway.url + self.dialect.path,
            json=self.dialect.body("output=5 stall=1 tag=before", stream=True, **{self.dialect.bound: output}),
            headers=self.dialect.headers(self.key),
        )
        self.stack.callback(answer.close)
        return answer

    async def budget(self, scope: str, amount: int) -> None:
        assert self.account is not None
        store, now_ms = self.gateway.worker.store, self.gateway.worker.gateway.quota.clock.now_ms()
        scope_id = self.account.id
        if scope == "key":
            (key,) = (await store.keys.list(account_id=self.account.id)).items
            scope_id = key.id
        await store.members.set_budget(
            scope, scope_id, meter="tokens", amount=amount * 1000, period=Period("month"), now_ms=now_ms
        )
        await self.gateway.worker.gateway.quota.turner.push(self.account.id)


Setup = Callable[[Scene], Awaitable[None]]


async def nothing_left(scene: Scene) -> None:
    await scene.on("few")
    assert await scene.call("output=7000 overrun=1") == 200


async def too_little_left(scene: Scene) -> None:
    await scene.on("few")
    assert await scene.call("output=5400", 5500) == 200


async def more_than_a_minute_holds(scene: Scene) -> None:
    await scene.on("small")


async def held_by_another_call(scene: Scene) -> None:
    await scene.on("few")
    await scene.in_flight(5500)


async def budget_of_the_key(scene: Scene) -> None:
    await scene.on("drain")
    await scene.budget("key", 1500)
    assert await scene.call("output=900") == 200


async def requests_of_this_minute(scene: Scene) -> None:
    await scene.on("rpm")
    assert await scene.call() == 200


async def tokens_of_this_minute(scene: Scene) -> None:
    await scene.on("tpm")
    assert await scene.call("output=2500", 2600) == 200


async def one_call_at_a_time(scene: Scene) -> None:
    await scene.on("one")
    await scene.in_flight()


async def trial_is_over(scene: Scene) -> None:
    await scene.on_old("trial", days=8)


async def paid_time_is_over(scene: Scene) -> None:
    await scene.on_old("paid", days=31)


async def another_model(scene: Scene) -> None:
    await scene.on("narrow")


async def another_feature(scene: Scene) -> None:
    await scene.on("bare")


async def suspended(scene: Scene) -> None:
    await scene.on("pro")
    assert scene.account is not None
    now_ms = scene.gateway.worker.gateway.quota.clock.now_ms()
    await scene.gateway.worker.store.accounts.set_status(scene.account.id, AccountStatus.SUSPENDED, now_ms=now_ms)


async def without_a_price(scene: Scene) -> None:
    await scene.on("pro")
    tune_models(scene.gateway, rates=())


async def with_too_much_to_write(scene: Scene) -> None:
    await scene.on("pro")
    scene.monkeypatch.setattr(Scribe, "full", True)


async def unknown_key(scene: Scene) -> None:
    scene.key = new_key()


async def unknown_model(scene: Scene) -> None:
    await scene.on("pro")
    tune_models(scene.gateway, match="another-*")


QUOTA = ("rate_limit_error", "enforced_spend_limit_reached", "insufficient_quota", "insufficient_quota")
WAIT = ("rate_limit_error", "ramp_limit_exceeded", "rate_limit_exceeded", "rate_limit_exceeded")
BILLING = ("billing_error", None, "insufficient_quota", "insufficient_quota")
TABLE: list[tuple[Setup, str, int, bool, tuple[str, str | None, str, str], str | None]] = [
    # (scene, reason, status, retry, (Anthropic type, its error_code, OpenAI type, code), scope)
    (nothing_left, "limit_exceeded", 429, False, QUOTA, "account"),
    (too_little_left, "insufficient_tokens", 429, False, QUOTA, "account"),
    (budget_of_the_key, "budget_exceeded", 429, False, QUOTA, "key"),
    (more_than_a_minute_holds, "call_too_large", 429, False, QUOTA, "key"),
    (held_by_another_call, "held_elsewhere", 429, True, WAIT, "account"),
    (requests_of_this_minute, "rate_limited", 429, True, WAIT, "account"),
    (tokens_of_this_minute, "rate_limited", 429, True, WAIT, "key"),
    (one_call_at_a_time, "concurrency_limited", 429, True, WAIT, "account"),
    (trial_is_over, "trial_expired", 402, False, BILLING, "account"),
    (paid_time_is_over, "subscription_inactive", 402, False, BILLING, "account"),
    (another_model, "model_not_in_plan", 403, False,
     ("permission_error", None, "invalid_request_error", "model_not_in_plan"), "account"),
    (another_feature, "feature_not_in_plan", 403, False,
     ("permission_error", None, "invalid_request_error", "feature_not_in_plan"), "account"),
    (suspended, "account_suspended", 403, False,
     ("permission_error", None, "invalid_request_error", "account_suspended"), None),
    (without_a_price, "price_missing", 503, False, ("api_error", None, "server_error", "price_missing"), None),
    (with_too_much_to_write, "overloaded", 503, True, ("api_error", None, "server_error", "overloaded"), None),
    (unknown_key, "invalid_api_key", 401, False,
     ("authentication_error", None, "invalid_request_error", "invalid_api_key"), None),
    (unknown_model, "unknown_model", 404, False,
     ("not_found_error", None, "invalid_request_error", "model_not_found"), None),
]  # fmt: skip


def assert_told(answer: Any, headers: Any, dialect: Dialect, row: Any) -> None:
    """The body's shape, and the headers that the SDKs' retry logic reads."""
    _, reason, _, retry, (kind, error_code, openai_type, code), scope = row
    error = answer["error"]
    told = error["tollgate"]
    assert (told["reason"], told["scope"]) == (reason, scope)
    assert set(told) >= {"limit", "used", "held", "needed", "available", "resets_at", "hint", "plans"}
    if dialect is ANTHROPIC:
        assert (answer["type"], error["type"]) == ("error", kind)
        assert error.get("details", {}).get("error_code") == error_code
        assert answer["request_id"] == headers["request-id"] == headers["Tollgate-Request-Id"]
    else:
        assert (error["type"], error["code"]) == (openai_type, code)
        assert error["request_id"] == headers["x-request-id"] == headers["Tollgate-Request-Id"]
    assert headers["x-should-retry"] == ("true" if retry else "false")
    if retry:
        assert 1 <= int(headers["retry-after"]) <= 60
    else:
        assert "retry-after" not in headers and "retry-after-ms" not in headers
    assert headers["Tollgate-Error-Source"] == "gateway"


@pytest.mark.parametrize("dialect", [ANTHROPIC, CHAT], ids=str)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[1])
async def test_a_refusal_tells_what_and_why_and_whether_to_come_again(
    row: Any, dialect: Dialect, gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, _, status, retry, *_ = row
    async with AsyncExitStack() as stack:
        scene = Scene(gateway, models, dialect, stack, monkeypatch)
        await setup(scene)
        await gateway.worker.gateway.quota.scribe.drained()
        before = len(gateway.worker.gateway.quota.holds)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                gateway.url + dialect.path,
                json=dialect.body("tag=refused", **{dialect.bound: 1000}),
                headers=dialect.headers(scene.key),
            ) as answer,
        ):
            body = await answer.json()
            assert answer.status == status, body
            assert_told(body, answer.headers, dialect, row)
        assert not await models.journal.entries(tag="refused")
        assert len(gateway.worker.gateway.quota.holds) == before
        if retry and status == 429:
            assert body["error"]["tollgate"]["needed"] is not None
            return  # the SDK would wait: see below
        await gives_up_at_once(gateway, dialect, scene.key, status)


async def gives_up_at_once(gateway: Local, dialect: Dialect, key: str, status: int) -> None:
    """With its usual two retries the real SDK sends one request; one that may be tried again it tries again."""
    sent: list[str] = []

    async def note(request: Any) -> None:
        sent.append(request.headers.get("x-stainless-retry-count", ""))

    retries = 0 if status == 503 else 2
    if dialect is ANTHROPIC:
        http = anthropic.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
        async with anthropic_client(gateway.url, key=key, max_retries=retries, http_client=http) as client:
            with pytest.raises(anthropic.APIStatusError) as refused:
                await client.messages.create(**dialect.body("tag=refused"))
    else:
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
        async with openai_client(gateway.url, key=key, max_retries=retries, http_client=http) as client:
            with pytest.raises(openai.APIStatusError) as refused:
                await client.chat.completions.create(**dialect.body("tag=refused", **{dialect.bound: 1000}))
    assert refused.value.status_code == status
    assert sent == ["0"]


@pytest.mark.parametrize("dialect", [ANTHROPIC, CHAT], ids=str)
async def test_a_call_that_others_hold_up_is_tried_again_by_the_sdk_and_served(
    dialect: Dialect, gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal of one second; the other call ends meanwhile."""
    monkeypatch.setattr(refusals, "HELD_RETRY_S", 0)
    monkeypatch.setattr(refusals.random, "randint", lambda low, high: low)
    async with AsyncExitStack() as stack:
        scene = Scene(gateway, models, dialect, stack, monkeypatch)
        await scene.on("few")
        other = await scene.in_flight(5500)
        statuses: list[int] = []

        async def note(response: Any) -> None:
            statuses.append(response.status_code)
            other.close()

        if dialect is ANTHROPIC:
            http = anthropic.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
            async with anthropic_client(gateway.url, key=scene.key, max_retries=2, http_client=http) as client:
                await client.messages.create(**dialect.body("output=5"))
        else:
            http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
            async with openai_client(gateway.url, key=scene.key, max_retries=2, http_client=http) as client:
                await client.chat.completions.create(**dialect.body("output=5", max_completion_tokens=1000))
    assert statuses == [429, 200]


async def test_a_lasting_reason_is_told_before_a_passing_one(
    gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has nothing left must not be told to come again in a second."""
    async with AsyncExitStack() as stack:
        scene = Scene(gateway, models, CHAT, stack, monkeypatch)
        await scene.on("rpm")
        assert await scene.call() == 200
        await scene.budget("key", 100)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                gateway.url + CHAT.path, json=CHAT.body(max_completion_tokens=1000), headers=CHAT.headers(scene.key)
            ) as answer,
        ):
            assert (await answer.json())["error"]["tollgate"]["reason"] == "call_too_large"
            assert answer.headers["x-should-retry"] == "false"


async def test_quota_refusals_answer_402_where_the_config_says_so(
    gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For clients that retry every 429. Passing refusals and rate limits stay 429."""
    tune(gateway, quota_status=402)
    async with AsyncExitStack() as stack:
        for setup, status in ((nothing_left, 402), (too_little_left, 402), (requests_of_this_minute, 429)):
            scene = Scene(gateway, models, CHAT, stack, monkeypatch)
            await setup(scene)
            await gateway.settled()
            assert await scene.call() == status, setup.__name__


@pytest.mark.parametrize("dialect", [ANTHROPIC, CHAT], ids=str)
async def test_a_call_is_refused_while_redis_is_away_and_served_once_it_is_back(
    dialect: Dialect, models: LocalModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with valkey() as redis:
        async with local(models.url, redis.url, tmp_path) as gateway, AsyncExitStack() as stack:
            scene = Scene(gateway, models, dialect, stack, monkeypatch)
            await scene.on("pro")
            assert await scene.call() == 200
            redis.kill9()
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    gateway.url + dialect.path, json=dialect.body("tag=refused"), headers=dialect.headers(scene.key)
                ) as answer,
            ):
                body = await answer.json()
                assert (answer.status, dialect.error_code(body)) == (503, "quota_unavailable")
                assert answer.headers["x-should-retry"] == "true" and int(answer.headers["retry-after"]) >= 1
            assert not await models.journal.entries(tag="refused")
            redis.start()

            async def served() -> bool:
                return await scene.call() == 200

            await eventually(served, what="calls are served again", within_s=10)


@pytest.mark.parametrize("plan", ["narrow", "bare"])
async def test_a_plan_that_includes_it_counts_on_the_very_next_call(
    plan: str, gateway: Local, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached caller must not be told for half a minute that his new plan is still the old one."""
    async with AsyncExitStack() as stack:
        scene = Scene(gateway, models, CHAT, stack, monkeypatch)
        await scene.on(plan)
        assert scene.account is not None
        assert await scene.call() == 403
        now_ms = gateway.worker.gateway.quota.clock.now_ms()
        await gateway.worker.store.subscriptions.subscribe(scene.account.id, "few", now_ms=now_ms)
        await gateway.worker.gateway.quota.turner.push(scene.account.id)
        assert await scene.call() == 200
