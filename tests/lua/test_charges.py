"""One end, one charge: settle, release, confirm, load, and a charge's way into SQL with everything that goes wrong."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from limits import keys
from limits.model import (
    BudgetLine,
    Charge,
    ChargeState,
    Confirm,
    Delta,
    GrantView,
    Refused,
    Stale,
    Take,
)
from tests.support.lab import (
    ACCOUNT,
    DAY_MS,
    LEASE_MS,
    MINUTE_MS,
    NOW_MS,
    Lab,
    budget,
    concurrency,
    together,
    wallet,
    window,
)

# --- settle and release --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actual", [0, 1, 39, 40, 41, 90])
async def test_settle_frees_the_hold_and_charges_what_was_used(lab: Lab, actual: int) -> None:
    await lab.ready(100)
    hold = await lab.hold(together(wallet(40), budget(40, 500), concurrency(1)))
    settled = await lab.engine.settle(hold, lab.charge(hold, actual))
    assert settled.known
    view = await lab.view()
    assert view.wallets[0][0].available == 100 - actual
    assert view.budgets == ((1, NOW_MS, 0, actual, 0),)
    assert view.holds_open == 0
    await lab.hold(concurrency(1))


async def test_settle_twice_charges_once(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    await lab.settle(hold, 25)
    again = await lab.engine.settle(hold, lab.charge(hold, 25))
    assert not again.known
    assert (await lab.grants())[1].pending == 25
    assert len(await lab.engine.outbox(0, older_than_ms=0, count=10)) == 1


async def test_a_charge_above_its_hold_falls_on_the_last_grant_it_took_from(lab: Lab) -> None:
    await lab.ready(10, 100)
    await lab.settle(await lab.hold(wallet(30)), 50)
    assert {number: grant.pending for number, grant in (await lab.grants()).items()} == {1: 10, 2: 40}


@pytest.mark.parametrize(("used", "left"), [(None, 60), (0, 100), (70, 30), (40, 60)])
async def test_a_window_gets_back_what_was_not_used(lab: Lab, used: int | None, left: int) -> None:
    await lab.ready()
    hold = await lab.hold(together(window(40, 100, name="tokens"), window(1, 5)))
    await lab.engine.settle(hold, lab.charge(hold, 0), window_actuals=(used, None))
    windows = (await lab.reserved(together(window(0, 100, name="tokens"), window(0, 5)))).windows
    assert windows == ((left, NOW_MS + MINUTE_MS), (4, NOW_MS + MINUTE_MS))


async def test_an_amount_belongs_to_the_window_it_was_taken_from(lab: Lab) -> None:
    await lab.ready()
    hold = await lab.hold(window(40, 100, name="tokens"))
    lab.advance(MINUTE_MS)
    assert (await lab.reserved(window(10, 100, name="tokens"))).windows[0][0] == 90
    await lab.engine.settle(hold, lab.charge(hold, 0), window_actuals=(5,))
    assert (await lab.reserved(window(0, 100, name="tokens"))).windows[0][0] == 90


async def test_release_gives_everything_back_and_charges_nothing(lab: Lab) -> None:
    await lab.ready(100)
    demand = together(wallet(40), budget(40, 50), window(3, 3), concurrency(1))
    hold = await lab.hold(demand)
    await lab.engine.release(hold)
    await lab.engine.release(hold)
    await lab.engine.release_id(ACCOUNT, "0192f0c4-3f6e-7c1a-9f00-000000000000")
    assert (await lab.wallet()).available == 100
    await lab.hold(demand)
    assert await lab.engine.outbox(0, older_than_ms=0, count=10) == []


async def test_the_outbox_carries_the_whole_charge(lab: Lab) -> None:
    await lab.ready(10, 100)
    hold = await lab.hold(together(wallet(30), budget(30, 500, number=9)))
    charge = replace(lab.charge(hold, 20), payload=bytes(range(256)))
    await lab.engine.settle(hold, charge)
    lab.advance(7_000)
    (entry,) = await lab.engine.outbox(0, older_than_ms=7_000, count=10)
    assert (entry.charge, entry.age_ms) == (charge, 7_000)
    assert await lab.engine.outbox(0, older_than_ms=7_001, count=10) == []
    assert await lab.engine.outbox(0, older_than_ms=0, count=10, after=entry.entry_id) == []


async def test_an_extreme_charge_is_kept_exactly_or_refused_whole(lab: Lab) -> None:
    """Sums stay below 2^53: what would leave that range writes nothing at all."""
    await lab.ready(100)
    first, second = await lab.hold(wallet(1)), await lab.hold(wallet(1))
    await lab.settle(first, 2**53 - 1)
    with pytest.raises(Exception, match="out of range"):
        await lab.settle(second, 1)
    grant = (await lab.grants())[1]
    assert (grant.pending, grant.held) == (2**53 - 1, 1)


# --- the tests that the protocol's model check asks for ------------------------------------------------------------


async def test_settle_on_a_stale_account_is_charged_once_though_its_worker_dies(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    await lab.engine.mark_stale(ACCOUNT, ticket="push")
    await lab.settle(hold, 25)  # and the worker dies here: only the outbox knows
    await lab.reap()
    assert await lab.load("push")
    assert (lab.billed(hold), await lab.drift()) == (25, {})
    assert (await lab.wallet()).available == 75


async def test_settle_on_an_absent_account_is_charged_once_though_its_worker_dies(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    await lab.client.execute("FLUSHALL")
    settled = await lab.engine.settle(hold, lab.charge(hold, 25))
    assert not settled.known
    await lab.reap()
    assert await lab.load()
    assert (lab.billed(hold), (await lab.wallet()).available) == (25, 75)


async def test_settle_replayed_after_its_confirm_counts_nothing_again(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    await lab.commit(await lab.settle(hold, 25))
    await lab.settle(hold, 25)
    assert (await lab.grants())[1].counted == 25
    await lab.reap()
    grant = (await lab.grants())[1]
    assert (grant.counted, grant.pending, lab.billed(hold)) == (25, 0, 25)


async def test_settle_replayed_after_a_load_that_includes_it_counts_nothing_again(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    charge = await lab.settle(hold, 25)
    lab.ledger.commit(charge)  # the confirm is never sent
    assert await lab.load()
    await lab.settle(hold, 25)
    assert ((await lab.grants())[1].counted, (await lab.grants())[1].pending) == (25, 25)
    await lab.reap()
    assert ((await lab.grants())[1].counted, (await lab.grants())[1].pending) == (25, 0)


async def test_a_rollback_over_a_confirm_drains_by_itself(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    charge = await lab.settle(hold, 25)
    rollback = await lab.save()
    await lab.commit(charge)  # a live worker, which has forgotten the charge now
    await rollback()
    assert await lab.is_stale()
    assert len(await lab.reap(older_than_ms=0)) == 1
    assert await lab.load()
    assert (await lab.grants())[1] == GrantView(1, 100, 25, 0, 0, 0, 0, 0)
    assert await lab.drift() == {}


async def test_a_reserve_that_ran_late_charges_nothing_when_its_worker_is_dead(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40, abandon=9))
    lab.advance(LEASE_MS + 1_000)
    assert await lab.engine.sweep(0, count=10) == [(ACCOUNT, hold.hold_id, False)]
    assert await lab.reap() == []
    assert ((await lab.wallet()).available, lab.billed(hold)) == (100, None)


@pytest.mark.parametrize("lapse_first", [True, False])
@pytest.mark.parametrize("forgotten", [True, False])
async def test_lapse_and_settle_in_either_order_bill_the_actual(lab: Lab, lapse_first: bool, forgotten: bool) -> None:
    await lab.ready(100)
    hold = await lab.told(await lab.hold(together(wallet(40, abandon=9), budget(40, 500, abandon=9))))
    lab.advance(LEASE_MS + 1_000)
    assert await lab.engine.sweep(0, count=10) == [(ACCOUNT, hold.hold_id, True)]
    (lapsed,) = await lab.engine.outbox(0, older_than_ms=0, count=10)
    assert lapsed.charge == replace(lab.charge(hold, 9, ChargeState.LAPSED), payload=hold.note)
    if forgotten:
        await lab.client.execute("FLUSHALL")
    settled = lab.charge(hold, 25)
    for charge in (lapsed.charge, settled) if lapse_first else (settled, lapsed.charge):
        if charge is settled:
            await lab.engine.settle(hold, settled)
        await lab.commit(charge)
    await lab.reap()
    if await lab.is_stale():
        assert await lab.load()
    assert lab.billed(hold) == 25
    assert (await lab.grants())[1].counted == 25
    assert (await lab.view()).budgets == ((1, NOW_MS, 25, 0, 0),)
    assert (await lab.wallet()).available == 75 and await lab.drift() == {}


async def test_a_pending_lapse_is_replaced_by_the_settle(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.told(await lab.hold(wallet(40, abandon=9)))
    lab.advance(LEASE_MS + 1_000)
    await lab.engine.sweep(0, count=10)
    assert (await lab.grants())[1].pending == 9
    charge = await lab.settle(hold, 25)
    assert (await lab.grants())[1].pending == 25
    (entry,) = await lab.engine.outbox(0, older_than_ms=0, count=10)
    assert entry.charge == charge


async def test_a_commit_repeated_and_taken_over_makes_one_row(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    charge = await lab.settle(hold, 25)
    lab.ledger.commit(charge)  # its answer is lost
    await asyncio.gather(lab.commit(charge), lab.reap(), lab.commit(charge))
    book = lab.ledger.book(ACCOUNT)
    assert (book.seq, len(book.charges), (await lab.view()).seq) == (1, 1, 1)
    assert await lab.engine.outbox(0, older_than_ms=0, count=10) == []


async def test_a_confirm_that_never_comes_is_noticed_by_the_last_seq(lab: Lab) -> None:
    """Killed between commit and settle: no traffic would ever show the gap."""
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    lab.ledger.commit(lab.charge(hold, 25))
    assert await lab.engine.sync_seq(ACCOUNT, 1)
    assert await lab.engine.reserve(lab.request(wallet(1)), ticket="mine") == Stale("mine")
    assert await lab.load("mine")
    assert not await lab.engine.sync_seq(ACCOUNT, 1)
    lab.advance(LEASE_MS + 1_000)
    await lab.engine.sweep(0, count=10)
    assert ((await lab.wallet()).available, await lab.drift()) == (75, {})


async def test_an_old_ticket_is_worth_nothing_after_a_rollback(lab: Lab) -> None:
    await lab.ready(100)
    rollback = await lab.save()
    await lab.engine.mark_stale(ACCOUNT, ticket="old")
    await rollback()
    assert not await lab.load("old")
    assert await lab.is_stale()


async def test_a_ticket_that_was_rolled_back_to_is_worth_nothing(lab: Lab) -> None:
    await lab.ready(100)
    await lab.engine.mark_stale(ACCOUNT, ticket="old")
    rollback = await lab.save()
    assert await lab.load("old")
    lab.ledger.book(ACCOUNT).revoked.add(1)
    await rollback()
    assert not await lab.load("old")


async def test_a_grant_revoked_between_snapshot_and_load_stays_revoked(lab: Lab) -> None:
    await lab.ready(100)
    await lab.engine.mark_stale(ACCOUNT, ticket="first")
    snapshot = lab.ledger.snapshot(ACCOUNT, NOW_MS)
    lab.ledger.book(ACCOUNT).revoked.add(1)
    await lab.engine.mark_stale(ACCOUNT, ticket="second")
    assert not await lab.engine.load(snapshot, ticket="first")
    assert await lab.load("second")
    assert isinstance(await lab.ask(wallet(1)), Refused)


async def test_a_stream_of_confirms_does_not_keep_a_load_out(lab: Lab) -> None:
    """A snapshot that takes its time, while 50 confirms arrive: the first load succeeds, and nothing is lost."""
    await lab.ready(10_000)
    holds = [await lab.hold(wallet(10)) for _ in range(50)]
    charges = [await lab.settle(hold, 7) for hold in holds]
    await lab.engine.mark_stale(ACCOUNT, ticket="push")
    for charge in charges[:20]:
        await lab.commit(charge)
    snapshot = lab.ledger.snapshot(ACCOUNT, NOW_MS)
    for charge in charges[20:]:
        await lab.commit(charge)
    assert await lab.engine.load(snapshot, ticket="push")
    view = await lab.view()
    assert (view.seq, view.wallets[0][0].available) == (50, 10_000 - 350)
    assert await lab.drift() == {}


@pytest.mark.parametrize("state", ["live", "stale", "absent"])
@pytest.mark.parametrize("seed", range(3))
async def test_confirms_in_any_order_and_number_count_each_seq_once(lab: Lab, state: str, seed: int) -> None:
    await lab.ready(1_000)
    demand = together(wallet(10), budget(10, 5_000))
    confirms = [lab.ledger.commit(await lab.settle(await lab.hold(demand), 10 + n)) for n in range(8)]
    if state == "stale":
        await lab.engine.mark_stale(ACCOUNT, ticket="push")
    elif state == "absent":
        await lab.client.execute("FLUSHALL")
    dice = random.Random(seed)
    several = dice.sample(confirms * 2, k=12) + confirms[:2]
    for index, confirm in enumerate(several):
        others = {item.hold_id: item for item in dice.sample(confirms, k=dice.randrange(4)) if item is not confirm}
        await lab.engine.confirm(confirm, *others.values())
        if state == "live" and index % 4 == 0:
            sums, _ = lab.ledger.counted(ACCOUNT)
            assert (await lab.grants())[1].counted <= sums[1]
    if state != "live":
        assert await lab.load()
    for confirm in confirms:
        await lab.engine.confirm(confirm)
    view = await lab.view()
    assert (view.seq, await lab.drift()) == (8, {})
    assert view.budgets == ((1, NOW_MS, sum(10 + n for n in range(8)), 0, 0),)
    assert (
        await lab.client.execute("HLEN", keys.account_key(0, ACCOUNT)) == 5
    )  # m, W, one wallet and its list, one bucket


async def test_a_late_settle_is_booked_on_the_grant_it_was_held_from(lab: Lab) -> None:
    lab.grant(100, expires_at_ms=NOW_MS + 1_000)
    await lab.ready()
    hold = await lab.hold(wallet(40))
    lab.advance(2_000)
    lab.grant(100, expires_at_ms=lab.now_ms + DAY_MS)  # the period turned
    assert await lab.load()
    await lab.commit(await lab.settle(hold, 25))
    assert lab.ledger.counted(ACCOUNT)[0] == {1: 25}
    assert ((await lab.wallet()).available, await lab.drift()) == (100, {})


async def test_a_settle_on_a_grant_that_redis_does_not_know_stays_pending_through_the_load(lab: Lab) -> None:
    await lab.ready(100)
    number = lab.grant(50, wallet="credits")
    hold = await lab.hold(wallet(40))
    lines = (Take("credits", number, 12), Take("tokens", 1, 5))
    await lab.engine.settle(hold, Charge(ACCOUNT, hold.hold_id, ChargeState.SETTLED, lines, (), b""))
    assert (await lab.grants("credits"))[number].pending == 12
    assert await lab.load()
    assert (await lab.wallet("credits")).available == 38
    await lab.reap()
    grant = (await lab.grants("credits"))[number]
    assert (grant.counted, grant.pending) == (12, 0)


# --- load ----------------------------------------------------------------------------------------------------------


async def test_a_snapshot_older_than_the_watermark_is_refused(lab: Lab) -> None:
    await lab.ready(100)
    old = lab.ledger.snapshot(ACCOUNT, NOW_MS)
    await lab.commit(await lab.settle(await lab.hold(wallet(40)), 25))
    await lab.engine.mark_stale(ACCOUNT, ticket="push")
    assert not await lab.engine.load(old, ticket="push")
    assert await lab.load("push")


async def test_a_load_keeps_open_holds_and_pending_charges(lab: Lab) -> None:
    await lab.ready(100)
    await lab.settle(await lab.hold(wallet(10)), 10)
    await lab.hold(together(wallet(40), budget(40, 500), concurrency(1)))
    assert await lab.load()
    assert (await lab.grants())[1] == GrantView(1, 100, 0, 10, 40, 0, 0, 0)
    assert (await lab.view()).budgets == ((1, NOW_MS, 0, 0, 40),)
    assert isinstance(await lab.ask(concurrency(1)), Refused)


async def test_a_grant_that_sql_names_no_more_is_closed_and_gone_once_it_owes_nothing(lab: Lab) -> None:
    await lab.ready(100, 100)
    hold = await lab.hold(wallet(40))
    lab.ledger.book(ACCOUNT).revoked.add(1)
    assert await lab.load()
    assert (await lab.wallet()).available == 100
    assert (await lab.grants())[1].held == 40
    await lab.engine.release(hold)
    assert await lab.load()
    assert set(await lab.grants()) == {2}


async def test_a_wallet_that_sql_names_no_more_is_closed(lab: Lab) -> None:
    number = lab.grant(50, wallet="credits")
    await lab.ready(100)
    lab.ledger.book(ACCOUNT).revoked.add(number)
    assert await lab.load()
    assert isinstance(await lab.ask(wallet(1, name="credits")), Refused)


async def test_a_ticket_loads_once(lab: Lab) -> None:
    lab.grant(100)
    assert isinstance(await lab.engine.reserve(lab.request(wallet(1)), ticket="mine"), Stale)
    assert not await lab.load("yours")
    assert await lab.load("mine")
    assert not await lab.load("mine")


async def test_load_takes_an_account_of_any_size(lab: Lab) -> None:
    """20,000 budgets and 300 grants in one go; portions are the script's affair."""
    for part in range(4):
        numbers = range(part * 5_000 + 1, part * 5_000 + 5_001)
        lines = tuple(BudgetLine(number, NOW_MS, number % 7 + 1) for number in numbers)
        hold_id = f"0192f0c4-3f6e-7c1a-9f00-00000000000{part}"
        lab.ledger.commit(Charge(ACCOUNT, hold_id, ChargeState.SETTLED, (), lines, b""))
    await lab.ready(*[10] * 300)
    seen = {number: counted for number, _, counted, _, _ in (await lab.view()).budgets}
    assert len(seen) == 511 and all(counted == number % 7 + 1 for number, counted in seen.items())
    assert (await lab.wallet()).capacity == 3_000
    answer = await lab.ask(together(wallet(1), budget(1, 7, number=19_998)))
    assert isinstance(answer, Refused) and answer.used == 19_998 % 7 + 1


# --- confirm -------------------------------------------------------------------------------------------------------


async def test_a_confirm_frees_a_hold_whose_settle_never_came(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(together(wallet(40), budget(40, 500), concurrency(1)))
    await lab.commit(lab.charge(hold, 25))
    view = await lab.view()
    assert (view.wallets[0][0].available, view.holds_open) == (75, 0)
    assert view.budgets == ((1, NOW_MS, 25, 0, 0),)
    await lab.hold(concurrency(1))


async def test_a_confirmed_lapse_leaves_a_later_settle_pending(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.told(await lab.hold(wallet(40, abandon=9)))
    lab.advance(LEASE_MS + 1_000)
    await lab.engine.sweep(0, count=10)
    (lapsed,) = await lab.engine.outbox(0, older_than_ms=0, count=10)
    confirm = lab.ledger.commit(lapsed.charge)
    await lab.settle(hold, 25)
    await lab.engine.confirm(confirm)
    grant = (await lab.grants())[1]
    assert (grant.counted, grant.pending) == (9, 25)  # errs upwards until the settle is committed too
    await lab.reap()
    grant = (await lab.grants())[1]
    assert (grant.counted, grant.pending) == (25, 0)


async def test_a_gap_rests_the_watermark_until_it_is_filled(lab: Lab) -> None:
    await lab.ready(100)
    deltas = [Delta(seq, (Take("tokens", 1, seq),), ()) for seq in (1, 2, 3, 4)]
    ids = [f"0192f0c4-3f6e-7c1a-9f00-00000000000{seq}" for seq in (1, 2, 3, 4)]
    for index in (1, 3, 2):
        await lab.engine.confirm(Confirm(ACCOUNT, ids[index], ChargeState.SETTLED, (deltas[index],)))
        assert (await lab.view()).seq == 0
    assert (await lab.grants())[1].counted == 9
    await lab.engine.confirm(Confirm(ACCOUNT, ids[0], ChargeState.SETTLED, (deltas[0],)))
    assert ((await lab.view()).seq, (await lab.grants())[1].counted) == (4, 10)


async def test_an_outbox_entry_without_its_account_is_drained(lab: Lab) -> None:
    """Somebody deleted the account's hash: the charge is billed, and the entry does not stay for ever."""
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    await lab.settle(hold, 25)
    await lab.client.execute("DEL", keys.account_key(0, ACCOUNT))
    lab.advance(5_000)
    assert len(await lab.reap(older_than_ms=5_000)) == 1
    assert await lab.engine.outbox(0, older_than_ms=0, count=10) == []
    assert await lab.load()
    assert (lab.billed(hold), (await lab.wallet()).available) == (25, 75)


async def test_an_extend_without_a_nonce_makes_no_ticket(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    await lab.engine.sync_seq(ACCOUNT, 1)
    assert await lab.engine.extend(hold, wallet(1)) == Stale("")
    assert not await lab.engine.load(lab.ledger.snapshot(ACCOUNT, NOW_MS), ticket="")
    assert await lab.engine.extend(hold, wallet(1), ticket="mine") == Stale("mine")


@pytest.mark.parametrize("count", [1, 3])
async def test_actuals_are_told_for_every_window_or_none(lab: Lab, count: int) -> None:
    await lab.ready()
    hold = await lab.hold(together(window(1, 5), window(2, 9, name="tokens")))
    with pytest.raises(ValueError, match="actuals"):
        await lab.engine.settle(hold, lab.charge(hold, 0), window_actuals=(1,) * count)
