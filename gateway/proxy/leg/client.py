"""The leg itself: ``gateway.proxy.upstream.Leg`` over our own connections.

Rules
1. No redirects, no environment proxies, no cookies, no decompression, TLS verified; no total timeout, but one for
   connecting, one for the first byte and one for silence in between.
2. A call is made twice only when the first connection was one kept open, and nobody can have seen the call: the
   connection had ended before our first byte, or it ended with not one byte acknowledged. Everything else is for
   ``forward`` to decide, which knows the retry budget.
3. Whoever is cancelled leaves no connection in the pool that still carries his call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from functools import cache

from gateway.errors import UpstreamTimeout, UpstreamUnreachable
from gateway.proxy.leg.answer import Answer
from gateway.proxy.leg.connection import BUFFER_BYTES, Connection, Untouched
from gateway.proxy.leg.pool import Pool
from gateway.proxy.leg.request import Fixed, Origin, spell

RETRY_AFTER_S = 2


@cache
def default_tls() -> ssl.SSLContext:
    """The system's certificates. One for all: loading them takes a while."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class HttpLeg:
    """One loop's connections to all upstreams."""

    def __init__(self, *, connect_s: float, tls: ssl.SSLContext | None = None) -> None:
        """``connect_s``: for name, address and TLS together."""
        self._connect_s = connect_s
        self._tls = tls or default_tls()
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._pools: dict[Origin, Pool] = {}
        self._is_closed = False

    async def send(
        self,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        fixed: Fixed,
        first_byte_s: float,
        idle_s: float,
        leaving: Callable[[], None],
    ) -> Answer:
        """POST ``body`` under the ``fixed`` headers and these. Raises UpstreamUnreachable, UpstreamTimeout."""
        due_s = self._loop.time() + first_byte_s
        try:
            origin, head = spell(url, fixed, headers, len(body))
        except ValueError as error:
            raise UpstreamUnreachable(retry_after_s=RETRY_AFTER_S) from error
        pool = self.pool(origin)
        connection = pool.take()
        is_kept = connection is not None
        while True:
            if connection is None:
                connection = await self._open(pool, due_s)
            asked = connection.ask(head, body, due_s=due_s, idle_s=idle_s, leaving=leaving)
            try:
                begun = await asked
            except asyncio.CancelledError:
                _end(connection, asked)
                raise
            if isinstance(begun, Answer):
                return begun
            if not (is_kept and isinstance(begun, Untouched)):
                kind = UpstreamTimeout if isinstance(begun, TimeoutError) else UpstreamUnreachable
                raise kind(retry_after_s=RETRY_AFTER_S) from begun
            connection, is_kept = None, False

    def pool(self, origin: Origin) -> Pool:
        """The connections to ``origin``. Raises UpstreamUnreachable when the leg is closed."""
        if origin not in self._pools:
            if self._is_closed:
                raise UpstreamUnreachable
            self._pools[origin] = Pool(origin, self._tls, self._buffer)
        return self._pools[origin]

    async def _open(self, pool: Pool, due_s: float) -> Connection:
        """Raises UpstreamUnreachable."""
        try:
            async with asyncio.timeout_at(min(self._loop.time() + self._connect_s, due_s)):
                return await pool.open()
        except (OSError, ValueError, RuntimeError) as error:
            raise UpstreamUnreachable(retry_after_s=RETRY_AFTER_S) from error

    async def close(self) -> None:
        """End every call and connection."""
        self._is_closed = True
        for pool in self._pools.values():
            await pool.close()
        await asyncio.sleep(0)  # transports tell of their end in the loop's next turn


def _end(connection: Connection, asked: asyncio.Future[Answer | Exception]) -> None:
    """Whoever asked was cancelled: end the call wherever it is."""
    if asked.cancelled():
        connection.abandon()
    elif isinstance(answer := asked.result(), Answer):
        answer.close()  # the connection may be carrying another call by now
