"""TLS: whom the leg trusts, and when an encrypted stream is whole."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.errors import UpstreamInterrupted, UpstreamUnreachable
from gateway.proxy.leg.client import HttpLeg
from gateway.proxy.leg.connection import BUFFER_BYTES, UNREAD_BYTES_HIGH
from gateway.proxy.leg.request import Origin
from tests.support.legs import ask, rest, turns, whole
from tests.support.links import Link, Upstream, answer, upstream

TLS = Path(__file__).resolve().parents[2] / "data" / "tls"
ON_UVLOOP = pytest.mark.asyncio(loop_factories=["uvloop"])
TLS_READ_BYTES = 262_144  # what both loops read at once below TLS
OPEN_ENDED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


def server_tls(certificate: str = "server.pem") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / certificate, TLS / "server.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def client_tls(certificate: str = "server.pem") -> ssl.SSLContext:
    """As the leg's own, but for whom it trusts."""
    context = ssl.create_default_context(cafile=str(TLS / certificate))
    context.set_alpn_protocols(["http/1.1"])
    return context


@pytest.fixture
async def up() -> AsyncIterator[Upstream]:
    async with upstream(tls=server_tls()) as up:
        yield up


@pytest.fixture
async def trusting() -> AsyncIterator[HttpLeg]:
    """A leg that trusts the tests' certificates, and is otherwise as it is."""
    leg = HttpLeg(connect_s=5, tls=client_tls())
    yield leg
    await leg.close()


async def refused(leg: HttpLeg, url: str) -> str:
    """Why an upstream is not trusted. Nothing of the call leaves."""
    left: list[int] = []
    with pytest.raises(UpstreamUnreachable) as caught:
        await ask(leg, url, leaving=lambda: left.append(1))
    assert not left
    cause = caught.value.__cause__
    return cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else type(cause).__name__


async def test_a_trusted_upstream_is_asked_over_one_kept_connection(trusting: HttpLeg, up: Upstream) -> None:
    body = b"x" * 200_000
    for _ in range(5):
        assert await whole(trusting, up.url, body) == b"hello"
    (link,) = up.links
    assert [got for _, got in link.requests] == [body] * 5
    spoken = link.writer.get_extra_info("ssl_object")
    assert spoken.selected_alpn_protocol() == "http/1.1" and spoken.version() == "TLSv1.3"


async def test_a_name_is_sent_and_certified(trusting: HttpLeg) -> None:
    names: list[str] = []
    context = server_tls()
    context.sni_callback = lambda _, name, __: names.append(name)
    async with upstream(tls=context) as up:
        assert await whole(trusting, up.url.replace("127.0.0.1", "localhost")) == b"hello"
    assert names == ["localhost"]


async def test_a_certificate_that_nobody_trusts_is_refused(leg: HttpLeg, up: Upstream) -> None:
    assert await refused(leg, up.url) == "self-signed certificate"


async def test_a_certificate_of_another_name_is_refused(trusting: HttpLeg, up: Upstream) -> None:
    elsewhere = trusting.pool(Origin(True, "elsewhere.example", up.port))
    elsewhere._addresses = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", up.port))]
    elsewhere._addresses_until_s = asyncio.get_running_loop().time() + 60
    assert "Hostname mismatch" in await refused(trusting, f"https://elsewhere.example:{up.port}/")


async def test_an_expired_certificate_is_refused() -> None:
    leg = HttpLeg(connect_s=5, tls=client_tls("expired.pem"))
    async with upstream(tls=server_tls("expired.pem")) as up:
        assert await refused(leg, up.url) == "certificate has expired"
    await leg.close()


async def test_an_upstream_that_speaks_no_tls_is_unreachable(trusting: HttpLeg) -> None:
    async def script(link: Link) -> None:
        link.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await link.until_left()

    async with upstream() as up:
        up.script = script
        assert await refused(trusting, up.url.replace("http", "https")) in ("SSLError", "ConnectionResetError")


async def test_a_handshake_that_takes_too_long_is_unreachable() -> None:
    leg = HttpLeg(connect_s=0.5)
    async with upstream() as up:
        up.script = Link.until_left
        assert await refused(leg, up.url.replace("http", "https")) == "TimeoutError"
        await up.links[0].left()
    await leg.close()


@ON_UVLOOP  # asyncio's own forgets a transport that is cancelled in its first turn
async def test_a_call_cancelled_in_any_turn_of_its_handshake_leaves_nothing(up: Upstream) -> None:
    context = client_tls()
    for count in range(20):
        leg = HttpLeg(connect_s=5, tls=context)
        call = asyncio.create_task(whole(leg, up.url))
        await turns(count)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await whole(leg, up.url) == b"hello"
        await leg.close()


@ON_UVLOOP  # asyncio's own takes a cut line for a close_notify
async def test_a_stream_without_a_length_is_whole_only_with_its_close_notify(trusting: HttpLeg, up: Upstream) -> None:
    """Whoever cuts the line must not be able to shorten an answer unseen."""

    async def ended(link: Link) -> None:
        await link.request()
        link.send(OPEN_ENDED + b"hello")
        await link.sent()
        link.end()

    async def cut(link: Link) -> None:
        await link.request()
        link.send(OPEN_ENDED + b"hello")
        await link.sent()
        await turns(1)
        link.writer.transport.abort()

    up.scripts = [ended, cut]
    assert await whole(trusting, up.url) == b"hello"
    with pytest.raises(UpstreamInterrupted):
        await whole(trusting, up.url)


async def test_a_slow_reader_of_a_long_answer_gets_all_of_it(trusting: HttpLeg, up: Upstream) -> None:
    size = 3_000_000

    async def script(link: Link) -> None:
        await link.request()
        link.send(answer(b"x" * size))
        await link.until_left()

    up.script = script
    found = await ask(trusting, up.url)
    pieces = []
    while piece := await found.read():
        pieces.append(len(piece))
        await turns(5)
    assert sum(pieces) == size and max(pieces) <= UNREAD_BYTES_HIGH + BUFFER_BYTES + TLS_READ_BYTES


async def test_an_upstream_that_leaves_takes_nothing_from_a_slow_reader(trusting: HttpLeg) -> None:
    """What has arrived is given, though the connection ended while nobody read."""
    body = b"x" * 150_000

    def serve_one(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
        with server_tls().wrap_socket(sock, server_side=True) as spoken:
            received = b""
            while not received.endswith(b"{}"):
                received += spoken.recv(65_536)
            spoken.sendall(answer(body, headers=b"Connection: close\r\n"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve_one, listener))
        found = await ask(trusting, f"https://127.0.0.1:{listener.getsockname()[1]}/")
        await serving
        await turns(100)
        assert found.is_paused
        assert await rest(found) == body


async def test_a_connection_whose_upstream_said_goodbye_is_not_used_again(trusting: HttpLeg, up: Upstream) -> None:
    async def script(link: Link) -> None:
        await link.request()
        link.send(answer())
        await link.sent()
        link.end()

    up.scripts = [script]
    assert await whole(trusting, up.url) == b"hello"
    assert await whole(trusting, up.url) == b"hello"
    found = await ask(trusting, up.url)
    assert await rest(found) == b"hello" and len(up.links) == 2
