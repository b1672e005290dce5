"""Periods that turn on the real clock, while many call: granted once each, and charged where they were held."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text

from gateway.store.common import wall_clock_ms
from tests.support.fleet import STEPS, Account, Fleet, fleet
from tests.support.processes import wait_until

PERIOD_MS = 3_000
ALLOWANCE = 300
TURNS = 4
PLANS = f"""\
  quick: {{label: Quick, price: 1, period: 3s, renews: by_itself, allowance: {{tokens: {ALLOWANCE}}}}}
  slow: {{label: Slow, price: 1, period: 6s, renews: by_itself, allowance: {{tokens: 100000}}}}"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, plans=PLANS) as started:
        yield started


def select(running: Fleet, statement: str, account: Account) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        async with running.store.database.read() as connection:
            found = await connection.execute(text(statement), {"account": account.id})
            return [dict(row._mapping) for row in found]

    return running.loop.run(read())


def grants(running: Fleet, account: Account) -> list[dict[str, Any]]:
    """Its grants, by the period they are for."""
    return select(running, "SELECT * FROM grants WHERE account_id = :account ORDER BY starts_at_ms", account)


def ends_at_ms(running: Fleet, account: Account) -> int:
    """The end of the period that SQL takes for the running one."""
    query = "SELECT period_ends_at_ms FROM subscriptions WHERE account_id = :account AND ended_at_ms = 0"
    return int(select(running, query, account)[0]["period_ends_at_ms"])


def until(at_ms: int) -> None:
    wait_until(lambda: wall_clock_ms() >= at_ms, what="the time has come", within_s=30)


def assert_books_agree(running: Fleet, account: Account, before: int) -> None:
    running.at_rest(account)
    running.assert_charged_as_served(account, since=before)
    running.assert_audit_finds_nothing()


def test_a_period_grants_once_however_many_notice_its_turn(running: Fleet) -> None:
    """Callers on both workers use each allowance up; no period gets two, and none is overspent."""
    account, before = running.account("quick"), running.last_entry()
    first = grants(running, account)[0]
    with running.calling(account, callers=12, pause_s=0.05, output=20) as calls:
        until(first["starts_at_ms"] + TURNS * PERIOD_MS + PERIOD_MS // 2)
    found = grants(running, account)
    figures = f"{calls.statuses()}, {[(grant['starts_at_ms'], grant['amount'], grant['used']) for grant in found]}"
    assert set(calls.statuses()) == {200, 429}, figures
    starts = [grant["starts_at_ms"] for grant in found]
    assert starts[:5] == [first["starts_at_ms"] + turn * PERIOD_MS for turn in range(TURNS + 1)], figures
    assert len(set(starts)) == len(starts), figures
    assert all(grant["amount"] == ALLOWANCE * STEPS and grant["source"] == "plan" for grant in found), figures
    assert all(0.7 * ALLOWANCE * STEPS < grant["used"] <= grant["amount"] for grant in found[1:TURNS]), figures
    turned = running.metric("tollgate_period_turns_total", plan="quick", outcome="next_period")
    assert turned in (TURNS - 1, TURNS), f"{turned} turns, one perhaps granted ahead; {figures}"
    _assert_in_their_periods(running, account, {grant["number"]: grant for grant in found})
    assert_books_agree(running, account, before)


def _assert_in_their_periods(running: Fleet, account: Account, found: dict[int, dict[str, Any]]) -> None:
    """Each charge lies on the grant of the period in which its hold was taken."""
    wrong = []
    for row in running.rows(account):
        for number, *_ in json.loads(row["lines"]):
            if not found[number]["starts_at_ms"] <= row["created_at_ms"] < found[number]["expires_at_ms"]:
                wrong.append((row["created_at_ms"], number))
    assert not wrong, wrong


def test_a_call_over_the_turn_is_charged_to_the_period_it_began_in(running: Fleet) -> None:
    account, before = running.account("slow"), running.last_entry()
    old = grants(running, account)[0]
    until(old["expires_at_ms"] - 2_000)
    streams = running.streams(account, 5, output=60, delay_ms=50)
    until(old["expires_at_ms"] + 100)
    assert running.call(account).result(30).status == 200, "the new period has begun"
    ends = streams.wait()
    assert all(end.whole for end in ends)
    running.at_rest(account)
    rows = {row["job"]: row for row in running.rows(account)}
    new = next(grant for grant in grants(running, account) if grant["starts_at_ms"] == old["expires_at_ms"])
    for end in ends:
        row = rows[end.tag]
        assert row["at_ms"] > old["expires_at_ms"] and json.loads(row["lines"])[0][0] == old["number"], row
    assert Counter(json.loads(row["lines"])[0][0] for row in rows.values()) == {old["number"]: 5, new["number"]: 1}
    assert_books_agree(running, account, before)


def test_a_turn_needs_no_database_when_the_next_period_was_granted_ahead(running: Fleet) -> None:
    """What the reaper does once a minute is done here at once; then the database is locked over the turn."""
    account, before = running.account("slow"), running.last_entry()
    assert running.call(account).result(30).status == 200
    running.at_rest(account)
    running.loop.run(running.store.subscriptions.ahead(account.id, now_ms=wall_clock_ms()))
    assert running.loop.run(running.states.deliver(account.id))
    turn_ms = ends_at_ms(running, account)
    assert [grant["starts_at_ms"] for grant in grants(running, account)][-1] == turn_ms

    async def lock() -> aiosqlite.Connection:
        connection = await aiosqlite.connect(running.server.data / "tollgate.db", isolation_level=None)
        await connection.execute("BEGIN IMMEDIATE")
        return connection

    connection = running.loop.run(lock())
    try:
        until(turn_ms - 300)
        with running.calling(account, callers=4) as calls:
            until(turn_ms + 1_500)
    finally:
        running.loop.run(connection.close())
    slowest_s = max(answer.seconds for answer in calls.answers)
    assert set(calls.statuses()) == {200} and slowest_s < 1.0, f"{calls.statuses()}, slowest {slowest_s:.3f} s"
    running.at_rest(account)
    used = {grant["starts_at_ms"]: grant["used"] for grant in grants(running, account)}
    assert used[turn_ms] > 0, used
    assert_books_agree(running, account, before)


def test_a_trial_that_is_over_is_refused_in_the_configs_words(running: Fleet) -> None:
    """Support moves the trial's end with one command; from then on no call reaches a model, and no period follows."""
    account = running.account("trial")
    assert running.call(account).result(30).status == 200
    running.server.cli("subscription", "extend", account.id, "--ends-at", "2s")
    until(ends_at_ms(running, account))
    before, over_s = running.last_entry(), time.monotonic()
    for _ in range(3):
        answer = running.call(account).result(30)
        assert (answer.status, answer.reason) == (402, "trial_expired"), (answer.status, answer.body)
        assert answer.message == (
            "Your 7-day free trial has expired. Please upgrade to Pro, Cut, Drain, Quick, or Slow plan to continue."
        ), answer.message
        assert answer.headers["x-should-retry"] == "false"
    assert running.last_entry() == before and len(grants(running, account)) == 1
    assert running.server.cli("accounts", "show", account.id)["subscription_status"] == "expired"
    running.server.cli("subscribe", account.id, "pro")
    assert running.call(account).result(30).status == 200
    running.at_rest(account)
    running.assert_audit_finds_nothing()
    assert time.monotonic() - over_s < 60
