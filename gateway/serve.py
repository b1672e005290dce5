"""``tollgate serve``: the parent process. It opens the sockets, starts the embedded Valkey and the simulated models,
migrates the database, and hands over to the workers.

Rules
1. What can be wrong is said before a worker starts: config, data folder, ports, database.
2. Whatever this process started ends with it, in whatever way it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web

from gateway import app, logs, metrics
from gateway import demo as demonstration
from gateway.config.model import STRIPE_OFF, Address, Config
from gateway.config.reload import Rejected, Reloaded, Unchanged, Watcher
from gateway.config.values import address
from gateway.embedded import DataLock, Embedded
from gateway.errors import ConfigError
from gateway.installation import Installation, open_installation
from gateway.providers import tokens
from gateway.simulator import child as simulator
from gateway.store import migration
from gateway.store.common import wall_clock_ms
from gateway.store.store import open_store
from gateway.workers import WorkerContext, run

log = logging.getLogger(__name__)

BACKLOG = 2048
# Calls leave no cycles behind (a test sees to it): what little there is of them can wait. Looking for them among the
# parts of calls in flight, as often as is the default (700, 10, 10), was a tenth of a call's CPU.
GC_THRESHOLDS = (20_000, 50, 100)
FINISH_S = 5.0  # after the grace time: to write what is owed

Adapt = Callable[[Config], Config]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says over the config."""

    listen: str | None = None
    admin: str | None = None
    workers: int | None = None

    def apply(self, config: Config) -> Config:
        """Raises ConfigError for an address that is none."""
        settings = config.settings
        if self.listen is not None:
            settings = replace(settings, listen=_address("--listen", self.listen))
        if self.admin is not None:
            settings = replace(settings, admin=_address("--admin", self.admin))
        if self.workers is not None:
            settings = replace(settings, workers=self.workers)
        return replace(config, settings=settings)


def serve(
    config: Path | None,
    data: Path | None,
    *,
    demo: bool = False,
    listen: str | None = None,
    admin: str | None = None,
    workers: int | None = None,
) -> int:
    """Serve until a signal ends it; answers the exit code. Raises ConfigError (78) and ServiceAway (69)."""
    logs.configure()
    overrides = Overrides(listen, admin, workers)
    installation = open_installation(config, data)
    with ExitStack() as stack:
        adapt = _adaptation(overrides, demo, stack)
        installation = replace(installation, config=adapt(installation.config))
        settings = installation.config.settings
        lock = DataLock(installation.data)
        lock.acquire()
        stack.callback(lock.release)
        sockets = [stack.enter_context(_bound(place)) for place in (settings.listen, settings.admin)]
        tick: Callable[[], object] = _nothing
        redis_url = settings.redis
        if installation.redis_embedded:
            valkey = Embedded(installation.data)
            redis_url = valkey.start()
            stack.callback(valkey.stop)
            tick = valkey.keep_up
        keys = asyncio.run(prepare(installation, is_demo=demo))
        folder = app.metrics_folder(installation.data)
        folder.mkdir(exist_ok=True)
        metrics.reset(folder)
        if settings.stripe_off:
            log.warning(STRIPE_OFF)
        _announce(installation.config, keys if demo else None)
        tokens.preload()
        gc.freeze()  # what the parent loaded stays shared: workers' collections do not touch its pages

        async def main(context: WorkerContext) -> None:
            await work(installation, redis_url, context, adapt)

        return run(
            settings.workers or os.cpu_count() or 1, sockets, main, grace_s=settings.grace_s + FINISH_S, tick=tick
        )


def _nothing() -> None:
    """There is no Valkey to look after."""


def _adaptation(overrides: Overrides, is_demo: bool, stack: ExitStack) -> Adapt:
    """What the command line changes in every config that is loaded, now and at each reload."""
    if not is_demo:
        return lambda config: _guarded(overrides.apply(config))
    models = simulator.spawn()
    stack.callback(models.stop)
    token = demonstration.random_admin_token()

    def adapt(config: Config) -> Config:
        return demonstration.with_admin_token(demonstration.simulated(overrides.apply(config), models.url), token)

    return adapt


def _guarded(config: Config) -> Config:
    """The config's own check, once more for the address that the command line gave. Raises ConfigError."""
    settings = config.settings
    if not settings.admin.loopback and not settings.admin_token:
        raise ConfigError(["--admin: server.admin_token is needed, because this is not a loopback address"])
    return config


async def prepare(installation: Installation, *, is_demo: bool) -> dict[str, str]:
    """Bring the database up to date; the demo's accounts. Raises ConfigError, StoreUnavailable."""
    store = open_store(
        installation.config.settings.database,
        folder=installation.data,
        catalog=lambda: installation.config.catalog,
    )
    try:
        await migration.migrate(store.database)
        alone = store.database.dialect == "sqlite"  # no replica can be behind: whatever it sells is meant
        versions = [plan.version for plan in installation.config.catalog.plans.values()] if alone else []
        await store.plans.register(now_ms=wall_clock_ms(), returned=versions)
        return await demonstration.make_accounts(installation, store) if is_demo else {}
    finally:
        await store.close()


def _announce(config: Config, keys: dict[str, str] | None) -> None:
    settings = config.settings
    if keys is not None:
        print(demonstration.lines_to_paste(config, keys))
        print(f"\nadmin token: {settings.admin_token}")
    print(
        f"tollgate listens on {settings.listen.host}:{settings.listen.port}, "
        f"operators on {settings.admin.host}:{settings.admin.port}",
        flush=True,
    )


def _address(option: str, text: str) -> Address:
    try:
        return address(text)
    except ValueError as error:
        raise ConfigError([f"{option}: {error}"]) from error


@contextlib.contextmanager
def _bound(place: Address) -> Iterator[socket.socket]:
    """A listening socket. Raises ConfigError when the port is taken."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((place.host, place.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError([f"cannot listen on {place.host}:{place.port}: {error.strerror}"]) from error
    with listener:
        yield listener


async def work(installation: Installation, redis_url: str, context: WorkerContext, adapt: Adapt) -> None:
    """One worker, until it is told to stop; then it drains."""
    logs.configure(worker=context.slot)
    asyncio.get_running_loop().set_exception_handler(logs.loop_failed)
    folder = app.metrics_folder(installation.data)
    async with AsyncExitStack() as stack:
        numbers = metrics.Metrics(folder, context.slot)
        stack.callback(numbers.close)
        worker = await app.build(installation, redis_url, stack, metrics=numbers)
        watcher = Watcher(installation.config, os.environ, lambda outcome: _reloaded(worker, outcome), adapt=adapt)
        app.start_background(stack, "config", lambda: watcher.watch(context.stop))
        context.on_reload = lambda: worker.gateway.tasks.spawn(_reload(watcher))

        async def reload() -> list[str]:
            outcome = await watcher.reload()
            if isinstance(outcome, Rejected):
                return list(outcome.problems)
            os.kill(os.getppid(), signal.SIGHUP)  # the other workers
            return []

        async def render() -> bytes:
            return await asyncio.to_thread(metrics.render, folder, await app.read_at_scrape(worker))

        operator = app.operator_of(worker, reload=reload, render_metrics=render)
        listeners = [await app.customers(worker, stack), await app.operators(worker, operator, stack)]
        for runner, listener in zip(listeners, context.sockets, strict=True):
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
        gc.collect()
        gc.freeze()  # what lives as long as the worker is not looked through again
        gc.set_threshold(*GC_THRESHOLDS)
        await context.stop.wait()
        await app.finish(worker, listeners[:1])


async def _reload(watcher: Watcher) -> None:
    """At SIGHUP: whoever sent it finds an answer in the log, also where nothing had changed."""
    outcome = await watcher.reload()
    if isinstance(outcome, Unchanged):
        log.info("config %s is in use already", outcome.config.version)


def _reloaded(worker: app.Worker, outcome: Reloaded | Rejected) -> None:
    """A config was taken into use, or turned down: say so."""
    if isinstance(outcome, Rejected):
        worker.metrics.config_reloads.add(("rejected",), 1)
        log.error("the config was not reloaded, the running one stays: %s", "; ".join(outcome.problems))
        return
    worker.configure(outcome.config)
    worker.metrics.config_reloads.add(("ok",), 1)
    restart = f"; needs a restart: {', '.join(outcome.needs_restart)}" if outcome.needs_restart else ""
    log.warning("config %s is in use%s", outcome.config.version, restart)
