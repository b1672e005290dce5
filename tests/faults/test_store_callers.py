"""Known callers while the database hangs: they are served from memory at once, one read at a time finds out more."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest

from gateway.domain.accounts import Account, AccountStatus, Budget, Caller, Subscription, SubscriptionStatus
from gateway.errors import AccountSuspended, InvalidApiKey, StoreUnavailable
from gateway.quota import callers as module
from gateway.quota.callers import SERVICE_FRESH_S, Callers
from gateway.quota.keys import KeyHasher, new_key
from tests.support.processes import eventually

SUBSCRIPTION = Subscription(
    id="s", plan="pro", plan_version="1", status=SubscriptionStatus.ACTIVE, anchor_at_ms=0,
    period_starts_at_ms=0, period_ends_at_ms=0, trial_ends_at_ms=0, terms={},
)  # fmt: skip


class Hanging:
    """A database that answers, hangs until it times out, or knows no key at all."""

    def __init__(self) -> None:
        self.reads = 0
        self.knows = True
        self.over = asyncio.Event()  # set: what hangs now has timed out
        self.hangs = False
        self.status = AccountStatus.ACTIVE
        self.rev = 1
        self.expires_at_ms = 0
        self.is_service = False

    async def caller_by_digest(self, digest: bytes) -> Caller | None:
        self.reads += 1
        if self.hangs:
            await self.over.wait()
            raise StoreUnavailable
        account = None if self.is_service else self._account()
        return (
            Caller(digest.hex(), account, None, None, (), self.expires_at_ms, self.is_service) if self.knows else None
        )

    def _account(self) -> Account:
        return Account(
            id="a", external_id=None, email=None, name="A", status=self.status, rev=self.rev,
            subscription=SUBSCRIPTION, created_at_ms=0,
        )  # fmt: skip

    async def account_by_ref(self, ref: str) -> tuple[Account, tuple[Budget, ...]] | None:
        return (self._account(), ()) if ref == "a" else None

    async def user_for(self, account_id: str, external_id: str, *, now_ms: int) -> str | None:
        self.reads += 1
        return f"user {external_id}"

    async def team_for(self, account_id: str, ref: str) -> str | None:
        self.reads += 1
        return f"team {ref}" if ref == "red" else None


async def test_a_hanging_database_delays_nobody_who_is_known() -> None:
    store = Hanging()
    callers = Callers(store, KeyHasher("secret"), lambda: 0)
    keys = [new_key() for _ in range(20)]
    for key in keys:
        await callers.by_key(key)
    ask = partial(callers.by_key, fresh_s=-1.0)  # what was read is old
    store.hangs, store.reads = True, 0
    first = asyncio.ensure_future(ask(keys[0]))  # does not know yet that the database hangs
    await eventually(lambda: store.reads == 1, what="it asks")
    store.over.set()
    assert (await first).account is not None
    store.over = asyncio.Event()
    for _ in range(3):
        found = await asyncio.wait_for(asyncio.gather(*map(ask, keys)), 1)
        assert all(caller.account is not None for caller in found)
    assert store.reads == 2, "one read at a time finds out whether it is back"
    with pytest.raises(TimeoutError):  # whoever is unknown has to wait, and learns nothing
        await asyncio.wait_for(callers.by_key(new_key()), 0.05)


async def test_a_database_that_is_back_is_believed_at_once() -> None:
    store = Hanging()
    callers = Callers(store, KeyHasher("secret"), lambda: 0)
    key = new_key()
    await callers.by_key(key)
    ask = partial(callers.by_key, key, fresh_s=-1.0)
    store.hangs = True
    store.over.set()
    for _ in range(3):
        await ask()
    store.hangs, store.knows = False, False

    async def refused() -> bool:
        try:
            await ask()
        except InvalidApiKey:
            return True
        return False

    await eventually(refused, what="the key is gone")


async def test_the_database_is_asked_once_for_a_member_that_is_there() -> None:
    store = Hanging()
    callers = Callers(store, KeyHasher("secret"), lambda: 0)
    caller = await callers.by_key(new_key())
    store.reads = 0
    for _ in range(3):
        bound = await callers.with_user(caller, "red", "red")
        assert (bound.user_id, bound.team_id) == ("user red", "team red")
    assert store.reads == 2
    for _ in range(3):  # it may be made in a moment
        assert (await callers.with_user(caller, None, "blue")).team_id is None
    assert store.reads == 5


async def test_a_reload_asks_again_and_forgets_nobody_while_the_database_is_away() -> None:
    store = Hanging()
    callers = Callers(store, KeyHasher("secret"), lambda: 0)
    key = new_key()
    await callers.by_key(key)
    callers.doubt()
    await callers.by_key(key)
    assert store.reads == 2
    store.hangs = True
    store.over.set()
    callers.doubt()
    assert (await callers.by_key(key)).account is not None


async def test_a_suspended_account_works_again_with_its_next_call_and_is_not_asked_about_before() -> None:
    store = Hanging()
    store.status = AccountStatus.SUSPENDED
    moved = False

    async def moved_on(_: Account) -> bool:
        return moved

    callers = Callers(store, KeyHasher("secret"), lambda: 0, moved_on=moved_on)
    key = new_key()
    for _ in range(5):
        with pytest.raises(AccountSuspended):
            await callers.by_key(key)
    assert store.reads == 1
    store.status, moved = AccountStatus.ACTIVE, True
    assert (await callers.by_key(key)).account is not None


async def test_a_key_ends_at_its_time_and_not_after_it() -> None:
    store, now_ms = Hanging(), 999
    store.expires_at_ms = 1_000
    callers, key = Callers(store, KeyHasher("secret"), lambda: now_ms), new_key()
    assert (await callers.by_key(key)).account is not None
    now_ms = 1_000
    with pytest.raises(InvalidApiKey):
        await callers.by_key(key)


async def test_a_service_key_is_asked_about_again_after_its_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no account whose rev would tell that it was revoked."""
    store, now_s = Hanging(), 1_000.0
    store.is_service = True
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))
    callers, key = Callers(store, KeyHasher("secret"), lambda: 0), new_key()
    await callers.by_key(key, account_ref="a")
    now_s += SERVICE_FRESH_S
    await callers.by_key(key, account_ref="a")
    assert store.reads == 1
    now_s += 0.001
    store.knows = False
    with pytest.raises(InvalidApiKey):
        await callers.by_key(key, account_ref="a")


async def test_a_service_key_acts_for_the_account_as_it_is_when_it_has_moved_on() -> None:
    store = Hanging()
    store.is_service = True
    callers, key = Callers(store, KeyHasher("secret"), lambda: 0), new_key()
    stale = await callers.by_key(key, account_ref="a")
    store.rev = 2
    fresh = await callers.again(key, stale=stale, account_ref="a")
    assert [caller.account is not None and caller.account.rev for caller in (stale, fresh)] == [1, 2]
