"""Metered calls have a lane of their own on a connection: it changes nothing that a client could see."""

from __future__ import annotations

import orjson
import pytest

from gateway.quota.keys import new_key
from tests.support.bills import usage_rows
from tests.support.calls import CHAT, request_bytes
from tests.support.gateways import Local
from tests.support.simulators import LocalModels
from tests.support.sockets import Answer, Client, connection

ROOT = request_bytes("GET", "/", {"host": "x"})
END = request_bytes("GET", "/end", {"host": "x", "connection": "close"})


async def answered(client: Client) -> int:
    """The status of the next answer, read to its end."""
    client.answer = None
    await client.rest()
    answer: Answer | None = client.answer
    assert answer is not None
    return answer.status


async def test_calls_and_other_requests_in_one_write_are_answered_in_their_order(
    gateway: Local, models: LocalModels
) -> None:
    """The lane and aiohttp's loop take turns on one connection."""
    key, account = await gateway.account("pro")
    first, second = (CHAT.request(key, CHAT.body(f"tag={tag} output=5 ttfb=50")) for tag in ("first", "second"))
    async with connection(gateway.url) as client:
        client.send(ROOT + first + ROOT + second + first + ROOT + END)
        answers = await client.closed()
    heads = [part.partition(b"\r\n")[0] for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert heads == [b"200 OK"] * 6 + [b"404 Not Found"]
    kinds = [b"chat.completion" in part for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert kinds == [False, True, False, True, True, False, False]
    await gateway.settled()
    assert len(await usage_rows(gateway, account.id)) == 3


async def test_a_streamed_answer_ends_before_the_next_one_begins(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("pro")
    stream = CHAT.request(key, CHAT.body("output=5", stream=True))
    whole = CHAT.request(key, CHAT.body("output=5"))
    async with connection(gateway.url) as client:
        client.send(stream + whole + stream + END)
        parts = (await client.closed()).split(b"HTTP/1.1 ")[1:]
    assert [part.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for part in parts] == [True, False, True, False]


async def test_a_refused_call_leaves_its_connection_to_the_next_though_its_body_came_late(
    gateway: Local, models: LocalModels
) -> None:
    """401 is answered on the headers; what was still under way of the body is dropped."""
    key = await gateway.key("pro")
    body = orjson.dumps(CHAT.body("output=5", text="x" * 100_000))
    refused = CHAT.request(new_key(), body)
    async with connection(gateway.url) as client:
        client.send(refused[: -len(body)])
        assert await answered(client) == 401
        client.send(body + CHAT.request(key, CHAT.body("output=5")) + END)
        answers = await client.closed()
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 1


@pytest.mark.parametrize(("version", "asked", "told"), [("1.0", None, None), ("1.0", "keep-alive", "keep-alive"),
                                                        ("1.1", "close", "close"), ("1.1", None, None)])  # fmt: skip
async def test_a_connection_is_kept_as_long_as_its_client_wants(
    version: str, asked: str | None, told: str | None, gateway: Local, models: LocalModels
) -> None:
    key = await gateway.key("pro")
    more = {} if asked is None else {"connection": asked}
    request = CHAT.request(key, CHAT.body("output=5"), **more).replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1)
    async with connection(gateway.url) as client:
        client.send(request)
        is_kept = told == "keep-alive" or (version == "1.1" and asked is None)
        if is_kept:
            client.send(END)
        head, _, _ = (await client.closed()).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/{version} 200 OK\r\n".encode())
    lines = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert lines.get("connection") == told
    assert {"date", "content-length", "content-type", "server"} <= set(lines)


async def test_a_call_longer_than_the_time_of_an_idle_connection_is_not_cut(
    gateway: Local, models: LocalModels
) -> None:
    key = await gateway.key("pro")
    async with connection(gateway.url) as client:
        client.send(ROOT)
        assert await answered(client) == 200
        assert gateway.runner.server is not None
        (handler,) = gateway.runner.server.connections
        handler._keepalive_timeout = 0.05
        handler.keep_alive(True)  # and its timer anew
        for _ in range(2):
            client.send(CHAT.request(key, CHAT.body("output=5 ttfb=300")))
            assert await answered(client) == 200
        assert await client.closed() == b"", "idle, it is closed in its time"
