"""A hold is a lease: how it grows, is renewed, survives a Redis that forgot it, and ends by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from limits import keys
from limits.model import Gone, Hold, Refused, Reserved, Stale, Take, Verdict, Warming
from tests.support.lab import (
    ACCOUNT,
    LEASE_MS,
    MINUTE_MS,
    NOW_MS,
    TEAM,
    Lab,
    budget,
    concurrency,
    together,
    wallet,
    window,
)

DEAD_MS = LEASE_MS + 256  # the lease index counts in units of 256 ms


async def grown(lab: Lab, hold: Hold, amount: int) -> Reserved:
    answer = await lab.engine.extend(hold, wallet(amount))
    assert isinstance(answer, Reserved), answer
    return answer


# --- extend --------------------------------------------------------------------------------------------------------


async def test_extend_takes_more_and_grows_the_version(lab: Lab) -> None:
    await lab.ready(50, 100)
    hold = await lab.hold(together(wallet(40, abandon=5), budget(40, 100), window(40, 200, name="tokens")))
    more = together(wallet(30, abandon=2), budget(30, 100), window(30, 200, name="tokens"))
    answer = await lab.engine.extend(hold, more)
    assert isinstance(answer, Reserved)
    assert answer.hold.version == 2
    assert answer.hold.takes == (Take("tokens", 1, 50), Take("tokens", 2, 20))
    demand = answer.hold.demand
    assert (demand.wallets[0].amount, demand.wallets[0].abandon, demand.budgets[0].amount) == (70, 7, 70)
    assert demand.windows[0].amount == 70 and answer.windows == ((130, NOW_MS + MINUTE_MS),)
    await lab.engine.release(answer.hold)
    assert (await lab.wallet()).available == 150


async def test_extend_again_takes_nothing_again(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    first = await grown(lab, hold, 10)
    assert await lab.engine.extend(hold, wallet(10)) == first
    assert (await lab.wallet()).available == 50
    assert await lab.engine.extend(hold, wallet(11)) == Gone()  # somebody else's growth


@pytest.mark.parametrize(("amount", "verdict"), [(51, Verdict.HELD), (61, Verdict.LASTING), (101, Verdict.TOO_LARGE)])
async def test_extend_that_does_not_fit_takes_nothing(lab: Lab, amount: int, verdict: Verdict) -> None:
    await lab.ready(100)
    await lab.settle(await lab.hold(wallet(40)), 40)
    hold = await lab.hold(wallet(10))
    answer = await lab.engine.extend(hold, wallet(amount))
    assert isinstance(answer, Refused) and (answer.verdict, answer.needed) == (verdict, amount)
    assert (await lab.wallet()).available == 50
    await grown(lab, hold, 50)


async def test_slots_that_ask_for_nothing_are_not_checked_when_a_hold_grows(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(together(wallet(10), budget(5, 5), window(3, 3), concurrency(1)))
    await grown(lab, hold, 20)


async def test_a_hold_grows_only_in_its_own_slots(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(10))
    for other in (wallet(1, name="credits"), budget(1, 5), window(1, 5)):
        with pytest.raises(ValueError, match="slots"):
            await lab.engine.extend(hold, other)


async def test_extend_of_an_ended_stale_or_warming_hold_says_so(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(reassert_wait_ms=1_000)
    await lab.ready(100)
    lab.advance(1_000)
    ended, hold = await lab.hold(wallet(10)), await lab.hold(wallet(10))
    await lab.engine.release(ended)
    assert await lab.engine.extend(ended, wallet(1)) == Gone()
    await lab.engine.mark_stale(ACCOUNT, ticket="push")
    assert await lab.engine.extend(hold, wallet(1), ticket="mine") == Stale("push")
    await lab.promote()
    assert await lab.engine.extend(hold, wallet(1), ticket="mine") == Stale("mine")
    assert await lab.load("mine")
    assert isinstance(await lab.engine.extend(hold, wallet(1)), Warming)


async def test_a_hold_that_grows_in_a_new_window_is_corrected_there(lab: Lab) -> None:
    await lab.ready()
    hold = await lab.hold(window(40, 100, name="tokens"))
    lab.advance(MINUTE_MS)
    answer = await lab.engine.extend(hold, window(30, 100, name="tokens"))
    assert isinstance(answer, Reserved) and answer.hold.window_starts_ms == (lab.now_ms,)
    await lab.engine.settle(answer.hold, lab.charge(answer.hold, 0), window_actuals=(60,))
    assert (await lab.reserved(window(0, 100, name="tokens"))).windows[0][0] == 80


# --- renew ---------------------------------------------------------------------------------------------------------


async def test_a_renewed_lease_runs_from_now(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    for _ in range(5):
        lab.advance(LEASE_MS - 1)
        await lab.engine.renew(0, [hold])
        assert await lab.engine.sweep(0, count=10) == []
    lab.advance(DEAD_MS)
    assert await lab.engine.sweep(0, count=10) == [(ACCOUNT, hold.hold_id, False)]


async def test_an_older_renew_never_shrinks_a_grown_hold(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    larger = (await grown(lab, hold, 30)).hold
    await lab.engine.renew(0, [hold])
    assert (await lab.wallet()).available == 30
    await lab.engine.release(larger)
    assert (await lab.wallet()).available == 100


async def test_a_newer_version_replaces_an_older_one(lab: Lab) -> None:
    """Redis was rolled back to before an extend."""
    await lab.ready(100)
    hold = await lab.hold(together(wallet(40), budget(40, 100), concurrency(2)))
    rollback = await lab.save()
    answer = await lab.engine.extend(hold, together(wallet(30), budget(30, 100)))
    assert isinstance(answer, Reserved)
    await rollback()
    await lab.engine.renew(0, [answer.hold])
    assert await lab.load()
    view = await lab.view()
    assert (view.wallets[0][0].available, view.budgets, view.holds_open) == (30, ((1, NOW_MS, 0, 0, 70),), 1)
    await lab.engine.release(answer.hold)
    assert (await lab.wallet()).available == 100


async def test_live_holds_come_back_after_redis_lost_everything(make_lab: Callable[..., Lab]) -> None:
    """FLUSHALL: the record is new, so workers re-assert before the partition admits; no admission above the bound."""
    lab = make_lab(reassert_wait_ms=1_000)
    await lab.ready(100)
    lab.advance(1_000)
    demand = together(wallet(45), budget(45, 100), window(1, 5), concurrency(2))
    holds = [await lab.hold(demand) for _ in range(2)]
    before = (await lab.engine.renew(0, [])).record
    await lab.client.execute("FLUSHALL")
    assert isinstance(await lab.engine.reserve(lab.request(wallet(45)), ticket="mine"), Stale)
    assert await lab.load("mine")
    assert isinstance(await lab.ask(wallet(45)), Warming)
    lab.advance(999)
    state = await lab.engine.renew(0, holds)
    assert state.record != before
    assert isinstance(await lab.ask(wallet(45)), Warming)
    lab.advance(1)
    answer = await lab.ask(wallet(45))
    assert isinstance(answer, Refused) and (answer.verdict, answer.held) == (Verdict.HELD, 90)
    assert isinstance(await lab.ask(concurrency(2)), Refused)
    assert (await lab.view()).budgets == ((1, NOW_MS + 1_000 - 1_000, 0, 0, 90),)
    for hold in holds:
        await lab.commit(await lab.settle(hold, 20))
    assert ((await lab.wallet()).available, await lab.drift()) == (60, {})


async def test_holds_come_back_to_a_stale_account_too(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    await lab.client.execute("FLUSHALL")
    await lab.engine.renew(0, [hold])
    await lab.engine.renew(0, [hold])
    assert await lab.load()
    assert ((await lab.wallet()).available, (await lab.view()).holds_open) == (60, 1)


async def test_a_hold_that_comes_back_often_makes_its_wallets_known_once(lab: Lab) -> None:
    """Those it took from: what it only asked for has no grants here, and nothing for a load to close."""
    await lab.ready(100)
    hold = await lab.hold(together(wallet(40), wallet(0, name="credits")))
    await lab.client.execute("FLUSHALL")
    for _ in range(3):
        await lab.engine.renew(0, [hold])
        await lab.engine.release(hold)
    assert await lab.client.execute("HGET", keys.account_key(0, ACCOUNT), "W") == b"\x06tokens"


async def test_a_beat_without_holds_makes_the_record(lab: Lab) -> None:
    state = await lab.engine.renew(0, [])
    assert state.record.endswith(f":{NOW_MS}") and state.outbox_entries == 0
    assert (await lab.engine.renew(0, [])).record == state.record
    await lab.promote()
    assert (await lab.engine.renew(0, [])).record != state.record


async def test_renew_takes_holds_of_many_accounts(lab: Lab) -> None:
    await lab.ready(10_000)
    first = await lab.hold(wallet(5))
    others = [replace(first, account=f"other-{n % 7}", hold_id=str(n).zfill(8) + first.hold_id[8:]) for n in range(511)]
    await lab.engine.renew(0, [first, *others])
    with pytest.raises(ValueError, match="512"):
        await lab.engine.renew(0, [first, first, *others])
    lab.advance(DEAD_MS)
    lapsed = [pair for _ in range(9) for pair in await lab.engine.sweep(0, count=100)]
    assert len(set(lapsed)) == len(lapsed) == 512


# --- lapse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_byte", [True, False])
async def test_a_lapse_charges_only_once_a_first_byte_was_told(lab: Lab, first_byte: bool) -> None:
    await lab.ready(100)
    hold = await lab.hold(together(wallet(40, abandon=9), budget(40, 100, abandon=3)), note=b"who and what")
    await lab.engine.renew(0, [replace(hold, first_byte=first_byte)])
    lab.advance(DEAD_MS)
    assert await lab.engine.lapse(ACCOUNT) == [(hold.hold_id, first_byte)]
    entries = await lab.reap()
    assert [entry.charge.payload for entry in entries] == ([b"who and what"] if first_byte else [])
    assert lab.billed(hold) == (9 if first_byte else None)
    view = await lab.view()
    assert view.wallets[0][0].available == (91 if first_byte else 100)
    assert view.budgets == ((1, NOW_MS, 3 if first_byte else 0, 0, 0),)


async def test_abandon_falls_on_the_takes_in_order(lab: Lab) -> None:
    await lab.ready(10, 10, 100)
    hold = await lab.told(await lab.hold(wallet(30, abandon=45)))
    lab.advance(DEAD_MS)
    await lab.engine.lapse(ACCOUNT)
    assert {number: grant.pending for number, grant in (await lab.grants()).items()} == {1: 10, 2: 10, 3: 25}
    del hold


async def test_a_first_byte_once_told_stays_told(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(40, abandon=9))
    await lab.told(hold)
    await lab.engine.renew(0, [hold])
    lab.advance(DEAD_MS)
    assert await lab.engine.lapse(ACCOUNT) == [(hold.hold_id, True)]


async def test_reserve_frees_at_most_four_dead_leases_of_its_account(lab: Lab) -> None:
    await lab.ready(100)
    for _ in range(10):
        await lab.hold(wallet(10))
    lab.advance(DEAD_MS)
    assert isinstance(await lab.ask(wallet(41)), Refused)
    assert (await lab.view()).holds_open == 6
    await lab.hold(wallet(41))
    assert (await lab.view()).holds_open == 3


async def test_dead_leases_of_one_account_are_not_anothers_affair(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.hold(wallet(10))
    await lab.engine.renew(0, [replace(hold, account="other", hold_id="f" * 8 + hold.hold_id[8:])])
    lab.advance(DEAD_MS)
    await lab.hold(wallet(1))
    assert (await lab.engine.sweep(0, count=10)) == [("other", "f" * 8 + hold.hold_id[8:], False)]


async def test_a_lease_over_in_a_live_call_is_reopened_and_billed_once(lab: Lab) -> None:
    """The worker was stopped for longer than its lease; then it went on."""
    await lab.ready(100)
    hold = await lab.told(await lab.hold(together(wallet(40, abandon=9), concurrency(1))))
    lab.advance(DEAD_MS)
    await lab.engine.lapse(ACCOUNT)
    await lab.reap()
    await lab.engine.renew(0, [hold])
    assert ((await lab.view()).holds_open, (await lab.wallet()).available) == (1, 51)
    assert isinstance(await lab.ask(concurrency(1)), Refused)
    await lab.commit(await lab.settle(hold, 25))
    assert (lab.billed(hold), (await lab.wallet()).available, await lab.drift()) == (25, 75, {})
    assert len(lab.ledger.book(ACCOUNT).charges) == 1


@pytest.mark.parametrize("end", ["settle", "confirmed settle", "release"])
async def test_a_delayed_renew_after_the_end_charges_nothing(lab: Lab, end: str) -> None:
    """The hold is back for one lease at most, and lapses without a word, or into a charge that SQL has final."""
    await lab.ready(100)
    hold = await lab.hold(wallet(40, abandon=9))
    if end == "release":
        await lab.engine.release(hold)
    else:
        hold = replace(hold, first_byte=True)
        charge = await lab.settle(hold, 25)
        if end == "confirmed settle":
            await lab.commit(charge)
    await lab.engine.renew(0, [hold])
    assert (await lab.view()).holds_open == (0 if end == "settle" else 1)
    lab.advance(DEAD_MS)
    await lab.engine.sweep(0, count=10)
    await lab.reap()
    expected = None if end == "release" else 25
    assert (lab.billed(hold), (await lab.wallet()).available) == (expected, 100 - (expected or 0))
    assert ((await lab.view()).holds_open, await lab.drift()) == (0, {})


async def test_a_reopened_holds_second_lapse_charges_nothing_again(lab: Lab) -> None:
    await lab.ready(100)
    hold = await lab.told(await lab.hold(wallet(40, abandon=9)))
    for _ in range(2):
        lab.advance(DEAD_MS)
        await lab.engine.sweep(0, count=10)
        await lab.engine.renew(0, [hold])
    lab.advance(DEAD_MS)
    await lab.engine.sweep(0, count=10)
    await lab.reap()
    assert (lab.billed(hold), (await lab.wallet()).available, await lab.drift()) == (9, 91, {})


# --- amnesty -------------------------------------------------------------------------------------------------------


async def test_no_lease_lapses_before_the_amnesty_of_a_new_record(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(amnesty_ms=90_000)
    await lab.ready(100)
    hold = await lab.hold(wallet(40))
    for step_ms in (20_000, 20_000, 25_000, 24_999):
        lab.advance(step_ms)
        assert await lab.engine.sweep(0, count=10) == []
    lab.advance(1)
    assert await lab.engine.sweep(0, count=10) == [(ACCOUNT, hold.hold_id, False)]


async def test_an_outage_gives_every_lease_new_time(make_lab: Callable[..., Lab]) -> None:
    """Nobody could renew: the last beat is older than a third of the amnesty."""
    lab = make_lab(amnesty_ms=60_000)
    await lab.ready(100)
    for _ in range(10):
        lab.advance(20_000)
        await lab.engine.renew(0, [])
    await lab.hold(wallet(40))
    lab.advance(DEAD_MS)
    assert isinstance(await lab.ask(wallet(70)), Refused)  # the next to touch the account notices the silence
    assert await lab.engine.lapse(ACCOUNT) == []
    for _ in range(3):
        lab.advance(19_999)
        assert await lab.engine.sweep(0, count=10) == []
    lab.advance(3)
    assert len(await lab.engine.sweep(0, count=10)) == 1


async def test_a_beat_after_an_outage_gives_new_time_too(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(amnesty_ms=60_000)
    await lab.ready(100)
    await lab.hold(wallet(40))
    lab.advance(10 * MINUTE_MS)
    await lab.engine.renew(0, [])
    assert await lab.engine.lapse(ACCOUNT) == []


async def test_a_clock_that_goes_back_ends_no_lease_early(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(amnesty_ms=60_000)
    await lab.ready(100)
    lab.advance(-60 * MINUTE_MS)
    hold = await lab.hold(together(wallet(40), concurrency(1, scope=TEAM)))
    for _ in range(4):
        lab.advance(19_000)
        assert await lab.engine.sweep(0, count=10) == [] or lab.now_ms >= NOW_MS - 60 * MINUTE_MS + 60_000
    await lab.engine.release(hold)
    assert (await lab.wallet()).available == 100


# --- the reaper's lease --------------------------------------------------------------------------------------------


async def test_one_worker_leads_as_long_as_it_asks(lab: Lab) -> None:
    assert await lab.engine.lead("reaper", "one", 60_000)
    assert not await lab.engine.lead("reaper", "two", 60_000)
    assert await lab.engine.lead("reaper", "one", 60_000)
    assert await lab.engine.lead("other", "two", 60_000)


# --- what is open --------------------------------------------------------------------------------------------------


async def test_what_is_open_is_told_with_what_it_took(lab: Lab) -> None:
    """For operators, in pieces: more of them than one look of the server brings."""
    await lab.ready(50, 10_000)
    first = await lab.hold(together(wallet(60), budget(60, 100)))
    told = {hold.hold_id: hold for hold in await lab.engine.open_holds(ACCOUNT)}
    assert told[first.hold_id].takes == ((1, 50), (2, 10)) and not told[first.hold_id].first_byte
    more = [await lab.hold(wallet(1)) for _ in range(600)]
    told = {hold.hold_id: hold for hold in await lab.engine.open_holds(ACCOUNT)}
    assert set(told) == {first.hold_id, *(hold.hold_id for hold in more)}
    assert await lab.engine.release_id(ACCOUNT, first.hold_id)
    assert not await lab.engine.release_id(ACCOUNT, first.hold_id)
    assert first.hold_id not in {hold.hold_id for hold in await lab.engine.open_holds(ACCOUNT)}


async def test_an_account_that_redis_does_not_know_has_nothing_open(lab: Lab) -> None:
    assert await lab.engine.open_holds("nobody") == ()
