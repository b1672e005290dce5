"""An upstream that says, byte by byte, what its test tells it to: whole, cut, late, twice or never."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from gateway.simulator.wire import reset

WITHIN_S = 10.0


class Link:
    """One connection, as the upstream sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.requests: list[tuple[bytes, bytes]] = []
        self.has_left = asyncio.Event()

    async def request(self) -> tuple[bytes, bytes]:
        """(head, body) of the next request. Raises IncompleteReadError when the client has left."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        self.requests.append((head, await self.reader.readexactly(int(length))))
        return self.requests[-1]

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def sent(self) -> None:
        """Wait while the client does not take what was sent."""
        await self.writer.drain()

    def end(self) -> None:
        """End the stream; over TLS with a close_notify."""
        self.writer.close()

    def reset(self) -> None:
        """Break the connection (RST)."""
        reset(self.writer.transport)

    async def until_left(self) -> None:
        """A script's last step: read until the client ends the connection."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await self.reader.read(65_536):
                pass
        self.has_left.set()

    async def left(self) -> None:
        """The test's side of ``until_left``. Fails when it takes too long."""
        async with asyncio.timeout(WITHIN_S):
            await self.has_left.wait()


Script = Callable[[Link], Awaitable[None]]


def answer(body: bytes = b"hello", *, status: str = "200 OK", headers: bytes = b"") -> bytes:
    """A whole answer with a length."""
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status.encode(), headers, len(body), body)


async def serve(link: Link) -> None:
    """Answer every request."""
    while True:
        await link.request()
        link.send(answer())


class Upstream:
    """Listens on loopback. ``script`` is what happens on each connection; ``scripts`` come first, one each."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.script: Script = serve
        self.scripts: list[Script] = []
        self.links: list[Link] = []
        self._failures: list[BaseException] = []
        self._connected = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, tls: ssl.SSLContext | None) -> None:
        sock = socket.socket(proto=socket.IPPROTO_TCP)  # what asyncio wants to know before it sets TCP_NODELAY
        sock.bind(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}/v1/messages"
        self._server = await asyncio.start_server(self._accept, sock=sock, ssl=tls, limit=1_048_576, backlog=1_024)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        self.links.append(link)
        self._connected.set()
        task = asyncio.create_task(self._run(self.scripts.pop(0) if self.scripts else self.script, link))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, script: Script, link: Link) -> None:
        try:
            await script(link)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            link.has_left.set()
        except AssertionError as error:
            self._failures.append(error)

    async def connected(self, count: int) -> None:
        """Wait until so many connections have been made in all."""
        async with asyncio.timeout(WITHIN_S):
            while len(self.links) < count:
                self._connected.clear()
                await self._connected.wait()

    async def close(self) -> None:
        """Stop listening and break what is open. Fails with what failed in a script."""
        assert self._server is not None
        self._server.close()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for link in self.links:
            link.writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)
        assert not self._failures, self._failures


@asynccontextmanager
async def upstream(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """A running upstream."""
    up = Upstream()
    await up.start(tls)
    try:
        yield up
    finally:
        await up.close()
