"""The client for metering, waiting and awaiting alike, against the real server."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support import stores
from tests.support.apis import Apis, apis
from tests.support.metering import MESSAGES, account_with, charged, sold
from tests.support.processes import eventually
from tollgate import AsyncClient, Client, Conflict, InvalidRequest, Item, Refused, Unavailable

ROOT = Path(__file__).parents[2]
Made = Callable[..., Any]


class Awaited:
    """A client that waits, in threads, with the names of the one that awaits."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not inspect.ismethod(value):
            return value

        async def call(*args: Any, **options: Any) -> Any:
            found = await asyncio.to_thread(value, *args, **options)
            return Awaited(found) if name == "hold" else found

        return call

    async def __aenter__(self) -> Awaited:
        await asyncio.to_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._inner.__exit__, *error)


@pytest.fixture(params=["waiting", "awaiting"])
def made(request: pytest.FixtureRequest) -> Made:
    """Makes a client of either kind."""
    kind = request.param

    @asynccontextmanager
    async def make(*args: Any, **options: Any) -> AsyncIterator[Any]:
        client: Any = AsyncClient(*args, **options) if kind == "awaiting" else Awaited(Client(*args, **options))
        async with client:
            yield client

    return make


@pytest.fixture
async def shop(valkey_url: str, tmp_path: Path) -> AsyncIterator[Apis]:
    (tmp_path / "data").mkdir()
    stores.copy_sqlite(tmp_path / "data")
    async with apis(valkey_url, tmp_path, text=sold(messages=MESSAGES)) as started:
        yield started


async def test_uses_are_checked_charged_and_listed(shop: Apis, made: Made) -> None:
    key, account = await account_with(shop)
    async with made(shop.gateway.url, key) as client:
        assert (await client.check(service="sms", quantity=7)).charged == 0
        used = await client.use(service="sms", quantity=7, user="ada", metadata={"to": "+1"})
        assert (used.charged, used.remaining, used.quantity) == (Decimal("3.5"), Decimal("96.5"), "7")
        again = [await client.use(service="sms", idempotency_key="k1") for _ in range(2)]
        assert again[0] == again[1]
        first, second = await client.use_many([Item(service="sms"), Item(service="fax")])
        assert first.charged == Decimal("0.5")
        assert isinstance(second, InvalidRequest)
        assert (second.reason, second.param) == ("unknown_service", "service")
    assert [line[2] for line in await charged(shop, account)] == [3500, 500, 500]


async def test_a_hold_is_settled_as_said_or_as_held_and_released_by_an_exception(shop: Apis, made: Made) -> None:
    key, account = await account_with(shop)
    async with made(shop.gateway.url, key) as client:
        async with await client.hold(service="outbound_call", quantity=1, ttl=60) as hold:
            await hold.extend(quantity=1)
            assert (await client.look(hold.id)).held == 4
            await hold.settle(quantity="61.2s")
        assert hold.state.charged == Decimal("2.067")
        async with await client.hold(service="outbound_call", quantity="90s") as left:
            pass
        assert (left.state.state, left.state.charged) == ("settled", 3)
        with pytest.raises(ZeroDivisionError):
            async with await client.hold(service="outbound_call") as failed:
                raise ZeroDivisionError
        assert (await client.look(failed.id)).state == "released"
        with pytest.raises(Conflict) as conflict:
            await client.settle(failed.id, quantity=1)
        assert (conflict.value.reason, conflict.value.retry_after) == ("hold_ended", None)
    assert sorted(line[2] for line in await charged(shop, account)) == [0, 2067, 3000]


async def test_a_hold_in_a_block_is_renewed_while_the_block_runs(shop: Apis, made: Made) -> None:
    key, _ = await account_with(shop)
    async with made(shop.gateway.url, key) as client, await client.hold(service="outbound_call", ttl=1) as hold:
        first = hold.state.expires_at

        async def is_renewed() -> bool:
            return bool((await client.look(hold.id)).expires_at > first)

        await eventually(is_renewed, what="the lease was renewed")
        assert hold.failure is None


async def test_a_refusal_says_why_and_whether_to_come_back(shop: Apis, made: Made) -> None:
    key, _ = await account_with(shop, "credits")
    async with made(shop.gateway.url, key) as client:
        await client.use(feature="code_review", quantity=5)
        with pytest.raises(Refused) as refused:
            await client.use(feature="code_review")
        error = refused.value
        assert (error.reason, error.status, error.retry_after) == ("limit_exceeded", 429, None)
        assert error.message == "You have 0 credits remaining (0 tokens)"
        assert error.detail["available"] == "0"
    async with made(shop.gateway.url, "tg_nobody") as client:
        with pytest.raises(InvalidRequest) as unknown:
            await client.check(feature="code_review")
        assert unknown.value.reason == "invalid_api_key"
        assert "tg_nobody" not in repr(unknown.value)


async def test_a_passing_refusal_ends_a_request_whose_patience_is_shorter(shop: Apis, made: Made) -> None:
    key, _ = await account_with(shop, "suite")
    async with made(shop.gateway.url, key, patience=0.5) as client:
        for _ in range(5):
            await client.use(feature="import_leads", user="ada")
        with pytest.raises(Refused) as refused:
            await client.use(feature="import_leads", user="ada")
    assert refused.value.reason == "rate_limited"
    assert refused.value.retry_after is not None and refused.value.retry_after >= 1


async def test_a_service_key_acts_for_the_account_it_names(shop: Apis, made: Made) -> None:
    _, account = await account_with(shop, external_id="acme")
    async with made(shop.gateway.url, await shop.service_key(), account="acme") as client:
        await client.use(service="sms")
    assert len(await charged(shop, account)) == 1


class Scripted:
    """A server that answers as told, and remembers what it was asked."""

    def __init__(self, *answers: tuple[int, dict[str, str]] | None) -> None:
        self.answers = list(answers)
        self.keys: list[str | None] = []

    async def serve(self, request: web.Request) -> web.Response:
        await request.read()
        self.keys.append(request.headers.get("Idempotency-Key"))
        answer = self.answers.pop(0)
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, headers = answer
        return web.json_response({"error": {"code": "told", "message": "As told."}}, status=status, headers=headers)


RETRY = {"x-should-retry": "true", "retry-after": "0"}
NO_RETRY = {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("answers", "error", "asked"),
    [
        # no answer, a passing trouble, one in flight: again, with the same key, until a lasting word
        ((None, (503, RETRY), (409, RETRY), (400, NO_RETRY)), InvalidRequest, 4),
        # where the server does not say that waiting helps, nothing is sent again
        (((429, NO_RETRY),), InvalidRequest, 1),
        (((503, NO_RETRY),), Unavailable, 1),
        (((409, {}),), Conflict, 1),
        # what would take longer than the patience is told at once
        (((503, {"x-should-retry": "true", "retry-after": "60"}),), Unavailable, 1),
    ],
)
async def test_a_request_is_repeated_only_where_told_and_is_then_the_same(
    made: Made, answers: tuple[Any, ...], error: type[Exception], asked: int
) -> None:
    scripted = Scripted(*answers)
    app = web.Application()
    app.router.add_post("/api/v1/usage", scripted.serve)
    async with TestServer(app) as server, made(str(server.make_url("/")), "tg_key") as client:
        with pytest.raises(error):
            await client.use(service="sms")
    assert len(scripted.keys) == asked
    assert len(set(scripted.keys)) == 1 and scripted.keys[0]


async def test_a_check_takes_nothing_and_keeps_nothing_so_it_is_asked_without_a_key(made: Made) -> None:
    """Its answer would be remembered like that of a use."""
    scripted = Scripted((400, NO_RETRY), (400, NO_RETRY))
    app = web.Application()
    app.router.add_post("/api/v1/usage", scripted.serve)
    async with TestServer(app) as server, made(str(server.make_url("/")), "tg_key") as client:
        with pytest.raises(InvalidRequest):
            await client.check(service="sms")
        with pytest.raises(InvalidRequest):
            await client.use(service="sms", idempotency_key="k1")
    assert scripted.keys == [None, "k1"]


async def test_connections_that_the_server_closed_cost_one_repeat_however_many_there_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = 5
    together, lines, pauses = asyncio.Barrier(many), list[asyncio.StreamWriter](), list[float]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            if len(lines) <= many:
                await together.wait()
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()

    async def look(client: Client) -> None:
        with pytest.raises(InvalidRequest):
            await asyncio.to_thread(client.look, "none")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "tg_key")
    async with server:
        await asyncio.gather(*(look(client) for _ in range(many)))
        for line in lines:
            line.close()
            await line.wait_closed()
        monkeypatch.setattr("tollgate.client.time.sleep", pauses.append)
        await look(client)
        client.close()
        for line in lines:
            line.close()
    assert len(pauses) == 1
    assert len(lines) == many + 1


async def test_an_amount_is_never_a_float(made: Made) -> None:
    async with made("http://127.0.0.1:9", "tg_key") as client:
        for wrong in ({"quantity": 1.5}, {"amount": 1.5}):
            with pytest.raises(TypeError, match="exact"):
                await client.use(wallet="tokens", **wrong)


async def test_the_examples_in_the_docs_run(shop: Apis, capsys: pytest.CaptureFixture[str]) -> None:
    key, account = await account_with(shop)
    text = (ROOT / "docs" / "metering.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        code = block.replace("http://127.0.0.1:8080", shop.gateway.url).replace("tg_...", key)
        await asyncio.to_thread(exec, compile(code, "docs/metering.md", "exec"), {"__name__": "__main__"})
    assert await charged(shop, account)
    assert "insufficient" not in capsys.readouterr().err
