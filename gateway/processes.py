"""Child processes that end with their parent, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
ON_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True) if ON_LINUX else None  # loaded before any fork


def end_with_parent(parent_pid: int, signal_number: int = signal.SIGKILL) -> None:
    """In a child: have the kernel send ``signal_number`` when the thread that made this process ends (Linux only).

    A parent that died before this call is noticed too.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent_pid:
            os.kill(os.getpid(), signal_number)


def preexec(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """``end_with_parent`` for ``subprocess.Popen(preexec_fn=…)``; spawn from the main thread, which lives longest."""
    parent_pid = os.getpid()
    return lambda: end_with_parent(parent_pid, signal_number)
