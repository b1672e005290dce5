"""No key and no prompt ever lies in a log, an error, a metric, the database or Redis, whatever goes wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gateway import logs
from gateway.providers.tokens import Counter
from gateway.proxy import exchange
from tests.support.calls import DIALECTS, Dialect
from tests.support.gateways import PROVIDER_KEY, Local
from tests.support.logs import kept
from tests.support.processes import free_port
from tests.support.servers import RedisServer
from tests.support.simulators import LocalModels
from tests.support.sockets import connection
from tests.support.tuning import set_upstream, tune

PROMPT = "canary-prompt-4b1f0c"
ANSWERED = 200


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Everything that is logged, down to DEBUG, as a server would write it."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with kept():
        handler = logs.configure(level="DEBUG", descriptor=descriptor)
        yield path
        handler.flush()
    os.close(descriptor)


def everything_in(redis: RedisServer) -> bytes:
    """Every key and value of a Redis server, whatever their types."""
    readers = {
        b"hash": ("HGETALL",), b"stream": ("XRANGE", "-", "+"), b"zset": ("ZRANGE", "0", "-1"), b"string": ("GET",),
        b"set": ("SMEMBERS",), b"list": ("LRANGE", "0", "-1"),
    }  # fmt: skip
    found = []
    for key in redis.command("KEYS", "*"):
        first, *rest = readers[redis.command("TYPE", key)]
        found.append(repr((key, redis.command(first, key, *rest))))
    return "\n".join(found).encode()


def files_in(folder: Path) -> dict[str, bytes]:
    """The database, the log, and whatever else an installation leaves."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Visitor:
    """Sends calls and keeps what comes back of those that are not answered."""

    def __init__(self, gateway: Local, key: str) -> None:
        self.gateway = gateway
        self.key = key
        self.errors = bytearray()

    async def call(self, dialect: Dialect, steering: str = "", key: str | None = None, **more: Any) -> int:
        body = dialect.body(steering, text=PROMPT, **more)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                self.gateway.url + dialect.path, json=body, headers=dialect.headers(key or self.key)
            ) as answer,
        ):
            content = await answer.read()
            if answer.status != ANSWERED:
                self.errors += repr(answer.headers).encode() + content
            if answer.status >= 500:
                assert ("request_id" in orjson.loads(content)) is (dialect.name == "anthropic")
            return answer.status

    async def raw(self, sent: str) -> None:
        async with connection(self.gateway.url) as client:
            client.send(sent.encode())
            self.errors += await client.closed()


async def visit(visitor: Visitor, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Success, refusals, bad requests, upstream errors, a broken stream, a malformed header, a dead upstream, bugs."""
    call, gateway = visitor.call, visitor.gateway
    assert await call(dialect, "output=5") == ANSWERED
    assert await call(dialect, "output=5", stream=True) == ANSWERED
    assert await call(dialect, "events=9 reset=within:5", stream=True) == ANSWERED
    assert await call(dialect, model="mystery-1") == 404
    assert await call(dialect, **{dialect.bound: PROMPT}) == 400
    assert await call(dialect, stream=PROMPT) == 400
    assert await call(dialect, key=f"{visitor.key[:-1]}x") == 401
    assert await call(dialect, key=PROVIDER_KEY) == 401
    for status in (400, 401, 404, 429, 500):
        assert await call(dialect, f"status={status}") == (502 if status == 401 else status)
    assert await call(dialect, f"nonsense={PROMPT}") == 400
    await visitor.raw(f"POST {dialect.path} HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {visitor.key}\r\n\r\n")
    await visitor.raw(f"POST {dialect.path}?key={visitor.key} HTTP/1.1\r\nHost: x\r\nbroken {PROMPT}\r\n\r\n")
    set_upstream(gateway, "openai", url=f"http://127.0.0.1:{free_port()}/v1")
    set_upstream(gateway, "anthropic", url=f"http://127.0.0.1:{free_port()}")
    assert await call(dialect) == 502

    def bug(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{visitor.key} {PROMPT} {PROVIDER_KEY}")

    with monkeypatch.context() as patched:
        patched.setattr(Counter, "count", bug)
        assert await call(dialect) == 500
    with monkeypatch.context() as patched:
        patched.setattr(exchange, "forward", bug)
        assert await call(dialect) == 500


async def test_no_key_and_no_prompt_is_left_anywhere(
    log: Path,
    gateway: Local,
    models: LocalModels,
    shared_valkey: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = gateway.worker.gateway.config.settings.upstreams
    keys = []
    errors = bytearray()
    for dialect in DIALECTS:
        tune(gateway, upstreams=before)
        key = await gateway.key("drain")
        keys.append(key)
        visitor = Visitor(gateway, key)
        await visit(visitor, dialect, monkeypatch)
        errors += visitor.errors
    await gateway.settled()
    for handler in logging.getLogger().handlers:
        handler.flush()
    places = files_in(tmp_path)
    places["errors"] = bytes(errors)
    places["metrics"] = gateway.worker.metrics.render()
    places["redis"] = everything_in(shared_valkey)
    assert b"a call failed" in places["log"] and b"RuntimeError" in places["log"], "bugs are told, without their words"
    assert len(places["redis"]) > 1_000 and len(places["tollgate.db"]) > 10_000
    secrets = {PROMPT, PROVIDER_KEY, *keys, *(key[10:] for key in keys)}
    hits = [(name, secret) for name, content in places.items() for secret in secrets if secret.encode() in content]
    assert not hits
