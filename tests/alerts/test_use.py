"""Unusual use: rapid, or out of line with an account's own past; judged on what the database has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fractions import Fraction

import pytest

from gateway.domain.accounts import Account
from gateway.domain.alerts import AlertRules, RapidUse, Spike, is_spike
from gateway.domain.plans import Catalog
from gateway.quota.watch_use import LAG_MS, SPIKES_EVERY_LOOKS, UseWatch
from gateway.store.common import new_id
from gateway.store.store import Store
from gateway.store.use_slices import STEP_MS
from tests.support import catalogs, stores
from tests.support.stores import DAY_MS, NOW_MS, Clock, Place, charge

RULES = AlertRules(rapid_use=RapidUse(5, 60), spike=Spike(Fraction(3), 7 * 3600))
CATALOG = catalogs.catalog(catalogs.plan("pro", allowance={"tokens": 10**12}), alerts=RULES)
HOUR_MS = 3_600_000


@pytest.fixture
async def store(place: Place, clock: Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, clock=clock, catalog=CATALOG) as opened:
        yield opened


@pytest.fixture
async def account(store: Store) -> Account:
    return await store.accounts.create("Acme", now_ms=NOW_MS - 100 * DAY_MS)


async def call(store: Store, account: Account, amount: int = 1, *, user: str | None = None, times: int = 1) -> None:
    rows = [charge(account, (1, amount), user_id=user, at_ms=stores.NOW_MS) for _ in range(times)]
    await store.writer.commit(rows)


def watch(store: Store, catalog: Catalog = CATALOG) -> UseWatch:
    return UseWatch(store.use_slices, catalog=lambda: catalog)


async def told(store: Store, watching: UseWatch, clock: Clock) -> list[tuple[str, str]]:
    found = await watching.look(clock.now_ms)
    await store.alerts.raise_all(found)
    return [(new.kind, new.key) for new in found]


async def test_more_uses_than_the_rule_within_its_time_are_told_once_a_day(
    store: Store, account: Account, clock: Clock
) -> None:
    ann = new_id()
    watching = watch(store)
    await call(store, account, user=ann, times=5)
    await call(store, account, times=5)
    clock.now_ms += LAG_MS + 1
    assert await told(store, watching, clock) == []
    await call(store, account, user=ann)
    clock.now_ms += LAG_MS + 1
    assert await told(store, watching, clock) == [("rapid_use", f"{ann}:2025-11-20")]
    await call(store, account, user=ann, times=9)
    clock.now_ms += LAG_MS + 1
    assert await told(store, watching, clock) == []
    clock.now_ms += DAY_MS
    await call(store, account, user=ann, times=9)
    clock.now_ms += LAG_MS + 1
    assert await told(store, watching, clock) == [("rapid_use", f"{ann}:2025-11-21")]


async def test_uses_apart_are_not_rapid(store: Store, account: Account, clock: Clock) -> None:
    watching = watch(store)
    for _ in range(12):
        await call(store, account, times=1)
        clock.now_ms += 12_000
        assert await told(store, watching, clock) == []


async def test_a_new_holder_of_the_lease_counts_what_was_before_it(
    store: Store, account: Account, clock: Clock
) -> None:
    before = watch(store)
    await call(store, account, times=4)
    clock.now_ms += LAG_MS + 1
    assert await told(store, before, clock) == []
    await call(store, account, times=2)
    clock.now_ms += LAG_MS + 1
    assert [kind for kind, _ in await told(store, watch(store), clock)] == ["rapid_use"]
    assert [kind for kind, _ in await told(store, before, clock)] == ["rapid_use"]
    assert len((await store.alerts.list(kind="rapid_use")).items) == 1


async def test_a_lapse_that_was_settled_after_all_is_one_use(store: Store, account: Account, clock: Clock) -> None:
    for _ in range(5):
        hold = new_id()
        await store.writer.commit([charge(account, (1, 1), hold_id=hold, state="lapsed")])
        await store.writer.commit([charge(account, (1, 1), hold_id=hold)])
    clock.now_ms += LAG_MS + 1
    assert await told(store, watch(store), clock) == []


async def test_without_rules_nothing_is_asked(clock: Clock) -> None:
    watching = UseWatch(None, catalog=lambda: catalogs.catalog(catalogs.trial()))  # type: ignore[arg-type]
    assert await watching.look(NOW_MS) == []


# --- spikes ----------------------------------------------------------------------------------------------------------


async def looks(store: Store, watching: UseWatch, clock: Clock, *, until_ms: int) -> list[str]:
    """Look until the mark has come so far; answers what was told of spikes."""
    found: list[str] = []
    clock.now_ms = until_ms + LAG_MS
    for _ in range(SPIKES_EVERY_LOOKS * (10 * HOUR_MS // STEP_MS)):
        found += [key for kind, key in await told(store, watching, clock) if kind == "spike"]
    return found


async def test_a_seventh_far_above_the_past_is_told_once(store: Store, account: Account, clock: Clock) -> None:
    """An hour with more than three times the hours' average before it."""
    watching = watch(store)
    start_ms = NOW_MS - NOW_MS % HOUR_MS
    for hour in range(7):
        clock.now_ms = start_ms + hour * HOUR_MS
        await call(store, account, 1000, times=2)
    now_ms = start_ms + 7 * HOUR_MS
    assert await looks(store, watching, clock, until_ms=now_ms) == []
    clock.now_ms = now_ms + 1
    await call(store, account, 1, times=9)
    await call(store, account, 5_991)
    assert await looks(store, watching, clock, until_ms=now_ms + 60_000) == [], "three times, not more"
    await call(store, account, 1)
    assert await looks(store, watching, clock, until_ms=clock.now_ms + 1) == [f"tokens:{now_ms}"]
    await call(store, account, 9000)
    assert await looks(store, watch(store), clock, until_ms=clock.now_ms + 1) == [f"tokens:{now_ms}"]
    (record,) = (await store.alerts.list(kind="spike")).items
    assert dict(record.alert.detail) == {
        "wallet": "tokens",
        "unit": "tokens",
        "used": "6.001",
        "usual": "2",
        "calls": "11",
        "since": "2025-11-20T07:00:00Z",
    }


async def test_who_has_no_past_cannot_leave_it(store: Store, clock: Clock) -> None:
    start_ms = NOW_MS - NOW_MS % HOUR_MS
    account = await store.accounts.create("New", now_ms=start_ms + 1)
    watching = watch(store)
    clock.now_ms = start_ms + 2
    await call(store, account, 1)
    clock.now_ms = start_ms + 7 * HOUR_MS
    await call(store, account, 9000, times=20)
    assert await looks(store, watching, clock, until_ms=start_ms + 7 * HOUR_MS + 1) == []


async def test_each_charge_is_added_once_whoever_looks(
    place: Place, store: Store, account: Account, clock: Clock
) -> None:
    start_ms = NOW_MS - NOW_MS % HOUR_MS
    clock.now_ms = start_ms
    await call(store, account, 7, times=3)
    async with stores.opened(place.url, place.folder, clock=clock, catalog=CATALOG) as second:
        for each in (store, second, store):
            compared = []
            for _ in range(60):
                compared += await each.use_slices.advance(slice_ms=HOUR_MS, slices=7, to_ms=start_ms + 1000)
            if each is store and compared:
                assert [(one.recent, one.calls) for one in compared] == [(21, 3)]


@pytest.mark.parametrize(
    ("recent", "calls", "past", "expected"),
    [
        (31, 10, 70, True),
        (30, 10, 70, False),  # three times, not more
        (1000, 9, 70, False),  # too few calls to judge
        (1000, 10, 0, False),  # no past
    ],
)
def test_the_rule_of_a_spike(recent: int, calls: int, past: int, expected: bool) -> None:
    assert is_spike(Spike(Fraction(3), 7), recent=recent, calls=calls, past=past) is expected
