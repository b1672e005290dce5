"""The end of a server: in order, cut short, or by force. Nothing is left behind and nothing served goes unbilled."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bills import tokens_served
from tests.support.family import tree
from tests.support.fleet import STEPS, Fleet, fleet
from tests.support.gateways import run_cli, served
from tests.support.processes import alive, wait_until

EX_UNAVAILABLE = 69
STREAMS = 50
GONE_S = 2.0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as started:
        yield started


def test_sigterm_lets_every_stream_finish_and_exits_with_0(running: Fleet) -> None:
    account, before = running.account("drain"), running.last_entry()
    streams = running.streams(account, STREAMS, output=60, delay_ms=50)
    signalled_s = time.monotonic()
    running.server.process.terminate()
    wait_until(lambda: running.get(f"{running.server.admin_url}/readyz") == 503, what="not ready", within_s=2)
    unready_s = time.monotonic() - signalled_s
    refused = running.loop.run(_connects(running))
    assert not refused, "nobody new is let in"
    ends = streams.wait()
    assert all(end.status == 200 and end.whole for end in ends), [end.status for end in ends if not end.whole]
    assert b"message_stop" in ends[0].body and b"event: error" not in b"".join(end.body for end in ends)
    assert running.server.process.wait(20) == 0, running.server.output()
    assert running.assert_charged_as_served(account, since=before) == STREAMS
    audited = running.assert_audit_finds_nothing()
    assert unready_s < 1.0, f"readiness went off after {unready_s:.3f} s"
    assert audited["charges"] == STREAMS


async def _connects(running: Fleet) -> bool:
    host, port = running.server.url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def test_streams_longer_than_the_grace_time_end_with_an_error_and_are_charged(tmp_path: Path) -> None:
    with fleet(tmp_path, server="grace: 1s") as running:
        account, before = running.account("drain"), running.last_entry()
        streams = running.streams(account, 20, output=2000, delay_ms=20, max_tokens=2000)
        signalled_s = time.monotonic()
        running.server.process.terminate()
        ends = streams.wait(30)
        assert running.server.process.wait(20) == 0, running.server.output()
        took_s = time.monotonic() - signalled_s
        assert took_s < 12, f"{took_s:.1f} s"
        assert {end.status for end in ends} == {200}
        assert all(end.body.rstrip().splitlines()[-2] == b"event: error" for end in ends), ends[0].body[-300:]
        rows = {row["job"]: row for row in running.rows(account)}
        entries = {entry["tag"]: entry for entry in running.journal(since=before)}
        assert len(rows) == 20
        for end in ends:
            charged, produced = rows[end.tag]["charged"] / STEPS, tokens_served(entries[end.tag])
            assert rows[end.tag]["end"] == "shutdown", rows[end.tag]
            assert 0 < charged <= produced and produced - charged <= 5, f"charged {charged}, served {produced}"
        running.assert_audit_finds_nothing()


def test_ctrl_c_in_the_terminal_drains_and_exits_with_0(running: Fleet) -> None:
    """Everybody in the terminal's process group gets the signal; the parent decides what it means."""
    account, before = running.account("drain"), running.last_entry()
    streams = running.streams(account, 4, output=30, delay_ms=50)
    os.killpg(running.server.process.pid, signal.SIGINT)
    assert all(end.whole for end in streams.wait())
    assert running.server.process.wait(20) == 0, running.server.output()
    assert running.assert_charged_as_served(account, since=before) == 4
    assert "Traceback" not in running.server.output()


def test_a_second_server_on_the_same_data_is_refused(running: Fleet) -> None:
    second = run_cli(
        "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        config=running.server.config, data=running.server.data, env=running.server.env,
    )  # fmt: skip
    assert second.returncode == EX_UNAVAILABLE, second
    assert "in use" in second.stderr and "Traceback" not in second.stderr
    assert running.get(f"{running.server.url}/readyz") == 200, "the first one serves on"


def test_a_killed_parent_leaves_nothing_behind(tmp_path: Path) -> None:
    """kill -9 of the demo's parent: workers, Valkey and simulated models end with it; the next start finds it all."""
    with served(tmp_path, arguments=("--demo", "--workers", "2")) as server:
        family = tree(server.process.pid)
        kinds = [name for name in ("valkey-server", "gateway.simulator", "serve") for pid in family
                 if name in family[pid]]  # fmt: skip
        assert sorted(set(kinds)) == ["gateway.simulator", "serve", "valkey-server"] and len(family) >= 4, family
        server.process.kill()
        server.process.wait(10)
        killed_s = time.monotonic()
        wait_until(lambda: not [pid for pid in family if alive(pid)], what=f"all of {family} are gone", within_s=GONE_S)
        gone_s = time.monotonic() - killed_s
        socket = Path((server.data / "valkey.socket").read_text())
    assert gone_s < GONE_S
    with served(tmp_path, arguments=("--demo", "--workers", "1")) as again:
        assert "key: tg_" in again.output()
        assert not socket.parent.exists(), "the next start clears what was left"
        assert again.stop() == 0
    assert not (tmp_path / "data" / "valkey.socket").exists()
