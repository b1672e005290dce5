"""A wallet that becomes low is told of by the charge that made it so, and by no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.domain.accounts import Account
from gateway.domain.alerts import AlertRules, LowMark
from gateway.domain.plans import Catalog
from gateway.domain.units import Meter
from gateway.store.common import new_id
from gateway.store.store import Store
from tests.support import catalogs, stores
from tests.support.stores import NOW_MS, Clock, Place, charge

PLANS = (catalogs.plan("pro", allowance={"tokens": 1_000_000, "uses": 50}),)
METERS = {"tokens": catalogs.TOKENS, "uses": Meter("uses", 0), "rest": Meter("rest", 0)}


def marked(**marks: LowMark) -> Catalog:
    return catalogs.catalog(*PLANS, meters=METERS, alerts=AlertRules(low_balance=marks))


@pytest.fixture
async def store(place: Place, clock: Clock) -> AsyncIterator[Store]:
    catalog = marked(tokens=LowMark(amount=100_000), uses=LowMark(permille=200))
    async with stores.opened(place.url, place.folder, clock=clock, catalog=catalog) as opened:
        yield opened


async def _account(store: Store) -> tuple[Account, dict[str, int]]:
    """An account, and the number of its grant per wallet."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    return account, {grant.wallet: grant.number for grant in await store.grants.list(account.id)}


async def _told(store: Store) -> list[tuple[str, str, str]]:
    items = tuple(reversed((await store.alerts.list()).items))
    assert {each.alert.kind for each in items} <= {"low_balance"}
    told = [each.alert.detail for each in items]
    return [(each["wallet"], each["available"], each["mark"]) for each in told]


async def test_the_charge_that_crosses_the_mark_tells_and_the_following_do_not(store: Store) -> None:
    account, grants = await _account(store)
    number = grants["tokens"]
    for amount, expected in [(900_000, 0), (1, 1), (50_000, 1), (49_999, 1)]:
        row = charge(account, (number, amount))
        await store.writer.commit([row])
        await store.writer.commit([row])  # its answer was lost
        assert len(await _told(store)) == expected, amount
    assert await _told(store) == [("tokens", "99.999", "100")]


async def test_a_share_is_of_what_the_open_grants_add_up_to(store: Store) -> None:
    account, grants = await _account(store)
    number = grants["uses"]
    await store.writer.commit([charge(account, (number, 40), wallet="uses")])
    assert await _told(store) == []
    await store.writer.commit([charge(account, (number, 1), wallet="uses")])
    assert await _told(store) == [("uses", "9", "10")]
    await store.grants.add(account.id, wallet="uses", amount=50, now_ms=NOW_MS, source="package")
    await store.writer.commit([charge(account, (number, 1), wallet="uses")])
    assert len(await _told(store)) == 1, "58 of 100 are left"


async def test_after_it_was_above_again_it_is_told_again(store: Store) -> None:
    account, grants = await _account(store)
    number = grants["tokens"]
    await store.writer.commit([charge(account, (number, 950_000))])
    bought = await store.grants.add(account.id, wallet="tokens", amount=500_000, now_ms=NOW_MS, source="package")
    await store.writer.commit([charge(account, (bought.number, 400_000))])
    assert len(await _told(store)) == 1
    await store.writer.commit([charge(account, (bought.number, 51_000))])
    assert await _told(store) == [("tokens", "50", "100"), ("tokens", "99", "100")]


async def test_a_lapse_and_its_settle_in_one_batch_are_judged_by_where_they_end(store: Store) -> None:
    account, grants = await _account(store)
    number, hold = grants["tokens"], new_id()
    await store.writer.commit([charge(account, (number, 880_000))])
    lapse = charge(account, (number, 30_000), hold_id=hold, state="lapsed")
    await store.writer.commit([lapse, charge(account, (number, 10_000), hold_id=hold)])
    assert await _told(store) == []


async def test_writers_at_once_tell_once(place: Place, clock: Clock, store: Store) -> None:
    account, grants = await _account(store)
    catalog = marked(tokens=LowMark(amount=100_000))
    async with stores.opened(place.url, place.folder, clock=clock, catalog=catalog) as second:
        rows = [charge(account, (grants["tokens"], 10_000)) for _ in range(95)]
        await asyncio.gather(
            *(each.writer.commit([row]) for row in rows for each in (store, second)),
        )
    assert len(await _told(store)) == 1


async def test_an_account_that_begins_below_the_mark_has_not_become_low(place: Place, clock: Clock) -> None:
    catalog = marked(rest=LowMark(amount=100))
    async with stores.opened(place.url, place.folder, clock=clock, catalog=catalog) as store:
        account, _ = await _account(store)
        gift = await store.grants.add(account.id, wallet="rest", amount=5, now_ms=NOW_MS, source="gift")
        await store.writer.commit([charge(account, (gift.number, 1), wallet="rest")])
        assert await _told(store) == []


def test_a_mark_is_an_amount_or_a_share() -> None:
    assert (LowMark(amount=7).of(1000), LowMark(permille=200).of(1000)) == (7, 200)
    assert LowMark(permille=200).of(4) == 0
