"""Connections over a real network: kept, used again, lost, and never used again when they might be dirty."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from gateway.errors import TollgateError, UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable
from gateway.proxy.leg import pool
from gateway.proxy.leg.client import HttpLeg
from gateway.proxy.leg.connection import Untouched
from gateway.proxy.leg.pool import Pool
from gateway.proxy.leg.request import Origin
from tests.support.legs import ask, full_listener, rest, turns, whole
from tests.support.links import Link, Script, Upstream, answer

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def then(*actions: Callable[[Link], None]) -> Script:
    """Read a request, do these things, and wait for the client to leave."""

    async def script(link: Link) -> None:
        await link.request()
        for action in actions:
            action(link)
        await link.until_left()

    return script


def say(data: bytes) -> Callable[[Link], None]:
    return lambda link: link.send(data)


# --- kept ------------------------------------------------------------------------------------------------------------


async def test_calls_one_after_another_share_a_connection(leg: HttpLeg, up: Upstream) -> None:
    for _ in range(20):
        assert await whole(leg, up.url) == b"hello"
    assert len(up.links) == 1


async def test_calls_at_once_do_not_share_and_the_connection_used_last_is_used_next(leg: HttpLeg, up: Upstream) -> None:
    await asyncio.gather(*(whole(leg, up.url) for _ in range(10)))
    assert len(up.links) == 10
    for _ in range(10):
        await whole(leg, up.url)
    assert sorted(len(link.requests) for link in up.links) == [*[1] * 9, 11]


async def test_a_request_arrives_whole_with_its_head_and_body(leg: HttpLeg, up: Upstream) -> None:
    left: list[int] = []
    for size in (0, 2, 65_536, 65_537, 5_000_000):
        body = b"x" * size
        assert await rest(await ask(leg, f"{up.url}?beta=true", body, leaving=lambda: left.append(1))) == b"hello"
        head, got = up.links[0].requests[-1]
        assert got == body
        assert head == (
            b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nx-api-key: sk-test\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % (up.port, size)
        )
    assert len(left) == 5 and len(up.links) == 1


async def test_only_so_many_free_connections_are_kept(
    leg: HttpLeg, up: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "FREE_MAX", 3)
    left: list[Link] = []

    async def script(link: Link) -> None:
        await link.request()
        link.send(answer())
        await link.until_left()
        left.append(link)

    up.script = script
    await asyncio.gather(*(whole(leg, up.url) for _ in range(8)))
    while len(left) < 5:
        await turns(1)
    assert len(leg.pool(Origin(False, "127.0.0.1", up.port))) == 3


async def test_a_free_connection_ends_by_itself_after_a_while(
    leg: HttpLeg, up: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "KEPT_S", 0.02)
    up.script = then(say(answer()))
    await whole(leg, up.url)
    await up.links[0].left()
    await whole(leg, up.url)
    assert len(up.links) == 2


@pytest.mark.parametrize("end", [Link.end, Link.reset, say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")])
async def test_a_free_connection_that_its_upstream_ends_is_not_used_again(
    end: Callable[[Link], None], leg: HttpLeg, up: Upstream
) -> None:
    up.scripts = [then(say(answer()))]
    await whole(leg, up.url)
    end(up.links[0])
    await up.links[0].left()
    await turns(3)
    assert len(leg.pool(Origin(False, "127.0.0.1", up.port))) == 0
    assert await whole(leg, up.url) == b"hello"


async def test_an_answer_in_single_bytes_is_the_same_answer(leg: HttpLeg, up: Upstream) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n"

    async def script(link: Link) -> None:
        while True:
            await link.request()
            for at in range(len(data)):
                link.send(data[at : at + 1])
                await turns(2)

    up.script = script
    for _ in range(2):
        assert await whole(leg, up.url) == b"hello"
    assert len(up.links) == 1


# --- lost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "cause"),
    [
        (Link.end, "ConnectionResetError"),
        (Link.reset, "ConnectionResetError"),
        (say(b"HTTP/1.1 2"), None),
        (say(b"SSH-2.0\r\n"), "BadAnswer"),
        (say(b"HTTP/1.1 200 OK\nA: b\n\n"), "HttpParserError"),
    ],
)
@pytest.mark.parametrize("is_reused", [False, True])
async def test_an_upstream_that_has_read_a_call_and_gives_no_answer_is_asked_once(
    action: Callable[[Link], None], cause: str | None, is_reused: bool, leg: HttpLeg, up: Upstream
) -> None:
    """Whether to ask again is for ``forward`` to decide: the call may be costing money already."""
    followed = then(action, Link.end)

    async def script(link: Link) -> None:
        if is_reused:
            await link.request()
            link.send(answer())
        await followed(link)

    up.script = script
    if is_reused:
        await whole(leg, up.url)
    with pytest.raises(UpstreamUnreachable) as caught:
        await ask(leg, up.url)
    assert not isinstance(caught.value, UpstreamTimeout)
    assert type(caught.value.__cause__).__name__ == (cause or "ConnectionResetError")
    assert len(up.links) == 1 and len(up.links[0].requests) == 1 + is_reused


@pytest.mark.parametrize("size", [2, 200_000])
async def test_a_call_on_a_connection_that_had_just_ended_is_made_again_on_a_new_one(size: int, leg: HttpLeg) -> None:
    """The race of every kept connection: its end is on the way while the request is."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def serve_one(link: contextlib.ExitStack) -> None:
            sock, _ = await loop.sock_accept(listener)
            link.enter_context(sock)
            sock.setblocking(False)
            received = b""
            while not received.endswith(b"{}"):
                received += await loop.sock_recv(sock, 65_536)
            await loop.sock_sendall(sock, answer())

        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            assert await asyncio.gather(whole(leg, url), serve_one(first)) == [b"hello", None]
            again = asyncio.create_task(serve_one(second))
            await turns(3)
            first.close()  # between this and the request the loop gets no turn to notice
            assert await whole(leg, url, b" " * (size - 2) + b"{}") == b"hello"
            await again


async def test_a_call_is_made_again_once_and_never_because_a_new_connection_ended(
    leg: HttpLeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Ended:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, *_: object, **__: object) -> asyncio.Future[Exception]:
            asked.append(self.name)
            assert len(asked) < 3
            found: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
            found.set_result(Untouched("closed before the request"))
            return found

    async def made(_: object) -> Ended:
        return Ended("new")

    monkeypatch.setattr(Pool, "take", lambda _: Ended("kept"))
    monkeypatch.setattr(Pool, "open", made)
    with pytest.raises(UpstreamUnreachable):
        await ask(leg, "http://127.0.0.1:9/")
    assert asked == ["kept", "new"]


@pytest.mark.parametrize("is_reset", [False, True])
async def test_an_answer_that_breaks_off_gives_what_came_and_then_the_break(
    is_reset: bool, leg: HttpLeg, up: Upstream
) -> None:
    gone_on = asyncio.Event()

    async def script(link: Link) -> None:
        await link.request()
        link.send(CHUNKED + b"3\r\nhel\r\n")
        await gone_on.wait()
        link.send(b"2\r\nlo\r\n")
        await link.sent()
        if is_reset:
            link.reset()
        else:
            link.end()

    up.script = script
    found = await ask(leg, up.url)
    assert await found.read() == b"hel"
    gone_on.set()
    assert await found.read() == b"lo"
    with pytest.raises(UpstreamInterrupted):
        await found.read()


async def test_an_upstream_that_refuses_connections_or_has_no_name_is_unreachable(leg: HttpLeg) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    left: list[int] = []
    for url in (f"http://127.0.0.1:{port}/", "http://a..b/", "ftp://127.0.0.1/", "http://127.0.0.1/\n"):
        with pytest.raises(UpstreamUnreachable) as caught:
            await ask(leg, url, leaving=lambda: left.append(1))
        assert caught.value.retry_after_s and not left


async def test_an_early_answer_to_a_long_request_is_given(leg: HttpLeg, up: Upstream) -> None:
    """An upstream need not read what it refuses."""

    async def script(link: Link) -> None:
        await link.reader.readuntil(b"\r\n\r\n")
        link.send(answer(b"too long", status="413 Content Too Large"))
        await link.until_left()

    up.scripts = [script]
    found = await ask(leg, up.url, b"x" * 20_000_000)
    assert found.status == 413 and await rest(found) == b"too long"
    assert await whole(leg, up.url) == b"hello"
    assert len(up.links) == 2


# --- time ------------------------------------------------------------------------------------------------------------


async def test_a_connection_that_is_not_made_in_time_is_unreachable() -> None:
    leg = HttpLeg(connect_s=0.05)
    with full_listener() as (host, port), pytest.raises(UpstreamUnreachable) as caught:
        await ask(leg, f"http://{host}:{port}/")
    assert isinstance(caught.value.__cause__, TimeoutError) and not isinstance(caught.value, UpstreamTimeout)
    await leg.close()


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b"])
async def test_an_answer_that_does_not_begin_in_time_is_a_timeout(data: bytes, leg: HttpLeg, up: Upstream) -> None:
    for script in (then(say(data)), then(say(answer()))):
        up.scripts.append(script)
    with pytest.raises(UpstreamTimeout):
        await ask(leg, up.url, first_byte_s=0.05)
    await up.links[0].left()
    assert await whole(leg, up.url) == b"hello"


async def test_an_answer_that_falls_silent_is_a_timeout(leg: HttpLeg, up: Upstream) -> None:
    up.script = then(say(CHUNKED + b"5\r\nhello\r\n"))
    found = await ask(leg, up.url, first_byte_s=0.2, idle_s=0.05)
    assert await found.read() == b"hello"
    with pytest.raises(UpstreamTimeout):
        await found.read()
    await up.links[0].left()


# --- cancelled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reused", [False, True])
async def test_a_call_cancelled_in_any_turn_of_the_loop_leaves_nothing_to_the_next(
    is_reused: bool, up: Upstream
) -> None:
    """Each call asks for its own number; the answers come in two halves."""

    async def script(link: Link) -> None:
        while True:
            _, number = await link.request()
            data = answer(number)
            link.send(data[:-1])
            await turns(1)
            link.send(data[-1:])

    up.script = script
    for count in range(25):
        leg = HttpLeg(connect_s=5)
        if is_reused:
            assert await whole(leg, up.url, b"before") == b"before"
        call = asyncio.create_task(whole(leg, up.url, b"%d" % count))
        await turns(count)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await call == b"%d" % count
        after = await asyncio.gather(*(whole(leg, up.url, b"after %d" % index) for index in range(2)))
        assert after == [b"after 0", b"after 1"]
        await leg.close()
    assert len(up.links) >= 2 * 25


async def test_a_call_cancelled_while_it_connects_leaves_nothing(leg: HttpLeg, up: Upstream) -> None:
    with full_listener() as (host, port):
        call = asyncio.create_task(ask(leg, f"http://{host}:{port}/"))
        await turns(5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert len(leg.pool(Origin(False, host, port))) == 0


async def test_a_call_cancelled_while_it_waits_ends_its_connection(leg: HttpLeg, up: Upstream) -> None:
    up.script = then()
    call = asyncio.create_task(ask(leg, up.url))
    await up.connected(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await up.links[0].left()


async def test_closing_the_leg_ends_every_call(up: Upstream) -> None:
    leg = HttpLeg(connect_s=5)
    up.scripts = [then(), then(say(CHUNKED + b"5\r\nhello\r\n"))]
    waiting = asyncio.create_task(ask(leg, up.url))
    await up.connected(1)
    found = await ask(leg, up.url)
    assert await found.read() == b"hello"
    reading = asyncio.create_task(found.read())
    with full_listener() as (host, port):
        connecting = asyncio.create_task(ask(leg, f"http://{host}:{port}/", first_byte_s=0.3))
        await turns(3)
        await leg.close()
        results = await asyncio.gather(waiting, reading, connecting, return_exceptions=True)
    assert [type(result) for result in results] == [UpstreamUnreachable, UpstreamInterrupted, UpstreamUnreachable]
    for url in (up.url, "http://127.0.0.2:1/"):
        with pytest.raises(TollgateError):
            await ask(leg, url)


# --- addresses -------------------------------------------------------------------------------------------------------


async def test_a_name_is_looked_up_once_for_all_and_not_again_soon(
    leg: HttpLeg, up: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[Pool] = []
    plain = Pool._ask_for_addresses

    async def counted(self: Pool) -> None:
        looked_up.append(self)
        await plain(self)

    monkeypatch.setattr(Pool, "_ask_for_addresses", counted)
    await asyncio.gather(*(whole(leg, up.url) for _ in range(10)))
    await asyncio.gather(*(whole(leg, up.url) for _ in range(20)))
    assert len(looked_up) == 1 and len(up.links) == 20


async def test_a_second_address_is_tried_while_the_first_says_nothing(leg: HttpLeg, up: Upstream) -> None:
    origin = Origin(False, "127.0.0.1", up.port)
    with full_listener() as silent:
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (silent, ("127.0.0.1", up.port))
        ]
        chosen = leg.pool(origin)
        chosen._addresses, chosen._addresses_until_s = addresses, asyncio.get_running_loop().time() + 60
        assert await whole(leg, up.url) == b"hello"


async def test_environment_variables_choose_nothing(
    leg: HttpLeg, up: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await whole(leg, up.url) == b"hello"
