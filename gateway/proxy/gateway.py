"""What every call of this worker shares: the running config, quota, counting, the upstream leg, tracked tasks."""

from __future__ import annotations

from dataclasses import field
from typing import Protocol

from gateway.config.model import Config
from gateway.metrics import Metrics
from gateway.providers.tokens import Counter
from gateway.proxy.alarms import Alarms
from gateway.proxy.breaker import Breakers
from gateway.proxy.upstream import Leg
from gateway.proxy.visit import Tasks
from gateway.quota.callers import Callers
from gateway.quota.service import Quota
from limits.values import dataclass

RETRY_BUDGET_PER_REQUEST = 0.2
RETRY_BUDGET_MAX = 20.0
DRAINS_MAX = 1_000


class Stoppable(Protocol):
    def stop(self) -> None:
        """End at once: the grace time is over."""


@dataclass(slots=True)
class Patience:
    """How long a client may keep us waiting. An idle connection between two requests may stay ``AppRunner``'s time."""

    headers_s: float = 10.0  # from its first byte, or from its opening, to the end of a request's headers
    body_s: float = 30.0  # for the whole body
    send_s: float = 60.0  # without taking a byte of what waits for it


@dataclass(slots=True)
class RetryBudget:
    """Attempts at upstreams stay below 1.2 per request: an outage behind us is not made worse by us."""

    left: float = RETRY_BUDGET_MAX

    def earn(self) -> None:
        if self.left < RETRY_BUDGET_MAX:
            self.left = min(RETRY_BUDGET_MAX, self.left + RETRY_BUDGET_PER_REQUEST)

    def spend(self) -> bool:
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class Gateway:
    """One worker's gateway. ``config`` is replaced as a whole by a reload; a call keeps the one it began with."""

    config: Config
    callers: Callers
    quota: Quota
    counter: Counter
    leg: Leg
    tasks: Tasks
    metrics: Metrics
    retries: RetryBudget = field(default_factory=RetryBudget)
    patience: Patience = field(default_factory=Patience)
    alarms: Alarms = field(default_factory=Alarms)
    breakers: Breakers = field(default_factory=Breakers)
    open: set[Stoppable] = field(default_factory=set)  # admitted calls with an upstream
    draining: bool = False  # SIGTERM came: readiness is off
    drains: int = 0  # answers being read to their end for clients that left
    drains_max: int = DRAINS_MAX
    streams: int = 0

    def count_stream(self, change: int) -> None:
        self.streams += change
        self.metrics.streams_open.set((), self.streams)
