"""Subscriptions: moved by people and by time, each period granted once, whoever notices first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.domain.accounts import Account, GrantState, SubscriptionStatus
from gateway.domain.periods import Period
from gateway.domain.turns import Turned
from gateway.errors import BadRequest
from gateway.store.store import Store
from tests.store.conftest import Place
from tests.support import catalogs, stores
from tests.support.stores import DAY_MS, NOW_MS, charge

MONTH_MS = 30 * DAY_MS
PLANS = catalogs.catalog(
    catalogs.trial(),
    catalogs.plan("pro", allowance={"tokens": 500_000}),
    catalogs.plan("carrier", allowance={"tokens": 1000}, debt="carry"),
    catalogs.plan("month", renews="never", ends="pro"),
    catalogs.plan("paid", renews="when_paid", ends="free"),
    catalogs.plan("free", period=Period("once"), allowance={"tokens": 100}, grant_source="trial"),
    catalogs.plan("custom", allowance={"tokens": "custom"}),
)


@pytest.fixture
async def store(place: Place, clock: stores.Clock) -> AsyncIterator[Store]:
    async with stores.opened(place.url, place.folder, clock=clock, catalog=PLANS) as opened:
        yield opened


async def _grants(store: Store, account: Account) -> list[tuple[int, int, int, int]]:
    return [(g.number, g.amount, g.starts_at_ms, g.expires_at_ms) for g in await store.grants.list(account.id)]


async def _open(store: Store, account: Account, at_ms: int) -> tuple[GrantState, ...]:
    return await store.grants.list(account.id, open_at_ms=at_ms)


async def test_subscribing_restarts_the_period_with_nothing_used(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.writer.commit([charge(account, (1, 5_000_000))])
    later = NOW_MS + 3 * DAY_MS
    moved = await store.subscriptions.subscribe(account.id, "pro", now_ms=later)
    assert moved.subscription.status is SubscriptionStatus.ACTIVE
    assert (moved.subscription.period_starts_at_ms, moved.subscription.period_ends_at_ms) == (later, later + MONTH_MS)
    assert moved.subscription.trial_ends_at_ms == 0
    assert moved.rev == account.rev + 1
    assert [(g.number, g.amount, g.used) for g in await _open(store, account, later)] == [(2, 500_000, 0)]
    assert [owner for _, owner in await store.state.pushes()] == [account.id]


async def test_what_was_bought_survives_a_change_of_plan(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    await store.grants.add(account.id, wallet="tokens", amount=77, now_ms=NOW_MS, source="package")
    await store.subscriptions.subscribe(account.id, "pro", now_ms=NOW_MS + 1)
    assert [g.amount for g in await _open(store, account, NOW_MS + 1)] == [100, 77, 500_000]


async def test_what_is_granted_once_is_never_granted_again(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    await store.writer.commit([charge(account, (1, 40))])
    for step, plan in enumerate(("pro", "free", "pro", "free")):
        await store.subscriptions.subscribe(account.id, plan, now_ms=NOW_MS + step)
    assert [(g.amount, g.used) for g in await _open(store, account, NOW_MS + 9)] == [(100, 40)]


async def test_a_turn_noticed_by_many_at_once_grants_once(place: Place, clock: stores.Clock) -> None:
    async with (
        stores.opened(place.url, place.folder, catalog=PLANS) as first,
        stores.opened(place.url, place.folder, catalog=PLANS) as second,
    ):
        account = await first.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
        at_ms = NOW_MS + MONTH_MS
        turns = [store.subscriptions.turn(account.id, now_ms=at_ms) for store in (first, second) for _ in range(5)]
        assert sorted(turned.outcome for turned in await asyncio.gather(*turns)) == ["next_period", *["stay"] * 9]
        assert await _grants(first, account) == [
            (1, 500_000, NOW_MS, at_ms),
            (2, 500_000, at_ms, at_ms + MONTH_MS),
        ]


async def test_periods_nobody_used_get_no_grant_afterwards(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    at_ms = NOW_MS + 10 * MONTH_MS + DAY_MS
    assert (await store.subscriptions.turn(account.id, now_ms=at_ms)).outcome == "next_period"
    assert await _grants(store, account) == [
        (1, 500_000, NOW_MS, NOW_MS + MONTH_MS),
        (2, 500_000, NOW_MS + 10 * MONTH_MS, NOW_MS + 11 * MONTH_MS),
    ]
    assert (await store.state.snapshot(account.id)).turn_at_ms == NOW_MS + 11 * MONTH_MS


async def test_before_its_time_a_turn_does_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS - 1)).outcome == "stay"
    assert await store.state.pushes() == ()
    assert await store.accounts.by_ref(account.id) == account


async def test_a_trial_ends_for_good(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + 7 * DAY_MS)).outcome == "ended"
    found = await store.accounts.by_ref(account.id)
    assert found is not None and found.subscription.status is SubscriptionStatus.EXPIRED
    assert (await store.state.snapshot(account.id)).turn_at_ms == 0
    assert (await store.subscriptions.turn(account.id, now_ms=NOW_MS + 700 * DAY_MS)).outcome == "stay"


async def test_a_plan_that_ends_falls_back_from_its_end_on(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="month")
    at_ms = NOW_MS + MONTH_MS + 5 * DAY_MS
    assert (await store.subscriptions.turn(account.id, now_ms=at_ms)).outcome == "fallback"
    found = await store.accounts.by_ref(account.id)
    assert found is not None and found.subscription.plan == "pro"
    assert found.subscription.period_starts_at_ms == NOW_MS + MONTH_MS
    assert [(g.amount, g.starts_at_ms) for g in await _open(store, account, at_ms)] == [(500_000, NOW_MS + MONTH_MS)]


async def test_a_payment_that_does_not_come_ends_the_plan_after_the_grace(place: Place) -> None:
    async with stores.opened(place.url, place.folder, catalog=replace(PLANS, grace_ms=3 * DAY_MS)) as store:
        account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="paid")
        end_ms = NOW_MS + MONTH_MS
        assert (await store.subscriptions.turn(account.id, now_ms=end_ms)).outcome == "past_due"
        assert (await store.state.snapshot(account.id)).turn_at_ms == end_ms + 3 * DAY_MS
        assert (await store.subscriptions.turn(account.id, now_ms=end_ms + 1)).outcome == "stay"
        assert (await store.subscriptions.turn(account.id, now_ms=end_ms + 3 * DAY_MS)).outcome == "fallback"
        found = await store.accounts.by_ref(account.id)
        assert found is not None and found.subscription.plan == "free"


async def test_the_next_period_may_be_granted_a_day_ahead(store: Store, clock: stores.Clock) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    end_ms = NOW_MS + MONTH_MS
    soon = end_ms - DAY_MS
    clock.now_ms = NOW_MS + 1
    await store.writer.commit([charge(account, (1, 1))])
    assert await store.subscriptions.due_ahead(now_ms=soon - 1) == ()
    assert await store.subscriptions.due_ahead(now_ms=soon) == (account.id,)
    assert await store.subscriptions.due_ahead(now_ms=soon, skip=1) == ()
    assert not await store.subscriptions.ahead(account.id, now_ms=soon - 1)
    done = await asyncio.gather(*(store.subscriptions.ahead(account.id, now_ms=soon) for _ in range(4)))
    assert [turned for turned in done if turned] == [Turned("ahead", "pro", "pro")]
    assert await store.subscriptions.due_ahead(now_ms=soon) == ()
    snapshot = await store.state.snapshot(account.id)
    assert [(g.starts_at_ms, g.amount) for g in snapshot.grants] == [(NOW_MS, 500_000), (end_ms, 500_000)]
    assert snapshot.turn_at_ms == end_ms + MONTH_MS  # the end of this period needs nobody
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms)).outcome == "next_period"
    assert len(await store.grants.list(account.id)) == 2
    assert not await store.subscriptions.ahead(account.id, now_ms=end_ms)


async def test_an_account_that_did_nothing_is_not_granted_ahead(store: Store) -> None:
    await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    assert await store.subscriptions.due_ahead(now_ms=NOW_MS + MONTH_MS - 1) == ()


@pytest.mark.parametrize("plan", ["trial", "month", "paid", "free"])
async def test_only_what_renews_by_itself_is_granted_ahead(store: Store, plan: str) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan=plan)
    end_ms = account.subscription.period_ends_at_ms
    assert not await store.subscriptions.ahead(account.id, now_ms=max(end_ms - 1, NOW_MS))


async def test_cancelling_takes_back_what_was_granted_ahead(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    end_ms = NOW_MS + MONTH_MS
    assert await store.subscriptions.ahead(account.id, now_ms=end_ms - 1000)
    cancelled = await store.subscriptions.cancel(account.id, now_ms=end_ms - 500)
    assert cancelled.subscription.cancel_at_period_end
    assert await _open(store, account, end_ms) == ()
    assert (await store.state.snapshot(account.id)).turn_at_ms == end_ms
    assert not await store.subscriptions.ahead(account.id, now_ms=end_ms - 400)
    assert (await store.subscriptions.turn(account.id, now_ms=end_ms)).outcome == "ended"
    found = await store.accounts.by_ref(account.id)
    assert found is not None and found.subscription.status is SubscriptionStatus.CANCELLED
    async for audited in store.ledger.audit():
        assert audited.differences == ()


async def test_what_was_taken_back_can_be_granted_again(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    end_ms = NOW_MS + MONTH_MS
    assert await store.subscriptions.ahead(account.id, now_ms=end_ms - 1000)
    await store.subscriptions.extend(account.id, ends_at_ms=end_ms + DAY_MS, now_ms=end_ms - 900)
    assert (await store.state.snapshot(account.id)).turn_at_ms == end_ms + DAY_MS
    assert [g.expires_at_ms for g in await _open(store, account, end_ms)] == [end_ms + DAY_MS]
    assert await store.subscriptions.ahead(account.id, now_ms=end_ms)
    assert [g.amount for g in await _open(store, account, end_ms + DAY_MS)] == [500_000]


async def test_support_moves_a_trials_end(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    end_ms = NOW_MS + 7 * DAY_MS
    await store.subscriptions.turn(account.id, now_ms=end_ms)
    new_end_ms = end_ms + 3 * DAY_MS
    moved = await store.subscriptions.extend(account.id, ends_at_ms=new_end_ms, now_ms=end_ms + 10, actor="support")
    assert moved.subscription.status is SubscriptionStatus.TRIALING
    assert moved.subscription.trial_ends_at_ms == moved.subscription.period_ends_at_ms == new_end_ms
    assert [g.expires_at_ms for g in await _open(store, account, end_ms + 10)] == [new_end_ms]
    assert (await store.subscriptions.turn(account.id, now_ms=new_end_ms)).outcome == "ended"
    with pytest.raises(BadRequest):
        await store.subscriptions.extend(account.id, ends_at_ms=NOW_MS, now_ms=new_end_ms)


async def test_a_plan_without_an_end_has_none_to_move(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="free")
    with pytest.raises(BadRequest):
        await store.subscriptions.extend(account.id, ends_at_ms=NOW_MS + 1, now_ms=NOW_MS)


async def test_terms_are_kept_over_periods(store: Store) -> None:
    with pytest.raises(BadRequest):
        await store.accounts.create("Acme", now_ms=NOW_MS, plan="custom")
    terms = {"allowance": {"tokens": 9000}, "entitlements": {"agents": 7}}
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="custom", terms=terms)
    await store.subscriptions.turn(account.id, now_ms=NOW_MS + MONTH_MS)
    found = await store.accounts.by_ref(account.id)
    assert found is not None and found.subscription.terms == terms
    assert [g.amount for g in await store.grants.list(account.id)] == [9000, 9000]


async def test_an_unknown_plan_changes_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    with pytest.raises(BadRequest):
        await store.subscriptions.subscribe(account.id, "gold", now_ms=NOW_MS)
    assert await store.accounts.by_ref(account.id) == account


@pytest.mark.parametrize(
    ("plan", "allowance", "left_at_start", "kinds"),
    [
        ("pro", 500_000, 500_000, {"forgiven"}),
        ("carrier", 1000, 700, {"carried_in", "carried_out"}),
    ],
)
async def test_what_a_grant_owes_at_its_end_is_forgiven_or_carried(
    store: Store, plan: str, allowance: int, left_at_start: int, kinds: set[str]
) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan=plan)
    await store.writer.commit([charge(account, (1, allowance + 300))])  # overrun: 300 more than the grant had
    at_ms = NOW_MS + MONTH_MS
    await store.subscriptions.turn(account.id, now_ms=at_ms)
    assert [g.amount - g.used for g in await _open(store, account, at_ms)] == [left_at_start]
    entries = (await store.ledger.transactions(account.id)).items
    assert {entry.kind for entry in entries} - {"granted", "charged"} == kinds
    assert sum(entry.amount for entry in entries if entry.kind in kinds) == 300 * len(kinds)
    await store.subscriptions.turn(account.id, now_ms=at_ms + MONTH_MS)  # not a second time
    assert len([e for e in (await store.ledger.transactions(account.id)).items if e.kind in kinds]) == len(kinds)
    async for audited in store.ledger.audit():
        assert audited.differences == ()


async def test_two_moves_at_once_leave_one_current_subscription(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    at_ms = NOW_MS + 7 * DAY_MS
    moves = [store.subscriptions.subscribe(account.id, plan, now_ms=at_ms) for plan in ("pro", "month", "pro")]
    await asyncio.gather(*moves, store.subscriptions.turn(account.id, now_ms=at_ms))
    found = await store.accounts.by_ref(account.id)
    assert found is not None and found.subscription.status is SubscriptionStatus.ACTIVE
    assert len(await _open(store, account, at_ms)) == 1
    async for audited in store.ledger.audit():
        assert audited.differences == ()


async def test_a_trial_is_had_once_also_when_its_subscription_went_on(place: Place) -> None:
    plans = catalogs.catalog(catalogs.trial(ends="free"), catalogs.plan("free"))
    async with stores.opened(place.url, place.folder, catalog=plans) as store:
        for leaves in (False, True):
            account = await store.accounts.create("Acme", now_ms=NOW_MS)
            if leaves:
                await store.subscriptions.change(account.id, "free", now_ms=NOW_MS, at_end=True)
            turned = await store.subscriptions.turn(account.id, now_ms=NOW_MS + 8 * DAY_MS)
            assert (turned.outcome, turned.to) == ("changed" if leaves else "fallback", "free")
            for at_end in (False, True):
                with pytest.raises(BadRequest, match="has had its Trial"):
                    await store.subscriptions.change(account.id, "trial", now_ms=NOW_MS + 9 * DAY_MS, at_end=at_end)


async def test_debt_is_carried_to_what_is_open_in_the_order_in_which_it_burns(store: Store) -> None:
    """And what none of it can bear, to what comes after that."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="carrier")
    await store.grants.add(account.id, wallet="tokens", amount=500, now_ms=NOW_MS)
    await store.writer.commit([charge(account, (1, 1000 + 1600))])
    left = []
    for months in (1, 2):
        at_ms = NOW_MS + months * MONTH_MS
        await store.subscriptions.turn(account.id, now_ms=at_ms)
        left.append({grant.source: grant.amount - grant.used for grant in await _open(store, account, at_ms)})
    assert left == [{"plan": 0, "gift": 0}, {"plan": 900, "gift": 0}]
