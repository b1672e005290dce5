"""Step 5: pass the answer on as it comes, and watch it pass.

Rules
1. Client bytes = upstream bytes, chunk for chunk; the scanner may only hide what we asked for ourselves.
2. A slow reader slows its upstream: nothing is read while the client's socket is full.
3. A client that left does not end the call: its plan says whether the rest is drained (capped) or cut.
4. A whole answer of at most ``BUFFERED_BYTES_MAX`` is held until its price is known: the headers carry it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from gateway.providers.adapter import Scanner
from gateway.proxy.upstream import Reply
from gateway.proxy.visit import Visit

BUFFERED_BYTES_MAX = 1_048_576
ERROR_BYTES_MAX = 1_048_576
_WRITE_BUFFER_HIGH_BYTES = 65_536


class End(StrEnum):
    """How an answer ended, as the usage record says it."""

    COMPLETE = "complete"
    CLIENT_LEFT = "client_left"  # drained to its end, or cut
    UPSTREAM_ERROR = "upstream_error"
    QUOTA = "quota"
    SHUTDOWN = "shutdown"


async def read_whole(reply: Reply, bytes_max: int) -> tuple[bytes, bool]:
    """(what came, whether it is all). Raises UpstreamInterrupted, UpstreamTimeout."""
    pieces: list[bytes] = []
    size_bytes = 0
    while size_bytes <= bytes_max:
        piece = await reply.read()
        if not piece:
            return b"".join(pieces), True
        pieces.append(piece)
        size_bytes += len(piece)
    return b"".join(pieces), False


class Writer:
    """The client's side of a stream: headers by aiohttp, then chunk frames straight to the transport."""

    def __init__(self, visit: Visit, response: web.StreamResponse) -> None:
        self._visit = visit
        self.response = response
        self._transport: asyncio.Transport | None = None
        self._writer: AbstractStreamWriter | None = None
        self._framed = visit.request.version >= HttpVersion11

    async def start(self) -> None:
        """Send the headers; a client that is gone is not an error."""
        if self._framed:
            self.response.enable_chunked_encoding()
        try:
            self._writer = await self.response.prepare(self._visit.request)
        except ConnectionError:
            self._visit.leave()
        self._transport = self._visit.request.transport

    async def write(self, data: bytes) -> None:
        """One piece of the body, in one write. Waits while the client's socket is full."""
        transport = self._transport
        if self._visit.left or transport is None or self._writer is None:
            return
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data)
        if transport.get_write_buffer_size() > _WRITE_BUFFER_HIGH_BYTES:
            try:
                await self._writer.drain()
            except ConnectionError:
                self._visit.leave()

    def abort(self) -> None:
        """Break the connection off: the client must not take what it has for a whole answer."""
        if self._transport is not None and not self._visit.left:
            self._transport.abort()


async def stream(visit: Visit, reply: Reply, scanner: Scanner, writer: Writer) -> None:
    """Relay until the upstream ends. Raises UpstreamInterrupted, UpstreamTimeout when it breaks off or is closed."""
    while chunk := await reply.read():
        out = scanner.feed(chunk)
        if out and not visit.left:
            await writer.write(out)
    tail = scanner.finish()
    if tail and not visit.left:
        await writer.write(tail)


class Departure:
    """What a client's leaving means for the upstream: ``close`` it after ``grace_s`` seconds (0 = cut at once).

    ``told`` is called once, when the client leaves, and answers the seconds that finishing for nobody may take.
    """

    def __init__(self, visit: Visit, close: Callable[[], None], told: Callable[[], float]) -> None:
        self._visit = visit
        self._close = close
        self._told = told
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._visit.when_left(self._left)

    def __exit__(self, *_: object) -> None:
        self._visit.when_left(None)
        if self._timer is not None:
            self._timer.cancel()

    def _left(self) -> None:
        grace_s = self._told()
        if grace_s <= 0:
            self._close()
        else:
            self._timer = asyncio.get_running_loop().call_later(grace_s, self._close)
