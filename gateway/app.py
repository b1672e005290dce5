"""Wiring: one worker, from its stores to its listeners. Nothing here decides anything.

Rules
1. Everything a worker needs is built in ``build`` and closed in reverse in ``close``; there are no module globals.
2. Background work is supervised: what dies of a bug is logged and started again, and never takes the worker along.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from aiohttp import web

from gateway.billing.admin import admin_app
from gateway.billing.alerts.courier import Courier
from gateway.billing.alerts.live import LiveEvents
from gateway.billing.desk import Desk
from gateway.billing.http import tables
from gateway.billing.http.frame import Frame, errors_as_json
from gateway.billing.http.operator import Operator
from gateway.config.model import Config
from gateway.config.shown import running
from gateway.domain.plans import Catalog
from gateway.installation import Installation
from gateway.metrics import Labels, Metrics
from gateway.providers.tokens import Counter
from gateway.proxy.explain import explain
from gateway.proxy.gateway import Gateway
from gateway.proxy.leg.client import HttpLeg
from gateway.proxy.listener import Runner
from gateway.proxy.routes import add_routes, drain, front
from gateway.proxy.visit import Tasks
from gateway.quota.callers import Callers
from gateway.quota.clock import ServerClock
from gateway.quota.drift import Drift
from gateway.quota.holds import Holds
from gateway.quota.keeper import Keeper
from gateway.quota.keys import KeyHasher
from gateway.quota.metered import Metered
from gateway.quota.notices import Notices
from gateway.quota.reaper import Reaper
from gateway.quota.scribe import Scribe
from gateway.quota.service import Quota
from gateway.quota.states import States
from gateway.quota.turn import Turner
from gateway.quota.versions import Versions
from gateway.quota.watch import Watch
from gateway.quota.watch_use import UseWatch
from gateway.store import migration
from gateway.store.store import Store, open_store
from limits.client import Client, Timing, connect
from limits.engine import Engine
from limits.errors import EngineUnavailable

log = logging.getLogger(__name__)

RESTART_S = 1.0
REASSERT_WAIT_MS = 1_000
READY_TIMEOUT_S = 1.0
GAUGES_S = 2.0


@dataclass(slots=True)
class Worker:
    """One worker's parts."""

    installation: Installation
    store: Store
    client: Client
    engine: Engine
    gateway: Gateway
    reaper: Reaper
    courier: Courier
    metrics: Metrics
    frame: Frame

    def configure(self, config: Config) -> None:
        """Take a new config into use: calls that began keep the old one."""
        before = self.installation.config.catalog
        self.installation = replace(self.installation, config=config)
        self.gateway.config = config
        self.gateway.callers.doubt()
        self.gateway.quota.reloaded(before, config.catalog)

    async def ready(self) -> bool:
        """Redis and SQL answer, charges find their way, and this is not the end."""
        if self.gateway.draining:
            return False
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self.client.execute("PING")
                await migration.check(self.store.database)
                return not self.gateway.quota.scribe.full
        except Exception as error:  # readiness answers yes or no, whatever is broken
            log.debug("not ready: %s", type(error).__name__)
            return False


async def build(
    installation: Installation,
    redis_url: str,
    stack: AsyncExitStack,
    *,
    metrics: Metrics,
    clock_offset_ms: int = 0,
    reassert_wait_ms: int = REASSERT_WAIT_MS,
    timing: Timing | None = None,
) -> Worker:
    """Connect everything; what was opened is closed by ``stack``. The database is migrated already."""
    config = installation.config
    amnesty_ms = config.settings.amnesty_ms
    worker: Worker
    tasks = Tasks()
    clock = ServerClock()
    store = open_store(
        config.settings.database,
        folder=installation.data,
        catalog=lambda: worker.installation.config.catalog,
        now_ms=clock.now_ms,
        metrics=metrics,
    )
    stack.push_async_callback(store.close)
    client = connect(
        redis_url,
        timing=timing,
        on_state=lambda address, up, reason: _redis_changed(worker, address, up, reason),
        on_script=metrics.redis_seconds.observe,
    )
    stack.push_async_callback(client.close)
    partitions = await store.installed_partitions(now_ms=clock.now_ms())
    engine = Engine(
        client,
        partitions=partitions,
        reassert_wait_ms=reassert_wait_ms,
        amnesty_ms=amnesty_ms,
        clock_offset_ms=clock_offset_ms,
    )
    courier = Courier(store.alerts, metrics, lambda: worker.installation.config.settings.channels, clock.now_ms)
    stack.push_async_callback(courier.close)
    notices = Notices(store.alerts, metrics, clock.now_ms, raised=courier.wake)
    quota, reaper = _quota(
        engine, store, metrics, tasks, clock, notices, lambda: worker.installation.config.catalog, amnesty_ms
    )
    leg = HttpLeg(connect_s=config.settings.connect_s)
    stack.push_async_callback(leg.close)
    hasher = KeyHasher(installation.secret)
    callers = Callers(store.callers, hasher, clock.now_ms, moved_on=quota.moved_on)
    gateway = Gateway(
        config=config,
        callers=callers,
        quota=quota,
        counter=Counter(),
        leg=leg,
        tasks=tasks,
        metrics=metrics,
    )
    frame = _frame(gateway, engine, store, hasher, lambda: worker.installation.config)
    worker = Worker(installation, store, client, engine, gateway, reaper, courier, metrics, frame)
    await quota.warm_up(reassert_wait_ms)
    _go_on(worker, stack)
    return worker


def _go_on(worker: Worker, stack: AsyncExitStack) -> None:
    """What works behind the calls, until the stack closes."""
    quota = worker.gateway.quota
    for name, work in (
        ("scribe", quota.scribe.run),
        ("holds", quota.holds.run),
        ("reaper", worker.reaper.run),
        ("notices", quota.notices.run),
        ("alerts", worker.courier.run),
        ("live events", worker.frame.live.run),
        ("gauges", lambda: _gauges(worker)),
    ):
        start_background(stack, name, work)


def _frame(gateway: Gateway, engine: Engine, store: Store, hasher: KeyHasher, config: Callable[[], Config]) -> Frame:
    """What the billing APIs stand on."""
    quota = gateway.quota
    states = States(engine, quota.turner)
    desk = Desk(
        store=store,
        catalog=lambda: config().catalog,
        hasher=hasher,
        states=states,
        now_ms=quota.clock.now_ms,
        actor="system",
        metrics=gateway.metrics,
        stripe=lambda: config().settings.stripe,
    )
    return Frame(
        desk=desk,
        live=LiveEvents(store.alerts, states, store.accounts, lambda: config().catalog),
        callers=gateway.callers,
        quota=quota,
        metered=Metered(
            engine, quota, gateway.metrics, store.metering, lease_ms=lambda: int(config().settings.lease_s * 1000)
        ),
        quota_status=lambda: config().settings.quota_status,
        spawn=gateway.tasks.spawn,
        public_pricing=lambda: config().settings.public_pricing,
        explain=lambda document, **asked: explain(config(), quota, gateway.counter, document, **asked),
    )


def _quota(
    engine: Engine,
    store: Store,
    metrics: Metrics,
    tasks: Tasks,
    clock: ServerClock,
    notices: Notices,
    catalog: Callable[[], Catalog],
    amnesty_ms: int,
) -> tuple[Quota, Reaper]:
    """What admits and ends calls, and what looks after those that nobody ends."""
    scribe = Scribe(store.writer, engine, metrics)
    turner = Turner(engine, store.state, metrics)
    versions = Versions(store.plans, States(engine, turner), catalog=catalog, clock=clock)
    quota = Quota(
        engine,
        holds=Holds(engine),
        scribe=scribe,
        turner=turner,
        versions=versions,
        notices=notices,
        metrics=metrics,
        spawn=tasks.spawn,
        clock=clock,
    )
    keeper = Keeper(engine, store.metering, store.idempotency, scribe, metrics, patience_ms=2 * amnesty_ms)
    quota.on_met = keeper.bring_back
    reaper = Reaper(
        engine,
        seqs=store.writer,
        drift=Drift(engine, store.sums, meters=lambda: catalog().meters, metrics=metrics),
        accounts=store.accounts,
        periods=store.subscriptions,
        keeper=keeper,
        scribe=scribe,
        turner=turner,
        versions=versions,
        watch=Watch(
            store.alerts, turner, UseWatch(store.use_slices, catalog=catalog), catalog=catalog, now_ms=clock.now_ms
        ),
        metrics=metrics,
        partitions=engine.partitions,
        now_ms=clock.now_ms,
    )
    return quota, reaper


def start_background(stack: AsyncExitStack, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` until the stack closes."""
    task = asyncio.create_task(_supervised(name, work), name=name)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)


async def _supervised(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception("background work %s failed and is started again", name)
            await asyncio.sleep(RESTART_S)


def _redis_changed(worker: Worker, address: str, up: bool, reason: str) -> None:
    """One line per change; a Redis that is back is met again."""
    quota = worker.gateway.quota
    if not quota.has_met or worker.gateway.draining:
        return
    if up:
        log.warning("Redis at %s answers again", address)
        quota.meet()
    else:
        log.error("Redis at %s is away, calls are refused: %s", address, reason)


async def _gauges(worker: Worker) -> None:
    """Read them off again and again."""
    worker.metrics.build_info.set((version("tollgate"),), 1)
    while True:
        read_gauges(worker)
        await asyncio.sleep(GAUGES_S)


def read_gauges(worker: Worker) -> None:
    """What is read off rather than counted."""
    gateway, metrics = worker.gateway, worker.metrics
    metrics.holds_open.set((), len(gateway.quota.holds))
    metrics.hold_age.set((), gateway.quota.holds.oldest_age_s())
    metrics.redis_up.set((), int(worker.client.up))
    upstreams = [upstream.name for upstream in gateway.config.settings.upstreams.values() if upstream.on]
    states = gateway.breakers.states(upstreams)
    metrics.upstream_breaker.replace({(name,): int(state) for name, state in states.items()})


async def read_at_scrape(worker: Worker) -> dict[str, dict[Labels, float]]:
    """What only Redis knows, read when somebody asks for it; while Redis is away nothing is said of it."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            return {"tollgate_outbox_entries": {(): await worker.engine.outbox_entries()}}
    except (EngineUnavailable, TimeoutError):
        return {"tollgate_outbox_entries": {}}


async def customers(worker: Worker, stack: AsyncExitStack) -> web.AppRunner:
    """The customers' listener: metered routes before aiohttp's application, the rest through it."""
    app = web.Application(
        client_max_size=worker.installation.config.settings.body_max_bytes, middlewares=[errors_as_json(worker.frame)]
    )
    add_routes(app, worker.gateway, worker.ready)
    worker.frame.mount(app, tables.CUSTOMERS)
    runner = Runner(worker.gateway, app, keepalive_timeout=75.0, auto_decompress=False)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server = runner.server
    assert server is not None
    server.request_handler = front(worker.gateway, server.request_handler)
    return runner


def operator_of(
    worker: Worker, *, reload: Callable[[], Awaitable[list[str]]], render_metrics: Callable[[], Awaitable[bytes]]
) -> Operator:
    """What the operators' listener asks of this worker."""

    def upstreams() -> list[dict[str, object]]:
        found = worker.gateway.config.settings.upstreams
        states = worker.gateway.breakers.states(found)
        return [
            {
                "name": name,
                "dialect": upstream.dialect,
                "url": upstream.url,
                "on": upstream.on,
                "keys": len(upstream.keys),
                "breaker": states[name].name.lower(),
            }
            for name, upstream in found.items()
        ]

    return Operator(
        token=lambda: worker.installation.config.settings.admin_token,
        ready=worker.ready,
        render_metrics=render_metrics,
        reload=reload,
        config=lambda: running(worker.installation.config),
        upstreams=upstreams,
    )


async def operators(worker: Worker, operator: Operator, stack: AsyncExitStack) -> web.AppRunner:
    """The operators' listener, as patient and as silent as the customers'."""
    runner = Runner(worker.gateway, admin_app(operator, worker.frame), keepalive_timeout=75.0, auto_decompress=False)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


async def finish(worker: Worker, listeners: Sequence[web.AppRunner] = ()) -> None:
    """SIGTERM: readiness off, nothing new accepted, answers finish within the grace time, charges are written."""
    worker.gateway.draining = True
    for runner in listeners:
        for site in tuple(runner.sites):
            await site.stop()
    worker.frame.live.close()
    await drain(worker.gateway, worker.installation.config.settings.grace_s)


def metrics_folder(data: Path) -> Path:
    """Where each worker slot keeps its numbers."""
    return data / "metrics"
