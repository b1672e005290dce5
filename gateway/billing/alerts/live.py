"""Live events: what happens to an account, told to whoever listens on this worker while it happens.

Rules
1. All listeners of a worker share one query a second, which tails the alerts' table, and one look at Redis for the
   balances of the accounts listened for; an account is read when it has changed. Nobody listens: nothing is asked.
2. On PostgreSQL a smaller id may become visible after a larger one: the tail reads the last ``OVERLAP_S`` again and
   tells each id once.
3. Listeners are bounded, per account and per worker, and so is what waits for one: whoever does not read is closed, and
   finds what it missed by its last id.
4. A balance is told when it changed, and is no event of the past: it has no id.

Not here: HTTP (``billing.http.events``).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.billing.views import exactly, quantity, when
from gateway.domain import alerts, turns
from gateway.domain.accounts import Account, Subscription
from gateway.domain.plans import UNLIMITED, Catalog
from gateway.domain.units import Meter, is_endless
from gateway.errors import AccountNotFound, QuotaUnavailable, StoreUnavailable, TooManyListeners
from gateway.quota.states import AccountView, States
from gateway.store.accounts import Accounts
from gateway.store.alerts import Alert, Alerts

log = logging.getLogger(__name__)

TAIL_S: Final = 1.0
OVERLAP_S: Final = 10.0
OVERLAP_IDS: Final = 2_000
PER_ACCOUNT_MAX: Final = 10
PER_WORKER_MAX: Final = 1_000
WAITING_MAX: Final = 100
RESUMED_MAX: Final = 1_000
PAGE: Final = 1_000
BALANCE: Final = "balance"
_EVENTS: Final[Mapping[str, str]] = {
    alerts.THRESHOLD: "warning",
    alerts.LOW_BALANCE: "warning",
    alerts.TRIAL_ENDING: "warning",
    alerts.REFUSED: "refused",
}


@dataclass(frozen=True, slots=True)
class Event:
    """``name``: balance | warning | refused | alert. ``id`` None: nothing to resume from."""

    name: str
    data: Mapping[str, Any]
    id: int | None = None


@dataclass(slots=True, eq=False)
class Listener:
    """Somebody who listens for one account: take from ``next`` until it answers None."""

    account_id: str
    waiting: deque[Event] = field(default_factory=deque)
    closed: bool = False
    balance: Mapping[str, Any] | None = None  # as told last
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: Event) -> None:
        if len(self.waiting) >= WAITING_MAX:
            self.close()
            return
        self.waiting.append(event)
        self._came.set()

    def close(self) -> None:
        self.closed = True
        self._came.set()

    async def next(self) -> Event | None:
        """The next event; None when it is over."""
        while not self.waiting and not self.closed:
            self._came.clear()
            await self._came.wait()
        return None if self.closed else self.waiting.popleft()


def event_of(alert: Alert) -> Event:
    words = alerts.words_of(alert.kind, alert.detail)
    data = {
        "id": alert.id,
        "kind": alert.kind,
        "at": exactly(alert.created_at_ms),
        "title": words.title,
        "text": words.text,
        "detail": dict(alert.detail),
    }
    return Event(_EVENTS.get(alert.kind, "alert"), data, alert.id)


class LiveEvents:
    """One worker's listeners, and what they are told."""

    def __init__(self, store: Alerts, states: States, accounts: Accounts, catalog: Callable[[], Catalog]) -> None:
        self._store = store
        self._states = states
        self._accounts = accounts
        self._read: dict[str, Account] = {}  # those listened for, as they were read last
        self._catalog = catalog
        self._listeners: dict[str, list[Listener]] = {}
        self._wanted = asyncio.Event()
        self._ended = False
        self._floor: int | None = None  # None: nobody tails yet
        self._seen: set[int] = set()
        self._past: deque[tuple[float, int]] = deque()  # (when, largest id then)

    def __len__(self) -> int:
        return sum(len(listeners) for listeners in self._listeners.values())

    async def listen(self, account_id: str) -> Listener:
        """From now on. Raises TooManyListeners, StoreUnavailable."""
        if self._ended or len(self) >= PER_WORKER_MAX or len(self._listeners.get(account_id, ())) >= PER_ACCOUNT_MAX:
            raise TooManyListeners(retry_after_s=5)
        if self._floor is None:
            await self._begin()
        listener = Listener(account_id)
        self._listeners.setdefault(account_id, []).append(listener)
        self._wanted.set()
        return listener

    def leave(self, listener: Listener) -> None:
        mine = self._listeners.get(listener.account_id, [])
        if listener in mine:
            mine.remove(listener)
        if not mine:
            self._listeners.pop(listener.account_id, None)
            self._read.pop(listener.account_id, None)

    async def missed(self, account_id: str, last_id: int) -> list[Event]:
        """What was told behind an id; at most ``RESUMED_MAX``. Raises StoreUnavailable."""
        found = await self._store.since(last_id, account_id=account_id, limit=RESUMED_MAX)
        return [event_of(alert) for alert in found]

    async def balance(self, account_id: str) -> Event:
        """Raises QuotaUnavailable, StoreUnavailable, AccountNotFound."""
        catalog = self._catalog()
        view = await self._states.view(account_id, tuple(catalog.meters))
        return Event(BALANCE, balance_of(view, catalog, await self._subscription(account_id, view.rev)))

    def close(self) -> None:
        """The worker ends: so do all who listen."""
        self._ended = True
        for listener in [each for some in self._listeners.values() for each in some]:
            listener.close()

    async def run(self) -> None:
        """Tail until cancelled; what is away makes it wait."""
        while True:
            if not self._listeners:
                self._floor = None  # the next one begins anew
                self._wanted.clear()
                await self._wanted.wait()
            await asyncio.sleep(TAIL_S)
            try:
                await self.look()
            except (StoreUnavailable, QuotaUnavailable) as error:
                log.debug("live events wait: %s", error.code)

    async def look(self) -> None:
        """One round: what is new, then the balances. Raises StoreUnavailable, QuotaUnavailable."""
        await self._tail()
        await self._balances()

    async def _begin(self) -> None:
        newest = await self._store.newest()
        floor = max(0, newest - OVERLAP_IDS)
        seen = {alert.id for alert in await self._store.since(floor, limit=OVERLAP_IDS)}
        if self._floor is None:
            self._floor, self._seen, self._past = floor, seen, deque()

    async def _tail(self) -> None:
        if self._floor is None:
            return
        after, new = self._floor, []
        while page := await self._store.since(after, limit=PAGE):
            new += [alert for alert in page if alert.id not in self._seen]
            after = page[-1].id
            if len(page) < PAGE:
                break
        for alert in new:
            for listener in tuple(self._listeners.get(alert.account_id, ())):
                listener.put(event_of(alert))
        self._seen.update(alert.id for alert in new)
        self._raise_floor(after)

    def _raise_floor(self, newest: int) -> None:
        """What is older than the overlap is not read again."""
        now_s = asyncio.get_running_loop().time()
        self._past.append((now_s, newest))
        assert self._floor is not None, "somebody tails"
        floor = max(self._floor, newest - OVERLAP_IDS)
        while self._past and self._past[0][0] <= now_s - OVERLAP_S:
            floor = max(floor, self._past.popleft()[1])
        if floor > self._floor:
            self._floor = floor
            self._seen = {each for each in self._seen if each > floor}

    async def _balances(self) -> None:
        """Of all accounts listened for, in one write to Redis; those it does not have are loaded, one by one."""
        catalog = self._catalog()
        wallets, accounts = tuple(catalog.meters), tuple(self._listeners)
        views = await self._states.loaded(accounts, wallets) if accounts else {}
        for account_id in accounts:
            try:
                view = views.get(account_id) or await self._states.view(account_id, wallets)
                subscription = await self._subscription(account_id, view.rev)
            except AccountNotFound:
                continue
            data = balance_of(view, catalog, subscription)
            for listener in tuple(self._listeners.get(account_id, ())):
                if listener.balance != data:
                    listener.balance = data
                    listener.put(Event(BALANCE, data))

    async def _subscription(self, account_id: str, rev: int) -> Subscription:
        """Of the account at this rev or a later one. Raises AccountNotFound, StoreUnavailable."""
        account = self._read.get(account_id)
        if account is None or account.rev < rev:
            account = await self._accounts.by_ref(account_id)
            if account is None:
                raise AccountNotFound
            if account_id in self._listeners:
                self._read[account_id] = account
        return account.subscription


def balance_of(view: AccountView, catalog: Catalog, subscription: Subscription) -> dict[str, Any]:
    """Each wallet as its account's next call would find it."""
    wallets = []
    for wallet, grants in view.wallets:
        open_ = [
            grant
            for grant in grants
            if grant.starts_at_ms <= view.server_ms and not 0 < grant.expires_at_ms <= view.server_ms
        ]
        meter = catalog.meters.get(wallet.wallet)
        wallets.append(
            {
                "wallet": wallet.wallet,
                "available": _amount(meter, wallet.available),
                "held": _amount(meter, sum(grant.held for grant in open_)),
                "used": _amount(meter, sum(grant.counted + grant.pending for grant in open_)),
                "granted": _amount(meter, sum(grant.amount for grant in open_)),
                "resets_at": when(turns.resets_at_ms(catalog, subscription, wallet.wallet)),
            }
        )
    return {"wallets": wallets}


def _amount(meter: Meter | None, steps: int) -> str:
    return UNLIMITED if is_endless(steps) else quantity(meter, steps)
