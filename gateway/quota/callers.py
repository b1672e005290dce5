"""Who calls: keys and accounts as the database knows them, cached in front of every request.

Rules
1. The cache never decides alone: a caller carries the account's ``rev``, and the reserve script compares it: a revoked
   key or a changed plan counts on the very next call.
2. A service key has no account whose rev would tell: it is asked again after ``SERVICE_FRESH_S``. A suspended account
   never comes to the reserve: Redis is asked for its rev, so that it works again with its next call.
3. While the database is away a known caller stays known for ``STALE_S``; an unknown one gets 503, never 401.
4. The cache is keyed by the full digest, bounded, and holds no key.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import blake2b
from secrets import token_bytes
from typing import Generic, Protocol, TypeVar

from gateway.domain.accounts import Account, AccountStatus, Budget, Caller
from gateway.errors import AccountNotFound, AccountSuspended, InvalidApiKey, QuotaUnavailable, StoreUnavailable
from gateway.quota.keys import KeyHasher, well_formed
from limits.values import dataclass

FRESH_S = 30.0
SERVICE_FRESH_S = 2.0
UNKNOWN_FRESH_S = 1.0
STALE_S = 3600.0
CACHE_ENTRIES_MAX = 100_000
UNKNOWN_ENTRIES_MAX = 1_000

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")


class CallerStore(Protocol):
    """What this module needs from the store."""

    async def caller_by_digest(self, digest: bytes) -> Caller | None: ...

    async def account_by_ref(self, ref: str) -> tuple[Account, tuple[Budget, ...]] | None: ...

    async def user_for(self, account_id: str, external_id: str, *, now_ms: int) -> str | None: ...

    async def team_for(self, account_id: str, ref: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    value: T
    read_at_s: float


class _Cache(Generic[T]):
    """A bounded look-aside cache that serves stale entries while its source is away.

    What is not there is remembered apart, briefly and in small numbers: guessing keys must not push real ones out.
    """

    def __init__(self, read: Callable[[str], Awaitable[T | None]]) -> None:
        self._read = read
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._flights: dict[str, asyncio.Task[T | None]] = {}
        self._is_away = False  # the last read found the source away

    def peek(self, key: str, fresh_s: float) -> T | None:
        """The value when it is known and fresh; no I/O."""
        entry = self._entries.get(key)
        return entry.value if entry is not None and time.monotonic() - entry.read_at_s <= fresh_s else None

    async def get(self, key: str, fresh_s: float) -> T | None:
        """The value, at most ``fresh_s`` old unless its source is away. Raises StoreUnavailable."""
        found = self.peek(key, fresh_s)
        now_s = time.monotonic()
        if found is not None or now_s - self._unknown.get(key, -UNKNOWN_FRESH_S) < UNKNOWN_FRESH_S:
            return found
        stale = self.peek(key, STALE_S) if self._is_away else None
        if stale is not None and self._flights:
            return stale  # somebody is finding out whether the source is back: a hanging one must not delay calls
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(self._fetch(key))
            flight.add_done_callback(lambda _: self._land(key))
        if stale is not None:
            return stale
        return await asyncio.shield(flight)  # one read for all who wait, whoever of them leaves

    def _land(self, key: str) -> None:
        flight = self._flights.pop(key)
        if not flight.cancelled():
            flight.exception()  # told to those who waited; perhaps nobody did

    async def _fetch(self, key: str) -> T | None:
        try:
            value = await self._read(key)
        except StoreUnavailable:
            self._is_away = True
            stale = self.peek(key, STALE_S)
            if stale is None:
                raise
            return stale
        self._is_away = False
        now_s = time.monotonic()
        if value is None:
            self._entries.pop(key, None)
            _put(self._unknown, key, now_s, UNKNOWN_ENTRIES_MAX)
        else:
            _put(self._entries, key, _Entry(value, now_s), CACHE_ENTRIES_MAX)
        return value

    def drop(self, key: str) -> None:
        self._entries.pop(key, None)

    def doubt(self) -> None:
        """Ask again for everything before it is used; what the source cannot tell while it is away stays known."""
        for key, entry in self._entries.items():
            self._entries[key] = replace(entry, read_at_s=entry.read_at_s - FRESH_S)
        self._unknown.clear()


def _put(entries: OrderedDict[K, V], key: K, value: V, entries_max: int) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > entries_max:
        entries.popitem(last=False)


class Callers:
    """Authentication: from the text of a key to a caller with an account that may call."""

    def __init__(
        self,
        store: CallerStore,
        hasher: KeyHasher,
        now_ms: Callable[[], int],
        *,
        moved_on: Callable[[Account], Awaitable[bool]] | None = None,
    ) -> None:
        """``moved_on``: whether an account has another rev by now."""
        self._store = store
        self._moved_on = moved_on
        self._hasher = hasher
        self._now_ms = now_ms
        self._keys: _Cache[Caller] = _Cache(lambda digest: store.caller_by_digest(bytes.fromhex(digest)))
        self._accounts: _Cache[tuple[Account, tuple[Budget, ...]]] = _Cache(store.account_by_ref)
        self._members: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._mark = blake2b(key=token_bytes(32), digest_size=32)  # of this process alone
        self._digests: OrderedDict[bytes, str] = OrderedDict()  # by a cheaper hash, so that a known key costs only that

    async def by_key(self, key: str, *, account_ref: str | None = None, fresh_s: float = FRESH_S) -> Caller:
        """``fresh_s``: how old what is remembered may be. Raises InvalidApiKey, AccountNotFound, AccountSuspended,
        StoreUnavailable."""
        digest = self._digest(key)
        caller = self._keys.peek(digest, fresh_s)
        is_plain = False
        if caller is not None and caller.account is not None and caller.account.status is AccountStatus.ACTIVE:
            is_plain = account_ref is None  # nearly always: an active account's own key, and nothing more
        else:
            caller = await self._asked(digest, fresh_s)
        if caller is None or (caller.expires_at_ms and caller.expires_at_ms <= self._now_ms()):
            raise InvalidApiKey
        return caller if is_plain else await self.naming(caller, account_ref, fresh_s=fresh_s)

    async def _asked(self, digest: str, fresh_s: float) -> Caller | None:
        """A caller that is not known, or of whom it must be known well."""
        caller = await self._keys.get(digest, fresh_s)
        if caller is not None and caller.service:
            return await self._keys.get(digest, min(fresh_s, SERVICE_FRESH_S))
        if caller is not None and caller.account is not None and _suspended(caller):
            return await self._keys.get(digest, min(fresh_s, await self._fresh_s(caller.account)))
        return caller

    async def naming(self, caller: Caller, account_ref: str | None, *, fresh_s: float = FRESH_S) -> Caller:
        """The caller acting for this account. Raises AccountNotFound, AccountSuspended, StoreUnavailable."""
        caller = await self._with_account(caller, account_ref, fresh_s)
        if _suspended(caller):
            raise AccountSuspended
        return caller

    async def again(self, key: str, *, stale: Caller, account_ref: str | None = None) -> Caller:
        """After ``Reauth``: forget the caller that proved stale, unless somebody has asked the database since."""
        known = self._keys.peek(self._digest(key), FRESH_S)
        if known is not None and not known.service and _rev(known) == _rev(stale):
            self._keys.drop(self._digest(key))
        if account_ref is not None:
            found = self._accounts.peek(account_ref, FRESH_S)
            if found is not None and found[0].rev == _rev(stale):
                self._accounts.drop(account_ref)
        return await self.by_key(key, account_ref=account_ref)

    def doubt(self) -> None:
        """Ask the database again about everybody, as far as it is there (a reload of the config)."""
        self._keys.doubt()
        self._accounts.doubt()

    async def _fresh_s(self, suspended: Account) -> float:
        """How old may be what is known of a suspended account: nothing, once Redis knows of a change."""
        if self._moved_on is None:
            return SERVICE_FRESH_S
        try:
            return 0.0 if await self._moved_on(suspended) else SERVICE_FRESH_S
        except QuotaUnavailable:
            return SERVICE_FRESH_S

    async def with_user(self, caller: Caller, external_user: str | None, team_ref: str | None) -> Caller:
        """Bind the named user and team, when the key itself is bound to none. A user is created on first sight."""
        account = caller.account
        assert account is not None, "users belong to an account"
        if external_user and caller.user_id is None:
            caller = replace(caller, user_id=await self._member(account.id, "user", external_user))
        if team_ref and caller.team_id is None:
            caller = replace(caller, team_id=await self._member(account.id, "team", team_ref))
        return caller

    async def _member(self, account_id: str, kind: str, ref: str) -> str | None:
        """The member's id. Nobody is ever renamed or removed, so that what was found once stays true."""
        known = self._members.get((account_id, kind, ref))
        if known is not None:
            return known
        if kind == "user":
            found = await self._store.user_for(account_id, ref, now_ms=self._now_ms())
        else:
            found = await self._store.team_for(account_id, ref)
        if found is not None:
            _put(self._members, (account_id, kind, ref), found, CACHE_ENTRIES_MAX)
        return found

    async def _with_account(self, caller: Caller, account_ref: str | None, fresh_s: float) -> Caller:
        """Which account this call is for. Only a service key may name a foreign one."""
        if not caller.service:
            assert caller.account is not None, "only a service key has no account"
            if account_ref not in (None, caller.account.id, caller.account.external_id):
                raise AccountNotFound
            return caller
        if account_ref is None:
            return caller
        found = self._accounts.peek(account_ref, fresh_s) or await self._accounts.get(account_ref, fresh_s)
        if found is not None and found[0].status is AccountStatus.SUSPENDED:
            found = await self._accounts.get(account_ref, min(fresh_s, await self._fresh_s(found[0])))
        if found is None:
            raise AccountNotFound
        account, budgets = found
        return replace(caller, account=account, budgets=budgets)

    def _digest(self, key: str) -> str:
        """Raises InvalidApiKey."""
        marking = self._mark.copy()
        marking.update(key.encode("utf-8", "surrogateescape"))
        mark = marking.digest()
        digest = self._digests.get(mark)
        if digest is None:
            if not well_formed(key):
                raise InvalidApiKey
            digest = self._hasher.digest(key).hex()
            _put(self._digests, mark, digest, CACHE_ENTRIES_MAX)
        return digest


def _rev(caller: Caller) -> int | None:
    return caller.account.rev if caller.account is not None else None


def _suspended(caller: Caller) -> bool:
    return caller.account is not None and caller.account.status is AccountStatus.SUSPENDED
