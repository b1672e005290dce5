"""Who calls: keys and accounts as the database knows them, cached in front of every request.

Rules
1. The cache never decides alone: a caller carries the account's ``rev``, and the reserve script compares it: a revoked
   key or a changed plan counts on the very next call.
2. A service key has no account whose rev would tell: it is asked again after ``SERVICE_FRESH_S``.
3. While the database is away a known caller stays known for ``STALE_S``; an unknown one gets 503, never 401.
4. The cache is keyed by the full digest, bounded, and holds no key.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from gateway.domain.accounts import Account, AccountStatus, Budget, Caller
from gateway.errors import AccountNotFound, AccountSuspended, InvalidApiKey, StoreUnavailable
from gateway.quota.keys import KeyHasher, well_formed

FRESH_S = 30.0
SERVICE_FRESH_S = 2.0
UNKNOWN_FRESH_S = 1.0
STALE_S = 3600.0
CACHE_ENTRIES_MAX = 100_000

T = TypeVar("T")


class CallerStore(Protocol):
    """What this module needs from the store."""

    async def caller_by_digest(self, digest: bytes) -> Caller | None: ...

    async def account_by_ref(self, ref: str) -> tuple[Account, tuple[Budget, ...]] | None: ...

    async def user_for(self, account_id: str, external_id: str, *, now_ms: int) -> str | None: ...

    async def team_for(self, account_id: str, ref: str) -> str | None: ...


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: T | None
    read_at_s: float


class _Cache(Generic[T]):
    """A bounded look-aside cache that serves stale entries while its source is away."""

    def __init__(self, read: Callable[[str | bytes], Awaitable[T | None]]) -> None:
        self._read = read
        self._entries: OrderedDict[str | bytes, _Entry[T]] = OrderedDict()

    def peek(self, key: str | bytes, fresh_s: float) -> T | None:
        """The value when it is known and fresh; no I/O."""
        entry = self._entries.get(key)
        if entry is None or entry.value is None or time.monotonic() - entry.read_at_s > fresh_s:
            return None
        return entry.value

    async def get(self, key: str | bytes, fresh_s: float) -> T | None:
        now_s = time.monotonic()
        entry = self._entries.get(key)
        if entry is not None:
            limit_s = fresh_s if entry.value is not None else UNKNOWN_FRESH_S
            if now_s - entry.read_at_s <= limit_s:
                return entry.value
        try:
            value = await self._read(key)
        except StoreUnavailable:
            if entry is not None and entry.value is not None and now_s - entry.read_at_s <= STALE_S:
                return entry.value
            raise
        self._entries[key] = _Entry(value, now_s)
        self._entries.move_to_end(key)
        if len(self._entries) > CACHE_ENTRIES_MAX:
            self._entries.popitem(last=False)
        return value

    def drop(self, key: str | bytes) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()


class Callers:
    """Authentication: from the text of a key to a caller with an account that may call."""

    def __init__(self, store: CallerStore, hasher: KeyHasher, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._hasher = hasher
        self._now_ms = now_ms
        self._keys: _Cache[Caller] = _Cache(lambda digest: store.caller_by_digest(bytes(digest)))  # type: ignore[arg-type]
        self._accounts: _Cache[tuple[Account, tuple[Budget, ...]]] = _Cache(lambda ref: store.account_by_ref(str(ref)))
        self._users: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def by_key(self, key: str, *, account_ref: str | None = None) -> Caller:
        """Raises InvalidApiKey, AccountNotFound, AccountSuspended, StoreUnavailable."""
        digest = self._digest(key)
        caller = self._keys.peek(digest, FRESH_S)
        if caller is None or caller.service:
            caller = await self._keys.get(digest, SERVICE_FRESH_S if caller is not None else FRESH_S)
        if caller is None or (caller.expires_at_ms and caller.expires_at_ms <= self._now_ms()):
            raise InvalidApiKey
        caller = await self._with_account(caller, account_ref)
        if caller.account is not None and caller.account.status is AccountStatus.SUSPENDED:
            raise AccountSuspended
        return caller

    async def again(self, key: str, *, account_ref: str | None = None) -> Caller:
        """After ``Reauth``: forget what was cached and ask the database."""
        self._keys.drop(self._digest(key))
        if account_ref is not None:
            self._accounts.drop(account_ref)
        return await self.by_key(key, account_ref=account_ref)

    def clear(self) -> None:
        """Forget everything (a reload of the config)."""
        self._keys.clear()
        self._accounts.clear()

    async def with_user(self, caller: Caller, external_user: str | None, team_ref: str | None) -> Caller:
        """Bind the named user and team, when the key itself is bound to none. A user is created on first sight."""
        assert caller.account is not None
        if external_user and caller.user_id is None:
            cache_key = (caller.account.id, external_user)
            user_id = self._users.get(cache_key)
            if user_id is None:
                user_id = await self._store.user_for(caller.account.id, external_user, now_ms=self._now_ms())
                if user_id is not None:
                    self._users[cache_key] = user_id
                    if len(self._users) > CACHE_ENTRIES_MAX:
                        self._users.popitem(last=False)
            caller = replace(caller, user_id=user_id)
        if team_ref and caller.team_id is None:
            caller = replace(caller, team_id=await self._store.team_for(caller.account.id, team_ref))
        return caller

    async def _with_account(self, caller: Caller, account_ref: str | None) -> Caller:
        """Which account this call is for. Only a service key may name a foreign one."""
        if not caller.service:
            assert caller.account is not None
            own = (None, caller.account.id, caller.account.external_id)
            if account_ref not in own:
                raise AccountNotFound
            return caller
        if account_ref is None:
            return caller
        found = await self._accounts.get(account_ref, FRESH_S)
        if found is None:
            raise AccountNotFound
        account, budgets = found
        return replace(caller, account=account, budgets=budgets)

    def _digest(self, key: str) -> bytes:
        """Raises InvalidApiKey."""
        if not well_formed(key):
            raise InvalidApiKey
        return self._hasher.digest(key)
