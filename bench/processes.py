"""Starting programs on a core, and reading what they cost from /proc.

Rules
1. The gateway under test has one core to itself; everything else shares the other.
2. What a Redis costs is never the gateway's: it is moved to the other core and left out of the sums.
3. Whatever is started here is ended here, by its pid.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
GATEWAY_CORE = CORES[0]
OTHER_CORE = CORES[1] if len(CORES) > 1 else CORES[0]
STORES = ("redis-server", "valkey-server", "redis-check-rdb")


class Program:
    """A child process with its descendants."""

    def __init__(self, command: list[str], *, core: int, log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, grace_s: float = 30) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def wait_for(self, ready: Callable[[], bool], *, within_s: float = 30) -> None:
        """Until ``ready``; what the program said goes into the error when it died or took too long."""
        deadline = time.monotonic() + within_s
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._process.args!r} did not start:\n{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of what it wrote, for a complaint."""
        return self._log.read_text()[-3000:]

    def family(self) -> list[int]:
        """Its pid and those of its descendants, stores left out."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(int(entry.name))):
                children.setdefault(int(stat[1]), []).append(int(entry.name))
        family, look = [], [self.pid]
        while look:
            pid = look.pop()
            if _name(pid) not in STORES:
                family.append(pid)
            look += children.get(pid, [])
        return family

    def move_stores(self, core: int) -> None:
        """Descendants that are Redis servers go to another core, all their threads."""
        ours = set(self.family())
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or _name(int(entry.name)) not in STORES:
                continue
            if (stat := _stat(int(entry.name))) and int(stat[1]) in ours:
                for thread in (entry / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), {core})

    def cpu_s(self) -> float:
        """User and system time so far, of all processes and threads."""
        stats = (_stat(pid) for pid in self.family())
        return sum(int(stat[11]) + int(stat[12]) for stat in stats if stat) / TICKS_PER_S

    def pss_kb(self) -> int:
        """Memory, shared pages counted in proportion."""
        total = 0
        for pid in self.family():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name: state, parent, …; None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
