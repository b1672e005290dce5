"""Workers killed with -9, at any point of a call: the others serve, holds lapse, every charge finds its way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiosqlite
import pytest

from tests.support.bills import tokens_served
from tests.support.family import kill9, workers
from tests.support.fleet import STEPS, Fleet, fleet
from tests.support.processes import alive, wait_until

LEASE_S = 2
RESPAWN_S = 2.0
# The lease, the reaper's round, and as much again for a machine that is busy with other tests.
LAPSE_S = 2 * (LEASE_S + 1)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, lease=f"{LEASE_S}s") as started:
        started.end_amnesty()
        yield started


def owner_of_streams(running: Fleet) -> dict[int, int]:
    """Connections to the models per worker: who relays how many streams."""
    port = running.models.url.rpartition(":")[2]
    found = {}
    for pid in workers(running.server):
        sockets = set()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
        lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        wanted = f":{int(port):04X}"
        found[pid] = sum(1 for line in lines if line[2].endswith(wanted) and line[9] in sockets and line[3] == "01")
    return found


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_worker_killed_among_many_streams_costs_nobody_else_anything(running: Fleet) -> None:
    account, before = running.account("pro"), running.last_entry()
    served_before = running.metric("tollgate_requests_total")
    for _ in range(20):
        assert running.call(account, output=3).result(30).status == 200
    requests = running.metric("tollgate_requests_total")
    assert requests == served_before + 20
    streams = running.streams(account, 24, output=80, delay_ms=50, max_tokens=80)
    # Twice a second a worker tells Redis of first bytes: from then on a lapse is charged.
    wait_until(lambda: running.told(account) == 24, what="all first bytes are told")
    victims = owner_of_streams(running)
    victim = max(victims, key=lambda pid: victims[pid])
    others = set(victims) - {victim}
    killed_s = time.monotonic()
    kill9(victim)
    answer = running.call(account, output=2).result(30)
    assert answer.status == 200, f"the others serve on: {answer.status}"
    wait_until(lambda: len(workers(running.server)) == 2, what="a successor", within_s=RESPAWN_S)
    respawned_s = time.monotonic() - killed_s
    ends = streams.wait()
    cut = [end for end in ends if not end.whole]
    whole = [end for end in ends if end.whole]
    assert cut and whole, f"{len(cut)} cut, {len(whole)} whole, streams per worker {victims}"
    assert others <= set(workers(running.server)), "nobody else died"
    balance = running.at_rest(account, within_s=LAPSE_S + 15)
    rows = {row["job"]: row for row in running.rows(account)}
    entries = {entry["tag"]: entry for entry in running.journal(since=before)}
    for end in whole:
        assert rows[end.tag]["charged"] == STEPS * tokens_served(entries[end.tag]), "whole streams are exact"
    for end in cut:
        row = rows[end.tag]
        assert (row["state"], row["basis"], row["end"]) == ("lapsed", "estimated", "lapsed"), row
        assert row["charged"] == STEPS * row["input"] > 0, "the plan's on_abandon: the input's estimate"
        assert row["at_ms"] - row["created_at_ms"] <= 1000 * (LAPSE_S + (killed_s - cut[0].sent_at_s)), row
    assert len(rows) == 20 + 24 + 1
    assert balance.counted == sum(row["charged"] for row in rows.values())
    assert running.metric("tollgate_requests_total") >= requests + len(whole), "the dead worker's counts are kept"
    assert running.metric("tollgate_streams_open") == 0 == running.metric("tollgate_holds_open")
    assert running.metric("tollgate_holds_lapsed_total", outcome="charged") == len(cut)
    running.assert_audit_finds_nothing()
    assert respawned_s < RESPAWN_S


def test_a_worker_killed_before_the_first_byte_charges_nothing(running: Fleet) -> None:
    account = running.account("pro")
    waiting = [running.call(account, output=5, simulate="ttfb=60000") for _ in range(6)]
    wait_until(lambda: (running.balance(account) or _NOBODY).holds_open == 6, what="six holds are open")
    for pid in workers(running.server):
        kill9(pid)
    assert [answer.result(30).status for answer in waiting] == [0] * 6
    wait_until(lambda: running.get(f"{running.server.url}/healthz") == 200, what="successors serve")
    balance = running.at_rest(account, within_s=LAPSE_S + 15)
    assert (balance.counted, running.rows(account)) == (0, [])
    assert running.call(account, output=5).result(30).status == 200
    running.assert_audit_finds_nothing()


class _Nobody:
    holds_open = 0


_NOBODY = _Nobody()


def test_charges_that_a_dead_worker_had_not_written_are_taken_over_from_the_outbox(running: Fleet) -> None:
    """Settled in Redis, not yet in SQL: the database is locked while the worker answers, and then it dies."""
    account, before = running.account("pro"), running.last_entry()
    assert running.call(account, output=5).result(30).status == 200
    running.at_rest(account)
    lock = running.loop.run(_lock(running))
    answers = [running.call(account, output=7) for _ in range(10)]
    assert [answer.result(30).status for answer in answers] == [200] * 10
    wait_until(lambda: (running.balance(account) or _NOBODY).holds_open == 0, what="settled in Redis")
    for pid in workers(running.server):
        kill9(pid)
    assert len(running.rows(account)) == 1, "SQL has nothing yet"
    running.loop.run(lock.close())
    balance = running.at_rest(account, within_s=30)
    assert running.assert_charged_as_served(account, since=before) == 11
    assert balance.counted == sum(row["charged"] for row in running.rows(account))
    running.assert_audit_finds_nothing()


class Lock:
    """A write transaction on the database that somebody else keeps open."""

    def __init__(self, connection: object) -> None:
        self._connection = connection

    async def close(self) -> None:
        await self._connection.close()  # type: ignore[attr-defined]


async def _lock(running: Fleet) -> Lock:
    connection = await aiosqlite.connect(running.server.data / "tollgate.db", isolation_level=None)
    await connection.execute("BEGIN IMMEDIATE")
    return Lock(connection)


def test_a_worker_that_stood_still_longer_than_its_lease_charges_its_streams_once(running: Fleet) -> None:
    """SIGSTOP past the lease: its holds lapse with an estimate, live calls reopen them; the bill is the real use."""
    account, before = running.account("pro"), running.last_entry()
    streams = running.streams(account, 6, output=40, delay_ms=50, max_tokens=40)
    wait_until(lambda: running.told(account) == 6, what="all first bytes are told")
    stopped = workers(running.server)
    sleeping = max(owner_of_streams(running).items(), key=lambda item: item[1])[0]
    os.kill(sleeping, signal.SIGSTOP)
    try:
        wait_until(lambda: any(row["state"] == "lapsed" for row in running.rows(account)),
                   what="the sleeper's holds lapse", within_s=LAPSE_S + 20)  # fmt: skip
    finally:
        os.kill(sleeping, signal.SIGCONT)
    assert all(end.whole for end in streams.wait()), "the streams go on"
    running.at_rest(account, within_s=30)
    assert running.assert_charged_as_served(account, since=before) == 6
    rows = running.rows(account)
    lapsed = [row for row in rows if row["state"] == "lapsed"]
    reversed_ = [row for row in rows if row["state"] == "reversed"]
    assert lapsed and {row["hold_id"] for row in lapsed} == {row["hold_id"] for row in reversed_}
    assert sum(row["charged"] for row in lapsed) == -sum(row["charged"] for row in reversed_)
    assert all(alive(pid) for pid in stopped)
    running.assert_audit_finds_nothing()
