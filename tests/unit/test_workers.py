"""The process manager: who dies is replaced, who is told to end drains, and nothing is left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.workers import run
from tests.support.processes import alive, children, spawn, wait_until


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    folder: Path
    ports: tuple[int, ...]

    def who(self, port: int | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.ports[0], timeout=10)
        try:
            connection.request("GET", "/who")
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def workers(self, count: int) -> dict[int, dict[str, Any]]:
        """Slot → what its worker says, when that many answer."""
        seen: dict[int, dict[str, Any]] = {}

        def ask() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = self.who()
                seen[answer["slot"]] = answer
            return len(seen) == count and all(alive(answer["pid"]) for answer in seen.values())

        wait_until(ask, what=f"{count} workers answer")
        return seen

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def serving(folder: Path, *, workers: int = 2, grace_s: float = 10) -> Iterator[Server]:
    process = spawn(
        (sys.executable, "-m", "tests.support.worker_app", folder, str(workers), str(grace_s)), log=folder / "log"
    )
    try:
        wait_until(lambda: (folder / "ready").exists() and (folder / "ready").read_text(), what="the server listens")
        ports = tuple(int(port) for port in (folder / "ready").read_text().split())
        yield Server(process, folder, ports)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made


@contextlib.contextmanager
def streaming(server: Server) -> Iterator[tuple[http.client.HTTPResponse, int]]:
    """An open answer, and the pid of the worker that gives it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=20)
    connection.request("GET", "/stream")
    response = connection.getresponse()
    try:
        yield response, int(response.readline())
    finally:
        response.close()
        connection.close()


def test_every_worker_has_a_slot_and_serves_every_socket(server: Server) -> None:
    assert sorted(server.workers(2)) == [0, 1]
    assert server.who(server.ports[1])["port"] == server.ports[1]
    assert server.who(server.ports[0])["port"] == server.ports[0]


def test_a_killed_worker_is_replaced_within_two_seconds_in_its_slot(server: Server) -> None:
    before = server.workers(2)
    for slot in (1, 0):
        os.kill(before[slot]["pid"], signal.SIGKILL)
        wait_until(lambda: len(children(server.process.pid)) == 2, what="two workers", within_s=2)
        after = server.workers(2)
        assert after[slot]["pid"] != before[slot]["pid"]
        assert after[1 - slot]["pid"] == before[1 - slot]["pid"]
        before = after


def test_kill9_of_the_parent_leaves_nothing(server: Server) -> None:
    pids = [answer["pid"] for answer in server.workers(2).values()]
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), what="the workers are gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_lets_a_stream_finish_and_exits_0(server: Server, number: int) -> None:
    server.workers(2)
    with streaming(server) as (response, _):
        os.killpg(server.process.pid, number)  # as a terminal's Ctrl-C does: the workers get it too
        wait_until(lambda: (server.folder / "drained").exists(), what="the idle worker is done")
        assert server.process.poll() is None
        (server.folder / "finish").touch()
        assert response.read() == b"end\n"
    assert server.process.wait(10) == 0
    assert sorted((server.folder / "drained").read_text().split()) == ["0", "1"]
    assert (server.folder / "ended").read_text().split() == [str(server.process.pid)]


def test_a_stream_longer_than_the_grace_time_is_cut_and_the_exit_is_0(tmp_path: Path) -> None:
    with serving(tmp_path, workers=1, grace_s=0.2) as server:
        server.workers(1)
        with streaming(server) as (response, pid):
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(10) == 0
            with pytest.raises(http.client.IncompleteRead):
                response.read()
            assert not alive(pid)


def test_a_second_interrupt_cuts_short(server: Server) -> None:
    server.workers(2)
    with streaming(server) as (_, pid):
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: (server.folder / "drained").exists(), what="the idle worker is done")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(8) == 0
        assert not alive(pid)


def test_hangup_reloads_in_each_worker_and_replaces_none(server: Server) -> None:
    before = server.workers(2)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all(who["reloads"] == 1 for who in server.workers(2).values()), what="both reloaded")
    assert (server.folder / "reloaded").exists()
    assert {who["pid"] for who in server.workers(2).values()} == {who["pid"] for who in before.values()}


def test_a_dead_child_of_any_kind_makes_the_parent_look(server: Server) -> None:
    pids = server.workers(2)
    ticks = (server.folder / "ticks").stat().st_size
    os.kill(pids[0]["pid"], signal.SIGKILL)
    wait_until(lambda: (server.folder / "ticks").stat().st_size > ticks, what="a tick")


def test_a_worker_that_fails_at_start_is_tried_again_with_pauses_and_the_server_lives(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with serving(tmp_path, workers=1) as server:
        wait_until(lambda: server.log().count("broken at start") >= 2, what="it was tried again")
        assert server.process.poll() is None
        (tmp_path / "broken").unlink()
        assert sorted(server.workers(1)) == [0]
        assert server.log().count("RuntimeError") < 10


def test_signals_that_mean_nothing_here_are_survived(server: Server) -> None:
    before = server.workers(2)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
        server.process.send_signal(number)
        os.kill(before[0]["pid"], number)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all(who["reloads"] == 1 for who in server.workers(2).values()), what="still serving")
    assert {who["pid"] for who in server.workers(2).values()} == {who["pid"] for who in before.values()}


def test_at_least_one_worker_is_asked_for() -> None:
    async def main(context: object) -> None:
        """Never called."""

    with pytest.raises(ValueError, match="at least one"):
        run(0, [], main, grace_s=1)
