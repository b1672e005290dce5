"""Both listeners of one worker on the test's loop, and a client that knows the credentials.

async with apis(valkey_url, tmp_path) as running:
    key, account = await running.gateway.account("pro")
    answer = await running.get("/api/billing/plans", key=key)
    answer = await running.admin("GET", "/admin/v1/accounts")
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from gateway import app
from gateway.domain.accounts import Account
from gateway.metrics import render
from gateway.quota.keys import KeyHasher, display_prefix, new_key
from gateway.quota.turn import nonce
from gateway.store.common import new_id
from limits.model import Demand, Reserve, Reserved, WalletDemand
from tests.support.gateways import Local, config_text, local
from tests.support.processes import free_port

ADMIN_TOKEN = "admin-canary-91d0"
SECRET = "0123456789abcdef" * 4
LEASE_MS = 60_000
PACKAGES = "packages: {small: {label: Small, price: 5, grants: [{wallet: tokens, amount: 100}]}}"
NO_MODELS = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> str | None:
        """The error's code; None when it is no error."""
        return self.json()["error"]["code"] if self.status >= 400 else None

    @property
    def param(self) -> str | None:
        return self.json()["error"].get("param")


@dataclass(slots=True)
class Apis:
    """A worker with both its listeners."""

    gateway: Local
    admin_url: str
    session: aiohttp.ClientSession

    async def ask(self, method: str, url: str, **options: Any) -> Reply:
        async with self.session.request(method, url, **options) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def call(self, method: str, path: str, *, key: str | None = None, **options: Any) -> Reply:
        """On the customers' listener."""
        headers = {**options.pop("headers", {}), **({"Authorization": f"Bearer {key}"} if key else {})}
        return await self.ask(method, self.gateway.url + path, headers=headers, **options)

    async def get(self, path: str, *, key: str | None = None, **options: Any) -> Reply:
        return await self.call("GET", path, key=key, **options)

    async def admin(self, method: str, path: str, *, token: str | None = ADMIN_TOKEN, **options: Any) -> Reply:
        """On the operators' listener."""
        headers = {**options.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        return await self.ask(method, self.admin_url + path, headers=headers, **options)

    async def service_key(self) -> str:
        key = new_key()
        worker = self.gateway.worker
        await worker.store.keys.create(
            digest=KeyHasher(self.gateway.installation.secret).digest(key),
            prefix=display_prefix(key),
            now_ms=worker.gateway.quota.clock.now_ms(),
        )
        return key

    async def held(self, account: Account, amount: int = 1_500) -> str:
        """An open hold of the account's tokens, as a call's would be."""
        worker = self.gateway.worker
        desk = worker.frame.desk
        assert desk.states is not None
        rev = (await desk.states.view(account.id, ("tokens",))).rev
        request = Reserve(account.id, new_id(), rev, Demand(wallets=(WalletDemand("tokens", amount),)), LEASE_MS)
        reply = await worker.engine.reserve(request, ticket=nonce())
        assert isinstance(reply, Reserved), reply
        return reply.hold.hold_id


def with_secrets(text: str) -> str:
    """A config with its secrets from the environment."""
    secrets = 'admin_token: "${TEST_ADMIN_TOKEN:-}", secret: "${TEST_SECRET}"'
    return text.replace("server: {", f"server: {{{secrets}, ", 1)


@asynccontextmanager
async def apis(
    redis_url: str, folder: Path, *, models_url: str = NO_MODELS, token: str = ADMIN_TOKEN, **changes: Any
) -> AsyncIterator[Apis]:
    """``changes`` as ``config_text`` (database, plans, …), or ``text``: a whole config."""
    os.environ.update(TEST_ADMIN_TOKEN=token, TEST_SECRET=SECRET)
    text = changes.pop("text", None)
    if text is None:
        text = config_text(models_url, port=free_port(), admin=free_port(), **changes)
        text += "" if "\npackages:" in text else f"\n{PACKAGES}\n"
    text = with_secrets(text)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(local(models_url, redis_url, folder, text=text))
        worker = running.worker

        async def numbers() -> bytes:
            return render(folder, await app.read_at_scrape(worker))

        async def reload() -> list[str]:
            return []

        operator = app.operator_of(worker, reload=reload, render_metrics=numbers)
        runner = await app.operators(worker, operator, stack)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Apis(running, f"http://127.0.0.1:{runner.addresses[0][1]}", session)
