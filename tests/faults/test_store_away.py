"""The database locked, killed, or stopped: admission goes on from what is cached, charges wait and are all written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiosqlite

from gateway.quota.keys import new_key
from tests.support.fleet import Account, Fleet, fleet
from tests.support.postgres import postgres
from tests.support.processes import wait_until

LOCKED_S = 15.0
AWAY_S = 4.0
KNOWN = 40
CALL_S = 1.0  # no call takes longer because the database is away; its share of a busy machine included


def passed(seconds: float, since_s: float) -> None:
    wait_until(lambda: time.monotonic() - since_s >= seconds, what="time passes", within_s=seconds + 5)


def serve_through(running: Fleet, name: str, during: Callable[[], None]) -> str:
    """Calls of a known account through an outage: all of them served, and afterwards all of them charged."""
    account, before = running.account("drain"), running.last_entry()
    known = [running.call(account, simulate="ttfb=100") for _ in range(KNOWN)]  # every worker gets some of them
    assert {answer.result(30).status for answer in known} == {200}
    running.at_rest(account)
    with running.calling(account, callers=4) as calls:
        began_s = time.monotonic()
        during()
        ended_s = time.monotonic()
        calls.wait_ok(ended_s, calls=20)
    slowest_s = max(answer.seconds for answer in calls.answers)
    figures = f"{name}: {calls.statuses()} in {ended_s - began_s:.1f} s, slowest {slowest_s:.3f} s"
    assert set(calls.statuses()) == {200} and slowest_s <= CALL_S, figures
    running.at_rest(account, within_s=40)
    charged = running.assert_charged_as_served(account, since=before)
    assert charged == len(calls.answers) + KNOWN, figures
    return f"{figures}, {charged} charges"


def test_a_locked_sqlite_delays_charges_and_nothing_else(tmp_path: Path) -> None:
    """Another process holds SQLite's write lock longer than a write may take."""
    with fleet(tmp_path) as running:
        stranger = Account("", new_key())

        async def lock() -> aiosqlite.Connection:
            connection = await aiosqlite.connect(running.server.data / "tollgate.db", isolation_level=None)
            await connection.execute("BEGIN IMMEDIATE")
            return connection

        def locked() -> None:
            began_s = time.monotonic()
            connection = running.loop.run(lock())
            try:
                passed(LOCKED_S / 2, began_s)
                assert running.call(stranger).result(30).status == 401, "SQLite is still read: this key is unknown"
                passed(LOCKED_S, began_s)
            finally:
                running.loop.run(connection.close())

        figures = serve_through(running, "SQLite locked", locked)
        print(figures, running.assert_audit_finds_nothing())


def test_postgresql_killed_and_stopped_delays_charges_and_nothing_else(tmp_path: Path) -> None:
    """PostgreSQL as the store, end to end. A key that nobody has seen yet gets 503, never 401."""
    with postgres(durable=True) as server, fleet(tmp_path, database=f'"{server.url}"') as running:
        fresh = running.account("pro")  # nobody has called with it yet

        def strangers() -> None:
            for account in (fresh, Account("", new_key())):
                answer = running.call(account).result(30)
                assert answer.status == 503 and answer.headers["retry-after"], (answer.status, answer.body)
            assert running.get(f"{running.server.admin_url}/readyz") == 503
            assert running.get(f"{running.server.url}/healthz") == 200

        def killed() -> None:
            began_s = time.monotonic()
            server.kill9()
            strangers()
            passed(AWAY_S, began_s)
            server.start()

        def stopped() -> None:
            began_s = time.monotonic()
            server.suspend()
            try:
                strangers()
                passed(AWAY_S, began_s)
            finally:
                server.resume()

        figures = [serve_through(running, "PostgreSQL kill -9", killed)]
        figures.append(serve_through(running, "PostgreSQL SIGSTOP", stopped))
        assert running.call(fresh).result(30).status == 200
        running.at_rest(fresh)
        assert running.call(Account("", new_key())).result(30).status == 401
        wait_until(lambda: running.get(f"{running.server.admin_url}/readyz") == 200, what="ready again")
        print(figures, running.assert_audit_finds_nothing())
        log = running.server.output().splitlines()
        noise: list[Any] = [line for line in log if "Traceback" in line or "a call failed" in line]
        assert not noise and len(log) < 40, f"{len(log)} lines: {log[:3]} {noise[:3]}"
