"""An answer that has begun: what its reader holds, and its connection fills.

Rules
1. What came before a break is given before the break is told.
2. An answer lets go of its connection when it ends: closing it late cannot touch the connection's next call.
3. One reader at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from gateway.errors import UpstreamInterrupted, UpstreamTimeout


class Source(Protocol):
    """What an answer wants of its connection."""

    def wait_for_more(self) -> asyncio.Future[None]:
        """For the answer's ``waiter``; the upstream is idle from now on."""

    def resume(self) -> None:
        """Read on."""

    def abandon(self) -> None:
        """Nobody wants the rest."""


class Answer:
    """``gateway.proxy.upstream.Reply``. The connection writes the attributes without an underscore."""

    __slots__ = (
        "_is_closed",
        "cause",
        "headers",
        "is_broken",
        "is_paused",
        "pieces",
        "source",
        "status",
        "unread_bytes",
        "waiter",
    )

    def __init__(self, source: Source, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers: Mapping[str, str] = headers
        self.source: Source | None = source  # None: nothing more comes
        self.pieces: list[bytes] = []
        self.unread_bytes = 0  # as they came, framing included
        self.is_paused = False
        self.is_broken = False
        self.cause: Exception | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    async def read(self) -> bytes:
        """All that waits, or the next piece; b"" at an orderly end. Raises UpstreamInterrupted, UpstreamTimeout."""
        pieces = self.pieces
        if not pieces and self.source is not None:
            waiter = self.waiter = self.source.wait_for_more()
            try:
                await waiter
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                self.waiter = None
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self.unread_bytes = 0
            if self.is_paused and self.source is not None:
                self.is_paused = False
                self.source.resume()
            return data
        if self.is_broken:
            error = UpstreamTimeout() if isinstance(self.cause, TimeoutError) else UpstreamInterrupted()
            raise error from self.cause
        return b""

    def close(self) -> None:
        """Stop: whoever is reading gets UpstreamInterrupted. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = self.is_broken = True
        self.pieces.clear()
        source, self.source = self.source, None
        if source is not None:
            self.wake()
            source.abandon()

    def end(self) -> None:
        """It is whole."""
        self.source = None
        if self.waiter is not None:
            self.wake()

    def break_off(self, cause: Exception | None) -> None:
        """Nothing more comes, and it is not whole."""
        self.is_broken = True
        self.cause = self.cause or cause
        self.end()

    def wake(self) -> None:
        """Tell the reader."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
