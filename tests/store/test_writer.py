"""Laws of the bill: one charge per hold, decided here, whatever comes in which order and how often."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import text

from gateway.domain.accounts import Account
from gateway.domain.charges import ChargeRow, Committed, decode
from gateway.domain.periods import Period
from gateway.domain.usage import Usage
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.store.common import new_id
from gateway.store.database import Database
from gateway.store.script import Script
from gateway.store.store import Store
from gateway.store.writer import BATCH_MAX, Writer
from tests.store.conftest import Place
from tests.support import stores
from tests.support.scrape import Page
from tests.support.stores import DAY_MS, NOW_MS, charge


async def _audit(store: Store) -> list[str]:
    """What the audit says is different."""
    return [f"{each.what}: {each.found}" async for audited in store.ledger.audit() for each in audited.differences]


async def _used(store: Store, account: Account) -> list[int]:
    return [grant.used for grant in await store.grants.list(account.id)]


def _amounts(committed: Committed) -> list[tuple[int, int]]:
    return [(change.seq, sum(line.amount for line in change.lines)) for change in committed.changes]


async def test_a_settle_is_booked_on_its_grant(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    [committed] = await store.writer.commit([charge(account, (1, 700))])
    assert committed.state == "settled"
    assert _amounts(committed) == [(1, 700)]
    snapshot = await store.state.snapshot(account.id)
    assert (snapshot.seq, [grant.used for grant in snapshot.grants]) == (1, [700])
    assert await _audit(store) == []


async def test_the_same_charge_again_changes_nothing_and_answers_the_same(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    row = charge(account, (1, 700))
    first = await store.writer.commit([row])
    assert await store.writer.commit([row, row]) == first * 2
    other = replace(row, charged=9, lines=())  # settled is final, whatever comes under its id
    assert await store.writer.commit([other]) == first
    assert await _used(store, account) == [700]


async def test_no_charges_need_no_transaction(store: Store) -> None:
    assert await store.writer.commit([]) == []


async def test_a_settle_after_a_lapse_reverses_it(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    hold = new_id()
    await store.writer.commit([charge(account, (1, 500), hold_id=hold, state="lapsed")])
    [committed] = await store.writer.commit([charge(account, (1, 40), hold_id=hold)])
    assert committed.state == "settled"
    assert _amounts(committed) == [(1, 500), (2, -500), (3, 40)]
    assert await _used(store, account) == [40]
    records = await store.usage.of_hold(account.id, hold)
    assert [(each.state, each.charged, each.usage.input) for each in records] == [
        ("lapsed", 500, 500),
        ("reversed", -500, -500),
        ("settled", 40, 40),
    ]
    assert [(e.kind, e.amount) for e in (await store.ledger.transactions(account.id)).items] == [
        ("reversed", 500),
        ("charged", 40),
        ("charged", 500),
        ("granted", 6_000_000),
    ]
    assert await _audit(store) == []


async def test_a_lapse_after_a_settle_writes_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    hold = new_id()
    settled = await store.writer.commit([charge(account, (1, 40), hold_id=hold)])
    assert await store.writer.commit([charge(account, (1, 500), hold_id=hold, state="lapsed")]) == settled


ARRIVALS = [order for n in (1, 2, 3, 4) for order in itertools.product("LS", repeat=n)]


@pytest.mark.parametrize("together", [True, False])
async def test_in_every_order_of_arrival_the_bill_is_the_last_word(store: Store, together: bool) -> None:
    """All orders of up to four arrivals of a lapse of 500 and a settle of 40, in one batch or one by one."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    total = 0
    for arrivals in ARRIVALS:
        hold = new_id()
        rows = [charge(account, (1, 40 if c == "S" else 500), hold_id=hold, state=_state(c)) for c in arrivals]
        if together:
            answers = await store.writer.commit(rows)
        else:
            answers = [(await store.writer.commit([row]))[0] for row in rows]
        bill = 40 if "S" in arrivals else 500
        total += bill
        assert sum(amount for _, amount in _amounts(answers[-1])) == bill
        assert answers[-1].state == ("settled" if "S" in arrivals else "lapsed")
    assert await _used(store, account) == [total]
    assert await _audit(store) == []


def _state(letter: str) -> str:
    return "settled" if letter == "S" else "lapsed"


async def test_seqs_are_dense_over_holds_and_batches(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    sizes = (1, 5, 2, 40)
    answers = [await store.writer.commit([charge(account, (1, 1)) for _ in range(size)]) for size in sizes]
    seqs = [change.seq for answer in answers for committed in answer for change in committed.changes]
    assert seqs == list(range(1, sum(sizes) + 1))
    assert (await store.state.snapshot(account.id)).seq == sum(sizes)


async def test_a_charge_over_several_grants_and_budgets(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    await store.grants.add(account.id, wallet="tokens", amount=50_000, now_ms=NOW_MS)
    team = await store.members.create_team(account.id, "Core", now_ms=NOW_MS)
    for scope_id in (team.id, (await store.members.create_team(account.id, "B", now_ms=NOW_MS)).id):
        await store.members.set_budget(
            "team", scope_id, meter="tokens", amount=10**9, period=Period("month"), now_ms=NOW_MS
        )
    hold = new_id()
    lapse = charge(account, (1, 30), (2, 20), hold_id=hold, state="lapsed", budgets=((1, NOW_MS, 50), (2, NOW_MS, 5)))
    settle = charge(account, (1, 30), (2, 7), hold_id=hold, budgets=((1, NOW_MS, 37), (2, NOW_MS, 3)))
    late = charge(account, (2, 1), budgets=((1, NOW_MS + DAY_MS, 1),))
    await store.writer.commit([lapse])
    await store.writer.commit([settle, late])
    snapshot = await store.state.snapshot(account.id)
    assert [grant.used for grant in snapshot.grants] == [30, 8]
    assert [(use.number, use.starts_at_ms, use.used) for use in snapshot.budgets] == [
        (1, NOW_MS + DAY_MS, 1),  # the newest period
        (2, NOW_MS, 3),
    ]
    [record] = [r for r in await store.usage.of_hold(account.id, hold) if r.state == "settled"]
    assert [(line.grant, line.amount, line.left) for line in record.lines] == [(1, 30, 499_970), (2, 7, 49_993)]
    assert record.balance_after == 499_970 + 49_993
    assert await _audit(store) == []


async def test_a_charge_over_two_wallets_keeps_them_apart(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    await store.grants.add(account.id, wallet="credits", amount=100, now_ms=NOW_MS)
    row = charge(account, (1, 30))
    credits = charge(account, (2, 7), wallet="credits").lines
    row = replace(row, lines=row.lines + credits, charged=37)
    [committed] = await store.writer.commit([row])
    assert await store.writer.commit([row]) == [committed]  # read back, the wallets are still right
    assert committed.changes[0].lines == row.lines
    assert [(line.wallet, line.amount) for line in (await store.usage.list(account.id)).items[0].lines] == [
        ("tokens", 30),
        ("credits", 7),
    ]
    assert await _audit(store) == []


async def test_a_grant_knows_the_end_of_the_latest_call_that_it_was_charged_for(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    latest = []
    for at in ((5, 9, 3), (7,), (8, 11)):
        await store.writer.commit([charge(account, (1, 1), at_ms=NOW_MS + ms) for ms in at])
        (grant,) = await store.grants.list(account.id)
        latest.append(grant.charged_at_ms - NOW_MS)
    assert latest == [9, 9, 11]


async def test_what_a_correction_takes_back_lowers_no_counter(store: Store) -> None:
    account, metrics = await store.accounts.create("Acme", now_ms=NOW_MS), Metrics(None)
    writer = Writer(store.database, lambda: stores.CATALOG, metrics=metrics)
    counted = []
    hold = new_id()
    for row in (
        charge(account, (1, 500), hold_id=hold, state="lapsed"),
        charge(account, (1, 40), hold_id=hold),
        charge(account, (1, 60)),
    ):
        await writer.commit([row])
        page = Page.of(metrics.render().decode())
        counted.append(page.sum("tollgate_charged_units_total") * stores.CATALOG.meters["tokens"].scale)
    assert counted == [500, 500, 560]


async def test_an_overrun_takes_its_grant_below_nothing(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    await store.writer.commit([charge(account, (1, 500_700), overrun=700)])
    [record] = (await store.usage.list(account.id)).items
    assert (record.balance_after, record.overrun, record.lines[0].left) == (-700, 700, -700)
    assert await _audit(store) == []


async def test_a_grant_knows_when_it_was_last_charged(store: Store) -> None:
    """The end of the last call, in whatever order the calls arrive."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    (grant,) = await store.grants.list(account.id)
    assert grant.charged_at_ms == 0
    for at_ms in (NOW_MS + 7, NOW_MS + 3):
        await store.writer.commit([charge(account, (1, 5), at_ms=at_ms)])
    (grant,) = await store.grants.list(account.id)
    assert grant.charged_at_ms == NOW_MS + 7


async def test_a_late_settle_is_booked_on_the_old_grant(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
    late_ms = NOW_MS + 31 * DAY_MS
    await store.subscriptions.turn(account.id, now_ms=late_ms)
    [committed] = await store.writer.commit([charge(account, (1, 700), at_ms=late_ms)])
    assert committed.changes[0].lines[0].number == 1
    assert await _used(store, account) == [700, 0]
    [record] = (await store.usage.list(account.id)).items
    assert record.balance_after == 500_000  # of what is open now
    hold = new_id()
    await store.writer.commit([charge(account, (1, 9), hold_id=hold, state="lapsed", at_ms=late_ms)])
    await store.writer.commit([charge(account, (2, 4), hold_id=hold, at_ms=late_ms)])
    assert await _used(store, account) == [700, 4]
    assert await _audit(store) == []


async def test_a_free_call_has_its_record_and_its_seq(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    [committed] = await store.writer.commit([charge(account)])
    assert committed.changes[0].seq == 1
    assert await _audit(store) == []


def _strange(account: Account) -> list[ChargeRow]:
    """Charges that have no place in the database."""
    row = charge(account, (1, 5))
    return [
        charge(new_id(), (1, 5)),
        charge(account, (9, 5)),
        charge(account, (1, 5), wallet="credits"),
        charge(account, (1, 5), budgets=((3, NOW_MS, 5),)),
        charge(account, (1, -5)),
        charge(account, (1, 2**53)),
        replace(row, hold_id=new_id(), held=-1),
        replace(row, hold_id=new_id(), state="open"),
        replace(row, hold_id=new_id(), key_id="k" * 37),
        replace(row, hold_id="h" * 37),
    ]


async def test_a_charge_without_a_place_does_not_hold_up_the_others(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    strange = _strange(account)
    good = [charge(account, (1, 1)) for _ in strange]
    mixed = [row for pair in zip(strange, good, strict=True) for row in pair]
    for _ in range(2):  # found again in the outbox
        answers = await store.writer.commit(mixed)
        assert [answer.changes == () for answer in answers] == [True, False] * len(strange)
        assert [answer.hold_id for answer in answers] == [row.hold_id for row in mixed]
    assert await _used(store, account) == [len(good)]
    assert len(await _audit(store)) == len(strange)
    async with store.database.read() as connection:
        kept = (await connection.execute(text('SELECT "row" FROM usage_rejects'))).scalars()
        assert [decode(bytes.fromhex(each)) for each in kept] == strange


async def test_a_hold_of_another_account_is_not_answered(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    thief = await store.accounts.create("Thief", now_ms=NOW_MS)
    hold = new_id()
    await store.writer.commit([charge(account, (1, 40), hold_id=hold, state="lapsed")])
    [answer] = await store.writer.commit([charge(thief, (1, 1), hold_id=hold)])
    assert answer.changes == ()
    assert await _used(store, account) == [40]
    assert await _used(store, thief) == [0]


@pytest.mark.parametrize("written", ["a\0b", "\ud800x", "naïve 🚀", "x" * 10_000, "'; DROP TABLE usage; --"])
async def test_what_a_caller_wrote_never_holds_up_the_bill(store: Store, written: str) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    row = charge(account, (1, 1), model=written, job=written, job_type=written, metadata={written: [written]})
    [committed] = await store.writer.commit([row])
    assert len(committed.changes) == 1
    [record] = (await store.usage.list(account.id)).items
    assert record.metadata == {written: [written]}
    assert record.job == written.replace("\0", "\ufffd").replace("\ud800", "?")


async def test_writers_with_the_same_charges_book_each_once(place: Place) -> None:
    """A takeover: the owner and the reaper commit the same charges, in other orders, at once, over and over."""
    async with (
        stores.opened(place.url, place.folder) as owner,
        stores.opened(place.url, place.folder) as reaper,
    ):
        accounts = [await owner.accounts.create(f"A{i}", now_ms=NOW_MS) for i in range(4)]
        rows = [charge(account, (1, 10 + i)) for account in accounts for i in range(10)]
        lapses = [replace(row, state="lapsed", charged=5, lines=charge(row.account_id, (1, 5)).lines) for row in rows]
        mixes: list[Sequence[ChargeRow]] = [rows[i:] + rows[:i] for i in (0, 7, 13, 29)]
        mixes += [lapses, lapses[::-1], rows[::-1]]
        tasks = [store.writer.commit(mix) for mix in mixes for store in (owner, reaper)]
        await asyncio.gather(*tasks)
        final = await owner.writer.commit(rows)
        assert final == await reaper.writer.commit(rows)
        assert all(item.state == "settled" for item in final)
        for account in accounts:
            assert await _used(owner, account) == [sum(range(10, 20))]
        assert await _audit(owner) == []


class _Lossy:
    """The database, seen over a line that loses every reply to a commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect

    async def run(self, script: Script[object]) -> None:
        await self._database.run(script)
        raise StoreUnavailable


async def test_a_commit_whose_reply_was_lost_is_repeated_without_harm(place: Place) -> None:
    async with stores.opened(place.url, place.folder) as store:
        account = await store.accounts.create("Acme", now_ms=NOW_MS)
        rows = [charge(account, (1, 10)) for _ in range(5)]
        writer = type(store.writer)(_Lossy(store.database), lambda: stores.CATALOG, now_ms=stores.Clock())  # type: ignore[arg-type]
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await writer.commit(rows)
        assert [_amounts(each) for each in await store.writer.commit(rows)] == [[(seq, 10)] for seq in range(1, 6)]
        assert await _audit(store) == []


async def test_a_failed_batch_leaves_nothing(store: Store) -> None:
    """The connection breaks after each statement of a flush in turn; then it works."""
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    rows = [charge(account, (1, 10)), charge(new_id())]
    for statements in range(1, 9):

        def breaking(statements: int = statements) -> Script[None]:
            script, answer = store.writer._booking(rows, NOW_MS), None
            for _ in range(statements):
                answer = yield script.send(answer)
            raise OSError("gone")

        with pytest.raises(StoreUnavailable):
            await store.database.run(breaking())
        assert (await store.state.snapshot(account.id)).seq == 0
        assert await _audit(store) == []
    assert [len(answer.changes) for answer in await store.writer.commit(rows)] == [1, 0]


async def test_a_batch_that_the_database_refuses_leaves_nothing(store: Store) -> None:
    """The account's last seq was put back by hand: the row of the next one is there already."""
    account, other = [await store.accounts.create(name, now_ms=NOW_MS) for name in ("Acme", "Other")]
    await store.writer.commit([charge(account, (1, 10))])
    rows = [charge(other, (1, 7)), *(charge(account, (1, amount)) for amount in range(1, 6))]
    for seq in (0, 1):
        async with store.database.write() as connection:
            await connection.execute(text("UPDATE accounts SET seq = :seq WHERE name = 'Acme'"), {"seq": seq})
        if seq == 0:
            with pytest.raises(StoreUnavailable):
                await store.writer.commit(rows)
            assert (await store.state.snapshot(other.id)).seq == 0
    assert len(await store.writer.commit(rows)) == 6
    assert await _audit(store) == []


async def test_usual_rows_and_others_of_one_batch_are_all_told(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)
    said: tuple[dict[str, object], ...] = (
        {}, {"job": "j"}, {"metadata": {"a": 1}}, {"overrun": 2}, {"waived": 3}, {"shadow": "x"}, {"job_type": "t"},
    )  # fmt: skip
    rows = [charge(account, (1, 10), at_ms=NOW_MS + at, **each) for at, each in enumerate(said)]
    rows.append(charge(account, (1, 10), at_ms=NOW_MS + 9, usage=Usage(10, 0, 1, 2, 3, 0, 4)))
    await store.writer.commit(rows)
    told = reversed((await store.usage.list(account.id)).items)
    for row, record in zip(rows, told, strict=True):
        for name in ("hold_id", "job", "job_type", "metadata", "overrun", "waived", "shadow", "usage"):
            assert getattr(record, name) == getattr(row, name), name


async def test_last_seqs_are_of_charges_in_the_window(store: Store, clock: stores.Clock) -> None:
    accounts = [await store.accounts.create(f"A{i}", now_ms=NOW_MS) for i in range(3)]
    for age_s, account in ((70, accounts[0]), (30, accounts[1]), (25, accounts[1]), (5, accounts[1]), (5, accounts[2])):
        clock.now_ms = NOW_MS - age_s * 1000
        await store.writer.commit([charge(account, (1, 1))])
    clock.now_ms = NOW_MS
    assert await store.writer.last_seqs(older_than_ms=10_000, newer_than_ms=60_000) == ((accounts[1].id, 2),)


async def test_a_full_batch_over_many_accounts(store: Store) -> None:
    accounts = [await store.accounts.create(f"A{i}", now_ms=NOW_MS) for i in range(10)]
    rows = [charge(accounts[i % 10], (1, i)) for i in range(BATCH_MAX)]
    answers = await store.writer.commit(rows)
    assert [answer.changes[0].seq for answer in answers] == [1 + i // 10 for i in range(BATCH_MAX)]
    assert await _audit(store) == []
