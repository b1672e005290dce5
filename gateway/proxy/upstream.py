"""The upstream leg: one request to one provider, its answer in chunks. A narrow interface, so that it can be replaced.

Rules
1. No redirects, no environment proxies, no cookies, TLS verified, no total timeout; a first-byte and an idle one.
2. An idle or abandoned answer is closed: reading then ends with an error, and the connection is not used again.
   Idle is an upstream that we wait for; one that waits for us, because the client is slow, is not.
3. Back-pressure: nothing more is read from the socket while 32 KB wait for us.

``gateway.proxy.leg`` is the one implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class Reply(Protocol):
    """An upstream's answer after its headers."""

    status: int
    headers: Mapping[str, str]  # named in lower case

    async def read(self) -> bytes:
        """The next piece; b"" at an orderly end. Raises UpstreamInterrupted, UpstreamTimeout."""

    def close(self) -> None:
        """Stop: whoever is reading gets UpstreamInterrupted. Idempotent."""


class Leg(Protocol):
    """How requests reach upstreams."""

    async def send(
        self,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        fixed: tuple[tuple[bytes, bytes], ...],
        first_byte_s: float,
        idle_s: float,
        leaving: Callable[[], None],
    ) -> Reply:
        """``fixed`` are the headers that every request to this address brings.

        ``leaving`` is called when the request begins to leave: from then on the provider may have seen it.

        Raises UpstreamUnreachable, UpstreamTimeout."""

    async def close(self) -> None: ...
