"""What works in the background goes on for the others when one account, one hold or one server cannot be served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text
from uuid_utils import uuid7

from gateway.domain.charges import ChargeChange, Committed, encode
from gateway.errors import BadRequest, QuotaUnavailable
from gateway.metrics import Metrics
from gateway.proxy import exchange
from gateway.quota import rounds, service, versions
from gateway.quota.admission import Admission
from gateway.quota.clock import ServerClock
from gateway.quota.holds import HOLDS_PER_BEAT_MAX, Holds
from gateway.quota.reaper import COMPARE_EVERY_TICKS, ROUND_TICKS, SET_ASIDE_AFTER_MS, row_of
from gateway.quota.scribe import CALLS_AT_ONCE, Scribe
from gateway.quota.turn import Turner
from gateway.quota.watch import Watch
from limits.engine import CONFIRMS_PER_CALL
from limits.errors import EngineUnavailable, ScriptRejected
from limits.model import AccountView, Charge, ChargeState, Confirm, Demand, Hold, PartitionState, Take
from tests.support import stores
from tests.support.bills import assert_settled_to, usage_rows
from tests.support.calls import ANTHROPIC
from tests.support.gateways import Local

AWAY = EngineUnavailable("this master is away", sent=False)


class Engine:
    """Records what reaches Redis; some accounts' server is away, some are rejected."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.beats: list[list[str]] = []
        self.beating = asyncio.Event()
        self.go_on = asyncio.Event()
        self.records = ["a record"]  # of the partition, as the next renews see it

    def partition(self, account: str) -> int:
        return 0

    def _reach(self, account: str) -> None:
        if account in self.failing:
            raise self.failing[account]
        self.reached.append(account)

    async def confirm(self, *confirms: Confirm) -> None:
        self._reach(confirms[0].account)

    async def mark_stale(self, account: str, *, ticket: str) -> str:
        self._reach(account)
        return ticket

    async def renew(self, partition: int, holds: Sequence[Hold]) -> PartitionState:
        self.beats.append([hold.hold_id for hold in holds])
        self.beating.set()
        await self.go_on.wait()
        record = self.records.pop(0) if len(self.records) > 1 else self.records[0]
        return PartitionState(record, 0, 0)


class Store:
    """A database that has committed everything, with pushes for two accounts."""

    def __init__(self) -> None:
        self.waiting = [(1, "away"), (2, "here")]
        self.answers: list[Committed] = []  # instead, one by one

    async def commit(self, rows: Sequence[Any]) -> list[Committed]:
        if self.answers:
            return [self.answers.pop(0)]
        return [Committed(account, f"hold-{index}", "settled", ()) for index, account in enumerate(rows)]

    async def pushes(self, *, limit: int, after: int = 0) -> Sequence[tuple[int, str]]:
        return [push for push in self.waiting if push[0] > after][:limit]

    async def delete_pushes(self, ids: Sequence[int]) -> None:
        self.waiting = [push for push in self.waiting if push[0] not in ids]


@pytest.mark.parametrize(
    "failure", [AWAY, ScriptRejected("no"), ValueError("no")], ids=lambda failure: type(failure).__name__
)
async def test_confirms_that_fail_keep_no_others_from_redis(failure: Exception) -> None:
    engine, store = Engine(), Store()
    lost = [f"away-{index}" for index in range(CALLS_AT_ONCE)] + ["away-0"] * CONFIRMS_PER_CALL
    engine.failing = dict.fromkeys(lost, failure)
    scribe, many = Scribe(store, engine, Metrics(None)), len(lost)  # type: ignore[arg-type]
    await scribe.write([*lost, "here"])  # type: ignore[arg-type]
    stays = failure is AWAY
    for _ in range(2):
        assert await scribe._flush_confirms() is not stays
    assert engine.reached == ["here"]
    assert scribe.kept == (many if stays else 0)
    engine.failing.clear()
    assert await scribe._flush_confirms() and scribe.kept == 0


async def test_a_confirm_that_redis_rejects_keeps_no_other_of_its_account_waiting() -> None:
    """They leave in one call: what is wrong with one of them is found by asking for each alone."""
    engine, store = Engine(), Store()
    asked: list[list[str]] = []

    async def confirm(*confirms: Confirm) -> None:
        asked.append([item.hold_id for item in confirms])
        if any(item.hold_id == "hold-1" for item in confirms):
            raise ScriptRejected("no")

    engine.confirm = confirm  # type: ignore[method-assign]
    scribe = Scribe(store, engine, Metrics(None))  # type: ignore[arg-type]
    await scribe.write(["here"] * 3)  # type: ignore[arg-type]
    assert await scribe._flush_confirms() and scribe.kept == 0
    assert asked == [["hold-0", "hold-1", "hold-2"], ["hold-0"], ["hold-1"], ["hold-2"]]


async def test_a_charge_decided_while_redis_is_away_is_confirmed_when_it_answers() -> None:
    engine, store = Engine(), Store()
    scribe = Scribe(store, engine, Metrics(None))  # type: ignore[arg-type]
    engine.failing["here"] = AWAY
    await scribe.decide("here")  # type: ignore[arg-type]
    assert (scribe.kept, engine.reached) == (1, [])
    engine.failing.clear()
    assert await scribe._flush_confirms()
    assert (scribe.kept, engine.reached) == (0, ["here"])


async def test_of_two_answers_about_a_charge_the_later_one_is_told() -> None:
    """The owner of a charge and who found it in the outbox commit it both: SQL's later answer has all its changes."""
    engine, store = Engine(), Store()
    told: list[Confirm] = []

    async def confirm(*confirms: Confirm) -> None:
        told.extend(confirms)

    changes = tuple(ChargeChange(seq, (), ()) for seq in (1, 2, 3))
    answers = [Committed("here", "hold", "lapsed", changes[:1]), Committed("here", "hold", "settled", changes)]
    for order in (answers, answers[::-1]):
        scribe = Scribe(store, engine, Metrics(None))  # type: ignore[arg-type]
        engine.confirm = confirm  # type: ignore[method-assign]
        store.answers = list(order)
        for _ in order:
            await scribe.write(["here"])  # type: ignore[arg-type]
        assert await scribe._flush_confirms()
    assert [(len(item.deltas), item.state.value) for item in told] == [(3, "settled")] * 2


async def test_a_push_that_cannot_be_delivered_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A revoked key of an account on a healthy server counts at once, whatever else is away."""
    engine, store, loaded = Engine(), Store(), list[str]()
    engine.failing["away"] = AWAY
    turner = Turner(engine, store, Metrics(None))  # type: ignore[arg-type]

    async def load(account_id: str, ticket: str) -> bool:
        loaded.append(account_id)
        return True

    monkeypatch.setattr(turner, "_load", load)
    await turner.deliver_pushes()
    assert loaded == engine.reached == ["here"]
    assert store.waiting == [(1, "away")]


async def test_pushes_for_a_server_that_is_away_however_many_leave_others_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, store, loaded = Engine(), Store(), list[str]()
    store.waiting = [(number, f"away-{number}") for number in range(1, 8)] + [(8, "here"), (9, "there")]
    engine.failing = {f"away-{number}": AWAY for number in range(1, 8)}
    turner = Turner(engine, store, Metrics(None))  # type: ignore[arg-type]

    async def load(account_id: str, ticket: str) -> bool:
        loaded.append(account_id)
        return True

    monkeypatch.setattr(turner, "_load", load)
    for _ in range(3):
        await turner.deliver_pushes(limit=3)
    assert loaded == ["here", "there"]
    engine.failing.clear()
    for _ in range(4):  # the end is seen, then from the start
        await turner.deliver_pushes(limit=3)
    assert (store.waiting, len(loaded)) == ([], 9)


class Plans:
    """Accounts on an old version of their plan; each advances once."""

    def __init__(self, accounts: Sequence[str]) -> None:
        self.behind = sorted(accounts)

    async def register(self, **_: Any) -> None: ...

    async def outdated(self, *, limit: int = 100, after: str = "") -> Sequence[str]:
        return [account for account in self.behind if account > after][:limit]

    async def advance(self, account_id: str, *, now_ms: int, held: Any = None) -> bool:
        self.behind.remove(account_id)
        return True


class States:
    """Redis, where some accounts' server is away."""

    def __init__(self, away: Sequence[str]) -> None:
        self.away = away

    async def view(self, account_id: str, wallets: tuple[str, ...]) -> AccountView:
        if account_id in self.away:
            raise QuotaUnavailable
        return AccountView(1, 1, 0, (), (), 0, 0)

    async def deliver(self, account_id: str) -> bool:
        return True


async def test_accounts_whose_server_is_away_however_many_keep_no_other_on_its_old_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "FOLLOWED_AT_ONCE", 3)
    away = [f"account-{number}" for number in range(7)]
    plans, states = Plans([*away, "here", "there"]), States(away)
    following = versions.Versions(plans, states, catalog=lambda: stores.CATALOG, clock=ServerClock())  # type: ignore[arg-type]
    for _ in range(3):
        await following.follow_all()
    assert plans.behind == away
    states.away = ()
    for _ in range(4):
        await following.follow_all()
    assert plans.behind == []


async def test_accounts_that_cannot_be_served_however_many_leave_others_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "SERVED_AT_ONCE", 3)
    stuck: dict[str, Exception] = {f"away-{number}": AWAY for number in range(4)}
    stuck |= {f"wrong-{number}": BadRequest("unknown_plan", "no") for number in range(3)}
    due = [*stuck, "here", "there"]

    async def waiting(*, now_ms: int, limit: int, skip: int) -> Sequence[str]:
        return due[skip:][:limit]

    async def serve(account_id: str, now_ms: int) -> None:
        if account_id in stuck:
            raise stuck[account_id]
        due.remove(account_id)

    turns = rounds.Rounds("the turn", waiting, serve)
    for _ in range(3):
        await turns.go(1)
    assert due == list(stuck)
    stuck.clear()
    for _ in range(4):  # the end is seen, then from the start
        await turns.go(1)
    assert due == []


async def test_trials_whose_server_is_away_do_not_keep_the_watch_from_its_other_work() -> None:
    raised: list[Sequence[Any]] = []

    class Trials:
        async def trials_over(self, *, now_ms: int, limit: int, skip: int) -> Sequence[str]:
            return ["away"]

        async def trials_ending(self, *, now_ms: int) -> Sequence[Any]:
            return ()

        async def raise_all(self, new: Sequence[Any]) -> None:
            raised.append(new)

        async def remove_old_news(self, *, now_ms: int) -> None:
            raised.append("removed")

    class Away:
        async def turn(self, account_id: str, now_ms: int) -> None:
            raise AWAY

    class Use:
        async def look(self, now_ms: int) -> Sequence[Any]:
            return ["a spike"]

    watch = Watch(Trials(), Away(), Use(), catalog=lambda: stores.CATALOG, now_ms=lambda: 1)  # type: ignore[arg-type]
    await watch.look()
    assert raised == [[], "removed", ["a spike"]]


async def test_a_hold_that_ends_while_others_are_re_asserted_is_not_opened_again() -> None:
    engine = Engine()
    holds = Holds(engine)  # type: ignore[arg-type]
    every = [Hold("acme", f"hold-{n}", 1, 0, 60_000, (), Demand(), (), b"") for n in range(HOLDS_PER_BEAT_MAX + 2)]
    for hold in every:
        holds.add(hold)
        holds.first_byte(hold)
    beat = asyncio.create_task(holds.beat())
    await engine.beating.wait()
    holds.remove(every[-1])
    engine.go_on.set()
    await beat
    assert [len(sent) for sent in engine.beats] == [HOLDS_PER_BEAT_MAX, 1]
    assert every[-1].hold_id not in engine.beats[1]


async def test_holds_are_re_asserted_again_when_redis_forgets_again_meanwhile() -> None:
    engine = Engine()
    engine.go_on.set()
    engine.records = ["second", "third"]
    holds = Holds(engine)  # type: ignore[arg-type]
    for number in range(HOLDS_PER_BEAT_MAX + 1):
        holds.add(Hold("acme", f"hold-{number}", 1, 0, 60_000, (), Demand(), (), b""))
    holds.saw_record(0, "first")
    holds.saw_record(0, "second")
    await holds.beat()
    assert [len(sent) for sent in engine.beats] == [HOLDS_PER_BEAT_MAX, 1, HOLDS_PER_BEAT_MAX, 1]


async def test_when_redis_has_forgotten_each_partition_costs_its_own_holds_alone() -> None:
    """All partitions forget at once, and all must be re-asserted within a second, however many holds there are."""

    class Spread(Engine):
        looked = 0

        def partition(self, account: str) -> int:
            self.looked += 1
            return int(account)

    engine = Spread()
    engine.go_on.set()
    engine.records = ["second"]
    holds = Holds(engine)  # type: ignore[arg-type]
    for number in range(512):
        holds.add(Hold(str(number % 64), f"hold-{number}", 1, 0, 60_000, (), Demand(), (), b""))
        if number % 2:
            holds.remove(Hold(str(number % 64), f"hold-{number}", 1, 0, 60_000, (), Demand(), (), b""))
    taken = engine.looked
    for partition in range(64):
        holds.saw_record(partition, "first")
        holds.saw_record(partition, "second")
    await holds.beat()
    sent = [hold_id for beat in engine.beats for hold_id in beat]
    assert sorted(sent) == sorted(f"hold-{number}" for number in range(0, 512, 2))
    assert not holds.stale and engine.looked == taken


async def test_a_call_that_was_not_served_owes_nothing_though_its_release_is_lost(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first byte was told, so its hold's lapse would charge: the database knows better."""
    key, account = await gateway.account("drain")
    quota = gateway.worker.gateway.quota
    engine, end = quota._engine, quota.end
    partition = engine.partition(account.id)

    async def after_a_beat(admission: Admission, bill: Any) -> None:
        assert bill.released
        await engine.renew(partition, [replace(admission.hold, first_byte=True)])
        await end(admission, bill)

    async def lost(hold: Hold) -> None:
        raise EngineUnavailable("no answer", sent=True)

    monkeypatch.setattr(quota, "end", after_a_beat)
    monkeypatch.setattr(engine, "release", lost)
    monkeypatch.setattr(service, "RELEASE_RETRY_S", 0)
    request = {"json": ANTHROPIC.body("reset=headers", stream=True), "headers": ANTHROPIC.headers(key)}
    async with aiohttp.ClientSession() as session, session.post(gateway.url + ANTHROPIC.path, **request) as answer:
        await answer.read()
    await gateway.settled()
    for offset_ms in range(15_000, 180_000, 15_000):  # beats all along, so that nobody is given more time
        engine.set_clock(offset_ms=offset_ms)
        await engine.renew(partition, ())
    await engine.lapse(account.id)
    entries = await engine.outbox(partition, older_than_ms=0, count=10)
    await quota.scribe.write([row_of(entry, ended_at_ms=quota.clock.now_ms()) for entry in entries])
    await assert_settled_to(gateway, account.id, 0)
    assert [row["charged"] for row in await usage_rows(gateway, account.id)] == [0]


async def test_a_call_that_never_began_and_whose_release_is_lost_is_no_record(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lapse charges nothing, so that there is nothing to know better."""
    key, account = await gateway.account("drain")

    async def lost(hold: Hold) -> None:
        raise EngineUnavailable("no answer", sent=True)

    monkeypatch.setattr(gateway.worker.gateway.quota._engine, "release", lost)
    monkeypatch.setattr(service, "RELEASE_RETRY_S", 0)
    request = {"json": ANTHROPIC.body("status=400"), "headers": ANTHROPIC.headers(key)}
    async with aiohttp.ClientSession() as session, session.post(gateway.url + ANTHROPIC.path, **request) as answer:
        await answer.read()
    await gateway.settled()
    assert not await usage_rows(gateway, account.id)


async def test_a_bug_while_settling_leaves_no_hold_that_is_renewed_for_ever(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ends it."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(exchange, "settle", broken)
    key, _ = await gateway.account("drain")
    request = {"json": ANTHROPIC.body("output=5"), "headers": ANTHROPIC.headers(key)}
    async with aiohttp.ClientSession() as session, session.post(gateway.url + ANTHROPIC.path, **request) as answer:
        assert answer.status == 200
    await gateway.worker.gateway.tasks.drained(10)
    assert len(gateway.worker.gateway.quota.holds) == 0


async def test_a_charge_that_cannot_be_read_or_a_partition_that_fails_keeps_no_other_from_its_end(
    gateway: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of a newer release lies before a good one whose worker died; a lapse in the same partition fails."""
    _, account = await gateway.account("drain")
    quota, reaper = gateway.worker.gateway.quota, gateway.worker.reaper
    engine = quota._engine
    await quota.turner.push(account.id)
    row = stores.charge(account.id, (1, 70))
    unread, good = str(uuid7()), row.hold_id
    for hold_id, payload in ((unread, b"\x63 of a newer release"), (good, encode(row))):
        hold = Hold(account.id, hold_id, 1, 0, 60_000, (), Demand(), (), b"")
        charge = Charge(account.id, hold_id, ChargeState.SETTLED, (Take("tokens", 1, 70),), (), payload)
        await engine.settle(hold, charge)

    async def failing(partition: int, *, count: int) -> Any:
        raise ScriptRejected("a hold that nobody can read")

    compared = asyncio.Event()

    async def compare() -> None:
        compared.set()

    monkeypatch.setattr(engine, "sweep", failing)
    monkeypatch.setattr(reaper, "_compare", compare)
    engine.set_clock(offset_ms=6_000)
    for _ in range(COMPARE_EVERY_TICKS):
        with pytest.raises(ScriptRejected):
            await reaper.tick()
    assert compared.is_set()
    await quota.scribe.drained()
    assert [row["hold_id"] for row in await usage_rows(gateway, account.id)] == [good]
    (left,) = await engine.outbox(engine.partition(account.id), older_than_ms=0, count=10)
    assert left.charge.hold_id == unread


async def test_a_charge_that_nobody_can_read_is_set_aside_before_it_keeps_its_partition_closed(gateway: Local) -> None:
    """It waits for a release that knows it, then goes where the audit finds it. One that was booked is confirmed."""
    _, account = await gateway.account("drain")
    quota, reaper, store = gateway.worker.gateway.quota, gateway.worker.reaper, gateway.worker.store
    engine, partition = quota._engine, quota._engine.partition(account.id)
    await quota.turner.push(account.id)
    booked = stores.charge(account.id, (1, 40))
    await store.writer.commit([booked])
    for hold_id, amount in ((str(uuid7()), 70), (booked.hold_id, 40)):
        hold = Hold(account.id, hold_id, 1, 0, 60_000, (), Demand(), (), b"")
        lines = (Take("tokens", 1, amount),)
        await engine.settle(hold, Charge(account.id, hold_id, ChargeState.SETTLED, lines, (), b"\x63 of a release"))
    for age_ms, waiting in ((SET_ASIDE_AFTER_MS - 5_000, 2), (SET_ASIDE_AFTER_MS + 5_000, 0)):
        engine.set_clock(offset_ms=age_ms)
        for _ in range(ROUND_TICKS):
            await reaper.tick()
        await quota.scribe.drained()
        assert len(await engine.outbox(partition, older_than_ms=0, count=10)) == waiting
    view = await engine.peek(account.id, ticket="t", wallets=("tokens",))
    assert isinstance(view, AccountView)
    assert [(grant.counted, grant.pending) for _, grants in view.wallets for grant in grants] == [(40, 0)]
    async with store.database.read() as connection:
        kept = (await connection.execute(text("SELECT account_id, state, why, row FROM usage_rejects"))).all()
    assert [tuple(row) for row in kept] == [
        (account.id, "settled", "unreadable: not a charge of version 2", b"\x63 of a release".hex())
    ]
