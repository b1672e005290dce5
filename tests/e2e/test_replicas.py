"""Two servers, one Redis, one database: what is limited is limited once, whoever is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import postgres as pg
from tests.support.fleet import ENVIRONMENT, Account, Answer, Fleet, fleet, written
from tests.support.gateways import Served, served
from tests.support.processes import wait_until
from tests.support.servers import valkey

COMMON = "price: 1, period: 30d, renews: by_itself, allowance: {tokens: 90000}"
PLANS = f"""\
  rated: {{label: Rated, {COMMON}, limits: {{account: {{requests_per_minute: 30}}}}}}
  narrow: {{label: Narrow, {COMMON}, limits: {{account: {{concurrent: 5}}}}}}"""
CALLS = 300
USES = 50


@dataclass(frozen=True)
class Pair:
    """Both replicas; ``one`` has the books."""

    one: Fleet
    other: Served

    def storm(self, account: Account, calls: int, **options: Any) -> list[Answer]:
        """Calls at once, every other one to the other replica."""
        urls = (self.one.server.url, self.other.url)

        async def ask() -> list[Answer]:
            asked = (self.one.ask(account, url=urls[turn % 2], **options) for turn in range(calls))
            return await asyncio.gather(*asked)

        return self.one.loop.run(ask())


@pytest.fixture
def pair(shared_postgres: pg.Postgres, tmp_path: Path) -> Iterator[Pair]:
    url = shared_postgres.create_database()
    changes = {"database": f'"{url}"', "plans": PLANS, "workers": 1, "lease": "2s"}
    with valkey(aof=True, tcp=True) as redis:
        changes["redis"] = f'"{redis.url}"'
        with fleet(tmp_path / "one", **changes) as one:
            config = written(one.models, **changes)
            with served(tmp_path / "other", config, env=ENVIRONMENT) as other:
                one.end_amnesty()
                yield Pair(one, other)
    shared_postgres.drop_database(url)


def told(answers: list[Answer]) -> Counter[tuple[int, str]]:
    return Counter((answer.status, answer.reason) for answer in answers)


def test_an_allowance_a_rate_and_a_concurrency_are_exact_over_two_replicas(pair: Pair) -> None:
    one = pair.one
    uses, before = one.account("pro"), one.last_entry()
    found = told(pair.storm(uses, CALLS, feature="job"))
    assert found[200, ""] == USES == len(one.journal(since=before)), found
    rated = one.account("rated")
    found = told(pair.storm(rated, 100))
    assert found == {(200, ""): 30, (429, "rate_limited"): 70}, found
    narrow = one.account("narrow")
    found = told(pair.storm(narrow, 40, simulate="ttfb=3000"))
    assert found == {(200, ""): 5, (429, "concurrency_limited"): 35}, found
    for account, wallet in ((uses, "uses"), (rated, "tokens"), (narrow, "tokens")):
        one.at_rest(account, wallet)
    assert one.assert_audit_finds_nothing()["charges"] == USES + 30 + 5


def test_a_replica_that_dies_leaves_its_calls_to_the_other(pair: Pair) -> None:
    """kill -9 of one server with everything it had in memory; the other one brings the books in order."""
    one, account = pair.one, pair.one.account("drain")
    before = one.last_entry()
    begun = [asyncio.Event() for _ in range(6)]
    slow = [
        one.call(account, url=pair.other.url, output=400, stream=True, simulate="chunk=1 delay=25", started=event)
        for event in begun
    ]
    wait_until(lambda: all(event.is_set() for event in begun), what="streams of the other replica")
    with one.calling(account, callers=3) as calls:
        calls.wait_ok(0.0, calls=10)
        wait_until(lambda: one.told(account) >= 6, what="their first bytes are told")
        pair.other.process.kill()
        ends = [each.result(30) for each in slow]
        calls.wait_ok(0.0, calls=len(calls.answers) + 20)
    assert not any(end.whole for end in ends)
    assert set(calls.statuses()) == {200}, f"the other replica serves on: {calls.statuses()}"
    balance = one.at_rest(account, within_s=40)
    rows = one.rows(account)
    assert balance.counted == sum(row["charged"] for row in rows)
    assert Counter(row["state"] for row in rows) == {"settled": len(calls.answers), "lapsed": 6}
    assert {row["job"] for row in rows if row["state"] == "lapsed"} == {end.tag for end in ends}
    assert len(one.journal(since=before)) == len(calls.answers) + 6
    one.assert_audit_finds_nothing()
