"""One client's visit: the request it sent, the answer it waits for, and whether it is still there.

The call itself runs as a task of its own, so that a client that leaves cancels its visit and never the accounting.

Rules
1. The answer is given exactly once; what happens after it (settling) delays nobody.
2. Leaving is an event that the call is told of; it never interrupts an await of the call by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiohttp import web

from gateway.proxy.laps import Laps
from limits.values import dataclass

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer in one piece. Each header is there once, and printable; ``content-type`` in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def response(self) -> web.Response:
        """For aiohttp to write."""
        return web.Response(status=self.status, body=self.body, headers=self.headers)


class Visit:
    """The client's side of one call."""

    __slots__ = ("_give", "_on_leave", "call", "is_answered", "laps", "left", "request")

    def __init__(
        self, request: web.BaseRequest, laps: Laps, give: Callable[[Whole | web.StreamResponse], None]
    ) -> None:
        self.request = request
        self.laps = laps
        self.call: asyncio.Task[None] | None = None  # the call itself, once it has begun
        self.left = False
        self.is_answered = False
        self._give = give
        self._on_leave: Callable[[], None] | None = None

    def answer(self, response: Whole | web.StreamResponse) -> None:
        """The answer is complete (or its streaming is)."""
        if not self.is_answered:
            self.is_answered = True
            self._give(response)

    def when_left(self, tell: Callable[[], None] | None) -> None:
        """What to do at the moment the client leaves; at once if it has left already."""
        self._on_leave = tell
        if self.left and tell is not None:
            tell()

    def leave(self) -> None:
        """The client is gone."""
        if not self.left:
            self.left = True
            if self._on_leave is not None:
                self._on_leave()


class Tasks:
    """Tracked tasks: nothing that settles a charge is ever garbage-collected or forgotten at shutdown."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def drained(self, timeout_s: float) -> bool:
        """Wait for all of them; False when some were still running at the end of the time."""
        if not self._running:
            return True
        _, pending = await asyncio.wait(self._running, timeout=timeout_s)
        return not pending
