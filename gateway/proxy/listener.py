"""A listener: how long a connection may keep us waiting, and what a request that is none gets to hear.

Rules
1. A connection that says nothing, or never finishes its headers, is closed after ``Patience.headers_s``; one that
   never finishes a body, after ``body_s`` (a metered route answers 408 by itself before); one that takes nothing of
   what waits for it, after ``send_s``: its call then goes on as for any client that left.
2. One look at all connections per second, no timer per request.
3. A malformed request is answered in few words of ours: neither the answer nor a log line repeats what was sent.
4. A request's body is not decompressed here: compressed ones are refused.

aiohttp has no such timeouts, and tells and logs a malformed header, key and all. It has no public place for either,
so this class reads private attributes of its request handler; ``tests/proxy/test_connections.py`` notices a change.
Source: aiohttp 3.14 ``web_protocol.py``; its threat model leaves both to the application.

Not here: idle connections between requests (aiohttp's keep-alive timeout).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import struct
import termios
from typing import Any

import orjson
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.edge import SERVER
from gateway.proxy.gateway import Gateway, Patience
from gateway.proxy.lane import Lane

log = logging.getLogger(__name__)

SWEEP_S = 1.0
_BODIES = {
    status: orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    for status, kind, code, message in (
        (400, "invalid_request_error", "invalid_request", "The request is not valid HTTP."),
        (500, "server_error", "internal_error", "Something went wrong."),
    )
}


class Connection(Lane):
    """One client's connection."""

    __slots__ = ("_body_of", "_body_since_s", "_stuck_bytes", "_stuck_since_s", "_unfinished_since_s")

    def __init__(
        self, manager: web.Server, *, gateway: Gateway, loop: asyncio.AbstractEventLoop, **options: Any
    ) -> None:
        super().__init__(manager, gateway=gateway, loop=loop, **options)
        self._unfinished_since_s = loop.time()  # a request's headers are awaited since; 0.0 = they are not
        self._body_of = 0  # which request's body is awaited, by its id
        self._body_since_s = 0.0
        self._stuck_bytes = 0
        self._stuck_since_s = 0.0

    def data_received(self, data: bytes) -> None:
        """Notes when a request begins whose headers do not end with it."""
        super().data_received(data)
        if self._is_busy or not self._is_waiting():
            self._unfinished_since_s = 0.0
        elif not self._unfinished_since_s:
            self._unfinished_since_s = self._loop.time()

    def check(self, patience: Patience, now_s: float) -> None:
        """Close what has kept us waiting too long."""
        transport = self.transport
        if transport is None:
            return
        if self._unfinished_since_s and self._is_waiting():
            if now_s - self._unfinished_since_s > patience.headers_s:
                self.force_close()
        elif self._is_body_late(patience, now_s):
            self.force_close()
        elif transport.get_write_buffer_size():
            left_bytes = unsent_bytes(transport)
            if left_bytes != self._stuck_bytes:
                self._stuck_bytes, self._stuck_since_s = left_bytes, now_s
            elif now_s - self._stuck_since_s > patience.send_s:
                transport.abort()
        else:
            self._stuck_bytes = 0

    def _is_body_late(self, patience: Patience, now_s: float) -> bool:
        request = self._current_request
        if request is None or request.content.is_eof():
            return False
        if self._body_of != id(request):
            self._body_of, self._body_since_s = id(request), now_s
        return now_s - self._body_since_s > patience.body_s

    def _is_waiting(self) -> bool:
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._messages and not self._is_busy

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request, or a bug of ours outside the metered routes. Closes the connection."""
        if status >= 500 and exc is not None:
            log.error("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer had begun")
        status = status if status in _BODIES else 400 if status < 500 else 500
        response = web.Response(status=status, body=_BODIES[status], content_type="application/json", headers=SERVER)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp's own complaints: their text may hold what was sent; where they come from does not."""
        log.error("a connection failed", exc_info=kw.get("exc_info"))


def unsent_bytes(transport: asyncio.Transport) -> int:
    """What the peer has not taken yet: in our buffer, and in the kernel's where that can be asked."""
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    try:
        queued: tuple[int] = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except (OSError, AttributeError):
        return waiting
    return waiting + queued[0]


class Server(web.Server):
    """Makes our connections, and looks at them once a second."""

    def __init__(self, gateway: Gateway, handler: Any, *, request_factory: Any, **options: Any) -> None:
        super().__init__(handler, request_factory=request_factory, **options)
        self._gateway = gateway
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def __call__(self) -> RequestHandler:
        return Connection(self, gateway=self._gateway, loop=self._loop, **self._kwargs)

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
        now_s = self._loop.time()
        for connection in self.connections:
            assert isinstance(connection, Connection)
            connection.check(self._gateway.patience, now_s)

    async def shutdown(self, timeout: float | None = None) -> None:
        self._timer.cancel()
        await super().shutdown(timeout)


class Runner(web.AppRunner):
    """Runs an application behind our connections."""

    def __init__(self, gateway: Gateway, app: web.Application, **options: Any) -> None:
        super().__init__(app, handler_cancellation=True, access_log=None, **options)
        self._gateway = gateway

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return Server(
            self._gateway,
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,
        )
