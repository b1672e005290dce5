"""Where a call's time goes: our own, stage by stage, and its provider's.

Rules
1. A stage is what we do ourselves, and what we ask of Redis, SQL and the network for it. Time that the client takes (a
   body under way, a slow reader) or the provider takes belongs to none.
2. The total is the sum of a forwarded call's stages to the end of its answer. Settling comes after, and delays nobody.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

from gateway.metrics import Metrics

AUTHENTICATE: Final = ("authenticate",)
PARSE: Final = ("parse",)
COUNT: Final = ("count",)
RESERVE: Final = ("reserve",)
# Until the request leaves: its body written anew where needed, a connection found or made.
CONNECT: Final = ("connect",)
RELAY: Final = ("relay",)  # chunks scanned and passed on, a whole answer priced
SETTLE: Final = ("settle",)
TOTAL: Final = ("total",)


class Laps:
    """One call's stopwatch."""

    __slots__ = ("_metrics", "_own_s", "_since_s", "began_s", "relay_s", "stalled_s")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.began_s = self._since_s = perf_counter()
        self._own_s = 0.0
        self.relay_s = 0.0  # added to by whoever relays
        self.stalled_s = 0.0  # of it: while the client's socket was full

    def lap(self, stage: tuple[str]) -> None:
        """A stage ends here; it began where the last one ended."""
        now_s = perf_counter()
        spent_s = now_s - self._since_s
        self._metrics.overhead.observe(stage, spent_s)
        self._own_s += spent_s
        self._since_s = now_s

    def restart(self) -> None:
        """What was since the last lap was not ours."""
        self._since_s = perf_counter()

    def provider(self, upstream: str) -> None:
        """An attempt ends here that left at the last lap: what was neither ours nor the client's was the provider's."""
        now_s = perf_counter()
        self._metrics.upstream_seconds.observe((upstream,), now_s - self._since_s - self.relay_s)
        self._since_s = now_s

    def answered(self) -> None:
        """The answer has ended, or there is none."""
        relay_s = self.relay_s - self.stalled_s if self.relay_s > self.stalled_s else 0.0
        if self.relay_s:
            self._metrics.overhead.observe(RELAY, relay_s)
        self._metrics.overhead.observe(TOTAL, self._own_s + relay_s)

    def first_byte(self, model: str) -> None:
        """The upstream began to answer."""
        self._metrics.first_byte.observe((model,), perf_counter() - self.began_s)
