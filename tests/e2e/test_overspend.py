"""No overspend: what is not in the wallet never reaches a model, whatever comes at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bills import tokens_served
from tests.support.fleet import STEPS, Account, Answer, Fleet, fleet
from tests.support.servers import Cluster

ROUNDS = 20
LOOKS = 40
CALLS = 1_000
ALLOWANCE = 50  # uses of ``pro`` in the tests' config
SMALL = "  small: {label: Small, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 3000}}"


@pytest.fixture(params=["embedded", "cluster"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    redis = "embedded"
    if request.param == "cluster":
        nodes: Cluster = request.getfixturevalue("shared_cluster")
        nodes.flush()
        redis = nodes.url
    with fleet(tmp_path, redis=f'"{redis}"', plans=SMALL) as started:
        yield started


async def storm(running: Fleet, account: Account, calls: int, **options: Any) -> list[Answer]:
    return await asyncio.gather(*(running.ask(account, **options) for _ in range(calls)))


def told(answers: list[Answer]) -> Counter[tuple[int, str]]:
    return Counter((answer.status, answer.reason) for answer in answers)


def test_of_a_thousand_calls_at_once_on_fifty_uses_exactly_fifty_reach_the_model(running: Fleet) -> None:
    """Twenty times in a row, each on a new account. Where Redis stands still for a moment in the storm (a busy disk),
    calls are told 503 to come again: they do, once their holds are known to be gone."""
    for turn in range(ROUNDS):
        account, before = running.account("pro"), running.last_entry()
        found = told(running.loop.run(storm(running, account, CALLS, feature="job")))
        if any(status == 503 for status, _ in found):
            assert running.at_rest(account, "uses").counted <= ALLOWANCE, f"round {turn}: {found}"
            found += told(running.loop.run(storm(running, account, ALLOWANCE, feature="job")))
        reached = running.journal(since=before)
        assert len(reached) == ALLOWANCE, f"round {turn}: {len(reached)} reached the model: {found}"
        assert found[200, ""] == ALLOWANCE, f"round {turn}: {found}"
        assert {status for status, _ in found} <= {200, 429, 503}, f"round {turn}: {found}"
        assert running.at_rest(account, "uses").counted == ALLOWANCE
        assert len(running.rows(account)) == ALLOWANCE
    assert running.assert_audit_finds_nothing()["charges"] == ROUNDS * ALLOWANCE


async def watched(running: Fleet, account: Account, seen: list[int]) -> list[Answer]:
    """A storm of streams' worth of tokens; ``seen`` gets P + H at each look into Redis meanwhile."""
    calls = asyncio.ensure_future(storm(running, account, 400, output=7, max_tokens=60, simulate="delay=5"))
    while not calls.done():
        found = await running._balance(account, "tokens")
        if found is not None:
            assert found.posted + found.held <= found.granted, f"P + H > G: {found}"
            seen.append(found.posted + found.held)
        await asyncio.wait((calls,), timeout=0.002)
    return await calls


def test_spent_and_held_never_pass_what_was_granted(running: Fleet) -> None:
    """With token prices, seen in Redis all through the load; at rest it is what the models served, to the token. A busy
    machine looks seldom: there are as many storms, each on a new account, as it takes to have looked often enough."""
    seen: list[int] = []
    for _ in range(ROUNDS):
        account, before = running.account("small"), running.last_entry()
        found = told(running.loop.run(watched(running, account, seen)))
        assert 10 < found[200, ""] < 400, found
        served = sum(tokens_served(entry) for entry in running.journal(since=before))
        assert running.at_rest(account).counted == STEPS * served, found
        assert running.assert_charged_as_served(account, since=before) == found[200, ""]
        if len(seen) >= LOOKS:
            break
    assert len(seen) >= LOOKS and max(seen) > 0.9 * 3000 * STEPS, f"{len(seen)} looks, at most {max(seen)}"
    running.assert_audit_finds_nothing()
