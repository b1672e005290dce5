"""Gateways for tests: on the test's own loop (quick, inspectable), or the real ``tollgate serve`` (processes, kills).

Both run against simulated models whose journal is the truth.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from gateway import app
from gateway.domain.accounts import Account
from gateway.installation import Installation, open_installation
from gateway.metrics import Metrics
from gateway.quota.keys import KeyHasher, display_prefix, new_key
from gateway.serve import prepare
from tests.support.clients import PATIENT
from tests.support.commands import run_here
from tests.support.processes import free_port, spawn, wait_until

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """\
version: 1
server: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}", workers: {workers}, lease: {lease}, drain: {drain}}}
storage: {{redis: {redis}, database: {database}}}
upstreams:
  anthropic: {{dialect: anthropic, url: "{models}", keys: ["${{TEST_PROVIDER_KEY}}"]}}
  openai: {{dialect: openai, url: "{models}/v1", keys: ["${{TEST_PROVIDER_KEY}}"]}}
meters:
  tokens: {{decimals: 3}}
  uses: {{decimals: 0}}
rates:
  default: {{meter: tokens, per: 1, input: 1, output: 1, cache_read: 1, cache_write: 1}}
models:
  - match: "claude-*"
    ids: [claude-haiku-4-5]
    upstreams: [anthropic]
    rates: [default]
    output_max: 64000
    output_default: 4096
  - match: "gpt-*"
    ids: [gpt-5, gpt-5-mini]
    upstreams: [openai]
    rates: [default]
    output_max: 128000
    output_default: 4096
features:
  general: {{wallet: tokens, price: rates}}
  job: {{wallet: uses, price: {{per_use: 1}}}}
default_feature: general
plans:
  trial: {{label: Trial, price: 0, period: 7d, renews: never, allowance: {{tokens: 6000}}, ends: block}}
  pro: {{label: Pro, price: 30, period: 30d, renews: by_itself, allowance: {{tokens: 500000, uses: 50}}, clamp: 256}}
  cut: {{label: Cut, price: 30, period: 30d, renews: by_itself, allowance: {{tokens: 5000000}}, on_disconnect: cut}}
  drain: {{label: Drain, price: 30, period: 30d, renews: by_itself, allowance: {{tokens: 5000000}}}}
{plans}
default_plan: trial
currency: usd
alerts: {{{alerts}}}
"""

PROVIDER_KEY = "sk-provider-canary-5f1c"


def config_text(models_url: str, **changes: Any) -> str:
    """The tests' config; ``plans`` adds lines of plans."""
    values: dict[str, Any] = {
        "port": 0,
        "admin": 0,
        "workers": 1,
        "lease": "60s",
        "drain": "30s",
        "redis": "embedded",
        "database": "embedded",
        "models": models_url,
        "plans": "",
        "alerts": "warn_at: [0.8, 0.9, 1.0]",
    }
    values.update(changes)
    return CONFIG.format(**values)


@dataclass(slots=True)
class Local:
    """A gateway on this loop."""

    url: str
    worker: app.Worker
    installation: Installation
    runner: web.AppRunner
    accounts: dict[str, Account] = field(default_factory=dict)

    def connections(self) -> list[asyncio.Transport]:
        """The clients' connections that are open now."""
        assert self.runner.server is not None
        return [handler.transport for handler in self.runner.server.connections if handler.transport is not None]

    async def key(self, plan: str = "pro", **account: Any) -> str:
        """A new account on ``plan`` and a key of it."""
        key, _ = await self.account(plan, **account)
        return key

    async def account(self, plan: str = "pro", **options: Any) -> tuple[str, Account]:
        """(key, account) of a new account."""
        store = self.worker.store
        now_ms = self.worker.gateway.quota.clock.now_ms()
        account = await store.accounts.create(options.pop("name", "Test"), now_ms=now_ms, plan=plan, **options)
        key = new_key()
        digest = KeyHasher(self.installation.secret).digest(key)
        await store.keys.create(digest=digest, prefix=display_prefix(key), account_id=account.id, now_ms=now_ms)
        return key, account

    async def settled(self) -> None:
        """Everything that was served is charged, written and confirmed."""
        await self.worker.gateway.tasks.drained(30)
        await self.worker.gateway.quota.scribe.drained()
        await self.worker.gateway.quota.notices.drained()
        await self.worker.courier.work()


@asynccontextmanager
async def local(
    models_url: str,
    redis_url: str,
    folder: Path,
    *,
    text: str | None = None,
    clock_offset_ms: int = 0,
    **changes: Any,
) -> AsyncIterator[Local]:
    """Start a gateway on this loop, warmed up, with the tests' config or with ``text``."""
    os.environ.setdefault("TEST_PROVIDER_KEY", PROVIDER_KEY)
    path = folder / "config.yaml"
    ours = config_text(models_url, **{"port": free_port(), "admin": free_port(), **changes})
    path.write_text(text or ours)
    installation = open_installation(path, folder / "data")
    await prepare(installation, is_demo=False)
    async with AsyncExitStack() as stack:
        worker = await app.build(
            installation,
            redis_url,
            stack,
            metrics=Metrics(None),
            clock_offset_ms=clock_offset_ms,
            reassert_wait_ms=0,
            timing=PATIENT,
        )
        runner = await app.customers(worker, stack)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield Local(f"http://127.0.0.1:{port}", worker, installation, runner)
        await app.finish(worker)


@dataclass(slots=True)
class Served:
    """A running ``tollgate serve``."""

    url: str
    admin_url: str
    process: subprocess.Popen[bytes]
    config: Path
    data: Path
    log: Path
    env: Mapping[str, str]

    def cli(self, *arguments: str, check: bool = True) -> Any:
        """Run a CLI command with ``--json`` against this installation; answers the parsed output."""
        places = ("--config", str(self.config), "--data", str(self.data))
        done = run_here(*arguments, "--json", *places, env=self.env)
        assert not check or done.code == 0, f"{arguments}: exit {done.code}: {done.err or done.out}"
        return orjson.loads(done.out) if done.out.strip() else None

    def output(self) -> str:
        return self.log.read_text()

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout_s)


def run_cli(
    *arguments: str, config: Path | None = None, data: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One command of the real CLI."""
    places = [*(("--config", str(config)) if config else ()), *(("--data", str(data)) if data else ())]
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments, *places],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def served(
    folder: Path, config: str | None = None, *, arguments: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Start ``tollgate serve`` on free ports and wait until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    path, data, log = folder / "config.yaml", folder / "data", folder / "log"
    path.write_text(config if config is not None else (ROOT / "config.yaml").read_text())
    port, admin = free_port(), free_port()
    environment = {"TEST_PROVIDER_KEY": PROVIDER_KEY, **(env or {})}
    command: list[str | Path] = [
        sys.executable, "-m", "gateway", "serve", "--config", path, "--data", data,
        "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", *arguments,
    ]  # fmt: skip
    process = spawn(command, cwd=ROOT, env={**os.environ, **environment}, log=log)
    running = Served(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", process, path, data, log, environment)
    try:
        wait_until(lambda: _ready(running), what="tollgate serve is ready", within_s=60)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(running: Served) -> bool:
    assert running.process.poll() is None, f"tollgate serve ended: {running.output()}"

    where = urlsplit(running.url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
