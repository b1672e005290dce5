"""Redis killed, stopped, or emptied during load: admission waits for it, streams do not, and the bill loses nothing.

Each kind of Redis meets its faults in one installation, one after the other, on accounts of their own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limits.errors import EngineUnavailable
from tests.support.family import kill9, valkey_pid
from tests.support.fleet import Calls, Fleet, fleet
from tests.support.processes import wait_until
from tests.support.servers import valkey

REFUSED_S = 0.3  # a call is told that Redis is away within this time
BACK_S = 2.0  # calls succeed within this time after Redis is back
STOPPED_S = 5.0
DOWN_S = 1.0
# What a machine that runs other tests, too, may add to either.
BUSY_S = 0.5

Fault = Callable[[Calls], tuple[float, float]]  # injects it and heals it; answers when it began and ended


def passed(seconds: float, since_s: float) -> None:
    wait_until(lambda: time.monotonic() - since_s >= seconds, what="time passes", within_s=seconds + 5)


def away(calls: Calls, began_s: float, seconds: float) -> None:
    """Callers have been refused, for a while."""
    calls.wait_status(503, began_s)
    passed(seconds, began_s)


def survive(running: Fleet, name: str, fault: Fault, *, streams_s: float = 4.0) -> str:
    """Load, the fault, and all that must hold of it; answers the figures."""
    streaming, calling = running.account("drain"), running.account("drain")
    before = running.last_entry()
    streams = running.streams(streaming, 8, output=int(streams_s / 0.05), delay_ms=50)
    with running.calling(calling, callers=4) as calls:
        calls.wait_ok(time.monotonic(), calls=10)
        began_s, ended_s = fault(calls)
        back_s = calls.wait_ok(ended_s)
        calls.wait_ok(ended_s + back_s, calls=40)
    refused = calls.sent_after(began_s, 503)
    waits = sorted(answer.seconds for answer in refused)
    assert waits, f"{name}: nobody noticed: {calls.statuses()}"
    p99_s = waits[min(len(waits) - 1, len(waits) * 99 // 100)]
    figures = (
        f"{name}: {calls.statuses()}; {len(refused)} refused, p50 {waits[len(waits) // 2]:.3f} s, "
        f"p99 {p99_s:.3f} s; back after {back_s:.3f} s"
    )
    assert set(calls.statuses()) <= {200, 503}, figures
    assert p99_s <= REFUSED_S + BUSY_S and back_s <= BACK_S + BUSY_S, figures
    ends = streams.wait()
    assert all(end.status == 200 and end.whole for end in ends), f"{figures}; streams {[e.whole for e in ends]}"
    for account in (streaming, calling):
        running.at_rest(account, within_s=40)
        charged = running.assert_charged_as_served(account, since=before, within_s=10)
        assert charged == (8 if account is streaming else len(calls.sent_after(0.0, 200))), figures
    return figures


def assert_survived(running: Fleet, figures: list[str]) -> None:
    found = running.assert_audit_finds_nothing()
    print("\n".join((*figures, str(found))))
    log = [line for line in running.server.output().splitlines() if "Traceback" in line or "a call failed" in line]
    assert not log, log[:3]


# --- embedded ------------------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as started:
        yield started


def test_the_embedded_valkey_is_flushed_stopped_and_killed(embedded: Fleet) -> None:
    def flush(calls: Calls) -> tuple[float, float]:
        began_s = time.monotonic()
        embedded.loop.run(embedded.client.execute("FLUSHALL"))
        return began_s, time.monotonic()

    def stop(calls: Calls) -> tuple[float, float]:
        pid, began_s = valkey_pid(embedded.server), time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        away(calls, began_s, STOPPED_S)
        os.kill(pid, signal.SIGCONT)
        return began_s, time.monotonic()

    def kill(calls: Calls) -> tuple[float, float]:
        pid, began_s = valkey_pid(embedded.server), time.monotonic()
        kill9(pid)
        wait_until(lambda: valkey_pid(embedded.server) not in (0, pid), what="the parent starts another one")
        wait_until(lambda: _answers(embedded), what="it answers")
        return began_s, time.monotonic()

    figures = [
        survive(embedded, "embedded, FLUSHALL", flush),
        survive(embedded, "embedded, SIGSTOP", stop, streams_s=STOPPED_S + 2),
        survive(embedded, "embedded, kill -9", kill),
    ]
    assert_survived(embedded, figures)


def _answers(running: Fleet) -> bool:
    try:
        return bool(running.loop.run(running.client.execute("PING")) == b"PONG")
    except EngineUnavailable:
        return False


# --- external ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [True, False], ids=["that_keeps_its_data", "that_comes_back_empty"])
def test_an_external_redis_is_killed_and_flushed(tmp_path: Path, keeps: bool) -> None:
    with valkey(aof=keeps, tcp=True) as server, fleet(tmp_path, redis=f'"{server.url}"') as running:

        def flush(calls: Calls) -> tuple[float, float]:
            began_s = time.monotonic()
            server.command("FLUSHALL")
            return began_s, time.monotonic()

        def restart(calls: Calls) -> tuple[float, float]:
            began_s = time.monotonic()
            server.kill9()
            away(calls, began_s, DOWN_S)
            server.start()
            return began_s, time.monotonic()

        figures = [survive(running, f"external, keeps={keeps}, kill -9", restart)]
        if keeps:
            figures.append(survive(running, "external, FLUSHALL", flush))
        assert_survived(running, figures)
