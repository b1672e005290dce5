"""The simulated models as one child process, so that several workers share one journal.

Rules
1. The child ends with its parent, however that dies: its standard input is a pipe that only the parent holds open, and
   on Linux the kernel signals it besides.
2. It picks a free loopback port and says which before ``spawn`` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from gateway.errors import ServiceAway
from gateway.processes import end_with_parent
from gateway.simulator.counting import preload_all
from gateway.simulator.server import serve

_START_S_MAX = 30.0
_STOP_S_MAX = 5.0
_JOURNAL_ENTRIES_MAX = 50_000  # about 1 KB each
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Simulator:
    """A running child."""

    url: str  # without a trailing slash; OpenAI's base URL is ``url + "/v1"``
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """End it, at the latest by force. Stopping twice does nothing."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.terminate()
        try:
            self.process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def spawn(*, host: str = "127.0.0.1", port: int = 0, journal_entries_max: int = _JOURNAL_ENTRIES_MAX) -> Simulator:
    """Start the child and wait until it listens; port 0 is any free one.

    Raises ServiceAway when it does not listen within 30 s.
    """
    command = [sys.executable, "-m", "gateway.simulator.child", host, str(port), str(journal_entries_max)]
    # The kernel would signal the child at the end of the *thread* that made it, so only the main thread asks for that.
    if threading.current_thread() is threading.main_thread():
        command.append("--with-parent")
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(  # noqa: S603  # our own module by our own interpreter
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A Ctrl-C for the whole terminal is the parent's to handle: it drains its streams first.
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_S_MAX)
    url = process.stdout.readline().decode().strip() if ready else ""
    simulator = Simulator(url, process)
    if not url:
        simulator.stop()
        raise ServiceAway("The simulated models did not start.")
    return simulator


async def _serve_while_parent_lives(host: str, port: int, *, entries_max: int) -> None:
    serving = await serve(host, port, entries_max=entries_max)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, over.set)
    parent = sys.stdin.fileno()
    os.set_blocking(parent, False)

    def read_parent() -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(parent, 64):
                loop.remove_reader(parent)
                over.set()

    loop.add_reader(parent, read_parent)
    print(serving.url, flush=True)
    await over.wait()
    loop.remove_reader(parent)
    await serving.close()


def main(arguments: Sequence[str]) -> None:
    """The child: ``HOST PORT JOURNAL_ENTRIES_MAX [--with-parent]``."""
    if "--with-parent" in arguments:
        end_with_parent(os.getppid(), signal.SIGTERM)
    preload_all()
    host, port, entries_max = arguments[0], int(arguments[1]), int(arguments[2])
    uvloop.run(_serve_while_parent_lives(host, port, entries_max=entries_max))


if __name__ == "__main__":
    main(sys.argv[1:])
