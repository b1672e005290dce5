"""Grants by hand, and what a changed plan adjusts: nothing twice, nothing that is used taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.domain.periods import Period
from gateway.domain.plans import Catalog
from gateway.errors import BadRequest, Conflict, NotFound
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import DAY_MS, NOW_MS, charge


async def _no_differences(store: Store) -> None:
    async for audited in store.ledger.audit():
        assert audited.differences == ()


@pytest.mark.parametrize("other", [{"amount": 6}, {"wallet": "credits"}, {"source": "bonus"}])
async def test_a_key_that_was_used_for_another_grant_is_a_conflict(store: Store, other: dict[str, object]) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    asked: dict[str, Any] = {"wallet": "tokens", "amount": 5, "now_ms": NOW_MS, "key": "k"}
    made = await store.grants.add(account.id, **asked)
    await store.grants.revoke(account.id, made.number, now_ms=NOW_MS)
    assert (await store.grants.add(account.id, **asked)).number == made.number  # withdrawn since
    with pytest.raises(Conflict):
        await store.grants.add(account.id, **{**asked, **other})
    await _no_differences(store)


async def test_the_same_key_grants_once(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    options = {"wallet": "tokens", "now_ms": NOW_MS, "source": "package", "key": "payment-1:tokens"}
    made = await asyncio.gather(*(store.grants.add(account.id, amount=500, **options) for _ in range(5)))  # type: ignore[arg-type]
    assert len(set(made)) == 1
    assert [grant.amount for grant in await store.grants.list(account.id)] == [6_000_000, 500]
    assert len(await store.state.pushes()) == 1
    await _no_differences(store)


@pytest.mark.parametrize("key", ["once:once:tokens", "{subscription}:pro:{ends}:tokens", "trial:1", "a:trial:b"])
async def test_a_key_that_an_operator_chose_stands_in_the_way_of_nothing(place: Place, key: str) -> None:
    """Not of what a plan grants once, nor of a period, and it is no trial that the account has had."""
    plans = catalogs.catalog(
        catalogs.trial(),
        catalogs.plan("pro", allowance={"tokens": 500}),
        catalogs.plan("once", period=Period("once"), allowance={"tokens": 100}),
    )
    async with stores.opened(place.url, place.folder, catalog=plans) as store:
        account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
        ends_ms = account.subscription.period_ends_at_ms
        own = key.format(subscription=account.subscription.id, ends=ends_ms)
        asked: dict[str, Any] = {"wallet": "tokens", "amount": 5, "now_ms": NOW_MS, "key": own}
        gift = await store.grants.add(account.id, **asked)
        await store.subscriptions.turn(account.id, now_ms=ends_ms)
        await store.subscriptions.change(account.id, "once", now_ms=ends_ms, at_end=False)
        await store.subscriptions.change(account.id, "trial", now_ms=ends_ms, at_end=False)
        granted = [(grant.source, grant.amount) for grant in await store.grants.list(account.id)]
        assert granted == [("plan", 500), ("gift", 5), ("plan", 500), ("plan", 100), ("plan", 6_000_000)]
        assert (await store.grants.add(account.id, **asked)).number == gift.number
        await _no_differences(store)


@pytest.mark.parametrize("amount", [0, -5, 2**53])
async def test_an_amount_that_is_none_is_refused(store: Store, amount: int) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    with pytest.raises(BadRequest):
        await store.grants.add(account.id, wallet="tokens", amount=amount, now_ms=NOW_MS)


async def test_a_wallet_never_has_more_than_the_engine_can_say(store: Store) -> None:
    """It would refuse the whole account."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    rest = 2**53 - 1 - 6_000_000
    with pytest.raises(BadRequest):
        await store.grants.add(account.id, wallet="tokens", amount=rest + 1, now_ms=NOW_MS)
    with pytest.raises(BadRequest):
        await store.grants.adjust(account.id, wallet="tokens", amount=rest + 1, now_ms=NOW_MS)
    await store.grants.add(account.id, wallet="tokens", amount=rest, now_ms=NOW_MS)
    later_ms = account.subscription.period_ends_at_ms
    await store.grants.add(account.id, wallet="tokens", amount=6_000_000, now_ms=NOW_MS, starts_at_ms=later_ms)
    assert len(await store.grants.list(account.id)) == 3
    await _no_differences(store)


async def test_raising_adds_a_grant_and_lowering_takes_what_is_left(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    await store.writer.commit([charge(account, (1, 400_000))])
    raised = await store.grants.adjust(account.id, wallet="tokens", amount=50_000, now_ms=NOW_MS, reason="sorry")
    assert (raised.amount, raised.balance) == (50_000, 150_000)
    lowered = await store.grants.adjust(account.id, wallet="tokens", amount=-120_000, now_ms=NOW_MS)
    assert (lowered.amount, lowered.balance) == (-120_000, 30_000)
    emptied = await store.grants.adjust(account.id, wallet="tokens", amount=-999_999, now_ms=NOW_MS)
    assert (emptied.amount, emptied.balance) == (-30_000, 0)
    assert [(grant.amount, grant.used) for grant in await store.grants.list(account.id)] == [(400_000, 400_000), (0, 0)]
    kinds = [(entry.kind, entry.amount) for entry in reversed((await store.ledger.transactions(account.id)).items)]
    assert kinds == [
        ("granted", 500_000),
        ("charged", 400_000),
        ("granted", 50_000),
        ("withdrawn", 100_000),
        ("withdrawn", 20_000),
        ("withdrawn", 30_000),
    ]
    await _no_differences(store)


async def test_lowering_never_takes_what_is_used(store: Store) -> None:
    """Adjustments and charges at once: whatever their order, nothing used is gone and the audit agrees."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    charges = [store.writer.commit([charge(account, (1, 1000))]) for _ in range(10)]
    lowers = [store.grants.adjust(account.id, wallet="tokens", amount=-60_000, now_ms=NOW_MS) for _ in range(10)]
    await asyncio.gather(*(each for pair in zip(charges, lowers, strict=True) for each in pair))
    [grant] = await store.grants.list(account.id)
    assert grant.used == 10_000
    assert grant.amount <= 10_000
    await _no_differences(store)


async def test_a_revoked_grant_ends_with_what_it_has(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    gift = await store.grants.add(account.id, wallet="tokens", amount=900, now_ms=NOW_MS)
    await store.writer.commit([charge(account, (gift.number, 300))])
    revoked = await store.grants.revoke(account.id, gift.number, now_ms=NOW_MS + 5, reason="mistake")
    assert (revoked.amount, revoked.used, revoked.expires_at_ms) == (300, 300, NOW_MS + 5)
    assert gift.number not in [grant.number for grant in await store.grants.list(account.id, open_at_ms=NOW_MS + 5)]
    with pytest.raises(NotFound):
        await store.grants.revoke(account.id, 99, now_ms=NOW_MS)
    await _no_differences(store)


async def test_a_snapshot_has_what_has_not_ended(store: Store, clock: stores.Clock) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    await store.grants.add(account.id, wallet="tokens", amount=1, now_ms=NOW_MS, expires_at_ms=NOW_MS + DAY_MS)
    await store.grants.add(account.id, wallet="tokens", amount=2, now_ms=NOW_MS, starts_at_ms=NOW_MS + 2 * DAY_MS)
    clock.now_ms = NOW_MS + DAY_MS
    assert [grant.number for grant in (await store.state.snapshot(account.id)).grants] == [1, 2, 3]  # ended just now
    clock.now_ms = NOW_MS + DAY_MS + 3_600_000
    assert [grant.number for grant in (await store.state.snapshot(account.id)).grants] == [1, 3]


class Shop:
    """A catalog that changes while the store is open."""

    def __init__(self) -> None:
        self.version = 0
        self.catalog = self.offer(1000)

    def offer(self, amount: int | str) -> Catalog:
        self.version += 1
        pro = catalogs.plan("pro", allowance={"tokens": amount}, version=f"v{self.version}")
        self.catalog = catalogs.catalog(catalogs.trial(), pro)
        return self.catalog

    def __call__(self) -> Catalog:
        return self.catalog


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def selling(place: Place, shop: Shop) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, catalog=shop) as opened:
        await opened.plans.register(now_ms=NOW_MS)
        yield opened


async def _amounts(store: Store, account_id: str) -> list[int]:
    return [grant.amount for grant in await store.grants.list(account_id)]


async def test_a_larger_allowance_is_added_once_per_version(selling: Store, shop: Shop) -> None:
    account = await selling.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    assert await selling.plans.outdated() == ()
    shop.offer(1500)
    await selling.plans.register(now_ms=NOW_MS)
    assert await selling.plans.outdated() == (account.id,)
    moved = await asyncio.gather(*(selling.plans.advance(account.id, now_ms=NOW_MS) for _ in range(3)))
    assert sorted(moved) == [False, False, True]
    assert await _amounts(selling, account.id) == [1000, 500]
    assert await selling.plans.outdated() == ()
    shop.offer(1600)
    await selling.plans.register(now_ms=NOW_MS)
    assert await selling.plans.advance(account.id, now_ms=NOW_MS)
    assert await _amounts(selling, account.id) == [1000, 500, 100]
    await _no_differences(selling)


async def test_a_smaller_allowance_takes_back_what_is_neither_used_nor_held(selling: Store, shop: Shop) -> None:
    account = await selling.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    await selling.writer.commit([charge(account, (1, 600))])
    shop.offer(100)
    await selling.plans.register(now_ms=NOW_MS)
    assert await selling.plans.advance(account.id, now_ms=NOW_MS, held={1: 150})
    assert await _amounts(selling, account.id) == [750]
    await _no_differences(selling)


async def test_subscriptions_only_move_forward_along_versions(place: Place, selling: Store, shop: Shop) -> None:
    """A replica that still has the older config changes nothing back."""
    old = shop.catalog
    account = await selling.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    shop.offer(1500)
    await selling.plans.register(now_ms=NOW_MS)
    assert await selling.plans.advance(account.id, now_ms=NOW_MS)
    async with stores.opened(place.url, place.folder, catalog=old) as behind:
        await behind.plans.register(now_ms=NOW_MS)
        assert await behind.plans.outdated() == ()
        assert not await behind.plans.advance(account.id, now_ms=NOW_MS)
    assert await _amounts(selling, account.id) == [1000, 500]


async def test_a_version_that_is_taken_back_into_use_counts_as_the_newest(selling: Store, shop: Shop) -> None:
    old = shop.catalog
    account = await selling.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    for offered, expected in ((shop.offer(1500), 1500), (old, 1000), (shop.catalog, 1500), (old, 1000)):
        shop.catalog = offered
        versions = [plan.version for plan in offered.plans.values()]
        await asyncio.gather(*(selling.plans.register(now_ms=NOW_MS, returned=versions) for _ in range(2)))
        assert await selling.plans.outdated() == (account.id,)
        assert await selling.plans.advance(account.id, now_ms=NOW_MS)
        assert not await selling.plans.advance(account.id, now_ms=NOW_MS)
        assert sum(await _amounts(selling, account.id)) == expected
    await _no_differences(selling)


async def test_a_subscription_that_has_ended_is_not_adjusted(selling: Store, shop: Shop) -> None:
    account = await selling.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    await selling.subscriptions.cancel(account.id, now_ms=NOW_MS, immediately=True)
    shop.offer(1500)
    await selling.plans.register(now_ms=NOW_MS)
    await selling.plans.advance(account.id, now_ms=NOW_MS + 1)
    assert await _amounts(selling, account.id) == [1000]


async def test_own_terms_are_not_adjusted(selling: Store, shop: Shop) -> None:
    terms = {"allowance": {"tokens": 7}}
    account = await selling.accounts.create("Acme", now_ms=NOW_MS, plan="pro", terms=terms)
    shop.offer(1500)
    await selling.plans.register(now_ms=NOW_MS)
    assert await selling.plans.advance(account.id, now_ms=NOW_MS)
    assert await _amounts(selling, account.id) == [7]


async def test_what_was_granted_ahead_follows_the_new_version(selling: Store, shop: Shop) -> None:
    account = await selling.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    end_ms = NOW_MS + 30 * DAY_MS
    assert await selling.subscriptions.ahead(account.id, now_ms=end_ms - 1000)
    shop.offer(1500)
    await selling.plans.register(now_ms=NOW_MS)
    assert await selling.plans.advance(account.id, now_ms=end_ms - 900)
    await selling.subscriptions.turn(account.id, now_ms=end_ms)
    grants = await selling.grants.list(account.id, open_at_ms=end_ms)
    assert [grant.amount for grant in grants] == [1500]
    await _no_differences(selling)
