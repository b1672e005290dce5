"""``tollgate doctor``: everything that must be right, looked at one by one; what is wrong stops no other look.

Rules
1. ``fail`` is what keeps Tollgate from serving or from its promises, ``warn`` what an operator should know.
2. A finding never shows a secret: of URLs the password is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from sqlalchemy import text

from gateway.cli.frame import EX_CONFIG, EX_FAILED, EX_UNAVAILABLE, Place
from gateway.cli.place import REDIS_PATIENCE, redis_url
from gateway.errors import ConfigError, ServiceAway, StoreUnavailable
from gateway.installation import Installation, open_installation
from gateway.store.migration import check, head
from gateway.store.store import Store, open_store
from limits.client import connect, inspect
from limits.errors import EngineUnavailable

SKEW_WARN_MS: Final = 1_000
SKEW_FAIL_MS: Final = 30_000
Result = Literal["ok", "warn", "fail", "away"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``away``: a service that does not answer."""

    check: str
    result: Result
    found: str


def exit_code_of(findings: Sequence[Finding]) -> int:
    """78 for the config, 69 for a service that is away, 1 for what else must be put right, 0 otherwise."""
    if any(each.result == "fail" and each.check == "config" for each in findings):
        return EX_CONFIG
    if any(each.result == "away" for each in findings):
        return EX_UNAVAILABLE
    return EX_FAILED if any(each.result == "fail" for each in findings) else 0


def examine(place: Place) -> list[Finding]:
    """Look at everything."""
    try:
        installation = open_installation(place.config, place.data)
    except ConfigError as error:
        return [Finding("config", "fail", problem) for problem in error.problems]
    config = installation.config
    findings = [Finding("config", "ok", f"{config.path}, version {config.version}, {len(config.catalog.plans)} plans")]
    findings.append(Finding("data folder", "ok", str(installation.data)))
    findings += _upstreams(installation)
    with ExitStack() as stack:
        try:
            url = redis_url(installation, stack)
        except ServiceAway as error:
            findings.append(Finding("redis", "away", error.message))
            url = None
        if url is not None:
            findings += asyncio.run(_redis(installation, url))
        findings += asyncio.run(_database(installation))
    return findings


def _upstreams(installation: Installation) -> list[Finding]:
    findings: list[Finding] = []
    for name, upstream in installation.config.settings.upstreams.items():
        keys = f"{len(upstream.keys)} key{'s' if len(upstream.keys) != 1 else ''}"
        found = f"{upstream.url}, {keys}" if upstream.on else f"{upstream.url}, off: no key is set"
        findings.append(Finding(f"upstream {name}", "ok" if upstream.on else "warn", found))
    if not any(upstream.on for upstream in installation.config.settings.upstreams.values()):
        findings.append(Finding("upstreams", "warn", "none has a key: only --demo can serve"))
    return findings


async def _redis(installation: Installation, url: str) -> list[Finding]:
    where = "embedded" if installation.redis_embedded else _without_password(url)
    client = connect(url, timing=REDIS_PATIENCE)
    try:
        policy = await inspect(client)
        before_ms = _now_ms()
        seconds, micros = await client.execute("TIME")
        after_ms = _now_ms()
    except EngineUnavailable as error:
        return [Finding("redis", "away", f"{where}: {error}")]
    finally:
        await client.close()
    server = f"{where}: {policy.server} {policy.version}, {policy.mode}, {policy.role}"
    findings = [
        Finding("redis", "ok" if policy.supported else "fail", server + ("" if policy.supported else ", needed is 7.0"))
    ]
    memory = f"maxmemory {policy.maxmemory_bytes or 'unlimited'}, {policy.maxmemory_policy or 'policy unknown'}"
    evicts = policy.evicts
    findings.append(
        Finding("redis policy", "fail" if evicts else "ok", memory + (": set it to noeviction" if evicts else ""))
    )
    persists = "append-only file on" if policy.appendonly else "append-only file off: a restart forgets open holds"
    findings.append(Finding("redis persistence", "ok" if policy.appendonly else "warn", persists))
    redis_ms = int(seconds) * 1000 + int(micros) // 1000
    findings.append(_clock("redis clock", _skew_ms(redis_ms, before_ms, after_ms)))
    return findings


async def _database(installation: Installation) -> list[Finding]:
    url = installation.config.settings.database
    where = "embedded" if url == "embedded" else _without_password(url)
    async with AsyncExitStack() as stack:
        try:
            store = open_store(url, folder=installation.data, catalog=lambda: installation.config.catalog)
            stack.push_async_callback(store.close)
            findings = await _asked(store, where)
        except ConfigError as error:
            return [Finding("database", "fail", problem) for problem in error.problems]
        except StoreUnavailable:
            return [Finding("database", "away", f"{where}: it does not answer")]
        try:
            await check(store.database)
        except ConfigError as error:
            problem = error.problems[0].removeprefix("database: ")
            return [*findings, Finding("database schema", "fail", problem)]
        return [*findings, Finding("database schema", "ok", head())]


async def _asked(store: Store, where: str) -> list[Finding]:
    async with store.database.read() as connection:
        if store.database.dialect == "sqlite":
            version = (await connection.execute(text("SELECT sqlite_version()"))).scalar_one()
            return [Finding("database", "ok", f"{where}: SQLite {version}")]
        before_ms = _now_ms()
        version, at_ms = (
            await connection.execute(
                text("SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            )
        ).one()
        skew_ms = _skew_ms(int(at_ms), before_ms, _now_ms())
    return [Finding("database", "ok", f"{where}: PostgreSQL {version}"), _clock("database clock", skew_ms)]


def _clock(what: str, skew_ms: int) -> Finding:
    result: Result = "ok" if skew_ms < SKEW_WARN_MS else "warn" if skew_ms < SKEW_FAIL_MS else "fail"
    return Finding(what, result, f"{skew_ms} ms from this machine's")


def _skew_ms(at_ms: int, before_ms: int, after_ms: int) -> int:
    """How far ``at_ms``, read between the two, lies outside of them."""
    return max(before_ms - at_ms, at_ms - after_ms, 0)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{hosts}{parts.path}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
