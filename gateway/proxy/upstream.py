"""The upstream leg: one request to one provider, its answer in chunks. A narrow interface, so that it can be replaced.

Rules
1. No redirects, no environment proxies, no cookies, TLS verified, no total timeout; a first-byte and an idle one.
2. An idle or abandoned answer is closed: reading then ends with an error, and the connection is not used again.
3. Back-pressure: aiohttp stops reading the socket when 128 KB wait for us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import aiohttp

from gateway.errors import TollgateError, UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable

_READ_BUFFER_BYTES = 65_536


class Reply(Protocol):
    """An upstream's answer after its headers."""

    status: int
    headers: Mapping[str, str]

    async def read(self) -> bytes:
        """The next piece; b"" at an orderly end. Raises UpstreamInterrupted, UpstreamTimeout."""

    def close(self) -> None:
        """Stop: whoever is reading gets UpstreamInterrupted. Idempotent."""


class Leg(Protocol):
    """How requests reach upstreams."""

    async def send(
        self, url: str, headers: Mapping[str, str], body: bytes, *, first_byte_s: float, idle_s: float
    ) -> Reply:
        """Raises UpstreamUnreachable, UpstreamTimeout."""

    async def close(self) -> None: ...


class _AiohttpReply:
    def __init__(self, response: aiohttp.ClientResponse, idle_s: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._content = response.content
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._last_s = self._loop.time()
        self._timed_out = False
        self._closed = False
        self._timer = self._loop.call_at(self._last_s + idle_s, self._check_idle)

    async def read(self) -> bytes:
        self._last_s = self._loop.time()
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, OSError, EOFError) as error:
            raise self._failure() from error
        if not chunk:
            self._timer.cancel()
            if self._closed:
                raise self._failure()
        return chunk

    def close(self) -> None:
        self._timer.cancel()
        if not self._closed:
            self._closed = True
            self._response.close()
            if self._content.exception() is None and not self._content.is_eof():
                self._content.set_exception(aiohttp.ClientConnectionError("closed"))

    def _failure(self) -> TollgateError:
        self._timer.cancel()
        return UpstreamTimeout() if self._timed_out else UpstreamInterrupted()

    def _check_idle(self) -> None:
        """One timer per answer, moved only when it fires: a chunk costs no timer."""
        due_s = self._last_s + self._idle_s
        if due_s > self._loop.time():
            self._timer = self._loop.call_at(due_s, self._check_idle)
            return
        self._timed_out = True
        self.close()


class AiohttpLeg:
    """The leg over aiohttp's client."""

    def __init__(self, *, connect_s: float) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            read_bufsize=_READ_BUFFER_BYTES,
        )

    async def send(
        self, url: str, headers: Mapping[str, str], body: bytes, *, first_byte_s: float, idle_s: float
    ) -> Reply:
        try:
            async with asyncio.timeout(first_byte_s):
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ConnectionTimeoutError as error:
            raise UpstreamUnreachable(retry_after_s=2) from error
        except TimeoutError as error:
            raise UpstreamTimeout(retry_after_s=2) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UpstreamUnreachable(retry_after_s=2) from error
        return _AiohttpReply(response, idle_s)

    async def close(self) -> None:
        await self._session.close()
