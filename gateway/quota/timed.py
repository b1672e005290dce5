"""A client whose round trips are timed: what Redis and the way to it cost, script by script."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from gateway.metrics import Metrics
from limits.client import Argument, Client, Script


class TimedClient:
    """Passes everything on. A time ends when this worker comes to read the answer: what its own loop adds is in it."""

    def __init__(self, client: Client, metrics: Metrics) -> None:
        self._client = client
        self._evalsha = client.evalsha
        self._observe = metrics.redis_seconds.observe

    @property
    def up(self) -> bool:
        return self._client.up

    async def evalsha(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Argument], *, timeout_s: float | None = None
    ) -> Any:
        """A call that failed is timed too: a time-out shows as what it is."""
        began_s = perf_counter()
        try:
            return await self._evalsha(script, keys, args, timeout_s=timeout_s)
        finally:
            self._observe((script.name,), perf_counter() - began_s)

    async def execute(self, *args: Argument, key: bytes | None = None, timeout_s: float | None = None) -> Any:
        return await self._client.execute(*args, key=key, timeout_s=timeout_s)

    async def close(self) -> None:
        await self._client.close()
