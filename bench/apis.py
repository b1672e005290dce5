"""How long the product endpoints take, as their callers see it: 1,000 calls in turn on loopback, after 10,000 uses.

    python -m bench --only api

The limits are the product's own, of server time at p99 (SYSTEMS D10); what is measured here holds the way there and
back and the client's own work too.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.gateways import Served, served
from tests.support.postgres import postgres

CALLS, WARM = 1000, 100
USES, USES_AT_ONCE = 10_000, 100
CONFIG = """\
version: 1
server: {{listen: "127.0.0.1:1024", admin: "127.0.0.1:1025", workers: 1, secret: "${{BENCH_SECRET}}"}}
storage: {{redis: embedded, database: "{database}"}}
upstreams:
  anthropic: {{dialect: anthropic, url: "https://api.anthropic.com", keys: ["${{ANTHROPIC_API_KEY:-none}}"]}}
meters:
  lead_generation: {{decimals: 3, name: token}}
  goal_generation: {{decimals: 3, name: token}}
  strategy_analysis: {{decimals: 3, name: token}}
  forecast: {{decimals: 3, name: token}}
  general: {{decimals: 3, name: token}}
models:
  - {{match: "claude-*", ids: [claude-sonnet-4-5], upstreams: [anthropic], output_max: 64000, output_default: 4096}}
features:
  import_leads: {{wallet: lead_generation, price: {{per_use: 5}}}}
  generate_goal: {{wallet: goal_generation, price: {{per_use: 3}}}}
  analyze_strategy: {{wallet: strategy_analysis, price: {{per_use: 2}}}}
  predict_revenue: {{wallet: forecast, price: {{per_use: 4}}}}
  general: {{wallet: general, price: {{per_use: 1}}}}
default_feature: general
plans:
  pro: {{label: Pro, price: 0, period: 30d, renews: by_itself, limits: {{user: {{uses: {{max: 100000, per: 60s}}}}}},
        allowance: {{lead_generation: 1000000, goal_generation: 1000000, strategy_analysis: 1000000,
                     forecast: 1000000, general: 1000000}}}}
default_plan: pro
"""


@dataclass(frozen=True, slots=True)
class Row:
    """An endpoint: its call, and the product's limit of server time at p99, milliseconds."""

    name: str
    method: str
    path: str
    body: dict[str, Any] | None
    limit_ms: float


ROWS = (
    Row("check", "POST", "/api/v1/tokens/check-balance", {"featureUsed": "generate_goal", "action": "check"}, 10),
    Row(
        "deduct, audited",
        "POST",
        "/api/v1/tokens/check-balance",
        {"featureUsed": "generate_goal", "action": "deduct", "userId": "ann", "metadata": {"goal": "grow"}},
        50,
    ),
    Row("stats", "GET", "/api/v1/tokens/stats", None, 30),
    Row(f"recent 100 of {USES:,} uses", "GET", "/api/billing/usage?limit=100", None, 50),
)


def measure(folder: Path, *, quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds per database and endpoint."""
    found = {}
    with ExitStack() as stack:
        urls = {"SQLite": "embedded", "PostgreSQL": stack.enter_context(postgres()).create_database()}
        for name, url in urls.items():
            env = {"BENCH_SECRET": secrets.token_hex(32)}
            with served(folder / name, CONFIG.format(database=url), env=env) as running:
                found[name] = asyncio.run(_measure(running, calls=50 if quick else CALLS, uses=500 if quick else USES))
    return found


async def _measure(running: Served, *, calls: int, uses: int) -> dict[str, dict[str, float]]:
    account = await asyncio.to_thread(running.cli, "accounts", "create", "bench", "--plan", "pro")
    key = (await asyncio.to_thread(running.cli, "keys", "create", account["id"]))["key"]
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(running.url, headers=headers) as session:
        for _ in range(uses // USES_AT_ONCE):
            items = [{"feature": "general", "user": "bob"}] * USES_AT_ONCE
            async with session.post("/api/v1/usage", json=items) as answer:
                answer.raise_for_status()
        return {row.name: await _timed(row, session, calls=calls) for row in ROWS}


async def _timed(row: Row, session: aiohttp.ClientSession, *, calls: int) -> dict[str, float]:
    async def once() -> None:
        async with session.request(row.method, row.path, json=row.body) as answer:
            await answer.read()
            answer.raise_for_status()

    await _times(once, WARM)
    times = sorted(await _times(once, calls))
    return {"p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)], "limit_ms": row.limit_ms}


async def _times(once: Callable[[], Awaitable[None]], count: int) -> list[float]:
    found = []
    for _ in range(count):
        started_s = time.perf_counter()
        await once()
        found.append((time.perf_counter() - started_s) * 1000)
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f"{'product endpoints, ms':32}{'p50':>8}{'p99':>8}{'limit':>8}"]
    for database, rows in found.items():
        for name, row in rows.items():
            lines.append(f"{f'{database}: {name}':32}{row['p50_ms']:8.1f}{row['p99_ms']:8.1f}{row['limit_ms']:8.0f}")
    return "\n".join(lines)
