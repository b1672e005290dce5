"""Puts an answer on the wire, with the faults that its steering asks for, and keeps its journal entry true.

Rules
1. The entry is updated in the same turn of the loop in which bytes go to the transport, before anybody can read them.
2. A peer that left ends the answer at once, as a provider stops producing.
3. Every wait ends: sleeps are bounded by the steering, stalls by ``stall_max_s``, flushes by a deadline.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from aiohttp import web

from gateway.domain.usage import Usage
from gateway.simulator.answer import Event
from gateway.simulator.journal import End, Entry
from gateway.simulator.steering import Reset, Steering

_FILLING_BYTES = 65_536
_FLUSH_S_MAX = 5.0
_GZIP = 31  # zlib's window bits for a gzip header
_NO_USAGE = Usage()


class PeerLeft(ConnectionError):
    """The peer closed its connection."""


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Wire:
    """One answer's way out."""

    request: web.BaseRequest
    entry: Entry
    steering: Steering
    stall_max_s: float
    # What aiohttp is told at the end; it finds the answer written. Before that, only a broken connection leaves it.
    response: web.StreamResponse = field(default_factory=web.Response)

    async def whole(self, status: int, headers: dict[str, str], body: bytes, usage: Usage) -> End:
        """Send a body in one piece; ``usage`` is what it bills."""
        steering = self.steering
        packed, headers = self._packed(headers, body)
        cut = _cut_of(steering, len(packed))
        if cut == len(packed):
            # One write for headers and body, as nearly every answer goes.
            response: web.StreamResponse = web.Response(status=status, headers=headers, body=packed)
            self._serve(body, usage)
        else:
            response = web.StreamResponse(status=status, headers=headers)
            response.content_length = cut if steering.truncate is not None else len(packed)
        self.response = response
        await response.prepare(self.request)
        if isinstance(response, web.Response):
            await response.write_eof()
        elif cut:
            self._serve(packed[:cut], usage)
            await response.write(packed[:cut])
        if steering.stall is not None:
            return await self._stall()
        if steering.reset is not None:
            return await self._reset()
        if steering.truncate is not None:
            await response.write_eof()
            return End.TRUNCATED
        return End.FINISHED if status < 400 else End.REFUSED

    async def stream(
        self,
        headers: dict[str, str],
        events: Iterator[Event],
        planned: Usage,
        *,
        error: bytes,
        giant: tuple[bytes, bytes],
    ) -> End:
        """Send events one by one. ``error`` and ``giant`` are what the dialect makes of these two steerings."""
        steering = self.steering
        packer = zlib.compressobj(wbits=_GZIP) if steering.gzip is not None else None
        if packer is not None:
            headers = {**headers, "Content-Encoding": "gzip"}
        self.response = response = web.StreamResponse(status=200, headers=headers)
        response.enable_chunked_encoding()
        self._check_peer()
        await response.prepare(self.request)
        if steering.reset is not None and steering.reset.where == "headers":
            return await self._reset()
        delay_s = steering.delay / 1000
        giant_bytes = steering.giant
        usage = _NO_USAGE
        for event in events:
            if (end := await self._fault(response, event.data, usage, error)) is not None:
                return end
            if event.content and delay_s:
                await asyncio.sleep(delay_s)
            usage = _so_far(planned, event.output)
            self._serve(event.data, usage, events=1)
            await response.write(event.data if packer is None else _pack(packer, event.data))
            if event.content and giant_bytes is not None:
                await self._giant(response, giant, giant_bytes, usage)
                giant_bytes = None
        if (end := await self._fault(response, b"data: {", usage, error)) is not None:
            return end
        if steering.reset == Reset("after"):
            return await self._reset()
        self._check_peer()
        if packer is not None:
            await response.write(packer.flush())
        await response.write_eof()
        return End.FINISHED

    async def _fault(self, response: web.StreamResponse, following: bytes, usage: Usage, error: bytes) -> End | None:
        """What the steering wants after the events so far; ``following`` is the next event, whose begin may go out."""
        steering, served = self.steering, self.entry.events_served
        if steering.reset == Reset("within", served):
            return await self._reset()
        if steering.stall == served:
            return await self._stall()
        if steering.truncate == served:
            part = following[: max(1, len(following) // 2)].rstrip(b"\n")
            self._serve(part, usage)
            await response.write(part)
            await response.write_eof()
            return End.TRUNCATED
        if steering.error_event == served:
            self._serve(error, usage, events=1)
            await response.write(error)
            await response.write_eof()
            return End.ERROR_EVENT
        return None

    async def _giant(self, response: web.StreamResponse, around: tuple[bytes, bytes], size: int, usage: Usage) -> None:
        """One line of ``size`` bytes, as fast as the peer takes it."""
        opening, closing = around
        self._serve(opening, usage)
        await response.write(opening)
        left = size - len(opening) - len(closing) + 2  # the two newlines are not of the line
        while left > 0:
            filling = b"x" * min(left, _FILLING_BYTES)
            left -= len(filling)
            self._serve(filling, usage)
            await response.write(filling)
        self._serve(closing, usage, events=1)
        await response.write(closing)

    def _serve(self, data: bytes, usage: Usage, *, events: int = 0) -> None:
        """Journal what the very next write hands over."""
        self._check_peer()
        self.entry.serve(data, usage, now_ms=now_ms(), events=events)

    def _check_peer(self) -> None:
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise PeerLeft

    async def _reset(self) -> End:
        """Break the connection with a RST, after all bytes handed over have left this process."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise PeerLeft
        deadline = time.monotonic() + _FLUSH_S_MAX
        while transport.get_write_buffer_size() and time.monotonic() < deadline:  # noqa: ASYNC110  # tells nobody
            await asyncio.sleep(0.001)
        reset(transport)
        return End.RESET

    async def _stall(self) -> End:
        await asyncio.sleep(self.stall_max_s)
        await self._reset()
        return End.STALLED

    def _packed(self, headers: dict[str, str], body: bytes) -> tuple[bytes, dict[str, str]]:
        """The body as steered: compressed although nobody asked, padded to a bomb; or with a giant line in it."""
        if self.steering.giant is not None:
            return body[:-1] + b',"padding":"' + b"x" * self.steering.giant + b'"}', headers
        if self.steering.gzip is None:
            return body, headers
        packer = zlib.compressobj(wbits=_GZIP)
        parts = [packer.compress(body)]
        left = self.steering.gzip - len(body)
        while left > 0:
            parts.append(packer.compress(b" " * min(left, _FILLING_BYTES)))
            left -= _FILLING_BYTES
        return b"".join((*parts, packer.flush())), {**headers, "Content-Encoding": "gzip"}


def reset(transport: asyncio.Transport) -> None:
    """Close at once with a RST instead of a FIN."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _pack(packer: zlib._Compress, data: bytes) -> bytes:
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def _so_far(planned: Usage, output: int) -> Usage:
    """What a provider would bill with ``output`` tokens produced: the whole input, thinking first."""
    if output == planned.output:
        return planned
    return replace(planned, output=output, reasoning=min(planned.reasoning, output))


def _cut_of(steering: Steering, size: int) -> int:
    """How much of a whole body goes out. Fault "after event 0" comes before its first byte, any other at its middle."""
    if steering.reset is not None and steering.reset.where != "after":
        return size // 2 if steering.reset.events else 0
    for after in (steering.stall, steering.truncate):
        if after is not None:
            return size // 2 if after else 0
    return size
