"""What operators change counts on the very next call, on every worker: config, keys, accounts, budgets."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import ADMIN_TOKEN, Account, Fleet, fleet
from tests.support.processes import wait_until

PLAN = (
    "  changing: {{label: Changing, price: 1, period: 30d, renews: by_itself, allowance: {{tokens: {tokens}}}{more}}}"
)
MANY = 40


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, plans=PLAN.format(tokens=1000, more="")) as started:
        yield started


def answers(running: Fleet, account: Account) -> Counter[tuple[int, str]]:
    """Many calls at once on connections of their own: every worker answers some of them."""

    async def ask() -> Counter[tuple[int, str]]:
        calls = (running.ask(account, output=1, simulate="ttfb=50") for _ in range(MANY))
        return Counter((answer.status, answer.reason) for answer in await asyncio.gather(*calls))

    return running.loop.run(ask())


def change(running: Fleet, *, tokens: int, more: str = "", seen: int) -> None:
    """Write another allowance, and wait until all workers have it."""
    text = running.server.config.read_text()
    wanted = PLAN.format(tokens=tokens, more=more)
    running.server.config.write_text(re.sub(r"^  changing: .*$", wanted, text, flags=re.MULTILINE))
    wait_until(lambda: reloads(running, "ok") >= seen, what=f"{seen} workers' reloads: {running.server.output()}")


def reloads(running: Fleet, outcome: str) -> float:
    return running.metric("tollgate_config_reloads_total", result=outcome)


def remaining(running: Fleet, account: Account) -> tuple[int, Decimal]:
    """What a call tells, and what the account has used before it."""
    answer = running.call(account, output=1).result(30)
    assert answer.status == 200, f"{dict(answer.headers)} {answer.body!r}"
    charged = Decimal(answer.headers["Tollgate-Charged"])
    return int(charged), Decimal(answer.headers["Tollgate-Remaining"])


def test_a_changed_plan_counts_on_the_next_call(running: Fleet) -> None:
    account = running.account("changing")
    used, left = remaining(running, account)
    assert used + left == 1000
    change(running, tokens=5000, seen=2)
    more, left = remaining(running, account)
    assert used + more + left == 5000, f"a larger allowance: {used} + {more} used, {left} left"
    used += more
    change(running, tokens=2000, seen=4)
    more, left = remaining(running, account)
    assert used + more + left == 2000, f"a smaller allowance: {used} + {more} used, {left} left"
    used += more
    change(running, tokens=used - 1, seen=6)
    answer = running.call(account, output=1).result(30)
    assert (answer.status, answer.reason) == (429, "limit_exceeded"), (
        "an allowance below what is used takes nothing back"
    )
    change(running, tokens=3000, more=", limits: {account: {requests_per_minute: 3}}", seen=8)
    found = answers(running, account)
    assert found == {(200, ""): 3, (429, "rate_limited"): MANY - 3}, found
    running.at_rest(account)
    running.assert_audit_finds_nothing()


def test_a_broken_config_stays_out_and_says_where_it_is_broken(running: Fleet) -> None:
    account = running.account("drain")
    good = running.server.config.read_text()
    line = 1 + good.splitlines().index(PLAN.format(tokens=1000, more=""))
    running.server.config.write_text(good.replace("allowance: {tokens: 1000}", "allowance: {tokens: -7}, alowance: 1"))
    wait_until(lambda: reloads(running, "rejected") >= 2, what="both workers say no")
    status, told = reload(running, ADMIN_TOKEN)
    where = f"config.yaml:{line}: plans.changing."
    assert status == 400 and told["reloaded"] is False, told
    assert len(told["problems"]) >= 2 and all(where in problem for problem in told["problems"]), told
    log = running.server.output()
    assert all(problem.partition(": ")[2] in log for problem in told["problems"]), log[-2000:]
    assert set(answers(running, account)) == {(200, "")}, "the running config stays in force"
    assert reload(running, "wrong")[0] == 401
    running.server.config.write_text(good.replace("allowance: {tokens: 1000}", "allowance: {tokens: 9000}"))
    assert reload(running, ADMIN_TOKEN) == (200, {"reloaded": True, "problems": []})
    wait_until(lambda: reloads(running, "ok") >= 2, what="the other worker was told")
    assert 8900 < remaining(running, running.account("changing"))[1] < 9000


def reload(running: Fleet, token: str) -> tuple[int, Any]:
    """POST /admin/v1/reload."""

    async def ask() -> tuple[int, Any]:
        url, headers = f"{running.server.admin_url}/admin/v1/reload", {"Authorization": f"Bearer {token}"}
        async with running.session.post(url, headers=headers) as answer:
            return answer.status, await answer.json()

    return running.loop.run(ask())


def test_what_an_operator_does_to_an_account_counts_on_the_next_call_everywhere(running: Fleet) -> None:
    account, cli = running.account("drain"), running.server.cli
    assert set(answers(running, account)) == {(200, "")}
    cli("accounts", "suspend", account.id, "--reason", "test")
    assert set(answers(running, account)) == {(403, "account_suspended")}
    cli("accounts", "resume", account.id)
    resumed_s = time.monotonic()
    wait_until(lambda: set(answers(running, account)) == {(200, "")}, what="it works again", within_s=4)
    back_s = time.monotonic() - resumed_s
    budget = cli("budgets", "set", "key", account.key_id, "tokens", "60", "--period", "30d")
    found = answers(running, account)
    assert 0 < found[200, ""] <= 4 and found.total() - found[200, ""] >= MANY - 4, found
    running.at_rest(account)
    found = answers(running, account)
    assert set(found) <= {(200, ""), (429, "budget_exceeded"), (429, "held_elsewhere")} and found[200, ""] <= 1, found
    cli("budgets", "remove", account.id, str(budget["number"]))
    assert set(answers(running, account)) == {(200, "")}
    cli("subscribe", account.id, "changing")
    found = answers(running, account)
    assert 0 < found[200, ""] < MANY, f"a smaller plan: {found}"
    cli("grant", account.id, "100000", "--wallet", "tokens", "--reason", "test")
    assert set(answers(running, account)) == {(200, "")}
    fresh = cli("keys", "rotate", account.key_id, "--overlap", "0")["key"]
    assert set(answers(running, account)) == {(401, "invalid_api_key")}
    renewed = Account(account.id, fresh, running.server.cli("keys", "list", account.id)[-1]["id"])
    assert set(answers(running, renewed)) == {(200, "")}
    cli("keys", "revoke", renewed.key_id, "--yes")
    assert set(answers(running, renewed)) == {(401, "invalid_api_key")}
    assert back_s < 4, f"{back_s:.1f} s"
    running.at_rest(account)
    running.assert_audit_finds_nothing()
