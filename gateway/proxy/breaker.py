"""Circuit breakers: an upstream that keeps failing is left alone for a while, so that calls need not wait for it.

    closed ── FAILURES_MAX in a row within WITHIN_S ──▶ open ── OPEN_S later ──▶ half open ── a success ──▶ closed
                                                          ▲                         │
                                                          └───────── a failure ─────┘

Rules
1. A failure is no answer (no connection, a time-out) or a 5xx. Any other answer is a success: 429 and 4xx say that
   somebody is there.
2. Half open lets one call through, the probe. What becomes of it decides; a probe that was given up decides nothing,
   and one that takes longer than ``OPEN_S`` is not waited for.
3. Only calls that began in the present state count: what an older one comes to says nothing about now.

Pure: no I/O, and the clock is given. One breaker per upstream and worker; workers do not tell each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NewType

FAILURES_MAX = 5
WITHIN_S = 30.0
OPEN_S = 10.0

Permit = NewType("Permit", int)  # the state's number at the time when a call was let through


class State(IntEnum):
    """As the metric tells it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """One upstream's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._number = 0  # of the present state; a permit of another number is old
        self._failed_at_s: deque[float] = deque(maxlen=FAILURES_MAX)  # in a row
        self._opened_at_s: float | None = None  # None: closed
        self._probed_at_s: float | None = None  # None: no probe is under way

    @property
    def state(self) -> State:
        if self._opened_at_s is None:
            return State.CLOSED
        return State.OPEN if self._clock() - self._opened_at_s < OPEN_S else State.HALF_OPEN

    def enter(self) -> Permit | None:
        """Ask to call; None: not now. A permit is to be given back by exactly one of the three verbs below."""
        if self._opened_at_s is None:
            return Permit(self._number)
        now_s = self._clock()
        if self.state is State.OPEN or (self._probed_at_s is not None and now_s - self._probed_at_s < OPEN_S):
            return None
        self._probed_at_s = now_s
        self._number += 1
        return Permit(self._number)

    def wait_s(self) -> float:
        """How long an open one stays open; 0 when a call may be let through, or as soon as its probe has ended."""
        return 0.0 if self._opened_at_s is None else max(0.0, self._opened_at_s + OPEN_S - self._clock())

    def succeeded(self, permit: Permit) -> bool:
        """The upstream answered; True when that closed the breaker."""
        if permit != self._number:
            return False
        if self._failed_at_s:
            self._failed_at_s.clear()
        return self._opened_at_s is not None and self._move(None)

    def failed(self, permit: Permit) -> bool:
        """It did not, or with a 5xx; True when that opened the breaker."""
        if permit != self._number:
            return False
        now_s = self._clock()
        self._failed_at_s.append(now_s)
        in_a_row = len(self._failed_at_s) == FAILURES_MAX and now_s - self._failed_at_s[0] <= WITHIN_S
        return (self._opened_at_s is not None or in_a_row) and self._move(now_s)

    def gave_up(self, permit: Permit) -> None:
        """Nobody waited for the upstream's answer: nothing was learned."""
        if permit == self._number:
            self._probed_at_s = None

    def _move(self, opened_at_s: float | None) -> bool:
        """Into the next state."""
        self._number += 1
        self._opened_at_s, self._probed_at_s = opened_at_s, None
        self._failed_at_s.clear()
        return True


class Breakers:
    """One worker's, by the upstream's name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Breaker] = {}

    def of(self, upstream: str) -> Breaker:
        if upstream not in self._known:
            self._known[upstream] = Breaker(self._clock)
        return self._known[upstream]

    def states(self, upstreams: Iterable[str]) -> dict[str, State]:
        return {name: self.of(name).state for name in upstreams}
