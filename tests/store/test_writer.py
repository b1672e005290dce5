"""Laws of the bill: one charge per hold, decided here, whatever comes in which order and how often."""

from __future__ import annotations

import asyncio

from gateway.store.common import new_id
from gateway.store.store import Store
from tests.support.stores import NOW_MS, charge


async def test_a_settle_is_booked_on_its_grant(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    [committed] = await store.writer.commit([charge(account, (1, 700))])
    assert committed.state == "settled"
    assert [(change.seq, change.lines[0].amount) for change in committed.changes] == [(1, 700)]
    snapshot = await store.state.snapshot(account.id)
    assert (snapshot.seq, [grant.used for grant in snapshot.grants]) == (1, [700])


async def test_the_same_charge_again_changes_nothing_and_answers_the_same(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    row = charge(account, (1, 700))
    first = await store.writer.commit([row])
    assert await store.writer.commit([row, row]) == first * 2
    assert (await store.state.snapshot(account.id)).grants[0].used == 700


async def test_a_settle_after_a_lapse_reverses_it(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    hold = new_id()
    await store.writer.commit([charge(account, (1, 500), hold_id=hold, state="lapsed")])
    [committed] = await store.writer.commit([charge(account, (1, 40), hold_id=hold)])
    assert committed.state == "settled"
    assert [(change.seq, change.lines[0].amount) for change in committed.changes] == [(1, 500), (2, -500), (3, 40)]
    assert (await store.state.snapshot(account.id)).grants[0].used == 40


async def test_a_lapse_after_a_settle_writes_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    hold = new_id()
    settled = await store.writer.commit([charge(account, (1, 40), hold_id=hold)])
    assert await store.writer.commit([charge(account, (1, 500), hold_id=hold, state="lapsed")]) == settled


async def test_two_writers_with_the_same_charges_book_each_once(store: Store) -> None:
    accounts = [await store.accounts.create(f"A{i}", now_ms=NOW_MS) for i in range(4)]
    rows = [charge(account, (1, 10 + i)) for account in accounts for i in range(10)]
    answers = await asyncio.gather(*(store.writer.commit(rows[i:] + rows[:i]) for i in (0, 7, 13, 29)))
    by_hold = [{item.hold_id: item for item in answer} for answer in answers]
    assert all(other == by_hold[0] for other in by_hold)
    for account in accounts:
        assert (await store.state.snapshot(account.id)).seq == 10
