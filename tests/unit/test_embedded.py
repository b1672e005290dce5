"""The embedded Valkey: kept as long as its owner, never longer, and its data longer than both."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import embedded
from gateway.embedded import DataLock, Embedded, borrowed, probe, running_url
from gateway.errors import ServiceAway
from tests.support.processes import alive, spawn, wait_until
from tests.support.servers import RedisServer


def ask(valkey: Embedded, *args: str) -> object:
    server = RedisServer(Path(), Path())
    server.socket_path = valkey.socket_path
    return server.command(*args)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Embedded]:
    made = Embedded(tmp_path / "data")
    made.start()
    yield made
    made.stop()


def test_its_policy_is_the_one_that_keeps_accounts(valkey: Embedded) -> None:
    def setting(name: str) -> object:
        reply = ask(valkey, "CONFIG", "GET", name)
        assert isinstance(reply, list)
        return reply[1]

    assert setting("appendonly") == b"yes"
    assert setting("appendfsync") == b"everysec"
    assert setting("maxmemory-policy") == b"noeviction"
    assert setting("hash-max-listpack-value") == b"512"
    assert setting("save") == b""
    assert setting("port") == b"0"
    assert len(str(valkey.socket_path)) < 104


def test_its_data_outlive_stop_and_kill9(tmp_path: Path, valkey: Embedded) -> None:
    ask(valkey, "SET", "a", "1")
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    wait_until(lambda: (valkey.keep_up(), probe(valkey.socket_path) == "PONG")[1], what="started again")
    assert ask(valkey, "GET", "a") == b"1"
    valkey.stop()
    valkey.start()
    assert ask(valkey, "GET", "a") == b"1"


def test_a_restart_keeps_the_address(valkey: Embedded) -> None:
    url, pid = valkey.url, valkey.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (valkey.keep_up(), probe(valkey.socket_path) == "PONG")[1], what="started again")
    assert valkey.url == url
    assert valkey.pid != pid


def test_one_process_at_a_time_has_the_data_folder(tmp_path: Path) -> None:
    first, second = DataLock(tmp_path), DataLock(tmp_path)
    first.acquire()
    with pytest.raises(ServiceAway, match="in use"):
        second.acquire(within_s=0.05)
    first.release()
    second.acquire()
    second.release()


def test_a_command_borrows_the_running_servers_valkey(tmp_path: Path) -> None:
    lock, server = DataLock(tmp_path), Embedded(tmp_path)
    lock.acquire()
    url = server.start()
    with borrowed(tmp_path) as borrowed_url:
        assert borrowed_url == url
    assert running_url(tmp_path) == url
    server.stop()
    with pytest.raises(ServiceAway), borrowed(tmp_path, within_s=0.05):
        pass
    lock.release()


def test_a_command_starts_and_ends_its_own_when_no_server_runs(tmp_path: Path) -> None:
    with borrowed(tmp_path) as url:
        socket_path = Path(url.removeprefix("unix://"))
        assert probe(socket_path) == "PONG"
        with pytest.raises(ServiceAway):
            DataLock(tmp_path).acquire()
    assert not socket_path.parent.exists()
    assert running_url(tmp_path) is None
    with borrowed(tmp_path) as again:
        assert again != url


OWNER = """
import sys, signal
from pathlib import Path
from gateway.embedded import Embedded
valkey = Embedded(Path(sys.argv[1]), watchdog=sys.argv[2] == "watchdog")
valkey.start()
Path(sys.argv[1], "pid").write_text(str(valkey.pid))
signal.pause()
"""


@pytest.mark.parametrize("way", ["kernel", "watchdog"])
def test_it_dies_with_an_owner_that_is_killed_and_the_next_owner_cleans_up(tmp_path: Path, way: str) -> None:
    owner = spawn((sys.executable, "-c", OWNER, tmp_path, way), env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="the owner started it")
    pid = int((tmp_path / "pid").read_text())
    left = Path((tmp_path / "valkey.socket").read_text())
    owner.kill()
    owner.wait()
    wait_until(lambda: not alive(pid), what="it died too")
    assert left.parent.exists()
    with borrowed(tmp_path):
        assert not left.parent.exists()


def test_a_log_that_cannot_be_read_back_is_said_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(ServiceAway) as caught:
        Embedded(tmp_path).start()
    assert "did not start" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "valkey.socket").exists()


def test_a_truncated_log_loses_its_tail_only(tmp_path: Path) -> None:
    first = Embedded(tmp_path)
    first.start()
    for number in range(100):
        ask(first, "SET", f"k{number}", "x" * 50)
    first.stop()
    (log_file,) = (tmp_path / "valkey" / "appendonlydir").glob("*.incr.aof")
    with log_file.open("r+b") as file:
        file.truncate(log_file.stat().st_size - 10)
    second = Embedded(tmp_path)
    second.start()
    assert ask(second, "DBSIZE") == 99
    second.stop()


def test_without_the_bundled_server_one_on_the_path_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    assert embedded.find_server().name in ("valkey-server", "redis-server")
    valkey = Embedded(tmp_path)
    valkey.start()
    assert ask(valkey, "PING") == b"PONG"
    valkey.stop()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceAway, match=r"storage\.redis"):
        embedded.find_server()


def test_a_binary_that_does_not_run_here_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("not a program")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    assert embedded.find_server().name == "redis-server"


def test_nothing_answers_where_nothing_listens(tmp_path: Path) -> None:
    assert probe(tmp_path / "none") == ""
    assert running_url(tmp_path) is None
