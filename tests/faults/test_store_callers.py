"""Known callers while the database hangs: they are served from memory at once, one read at a time finds out more."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from gateway.domain.accounts import Account, AccountStatus, Budget, Caller, Subscription, SubscriptionStatus
from gateway.errors import AccountSuspended, InvalidApiKey, StoreUnavailable
from gateway.quota.callers import Callers
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

    async def caller_by_digest(self, digest: bytes) -> Caller | None:
        self.reads += 1
        if self.hangs:
            await self.over.wait()
            raise StoreUnavailable
        account = Account(
            id="a", external_id=None, email=None, name="A", status=self.status, rev=1,
            subscription=SUBSCRIPTION, created_at_ms=0,
        )  # fmt: skip
        return Caller(digest.hex(), account, None, None, ()) if self.knows else None

    async def account_by_ref(self, ref: str) -> tuple[Account, tuple[Budget, ...]] | None:
        return None

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

    await eventually(refused, what="the key is gone", within_s=1)


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
