"""The short way of a metered call: from the parser to the call, and from its answer to the socket.

Rules
1. A metered call that comes while nothing else of its connection is being served begins in ``data_received`` itself:
   without aiohttp's loop over requests, a task that waits for another, and timers. Whatever else comes, and what comes
   behind it in one read, is the loop's, which sleeps meanwhile.
2. What a request is, and what none, is decided by aiohttp's parser alone, for both ways.
3. One request of a connection at a time, in order; the next one begins when the answer before it has left us.
4. Bytes of a body that nobody wanted are read and dropped for a while; then the connection is closed.

This reads private attributes of aiohttp's request handler; tests/proxy/test_connections.py notices a change.
Source: aiohttp 3.14 ``web_protocol.py``: ``RequestHandler.start`` is what happens here, for one request.

Not here: patience (``listener``), what a call is (``handler``).
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import StreamWriter
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway.providers.adapter import Adapter
from gateway.providers.registry import ADAPTERS
from gateway.proxy.gateway import Gateway
from gateway.proxy.handler import begin
from gateway.proxy.visit import Visit, Whole

_BODILESS = frozenset({204, 304})
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Lane(RequestHandler):
    """One client's connection, with a lane of its own for metered calls."""

    __slots__ = ("_gateway", "_is_busy", "_message", "_visit")

    def __init__(
        self, manager: web.Server, *, gateway: Gateway, loop: asyncio.AbstractEventLoop, **options: Any
    ) -> None:
        super().__init__(manager, loop=loop, **options)
        self._gateway = gateway
        self._is_busy = False  # a call is on the lane, or what is left of its body
        self._message: RawRequestMessage | None = None  # that a call on the lane began with
        self._visit: Visit | None = None

    def data_received(self, data: bytes) -> None:
        """aiohttp's, but for whom it wakes up."""
        if self._upgraded:
            super().data_received(data)
            return
        waiter, self._waiter = self._waiter, None
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        self._go_on()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp's, where something was paused: every body that was read asks for it."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._visit is not None:
            self._visit.leave()

    def _go_on(self) -> None:
        """The next request, if it is anybody's turn."""
        waiter = self._waiter
        if self._is_busy or not self._messages or self._paused or waiter is None or waiter.done():
            return
        message, payload = self._messages[0]
        if isinstance(message, RawRequestMessage) and self.transport is not None:
            adapter = _metered(message)
            if adapter is not None:
                self._messages.popleft()
                self._begin(adapter, message, payload)
                return
        waiter.set_result(None)

    def _begin(self, adapter: Adapter, message: RawRequestMessage, payload: StreamReader) -> None:
        self._is_busy = self._request_in_progress = True
        writer = StreamWriter(self, self._loop)
        task: Any = self._task_handler
        request = web.BaseRequest(message, payload, self, writer, task, self._loop)
        self._current_request = request
        self._message = message
        assert self._manager is not None and self._parser is not None
        self._manager.requests_count += 1
        self._visit = begin(self._gateway, adapter, request, self._answer)
        self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    def _answer(self, response: Whole | web.StreamResponse) -> None:
        """The call's answer: written here when it is whole, ended here when it was streamed."""
        assert self._visit is not None and self._message is not None
        message, payload, transport = self._message, self._visit.request.content, self.transport
        self._visit = self._message = self._current_request = None
        if transport is None or transport.is_closing():
            self._end(is_kept=False)
            return
        if isinstance(response, Whole):
            is_kept = not message.should_close
            transport.write(spelled(response, message, is_kept=is_kept))
        else:
            is_kept = bool(response.keep_alive)
            if response.chunked:
                transport.write(b"0\r\n\r\n")
        if payload.is_eof() or not is_kept:
            self._end(is_kept=is_kept)
        else:
            self._gateway.tasks.spawn(self._drop_rest(payload))

    async def _drop_rest(self, payload: StreamReader) -> None:
        """So that the client, still sending, comes to read its answer."""
        try:
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof():
                    await payload.readany()
        except (TimeoutError, OSError, web.RequestPayloadError):
            self._end(is_kept=False)
        else:
            self._end(is_kept=True)

    def _end(self, *, is_kept: bool) -> None:
        """The request is through: the next one's turn, or the connection's end."""
        self._is_busy = self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        if not is_kept or self._close or self._force_close:
            self.close()
            if self.transport is not None:
                self.transport.close()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        self._go_on()

    def _process_keepalive(self) -> None:
        if self._is_busy:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()


def _metered(message: RawRequestMessage) -> Adapter | None:
    """The adapter of a metered call; None for what is the loop's."""
    if message.method != "POST" or message.upgrade:
        return None
    path = message.path
    return ADAPTERS.get(path if "?" not in path else path.partition("?")[0])


def spelled(answer: Whole, message: RawRequestMessage, *, is_kept: bool) -> bytes:
    """A whole answer as bytes. Its headers are printable: what an upstream wrote passes ``headers.to_client``."""
    is_modern = message.version >= HttpVersion11
    status, headers, body = answer.status, answer.headers, answer.body
    lines = [f"HTTP/1.{int(is_modern)} {status} {_REASONS.get(status, '')}\r\n"]
    for name, value in headers.items():
        lines.append(f"{name}: {value}\r\n")
    if status in _BODILESS:
        body = b""
    else:
        lines.append(f"content-length: {len(body)}\r\n")
        if "content-type" not in headers:
            lines.append("content-type: application/octet-stream\r\n")
    if is_kept != is_modern:
        lines.append("connection: keep-alive\r\n" if is_kept else "connection: close\r\n")
    lines.append(f"date: {rfc822_formatted_time()}\r\n\r\n")
    return "".join(lines).encode() + body
