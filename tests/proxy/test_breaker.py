"""An upstream that keeps failing is left alone: nobody waits for it, the next one takes over; it gets its chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from gateway.proxy.breaker import FAILURES_MAX, OPEN_S, Breakers
from tests.support.bills import assert_settled_to
from tests.support.calls import ANTHROPIC, CHAT, Dialect
from tests.support.gateways import Local
from tests.support.processes import free_port
from tests.support.scrape import scrape
from tests.support.simulators import LocalModels
from tests.support.tuning import add_upstream, set_upstream


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(gateway: Local) -> Clock:
    """The breakers' clock, which stands still."""
    clock = Clock()
    gateway.worker.gateway.breakers = Breakers(clock)
    return clock


async def ask(gateway: Local, key: str, steering: str, dialect: Dialect = CHAT) -> tuple[int, Any, Mapping[str, str]]:
    """(status, body, headers)"""
    url, body = gateway.url + dialect.path, dialect.body(steering)
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers=dialect.headers(key)) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


async def state(gateway: Local, upstream: str = "openai") -> float:
    return (await scrape(gateway)).sum("tollgate_upstream_breaker", upstream=upstream)


async def test_after_five_failures_in_a_row_nobody_waits_for_the_upstream(
    gateway: Local, models: LocalModels, clock: Clock
) -> None:
    key, account = await gateway.account("pro")
    assert await state(gateway) == 0
    for _ in range(FAILURES_MAX):
        status, _, headers = await ask(gateway, key, "tag=failing status=500")
        assert (status, headers["Tollgate-Error-Source"]) == (500, "upstream")
    assert await state(gateway) == 2
    clock.now_s += 1
    for _ in range(3):
        status, body, headers = await ask(gateway, key, "tag=never output=5")
        assert (status, CHAT.error_code(body)) == (502, "upstream_unreachable")
        assert headers["x-should-retry"] == "true" and OPEN_S - 1 <= int(headers["retry-after"]) <= 2 * OPEN_S
    assert len(await models.journal.ended("failing", count=FAILURES_MAX)) == FAILURES_MAX
    assert not await models.journal.entries(tag="never")
    await assert_settled_to(gateway, account.id, 0)
    status, _, _ = await ask(gateway, key, "output=5", ANTHROPIC)
    assert status == 200, "another upstream is not its affair"


async def test_its_chance_decides_whether_it_is_called_again(gateway: Local, models: LocalModels, clock: Clock) -> None:
    key = await gateway.key("pro")
    for _ in range(FAILURES_MAX):
        await ask(gateway, key, "status=503")
    clock.now_s += OPEN_S
    assert await state(gateway) == 1
    assert (await ask(gateway, key, "status=500"))[0] == 500
    assert await state(gateway) == 2
    assert (await ask(gateway, key, "output=5"))[0] == 502
    clock.now_s += OPEN_S
    assert (await ask(gateway, key, "output=5"))[0] == 200
    assert await state(gateway) == 0
    assert (await ask(gateway, key, "status=500"))[0] == 500
    assert (await ask(gateway, key, "output=5"))[0] == 200


@pytest.mark.parametrize("steering", ["status=429 retry_after=1", "status=400", "status=404", "status=401 kind=key"])
async def test_what_an_upstream_answers_never_counts_against_it(steering: str, gateway: Local, clock: Clock) -> None:
    key = await gateway.key("pro")
    for _ in range(FAILURES_MAX - 1):
        assert (await ask(gateway, key, "status=500"))[0] == 500
    for _ in range(2 * FAILURES_MAX):
        await ask(gateway, key, steering)
    assert (await ask(gateway, key, "status=500"))[0] == 500
    assert await state(gateway) == 0
    assert (await ask(gateway, key, "output=5"))[0] == 200


async def test_an_upstream_that_cannot_be_reached_is_passed_over_for_the_next(
    gateway: Local, models: LocalModels, clock: Clock
) -> None:
    key = await gateway.key("pro")
    add_upstream(gateway, "openai", f"http://127.0.0.1:{free_port()}/v1", first=True, name="dead")
    for _ in range(2 * FAILURES_MAX):
        assert (await ask(gateway, key, "tag=served output=5"))[0] == 200
    await models.journal.ended("served", count=2 * FAILURES_MAX)
    page = await scrape(gateway)
    assert page.sum("tollgate_upstream_requests_total", upstream="dead") == FAILURES_MAX
    assert page.sum("tollgate_upstream_breaker", upstream="dead") == 2
    assert page.sum("tollgate_upstream_breaker", upstream="openai") == 0


async def test_where_every_upstream_is_left_alone_the_answer_comes_at_once(gateway: Local, clock: Clock) -> None:
    key, account = await gateway.account("pro")
    set_upstream(gateway, "openai", url=f"http://127.0.0.1:{free_port()}/v1")
    add_upstream(gateway, "openai", f"http://127.0.0.1:{free_port()}/v1", name="dead")
    retries = gateway.worker.gateway.retries
    for _ in range(FAILURES_MAX):
        assert (await ask(gateway, key, "output=5"))[0] == 502
    left = retries.left
    status, _, headers = await ask(gateway, key, "output=5")
    assert status == 502 and int(headers["retry-after"]) >= OPEN_S
    page = await scrape(gateway)
    assert page.sum("tollgate_upstream_requests_total") == 2 * FAILURES_MAX, "nobody was asked"
    assert retries.left >= left, "what is not tried costs no retry"
    await assert_settled_to(gateway, account.id, 0)
