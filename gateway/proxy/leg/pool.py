"""The connections to one origin: free ones, and new ones.

Rules
1. The connection used last is used next: the others grow old and end.
2. A connection ends by itself ``KEPT_S`` after its last answer: before the providers end it, which would race with our
   next request.
3. A name is looked up at most every ``NAMES_KEPT_S``, once for all who wait for it; its addresses are tried as RFC 8305
   has it.
4. TLS certificates and names are always verified. Environment variables choose nothing.

Source: https://www.rfc-editor.org/rfc/rfc8305
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import cast

from aiohappyeyeballs import AddrInfoType, start_connection

from gateway.proxy.leg.connection import Connection
from gateway.proxy.leg.request import Origin

KEPT_S = 30.0
FREE_MAX = 512
NAMES_KEPT_S = 30.0
_NEXT_ADDRESS_S = 0.25
# Middleboxes forget connections on which nothing passes while a model thinks; the official SDKs ask for these, too.
_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 60, "TCP_KEEPCNT": 5}


class _Threshold(asyncio.Protocol):
    """What hears a connection until TLS begins: nothing, or it isn't TLS."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.abort()


class Pool:
    """One origin's connections."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext, buffer: memoryview) -> None:
        self._origin = origin
        self._tls = tls if origin.is_tls else None
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._free: dict[Connection, None] = {}  # the one used last is last
        self._all: set[Connection] = set()
        self._addresses: Sequence[AddrInfoType] = ()
        self._addresses_until_s = 0.0
        self._lookup: asyncio.Task[None] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._all)

    def take(self) -> Connection | None:
        """A free connection, for the caller alone."""
        return self._free.popitem()[0] if self._free else None

    def put(self, connection: Connection) -> None:
        if len(self._free) >= FREE_MAX:
            connection.abandon()
            return
        self._free[connection] = None
        connection.expect(self._loop.time() + KEPT_S)

    def lose(self, connection: Connection) -> None:
        self._free.pop(connection, None)
        self._all.discard(connection)

    async def open(self) -> Connection:
        """A new connection. Raises OSError, ValueError, RuntimeError."""
        if self._is_closed:
            raise ConnectionAbortedError("closed")
        try:
            sock = await start_connection(await self._look_up(), happy_eyeballs_delay=_NEXT_ADDRESS_S, loop=self._loop)
        except (OSError, RuntimeError):
            self._addresses_until_s = 0.0
            raise
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBES.items():
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            connection = await (self._plain(sock) if self._tls is None else self._encrypted(sock, self._tls))
        except BaseException:
            sock.close()
            raise
        if self._is_closed or not connection.is_free:
            connection.abandon()
            raise ConnectionResetError("closed at once")
        self._all.add(connection)
        return connection

    async def _plain(self, sock: socket.socket) -> Connection:
        """Raises OSError, RuntimeError."""
        _, connection = await self._loop.create_connection(lambda: Connection(self, self._buffer), sock=sock)
        return connection

    async def _encrypted(self, sock: socket.socket, tls: ssl.SSLContext) -> Connection:
        """Raises OSError, ValueError, RuntimeError."""
        line, _ = await self._loop.create_connection(_Threshold, sock=sock)
        if line.is_closing():
            raise ConnectionResetError("spoke before TLS")
        connection = Connection(self, self._buffer, line)
        try:
            transport = await self._loop.start_tls(line, connection, tls, server_hostname=self._origin.host)
        except BaseException:
            line.abort()
            raise
        if transport is None:
            raise ConnectionResetError("closed at once")
        connection.connection_made(transport)
        return connection

    async def _look_up(self) -> Sequence[AddrInfoType]:
        """Raises OSError, ValueError."""
        if self._loop.time() >= self._addresses_until_s:
            if self._lookup is None or self._lookup.done():
                self._lookup = self._loop.create_task(self._ask_for_addresses())
                self._lookup.add_done_callback(lambda task: task.cancelled() or task.exception())
            try:
                await asyncio.shield(self._lookup)
            except asyncio.CancelledError:
                if self._is_closed:
                    raise ConnectionAbortedError("closed") from None
                raise
        return self._addresses

    async def _ask_for_addresses(self) -> None:
        self._addresses = await self._loop.getaddrinfo(self._origin.host, self._origin.port, type=socket.SOCK_STREAM)
        self._addresses_until_s = self._loop.time() + NAMES_KEPT_S

    async def close(self) -> None:
        """End all connections, and open no more."""
        self._is_closed = True
        for connection in tuple(self._all):
            connection.abandon()
        if self._lookup is not None:
            self._lookup.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, ValueError):
                await self._lookup
