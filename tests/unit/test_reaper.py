"""What the reaper counts and compares: lapses, turns, accounts, and whether Redis and the ledger agree."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.accounts import Account, BudgetUse
from gateway.domain.charges import ChargeRow, encode
from gateway.domain.periods import Period
from gateway.metrics import Metrics
from gateway.quota import reaper
from gateway.quota.clock import ServerClock
from gateway.quota.drift import ACCOUNTS_MAX, Drift
from gateway.quota.keeper import Keeper
from gateway.quota.reaper import ACCOUNTS_EVERY_TICKS, COMPARE_EVERY_TICKS, ROUND_TICKS, Reaper
from gateway.quota.scribe import Scribe, confirm_of
from gateway.quota.states import States
from gateway.quota.translate import snapshot_of
from gateway.quota.turn import Turner
from gateway.quota.versions import Versions
from gateway.quota.watch import Watch
from gateway.quota.watch_use import UseWatch
from gateway.store.store import Store
from limits.client import Client
from limits.engine import Engine
from limits.errors import EngineUnavailable
from limits.model import AccountView, Demand, Hold, Reserve, Reserved, Stale, WalletDemand
from tests.support import catalogs, stores
from tests.support.clients import client_of
from tests.support.scrape import Page
from tests.support.stores import DAY_MS

NOW_MS = stores.NOW_MS + 400 * DAY_MS  # after the engine's epoch: before it no lease is due
MONTH_MS = 30 * DAY_MS
PLANS = catalogs.catalog(
    catalogs.trial(),
    catalogs.plan("pro", allowance={"tokens": 500_000}),
    catalogs.plan("month", allowance={"tokens": 500_000}, renews="never", ends="pro"),
)
PARTITIONS = 4


def charge(*given: Any, **changes: Any) -> ChargeRow:
    return stores.charge(*given, **{"at_ms": NOW_MS, **changes})


@dataclass(slots=True)
class Lab:
    """A reaper with a real Redis and a real database, both at the test's time."""

    store: Store
    engine: Engine
    client: Client
    metrics: Metrics
    turner: Turner
    drift: Drift
    reaper: Reaper
    clock: stores.Clock
    scribe: Scribe

    def page(self) -> Page:
        return Page.of(self.metrics.render().decode())

    def move(self, by_ms: int) -> None:
        """Redis' clock and the database's."""
        self.clock.now_ms += by_ms
        self.engine.set_clock(still_ms=self.clock.now_ms)

    async def account(self, plan: str = "pro") -> Account:
        """A new one, loaded into Redis."""
        account = await self.store.accounts.create("Acme", now_ms=self.clock.now_ms, plan=plan)
        await self.turner.push(account.id)
        return account

    async def book(self, row: ChargeRow) -> None:
        """A charge that SQL has and Redis has counted."""
        for committed in await self.store.writer.commit([row]):
            await self.engine.confirm(confirm_of(committed))

    async def budget(self, account: Account) -> int:
        """The number of a new team's budget."""
        team = await self.store.members.create_team(account.id, "Team", now_ms=self.clock.now_ms)
        _, budget = await self.store.members.set_budget(
            "team", team.id, meter="tokens", amount=10**9, period=Period("month"), now_ms=self.clock.now_ms
        )
        await self.turner.push(account.id)
        return budget.number

    async def falsify(self, account: Account, **changes: Any) -> None:
        """Load Redis with something that SQL never said."""
        snapshot = replace(await self.store.state.snapshot(account.id), **changes)
        ticket = await self.engine.mark_stale(account.id, ticket="false")
        assert await self.engine.load(snapshot_of(snapshot), ticket=ticket)

    async def off_by(self, account: Account, steps: int) -> None:
        snapshot = await self.store.state.snapshot(account.id)
        grants = tuple(replace(grant, used=grant.used + steps) for grant in snapshot.grants)
        await self.falsify(account, grants=grants)

    async def hold(self, account: Account, amount: int, *, lease_ms: int) -> Hold:
        row = charge(account, (1, amount), state="lapsed", at_ms=self.clock.now_ms)
        request = Reserve(
            account.id,
            row.hold_id,
            account.rev,
            Demand((WalletDemand("tokens", amount, abandon=amount // 2),)),
            lease_ms=lease_ms,
            note=encode(row),
        )
        reply = await self.engine.reserve(request, ticket="x")
        assert isinstance(reply, Reserved)
        return reply.hold


@pytest.fixture
async def lab(valkey_url: str, tmp_path: Path) -> AsyncIterator[Lab]:
    stores.copy_sqlite(tmp_path)
    clock, metrics = stores.Clock(NOW_MS), Metrics(None)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(stores.opened("embedded", tmp_path, catalog=PLANS, clock=clock))
        client = await stack.enter_async_context(client_of(valkey_url))
        engine = Engine(client, partitions=PARTITIONS, reassert_wait_ms=0, clock_ms=clock.now_ms)
        turner = Turner(engine, store.state, metrics)
        scribe = Scribe(store.writer, engine, metrics)
        drift = Drift(engine, store.sums, meters=lambda: PLANS.meters, metrics=metrics)
        made = Reaper(
            engine,
            seqs=store.writer,
            drift=drift,
            accounts=store.accounts,
            periods=store.subscriptions,
            keeper=Keeper(engine, store.metering, store.idempotency, scribe, metrics, patience_ms=60_000),
            scribe=scribe,
            turner=turner,
            versions=Versions(store.plans, States(engine, turner), catalog=lambda: PLANS, clock=ServerClock()),
            watch=Watch(
                store.alerts,
                turner,
                UseWatch(store.use_slices, catalog=lambda: PLANS),
                catalog=lambda: PLANS,
                now_ms=clock,
            ),
            metrics=metrics,
            partitions=PARTITIONS,
            now_ms=clock,
        )
        yield Lab(store, engine, client, metrics, turner, drift, made, clock, scribe)


# --- drift -----------------------------------------------------------------------------------------------------------


async def test_at_rest_nothing_drifts_whatever_became_of_the_charges(lab: Lab) -> None:
    account = await lab.account()
    budget = await lab.budget(account)
    lapsed = charge(account, (1, 700), state="lapsed", budgets=((budget, NOW_MS, 700),))
    settled = charge(account, (1, 900), hold_id=lapsed.hold_id, budgets=((budget, NOW_MS, 900),))
    for row in (charge(account, (1, 1_000)), lapsed, settled):
        await lab.book(row)
        await lab.drift.check([account.id])
        assert lab.page().sum("tollgate_ledger_drift_units") == 0
    view = await lab.engine.peek(account.id, ticket="t", wallets=("tokens",))
    assert isinstance(view, AccountView)
    assert [grant.counted for _, grants in view.wallets for grant in grants] == [1_900]
    assert [counted for _, _, counted, _, _ in view.budgets] == [900]


async def test_budgets_are_compared_in_their_own_meter(lab: Lab) -> None:
    account = await lab.account()
    budget = await lab.budget(account)
    await lab.book(charge(account, (1, 700), budgets=((budget, NOW_MS, 700),)))
    await lab.falsify(account, budgets=(BudgetUse(budget, NOW_MS, 2_700),))
    await lab.drift.check([account.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == 2


async def test_a_difference_is_seen_to_the_step_and_told_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    one, two, fine = [await lab.account() for _ in range(3)]
    for account in (one, two, fine):
        await lab.book(charge(account, (1, 5_000)))
    await lab.off_by(one, 1_234)
    await lab.off_by(two, -1)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await lab.drift.check([one.id, two.id, fine.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == pytest.approx(1.235)
    assert sorted(vars(record)["account"] for record in caplog.records) == sorted([one.id, two.id])
    await lab.drift.check([])
    assert lab.page().sum("tollgate_ledger_drift_units") == pytest.approx(1.235), "it does not fade away unlooked at"
    await lab.turner.push(one.id)
    await lab.drift.check([fine.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == pytest.approx(0.001)
    await lab.turner.push(two.id)
    await lab.drift.check([])
    assert lab.page().sum("tollgate_ledger_drift_units") == 0


async def test_an_account_that_is_being_charged_is_no_difference(lab: Lab) -> None:
    account = await lab.account()
    committed = await lab.store.writer.commit([charge(account, (1, 300))])  # and Redis does not know of it yet
    await lab.drift.check([account.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == 0
    await lab.engine.confirm(confirm_of(committed[0]))
    await lab.off_by(account, 1_000)
    await lab.store.writer.commit([charge(account, (1, 300))])
    await lab.drift.check([account.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == 0, "nor can anything be said while it is"


async def test_what_must_be_loaded_before_it_counts_is_not_compared(lab: Lab) -> None:
    account = await lab.account()
    await lab.off_by(account, 5_000)
    await lab.drift.check([account.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == 5
    await lab.engine.mark_stale(account.id, ticket="t")
    await lab.drift.check([account.id, "nobody"])
    assert lab.page().sum("tollgate_ledger_drift_units") == 0


async def test_a_check_looks_at_a_bounded_number_of_accounts_and_everybody_gets_a_turn(lab: Lab) -> None:
    accounts = [(await lab.store.accounts.create("Acme", now_ms=NOW_MS)).id for _ in range(ACCOUNTS_MAX * 2 + 10)]
    looked: list[Sequence[str]] = []

    async def peek(account: str, **_: Any) -> Any:
        looked[-1] = [*looked[-1], account]
        return await original(account, **_)

    original = lab.engine.peek
    lab.engine.peek = peek  # type: ignore[method-assign]
    for _ in range(3):
        looked.append([])
        await lab.drift.check(accounts)
    assert [len(some) for some in looked] == [ACCOUNTS_MAX] * 3
    assert {account for some in looked for account in some} == set(accounts)


async def test_a_server_that_is_away_keeps_no_other_account_from_being_compared(lab: Lab) -> None:
    away, other = [await lab.account() for _ in range(2)]
    for account in (away, other):
        await lab.off_by(account, 5_000)
    lost = Lost(lab, away)
    await lab.drift.check([away.id, other.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == 5
    lost.back()
    await lab.drift.check([away.id, other.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == 10
    Lost(lab, away)
    await lab.drift.check([other.id])
    assert lab.page().sum("tollgate_ledger_drift_units") == 10, "what cannot be looked at is not thereby mended"


# --- charges that SQL has and Redis has not counted -------------------------------------------------------------------


class Lost:
    """An account whose server is away."""

    def __init__(self, lab: Lab, account: Account) -> None:
        self._engine, self._account, self._run = lab.engine, account.id, lab.engine._run
        lab.engine._run = self._asked  # type: ignore[method-assign]

    async def _asked(self, name: str, account: str, *args: Any) -> Any:
        if account == self._account:
            raise EngineUnavailable("away", sent=False)
        return await self._run(name, account, *args)

    def back(self) -> None:
        self._engine._run = self._run  # type: ignore[method-assign]


async def _is_stale(lab: Lab, account: Account) -> bool:
    return isinstance(await lab.engine.peek(account.id, ticket="x", wallets=()), Stale)


@pytest.mark.parametrize("age_ms", [30_000, 3 * DAY_MS])
async def test_a_new_leader_notices_what_was_never_counted_however_long_ago(lab: Lab, age_ms: int) -> None:
    """All workers died between a commit and its confirm, and nobody called since."""
    forgotten, fine = [await lab.account() for _ in range(2)]
    await lab.book(charge(fine, (1, 100)))
    await lab.store.writer.commit([charge(forgotten, (1, 100))])
    lab.move(age_ms)
    for _ in range(COMPARE_EVERY_TICKS):
        await lab.reaper.tick()
    assert (await _is_stale(lab, forgotten), await _is_stale(lab, fine)) == (True, False)


async def test_a_new_leader_looks_at_every_account_also_at_those_whose_server_was_away(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "LOOKED_AT_ONCE", 2)
    accounts = [await lab.account() for _ in range(5)]
    for account in accounts:
        await lab.store.writer.commit([charge(account, (1, 100))])
    lab.move(DAY_MS)
    lost = Lost(lab, accounts[1])
    for _ in range(3 * COMPARE_EVERY_TICKS):
        await lab.reaper.tick()
    lost.back()
    assert [await _is_stale(lab, account) for account in accounts] == [True, False, True, True, True]
    for _ in range(3 * COMPARE_EVERY_TICKS):
        await lab.reaper.tick()
    assert await _is_stale(lab, accounts[1])


async def test_an_account_whose_server_is_away_keeps_no_other_from_its_next_period(lab: Lab) -> None:
    accounts = [await lab.account("pro") for _ in range(3)]
    for account in accounts:
        await lab.book(charge(account, (1, 1_000)))
    lab.move(MONTH_MS - DAY_MS // 2)
    Lost(lab, accounts[0])
    await lab.reaper.tick()
    assert lab.page().series("tollgate_period_turns_total") == {("ahead", "pro"): 3}


# --- lapses, turns, accounts ------------------------------------------------------------------------------------------


async def test_lapses_are_counted_by_what_they_charged(lab: Lab) -> None:
    account = await lab.account()
    for told in (True, False, True, False, False):
        hold = await lab.hold(account, 1_000, lease_ms=5_000)
        if told:
            await lab.engine.renew(lab.engine.partition(account.id), [replace(hold, first_byte=True)])
    await lab.hold(account, 1_000, lease_ms=600_000)  # alive
    for _ in range(8):  # past the amnesty, in steps that are no outage
        lab.move(15_000)
        for _ in range(ROUND_TICKS):
            await lab.reaper.tick()
    assert lab.page().series("tollgate_holds_lapsed_total") == {("charged",): 2, ("released",): 3}
    usage = await lab.store.grants.list(account.id, open_at_ms=NOW_MS)
    assert [grant.used for grant in usage] == [1_000]


async def test_a_turn_is_counted_by_whoever_made_it(lab: Lab) -> None:
    accounts = {plan: await lab.account(plan) for plan in ("pro", "month", "trial")}
    await lab.turner.turn(accounts["pro"].id, NOW_MS)
    assert lab.page().series("tollgate_period_turns_total") == {}
    for _ in range(2):
        for account in accounts.values():
            await lab.turner.turn(account.id, NOW_MS + MONTH_MS)
    page = lab.page()
    turns = {("next_period", "pro"): 1, ("fallback", "month"): 1, ("ended", "trial"): 1}
    assert page.series("tollgate_period_turns_total") == turns  # (outcome, plan)
    changes = {("fallback", "month", "pro"): 1, ("ended", "trial", "none"): 1}
    assert page.series("tollgate_subscription_changes_total") == changes  # (cause, from, to)


async def test_a_period_granted_ahead_is_a_turn(lab: Lab) -> None:
    account = await lab.account("pro")
    await lab.book(charge(account, (1, 1_000)))
    lab.move(MONTH_MS - DAY_MS // 2)
    await lab.reaper.tick()
    assert lab.page().series("tollgate_period_turns_total") == {("ahead", "pro"): 1}


async def test_only_what_redis_did_not_have_is_a_rebuild(lab: Lab) -> None:
    account = await lab.account()
    assert lab.page().sum("tollgate_rebuilds_total") == 0, "a push is none"
    ticket = await lab.engine.mark_stale(account.id, ticket="t")
    await lab.turner.load(account.id, ticket)
    await lab.turner.load(account.id, ticket)
    assert lab.page().sum("tollgate_rebuilds_total") == 1


async def test_accounts_are_counted_now_and_then_by_plan_and_status(lab: Lab) -> None:
    await lab.account("pro")
    trial = await lab.account("trial")
    await lab.reaper.tick()
    assert lab.page().series("tollgate_accounts") == {("pro", "active"): 1, ("trial", "trialing"): 1}
    await lab.store.subscriptions.subscribe(trial.id, "pro", now_ms=NOW_MS)
    await lab.reaper.tick()
    assert lab.page().series("tollgate_accounts") == {("pro", "active"): 1, ("trial", "trialing"): 1}
    for _ in range(ACCOUNTS_EVERY_TICKS):
        await lab.reaper.tick()
    assert lab.page().series("tollgate_accounts") == {("pro", "active"): 2}
