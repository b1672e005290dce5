"""Accounts that use unusually much: rapidly, or more than they used to. By the holder of the reaper's lease.

Rules
1. What is judged are charges as the database has them, ``LAG_MS`` late: by then every worker's batch has arrived.
2. Nothing is asked of the database unless the config has a rule.
3. A new holder reads the last ``per`` again: what it finds told already is told.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from gateway.domain import alerts, tidings
from gateway.domain.alerts import RapidUse, Spike
from gateway.domain.plans import Catalog
from gateway.store.alerts import NewAlert
from gateway.store.use_slices import Compared, Uses

LAG_MS: Final = 2_000
SPIKES_EVERY_LOOKS: Final = 5
GAP_MAX_MS: Final = 10_000  # a longer pause: somebody else held the lease
REMEMBERED_MAX: Final = 100_000


class UseStore(Protocol):
    async def uses(self, *, from_ms: int, to_ms: int) -> Sequence[Uses]: ...

    async def advance(self, *, slice_ms: int, slices: int, to_ms: int) -> Sequence[Compared]: ...


class UseWatch:
    """One look a second."""

    def __init__(self, store: UseStore, *, catalog: Callable[[], Catalog]) -> None:
        self._store = store
        self._catalog = catalog
        self._until_ms = 0  # uses before this are in the windows
        self._windows: OrderedDict[tuple[str, str | None], deque[tuple[int, int]]] = OrderedDict()
        self._told: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._looks = 0

    async def look(self, now_ms: int) -> list[NewAlert]:
        """What is to be told. Raises StoreUnavailable."""
        self._looks += 1
        rules, found = self._catalog().alerts, []
        if rules.rapid_use is not None:
            found += await self._rapid(rules.rapid_use, now_ms)
        if rules.spike is not None and self._looks % SPIKES_EVERY_LOOKS == 1:
            found += await self._spikes(rules.spike, now_ms)
        return [new for new in found if self._is_new(new)]

    def _is_new(self, new: NewAlert) -> bool:
        """As far as this worker remembers: what goes on need not be written again and again."""
        about = (new.account_id, new.kind, new.key)
        is_new = about not in self._told
        self._told[about] = None
        if len(self._told) > REMEMBERED_MAX:
            self._told.popitem(last=False)
        return is_new

    async def _rapid(self, rule: RapidUse, now_ms: int) -> list[NewAlert]:
        to_ms, per_ms = now_ms - LAG_MS, rule.per_s * 1000
        if to_ms - self._until_ms > GAP_MAX_MS:
            self._windows.clear()
            self._until_ms = to_ms - per_ms
        found = []
        for uses in await self._store.uses(from_ms=self._until_ms, to_ms=to_ms):
            about = (uses.account_id, uses.user_id)
            window = self._windows.setdefault(about, deque())
            self._windows.move_to_end(about)
            window.append((uses.at_s, uses.calls))
        self._until_ms = to_ms
        for about, window in list(self._windows.items()):
            while window and window[0][0] * 1000 <= to_ms - per_ms:
                window.popleft()
            if not window:
                del self._windows[about]
            elif sum(calls for _, calls in window) > rule.uses:
                found.append(rapid_use(rule, *about, now_ms))
        while len(self._windows) > REMEMBERED_MAX:
            self._windows.popitem(last=False)
        return found

    async def _spikes(self, rule: Spike, now_ms: int) -> list[NewAlert]:
        slices = alerts.SPIKE_SLICES
        compared = await self._store.advance(slice_ms=rule.slice_ms, slices=slices, to_ms=now_ms - LAG_MS)
        catalog = self._catalog()
        return [
            NewAlert(
                each.account_id,
                alerts.SPIKE,
                f"{each.wallet}:{each.starts_at_ms}",
                tidings.spike(
                    catalog,
                    each.wallet,
                    used=each.recent,
                    usual=each.past // slices,
                    since_ms=each.starts_at_ms,
                    calls=each.calls,
                ),
                now_ms,
            )
            for each in compared
            if alerts.is_spike(rule, recent=each.recent, calls=each.calls, past=each.past)
        ]


def rapid_use(rule: RapidUse, account_id: str, user_id: str | None, now_ms: int) -> NewAlert:
    day = datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
    detail = {"uses": str(rule.uses), "per_seconds": str(rule.per_s), "user": user_id}
    return NewAlert(account_id, alerts.RAPID_USE, f"{user_id or '-'}:{day}", detail, now_ms)
