"""Alerts: raised once, announced by one, delivered by whoever holds the claim."""

from __future__ import annotations

import asyncio

import pytest

from gateway.domain.accounts import Account
from gateway.domain.alerts import trial_key
from gateway.domain.periods import rfc3339
from gateway.errors import BadRequest
from gateway.store.alerts import NewAlert, raise_alert
from gateway.store.store import Store
from tests.support import stores
from tests.support.stores import DAY_MS, NOW_MS, Place

LEASE_MS = 60_000


def alert(account: Account, key: str = "1", kind: str = "threshold", **changes: int) -> NewAlert:
    return NewAlert(account.id, kind, key, {"wallet": "tokens"}, NOW_MS, **changes)


async def _account(store: Store, **options: str) -> Account:
    return await store.accounts.create("Acme", now_ms=NOW_MS, **options)


async def test_an_alert_is_raised_once_whoever_notices_it(place: Place, store: Store) -> None:
    account = await _account(store)
    other = await _account(store)
    async with stores.opened(place.url, place.folder) as second:
        raised = [alert(account), alert(account, "2"), alert(account, kind="spike"), alert(other)]
        await asyncio.gather(*(each.alerts.raise_all(raised) for each in (store, second, store, second)))
    found = await store.alerts.list()
    assert sorted((each.alert.account_id, each.alert.kind) for each in found.items) == sorted(
        [(account.id, "threshold"), (account.id, "threshold"), (account.id, "spike"), (other.id, "threshold")]
    )


async def test_an_alert_lives_and_dies_with_the_transaction_that_raised_it(store: Store) -> None:
    account = await _account(store)
    with pytest.raises(RuntimeError):
        async with store.database.write() as connection:
            assert await raise_alert(connection, alert(account))
            raise RuntimeError
    assert (await store.alerts.list()).items == ()
    for expected in (True, False):
        async with store.database.write() as connection:
            assert await raise_alert(connection, alert(account)) is expected
    assert len((await store.alerts.list()).items) == 1


async def test_each_alert_is_announced_to_one_caller_and_addressed_to_the_channels_there_are(
    place: Place, store: Store
) -> None:
    reachable = await _account(store, email="owner@acme.test")
    silent = await _account(store)
    await store.alerts.raise_all([alert(reachable, str(number)) for number in range(20)] + [alert(silent)])
    assert await store.alerts.has_work(now_ms=NOW_MS)
    async with stores.opened(place.url, place.folder) as second:
        announced = await asyncio.gather(
            *(each.alerts.announce(("webhook", "email"), now_ms=NOW_MS) for each in (store, second, store, second))
        )
    ids = [each.id for some in announced for each in some]
    assert len(ids) == len(set(ids)) == 21
    channels = {
        (record.alert.account_id == silent.id, tuple(sent.channel for sent in record.deliveries))
        for record in (await store.alerts.list(limit=50)).items
    }
    assert channels == {(False, ("email", "webhook")), (True, ("webhook",))}


async def test_a_claimed_delivery_is_nobody_elses_until_its_claim_runs_out(place: Place, store: Store) -> None:
    account = await _account(store)
    await store.alerts.raise_all([alert(account, str(number)) for number in range(10)])
    await store.alerts.announce(("webhook",), now_ms=NOW_MS)
    async with stores.opened(place.url, place.folder) as second:
        claimed = await asyncio.gather(
            *(each.alerts.claim(now_ms=NOW_MS, lease_ms=LEASE_MS, limit=4) for each in (store, second, store, second))
        )
    claims = [claim for some in claimed for claim in some]
    assert len({claim.alert.id for claim in claims}) == len(claims) == 10
    assert not await store.alerts.has_work(now_ms=NOW_MS)
    assert await store.alerts.claim(now_ms=NOW_MS + LEASE_MS - 1, lease_ms=LEASE_MS, limit=10) == ()

    first = claims[0]
    await store.alerts.sent(first)
    again = await store.alerts.claim(now_ms=NOW_MS + LEASE_MS, lease_ms=LEASE_MS, limit=10)
    assert len(again) == 9
    assert {claim.attempt for claim in again} == {2}
    late = next(claim for claim in claims if claim.alert.id == again[0].alert.id)
    await store.alerts.failed(late, "timeout", again_at_ms=None)  # its claim is another's by now
    record = next(each for each in (await store.alerts.list()).items if each.alert.id == late.alert.id)
    assert [(sent.state, sent.attempts) for sent in record.deliveries] == [("pending", 2)]


async def test_a_failed_delivery_waits_for_its_next_time_or_is_given_up(store: Store) -> None:
    account = await _account(store)
    await store.alerts.raise_all([alert(account)])
    await store.alerts.announce(("webhook",), now_ms=NOW_MS)
    (claim,) = await store.alerts.claim(now_ms=NOW_MS, lease_ms=LEASE_MS, limit=10)
    await store.alerts.failed(claim, "HTTP 500", again_at_ms=NOW_MS + 7)
    assert not await store.alerts.has_work(now_ms=NOW_MS + 6)
    (claim,) = await store.alerts.claim(now_ms=NOW_MS + 7, lease_ms=LEASE_MS, limit=10)
    await store.alerts.failed(claim, "x" * 1000, again_at_ms=None)
    (record,) = (await store.alerts.list(state="failed")).items
    assert [(sent.state, sent.attempts, len(sent.last_error)) for sent in record.deliveries] == [("failed", 2, 200)]
    assert (await store.alerts.list(state="pending")).items == ()


async def test_alerts_are_listed_in_pages_the_newest_first(store: Store) -> None:
    account, other = await _account(store), await _account(store)
    await store.alerts.raise_all([alert(account, str(number)) for number in range(5)])
    await store.alerts.raise_all([alert(other, kind="spike"), alert(other, "n", "refused", news_until_ms=NOW_MS + 1)])
    first = await store.alerts.list(account_id=account.id, limit=3)
    assert first.next is not None
    rest = await store.alerts.list(account_id=account.id, limit=3, cursor=first.next)
    ids = [each.alert.id for each in (*first.items, *rest.items)]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 5
    assert [each.alert.account_id for each in (await store.alerts.list(kind="spike")).items] == [other.id]
    with pytest.raises(BadRequest):
        await store.alerts.list(cursor="x")


async def test_news_is_told_to_listeners_is_no_alert_and_goes_away(store: Store) -> None:
    account, other = await _account(store), await _account(store)
    before = await store.alerts.newest()
    await store.alerts.raise_all([alert(account), alert(account, "n", "refused", news_until_ms=NOW_MS + 5)])
    await store.alerts.raise_all([alert(other)])
    told = await store.alerts.since(before, account_id=account.id)
    assert [(each.kind, each.is_news) for each in told] == [("threshold", False), ("refused", True)]
    assert len(await store.alerts.since(before)) == 3
    assert [each.kind for each in await store.alerts.announce((), now_ms=NOW_MS)] == ["threshold", "threshold"]
    assert len((await store.alerts.list()).items) == 2
    newest = await store.alerts.newest()
    await store.alerts.remove_old_news(now_ms=NOW_MS + 5)
    assert [each.kind for each in await store.alerts.since(before, account_id=account.id)] == ["threshold"]
    await store.alerts.raise_all([alert(other, "later")])
    assert await store.alerts.newest() > newest, "an id is never used again"


async def test_a_trial_that_is_about_to_end_is_found_until_it_was_told(store: Store) -> None:
    """A trial of seven days: a day before its end. Told is told, until the trial is prolonged."""
    account = await _account(store)
    await store.accounts.create("Paying", now_ms=NOW_MS, plan="pro")
    ends_ms = NOW_MS + 7 * DAY_MS
    for at_ms, expected in [
        (NOW_MS, []),
        (ends_ms - DAY_MS - 1, []),
        (ends_ms - DAY_MS, [account.id]),
        (ends_ms - 1, [account.id]),
        (ends_ms, []),
    ]:
        found = await store.alerts.trials_ending(now_ms=at_ms)
        assert [account_id for account_id, _ in found] == expected, at_ms
    ((_, subscription),) = await store.alerts.trials_ending(now_ms=ends_ms - 1)
    await store.alerts.raise_all([alert(account, trial_key(subscription), "trial_ending")])
    assert await store.alerts.trials_ending(now_ms=ends_ms - 1) == ()
    await store.subscriptions.extend(account.id, ends_at_ms=ends_ms + 60_000, now_ms=NOW_MS)
    assert len(await store.alerts.trials_ending(now_ms=ends_ms)) == 1


async def test_a_short_trial_is_about_to_end_in_its_last_seventh(store: Store) -> None:
    account = await _account(store)
    await store.subscriptions.extend(account.id, ends_at_ms=NOW_MS + 7000, now_ms=NOW_MS)
    assert await store.alerts.trials_ending(now_ms=NOW_MS + 5999) == ()
    assert len(await store.alerts.trials_ending(now_ms=NOW_MS + 6000)) == 1


async def test_the_turn_that_ends_a_trial_tells_of_it_once(place: Place, store: Store) -> None:
    account = await _account(store)
    ends_ms = NOW_MS + 7 * DAY_MS
    assert await store.alerts.trials_over(now_ms=ends_ms - 1) == ()
    assert await store.alerts.trials_over(now_ms=ends_ms) == (account.id,)
    assert await store.alerts.trials_over(now_ms=ends_ms, skip=1) == ()
    async with stores.opened(place.url, place.folder) as second:
        await asyncio.gather(
            *(each.subscriptions.turn(account.id, now_ms=ends_ms) for each in (store, second, store, second))
        )
    assert await store.alerts.trials_over(now_ms=ends_ms) == ()
    (record,) = (await store.alerts.list()).items
    assert (record.alert.kind, dict(record.alert.detail)) == (
        "trial_expired",
        {
            "plan": "Trial",
            "ended_at": rfc3339(ends_ms),
            "message": "Your 7-day free trial has expired.",
            "plans": [],
            "following": None,
        },
    )


async def test_whoever_buys_before_the_end_hears_nothing_of_it(store: Store) -> None:
    account = await _account(store)
    await store.subscriptions.subscribe(account.id, "pro", now_ms=NOW_MS)
    ends_ms = NOW_MS + 7 * DAY_MS
    assert await store.alerts.trials_over(now_ms=ends_ms) == ()
    assert await store.alerts.trials_ending(now_ms=ends_ms - 1) == ()
