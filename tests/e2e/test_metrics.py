"""``/metrics`` of several workers: one page, whoever answers, whoever died."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import aiohttp
import orjson
import pytest

from gateway.metrics import FAMILIES
from tests.support.family import kill9, workers
from tests.support.fleet import Account, Fleet, fleet
from tests.support.processes import wait_until
from tests.support.scrape import Page

CALLS = 40


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as started:
        yield started


def scrape(running: Fleet) -> Page:
    """On a connection of its own, so that any worker may answer."""

    async def read() -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{running.server.admin_url}/metrics") as answer:
            assert answer.content_type == "text/plain"
            return await answer.text()

    return Page.of(running.loop.run(read()))


def call(running: Fleet, account: Account, calls: int) -> None:
    answers = [running.call(account, output=5 + number % 3) for number in range(calls)]
    assert {answer.result(30).status for answer in answers} == {200}


def settled(running: Fleet, calls: int) -> Page:
    """The page once all that was served is charged."""

    def all_counted() -> Page | None:
        page = scrape(running)
        is_charged = page.sum("tollgate_settle_lag_seconds_count") == calls
        return page if is_charged and page.sum("tollgate_outbox_entries") == 0 else None

    return wait_until(all_counted, what=f"{calls} calls are charged") or scrape(running)


def totals(page: Page) -> dict[str, float]:
    """Every counter and every histogram's count."""
    samples = [f"{family.name}_count" if family.kind == "histogram" else family.name for family in FAMILIES]
    return {name: page.sum(name) for name in samples if name.endswith(("_count", "_total"))}


def is_replaced(running: Fleet, dead: int) -> bool:
    found = workers(running.server)
    return len(found) == 2 and dead not in found


def test_all_workers_are_summed_and_a_dead_ones_counts_are_kept(running: Fleet) -> None:
    account = running.account("drain")
    call(running, account, CALLS)
    before = settled(running, CALLS)
    assert before.sum("tollgate_requests_total", model="claude-haiku-4-5", plan="drain", status="200") == CALLS
    for stage in ("authenticate", "parse", "count", "reserve", "connect", "relay", "settle", "total"):
        assert before.sum("tollgate_overhead_seconds_count", stage=stage) == CALLS
    tokens = {labels[0]: amount for labels, amount in before.series("tollgate_tokens_total").items()}
    assert before.sum("tollgate_charged_units_total") == sum(tokens.values())
    assert before.series("tollgate_build_info") == {(version("tollgate"),): 1}
    assert before.sum("tollgate_redis_up") == 1

    for victim in workers(running.server):
        kill9(victim)
        wait_until(lambda dead=victim: is_replaced(running, dead), what="the worker's successor")  # type: ignore[misc]
        after = totals(scrape(running))
        lost = {name: (count, after[name]) for name, count in totals(before).items() if after[name] < count}
        assert not lost
    assert totals(scrape(running))["tollgate_requests_total"] == CALLS
    wait_until(lambda: running.get(f"{running.server.url}/readyz") == 200, what="both are ready")
    call(running, account, CALLS)
    page = settled(running, 2 * CALLS)
    assert page.sum("tollgate_requests_total") == 2 * CALLS
    assert page.sum("tollgate_streams_open") == 0 == page.sum("tollgate_holds_open")
    wait_until(lambda: scrape(running).sum("tollgate_accounts", plan="drain", status="active") == 1, what="accounts")
    assert scrape(running).sum("tollgate_ledger_drift_units") == 0


def test_workers_name_themselves_in_the_log_and_calls_leave_no_line(running: Fleet) -> None:
    account = running.account("drain")
    call(running, account, CALLS)
    quiet = running.server.output()
    assert account.key not in quiet and "claude" not in quiet
    running.server.config.write_text("nonsense: [")
    wait_until(lambda: "the config was not reloaded" in running.server.output(), what="a complaint")
    lines = [orjson.loads(line) for line in running.server.output().splitlines() if line.startswith("{")]
    complaints = [line for line in lines if "the config was not reloaded" in line["message"]]
    assert {line["worker"] for line in complaints} <= {0, 1}
    wait_until(
        lambda: scrape(running).sum("tollgate_config_reloads_total", result="rejected") == 2,
        what="each worker counts it",
    )
