"""Redis' clock, as seen from here: the one clock that leases, windows and deadlines go by."""

from __future__ import annotations

from time import monotonic_ns, time


class ServerClock:
    """Follows the server's time from its replies, on this process' monotonic clock in between."""

    def __init__(self) -> None:
        self._offset_ms = 0
        self.saw(int(time() * 1000))

    def saw(self, server_ms: int) -> None:
        """A reply carried the server's time. A late reply makes us run behind by its delay, never ahead."""
        self._offset_ms = server_ms - monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        return monotonic_ns() // 1_000_000 + self._offset_ms
