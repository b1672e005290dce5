"""Step 5: pass the answer on as it comes, and watch it pass.

Rules
1. Client bytes = upstream bytes, chunk for chunk; the scanner may only hide what we asked for ourselves, and of an
   error within a stream what names our account is masked, as in an error body.
2. A slow reader slows its upstream: nothing is read while the client's socket is full.
3. A client that left does not end the call: what the upstream still gives is read for the bill alone.
4. A whole answer of at most ``BUFFERED_BYTES_MAX`` is held until its price is known: the headers carry it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from gateway.domain.usage import Exact
from gateway.errors import UpstreamInterrupted
from gateway.providers.adapter import Scanner
from gateway.providers.upstream_errors import mask_events
from gateway.proxy.laps import Laps
from gateway.proxy.upstream import Reply
from gateway.proxy.visit import Visit

BUFFERED_BYTES_MAX = 1_048_576
_WRITE_BUFFER_HIGH_BYTES = 32_768


class End:
    """How an answer ended, as the usage record says it."""

    COMPLETE: Final = "complete"
    CLIENT_LEFT: Final = "client_left"  # drained to its end, or cut
    UPSTREAM_ERROR: Final = "upstream_error"
    SHUTDOWN: Final = "shutdown"


async def read_whole(reply: Reply, scanner: Scanner, laps: Laps) -> tuple[bytes, bool]:
    """(what the client gets of what came, whether it is all). Raises UpstreamInterrupted, UpstreamTimeout."""
    body = bytearray()
    while piece := await reply.read():
        came_s = perf_counter()
        body += scanner.feed(piece)
        laps.relay_s += perf_counter() - came_s
        if len(body) > BUFFERED_BYTES_MAX:
            return bytes(body), False
    body += scanner.finish()
    return bytes(body), True


class Writer:
    """The client's side of a stream: headers by aiohttp, then chunk frames straight to the transport."""

    def __init__(self, visit: Visit, response: web.StreamResponse) -> None:
        self._visit = visit
        self.response = response
        self._transport: asyncio.Transport | None = None
        self._writer: AbstractStreamWriter | None = None
        self._framed = visit.request.version >= HttpVersion11
        self.within_event = False  # the client has the beginning of an event that will never end

    async def start(self) -> None:
        """Send the headers; a client that is gone is not an error."""
        if self._framed:
            self.response.enable_chunked_encoding()
        try:
            self._writer = await self.response.prepare(self._visit.request)
        except ConnectionError:
            self._visit.leave()
        self._transport = self._visit.request.transport
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_HIGH_BYTES)

    def write(self, data: bytes) -> bool:
        """One piece of the body, in one write. True when the client's socket is full: ``drain`` before the next."""
        transport = self._transport
        if self._visit.left or transport is None or self._writer is None:
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data)
        return transport.get_write_buffer_size() > _WRITE_BUFFER_HIGH_BYTES

    async def drain(self) -> None:
        """Wait while the client's socket is full."""
        assert self._writer is not None  # something was written
        full_s = perf_counter()
        try:
            await self._writer.drain()
        except ConnectionError:
            self._visit.leave()
        self._visit.laps.stalled_s += perf_counter() - full_s

    def break_off(self) -> None:
        """Close without the last chunk: the client must not take what it has for a whole answer."""
        if self._transport is not None and not self._visit.left:
            self._transport.close()


async def stream(visit: Visit, reply: Reply, scanner: Scanner, writer: Writer, secrets: Sequence[str]) -> None:
    """Relay until the upstream ends. Raises UpstreamInterrupted, UpstreamTimeout when it breaks off or is closed; also
    when it ends in order in the middle of its words. ``secrets``: our keys there, for an error that names one."""
    spent_s = 0.0
    try:
        while chunk := await reply.read():
            came_s = perf_counter()
            out = scanner.feed(chunk)
            if out and not visit.left and writer.write(mask_events(out, secrets)):
                await writer.drain()
            spent_s += perf_counter() - came_s
    finally:
        visit.laps.relay_s += spent_s
    is_within = not scanner.event_boundary()
    tail = scanner.finish()
    if is_cut(scanner):
        writer.within_event = is_within
        raise UpstreamInterrupted
    if tail and not visit.left and writer.write(mask_events(tail, secrets)):
        await writer.drain()


def is_cut(scanner: Scanner) -> bool:
    """Whether an answer that ended in order lacks its end. Usage or an error event of the upstream's own is an end."""
    if scanner.complete or isinstance(scanner.outcome(), Exact):
        return False
    return not scanner.failed
