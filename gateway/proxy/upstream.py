"""The upstream leg: one request to one provider, its answer in chunks. A narrow interface, so that it can be replaced.

Rules
1. No redirects, no environment proxies, no cookies, TLS verified, no total timeout; a first-byte and an idle one.
2. An idle or abandoned answer is closed: reading then ends with an error, and the connection is not used again.
   Idle is an upstream that we wait for; one that waits for us, because the client is slow, is not.
3. Back-pressure: aiohttp stops reading the socket when 128 KB wait for us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

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
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        first_byte_s: float,
        idle_s: float,
        leaving: Callable[[], None],
    ) -> Reply:
        """``leaving`` is called when the request begins to leave: from then on the provider may have seen it.

        Raises UpstreamUnreachable, UpstreamTimeout."""

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
        self._reading = False
        self._timed_out = False
        self._closed = False
        self._timer = self._loop.call_at(self._last_s + idle_s, self._check_idle)

    async def read(self) -> bytes:
        self._last_s = self._loop.time()
        self._reading = True
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, OSError, EOFError) as error:
            raise self._failure() from error
        finally:
            self._reading = False
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
        now_s = self._loop.time()
        due_s = (self._last_s if self._reading else now_s) + self._idle_s
        if due_s > now_s:
            self._timer = self._loop.call_at(due_s, self._check_idle)
            return
        self._timed_out = True
        self.close()


class _Body(aiohttp.Payload):
    """A request's body that says when it leaves."""

    _autoclose = True  # nothing to close: bytes in memory

    def __init__(self, value: bytes, leaving: Callable[[], None]) -> None:
        super().__init__(value, content_type="application/json")
        self._size = len(value)
        self._leaving = leaving

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a prompt is not for reading")  # aiohttp would, for a debugger's eyes

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._leaving()
        await writer.write(self._value)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)


class AiohttpLeg:
    """The leg over aiohttp's client."""

    def __init__(self, *, connect_s: float) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_s),  # name, address and TLS
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            read_bufsize=_READ_BUFFER_BYTES,
        )

    async def send(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        first_byte_s: float,
        idle_s: float,
        leaving: Callable[[], None],
    ) -> Reply:
        try:
            async with asyncio.timeout(first_byte_s):
                response = await self._session.post(
                    URL(url, encoded=True), data=_Body(body, leaving), headers=headers, allow_redirects=False
                )
        except aiohttp.ConnectionTimeoutError as error:
            raise UpstreamUnreachable(retry_after_s=2) from error
        except TimeoutError as error:
            raise UpstreamTimeout(retry_after_s=2) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UpstreamUnreachable(retry_after_s=2) from error
        return _AiohttpReply(response, idle_s)

    async def close(self) -> None:
        await self._session.close()
