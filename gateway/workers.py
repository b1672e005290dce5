"""The parent of the workers: forks them, keeps their number, forwards signals, ends them in order.

gunicorn's arbiter does the work, as a library; the subclass changes what doesn't fit a gateway.

Rules
1. Every worker has a slot, from 0; a successor takes the slot of the worker that died.
2. SIGHUP is forwarded to the workers, nobody is replaced. SIGTERM and Ctrl-C drain; a second Ctrl-C cuts short.
3. A worker never returns into its parent's call stack, and never outlives its parent.
4. What dies at once is started again with growing pauses; what lived is replaced within a second.

Not here: what a worker does (``app``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from gateway.processes import end_with_parent

log = logging.getLogger(__name__)

BEAT_S = 1.0
STUCK_S = 60  # a worker whose event loop stands still for this long is killed
CUT_S = 5  # after the grace time: for a worker to cut what still runs and write what it owes
SHORT_LIFE_S = 1.0
PAUSE_MAX_S = 5.0
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def _nothing() -> None:
    """The default callback."""


@dataclass(slots=True)
class WorkerContext:
    """What a worker's ``main`` gets. ``main`` serves ``sockets`` until ``stop`` is set, drains, and returns."""

    slot: int
    sockets: Sequence[socket.socket]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    on_reload: Callable[[], object] = _nothing  # set by main; called in the loop at SIGHUP


Main = Callable[[WorkerContext], Awaitable[None]]


def run(
    workers: int,
    sockets: Sequence[socket.socket],
    main: Main,
    *,
    grace_s: float,
    tick: Callable[[], object] = _nothing,
    on_reload: Callable[[], object] = _nothing,
) -> int:
    """Run ``main`` in that many processes on these listening sockets, until a signal ends it. Returns the exit code.

    To be called from the main thread, with no event loop running. ``tick`` is called in the parent when a child of any
    kind died, and every second at least; ``on_reload`` in the parent at SIGHUP. ``main`` has ``grace_s`` to drain.
    """
    if workers < 1:
        raise ValueError("at least one worker")
    arbiter = _Arbiter(_Application(workers, main, grace_s), tick, on_reload)
    arbiter.LISTENERS = list(sockets)
    before = {number: signal.getsignal(number) for number in (*Arbiter.SIGNALS, signal.SIGCHLD)}
    try:
        arbiter.run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


class _Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's words go where ours go: warnings and errors only."""

    def setup(self, cfg: Config) -> None:
        self.cfg = cfg
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Application(BaseApplication):  # type: ignore[misc]
    def __init__(self, workers: int, main: Main, grace_s: float) -> None:
        self._settings: dict[str, Any] = {
            "workers": workers,
            "worker_class": _Worker,
            "logger_class": _Log,
            "graceful_timeout": math.ceil(grace_s) + CUT_S,
            "timeout": STUCK_S,
            "control_socket_disable": True,
            "pre_fork": lambda arbiter, worker: arbiter.assign(worker),
            "post_fork": lambda arbiter, worker: end_with_parent(worker.ppid),
            "child_exit": lambda arbiter, worker: arbiter.mourn(worker),
        }
        self._main = main
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Main:
        return self._main


class _Arbiter(Arbiter):  # type: ignore[misc]
    def __init__(self, app: _Application, tick: Callable[[], object], on_reload: Callable[[], object]) -> None:
        super().__init__(app)
        self._tick = tick
        self._on_reload = on_reload
        self._short_lives = 0
        self._not_before = 0.0

    def assign(self, worker: _Worker) -> None:
        """Give a worker about to be forked the lowest free slot."""
        taken = {other.slot for other in self.WORKERS.values()}
        worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def mourn(self, worker: _Worker) -> None:
        """Note how long a worker lived, so that a crash at start isn't repeated without pause."""
        now = time.monotonic()
        if now - worker.born_at >= SHORT_LIFE_S:
            self._short_lives = 0
        else:
            self._short_lives += 1
            self._not_before = now + min(PAUSE_MAX_S, 0.1 * 2**self._short_lives)

    def spawn_worker(self) -> int | None:
        """Fork. Signals are held back until the child can understand them, and the child ends in here."""
        parent_pid = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            return int(super().spawn_worker())
        except SystemExit as end:
            if os.getpid() != parent_pid:
                _leave(end.code if isinstance(end.code, int) else 1)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def spawn_workers(self) -> None:
        for _ in range(self.num_workers - len(self.WORKERS)):
            self.spawn_worker()

    def manage_workers(self) -> None:
        self._tick()
        if time.monotonic() >= self._not_before:
            super().manage_workers()

    def handle_hup(self) -> None:
        self._on_reload()
        self.kill_workers(signal.SIGHUP)

    def handle_int(self) -> None:
        self.handle_term()

    def handle_usr2(self) -> None:
        """gunicorn would start a second server beside this one; the data folder has room for one."""


class _Worker(Worker):  # type: ignore[misc]
    slot = -1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.born_at = time.monotonic()

    def init_signals(self) -> None:
        """Signals for the parent mean nothing here; those held back since the fork wait for the event loop."""
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def run(self) -> None:
        uvloop.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        context = WorkerContext(self.slot, self.sockets)
        serving = asyncio.ensure_future(self.app.wsgi()(context))
        loop.add_signal_handler(signal.SIGTERM, context.stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: context.on_reload())
        loop.add_signal_handler(signal.SIGQUIT, serving.cancel)
        loop.add_signal_handler(signal.SIGINT, _nothing)  # a terminal's Ctrl-C reaches us too: the parent decides
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        beating = loop.create_task(self._beat())
        await asyncio.wait((serving,))
        beating.cancel()
        if not serving.cancelled() and (error := serving.exception()) is not None:
            log.error("the worker failed", exc_info=error)
            sys.exit(1)

    async def _beat(self) -> None:
        """Tell the parent that the loop turns; end when there is no parent (where the kernel doesn't see to it)."""
        while True:
            self.notify()
            if os.getppid() != self.ppid:
                os._exit(1)
            await asyncio.sleep(BEAT_S)


def _leave(code: int) -> None:
    """End a worker without running what its parent had planned for its own end."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
