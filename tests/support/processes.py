"""Child processes of tests: they die with the test process, and are waited for with a deadline.

Rules
1. Every child gets a death signal (Linux), so that a killed test run leaves nothing behind.
2. Nothing waits without a deadline, and nothing sleeps a guessed time: conditions are polled.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
POLL_S = 0.005
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """A ``preexec_fn`` after which the child gets the signal when the spawning thread ends (Linux)."""
    parent = os.getpid()

    def arm() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return arm


def spawn(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    user: int | None = None,
    death_signal: int = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a child with its output in ``log`` (or dropped), ended with this process."""
    with (log or Path(os.devnull)).open("ab") as sink:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
            start_new_session=True,
            preexec_fn=die_with_parent(death_signal),
        )


def wait_until(condition: Callable[[], T], *, what: str, within_s: float = 10.0) -> T:
    """Poll until the condition is truthy and return its value.

    Raises AssertionError naming ``what`` when the deadline passes.
    """
    pause = threading.Event()
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        pause.wait(POLL_S)
    return value


async def eventually(condition: Callable[[], T | Awaitable[T]], *, what: str, within_s: float = 10.0) -> T:
    """``wait_until`` for a running event loop; the condition may be a coroutine function."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]
        assert loop.time() < deadline, f"not within {within_s} s: {what}"
        turn = loop.create_future()
        loop.call_later(POLL_S, turn.set_result, None)
        await turn


def children(pid: int) -> list[int]:
    """The direct children of a process (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


_given_ports: set[int] = set()


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago; another one each time, though nobody took the last one yet."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given_ports:
            _given_ports.add(port)
            return port


def alive(pid: int) -> bool:
    """True when the process exists and isn't a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return sys.platform != "linux"
