"""Whoever nears the end of a quota is told: in a header of every call, and operators once per threshold."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import pytest

from tests.support.bills import balance
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, Dialect
from tests.support.gateways import Local
from tests.support.scrape import scrape
from tests.support.simulators import LocalModels

TRIAL = 6_000_000  # the tests' trial, in steps
LOWEST = 800  # permille; the tests' thresholds are 80, 90 and 100 %


@dataclass(frozen=True, slots=True)
class Told:
    status: int
    headers: Mapping[str, str]


async def ask(gateway: Local, key: str, dialect: Dialect, steering: str, *, bound: int, stream: bool = False) -> Told:
    body = dialect.body(steering, stream=stream, **{dialect.bound: bound})
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + dialect.path, json=body, headers=dialect.headers(key)) as answer,
    ):
        await answer.read()
    await gateway.settled()
    return Told(answer.status, answer.headers)


def percent(steps: int) -> str | None:
    permille = steps * 1000 // TRIAL
    return f"at {permille // 10}.{permille % 10}% of quota" if permille >= LOWEST else None


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_every_call_from_the_lowest_threshold_on_says_how_much_is_used(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """A stream says what was used before it; a whole answer, what is used after it."""
    key, account = await gateway.account("trial")
    told = 0
    for turn in range(12):
        is_stream = turn % 2 == 0
        before = (await balance(gateway, account.id)).posted if turn else 0
        answer = await ask(gateway, key, dialect, "output=450 input=50", bound=500, stream=is_stream)
        if answer.status != 200:
            break
        used = before if is_stream else (await balance(gateway, account.id)).posted
        assert answer.headers.get("Tollgate-Warning") == percent(used), f"call {turn}: {used} of {TRIAL}"
        told += "Tollgate-Warning" in answer.headers
    assert 1 <= told <= 4


async def test_a_large_hold_alone_is_no_warning(gateway: Local) -> None:
    """Clients ask for far more output than they use: a first call that holds the whole trial has spent nothing."""
    key = await gateway.key("trial")
    answer = await ask(gateway, key, CHAT, "output=5", bound=5_900, stream=True)
    assert answer.status == 200 and "Tollgate-Warning" not in answer.headers


def crossings(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    return [
        (record.levelname, vars(record)["account"], vars(record)["wallet"], float(vars(record)["percent"]))
        for record in caplog.records
        if "percent" in vars(record)
    ]


async def test_each_threshold_is_one_log_line_and_one_alert_per_period(
    gateway: Local, caplog: pytest.LogCaptureFixture
) -> None:
    key, account = await gateway.account("trial", name="Secret Name", email="someone@example.com")
    calls = [
        # (steering, output bound, thresholds that this call finds passed)
        ("output=4880 input=20", 4880, []),
        ("output=580 input=20", 580, [80.0]),
        ("output=580 input=20 overrun", 100, [90.0]),
        ("output=5", 100, [100.0]),  # refused
        ("output=5", 100, []),
    ]
    expected: list[tuple[object, ...]] = []
    with caplog.at_level(logging.INFO):
        for steering, bound, percents in calls:
            await ask(gateway, key, ANTHROPIC, steering, bound=bound)
            expected += [("WARNING", account.id, "tokens", percent) for percent in percents]
            assert crossings(caplog) == expected, steering
    assert (await scrape(gateway)).sum("tollgate_alerts_total", kind="threshold") == 3
    told = " ".join(record.getMessage() + str(vars(record)) for record in caplog.records)
    assert not any(secret in told for secret in (key, "Secret Name", "someone@example.com"))


async def test_thresholds_seen_first_by_a_refused_call_are_told_too(
    gateway: Local, caplog: pytest.LogCaptureFixture
) -> None:
    """One answer that became longer than its bound leads past two thresholds; the next call is too large."""
    key, account = await gateway.account("trial")
    with caplog.at_level(logging.INFO):
        assert (await ask(gateway, key, CHAT, "output=5500 overrun", bound=100)).status == 200
        assert crossings(caplog) == []
        for _ in range(3):
            assert (await ask(gateway, key, CHAT, "output=5", bound=2_000)).status == 429
    assert crossings(caplog) == [("WARNING", account.id, "tokens", percent) for percent in (80.0, 90.0)]
    assert (await scrape(gateway)).sum("tollgate_alerts_total", kind="threshold") == 2
