"""The processes of a running server: its workers, its Valkey, all its descendants."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.gateways import Served
from tests.support.processes import alive, children


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def workers(server: Served) -> list[int]:
    """The pids of the running workers: forks of the parent."""
    mine = command_of(server.process.pid)
    return [pid for pid in children(server.process.pid) if alive(pid) and command_of(pid) == mine]


def valkey_pid(server: Served) -> int:
    """The embedded Valkey."""
    found = [pid for pid in children(server.process.pid) if "valkey-server" in command_of(pid) and alive(pid)]
    return found[0] if found else 0


def kill9(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def tree(pid: int) -> dict[int, str]:
    """A process' descendants, and what they are."""
    found: dict[int, str] = {}
    for each in children(pid):
        found[each] = command_of(each)
        found |= tree(each)
    return found
