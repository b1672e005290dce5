"""The writer against a tiny model: any sequence of batches, in any order, with any repetition, by two writers.

The model is law 3 in five lines: a hold's bill is its settle if one came, else its first lapse, else nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.domain.charges import ChargeRow, Committed, GrantLine
from gateway.domain.periods import Period
from gateway.store.common import new_id
from gateway.store.store import Store, open_store
from tests.store.conftest import Place
from tests.support import stores
from tests.support.charges import ROWS
from tests.support.stores import NOW_MS, charge

HOLDS = 6
ACCOUNTS = 2


@dataclass
class Bill:
    """What the model knows of a hold."""

    account: int
    settled: ChargeRow | None = None
    lapsed: ChargeRow | None = None
    first: str = ""

    def take(self, row: ChargeRow) -> None:
        self.first = self.first or row.state
        if row.state == "settled":
            self.settled = self.settled or row
        elif self.settled is None:
            self.lapsed = self.lapsed or row

    @property
    def due(self) -> ChargeRow | None:
        return self.settled or self.lapsed

    @property
    def changes(self) -> int:
        return 0 if self.due is None else 3 if self.settled and self.first == "lapsed" else 1


@dataclass
class Shared:
    """What the examples of one test share: opening a database for each would take most of the time."""

    runner: asyncio.Runner
    writers: list[Store] = field(default_factory=list)


class Writers(RuleBasedStateMachine):
    """On the shared stores, with accounts of its own in each example."""

    shared: Shared

    @initialize()
    def accounts(self) -> None:
        self.store = self.shared.writers[0]
        self.accounts = [self.shared.runner.run(self.open_account()) for _ in range(ACCOUNTS)]
        self.holds = [Bill(index % ACCOUNTS) for index in range(HOLDS)]
        self.ids = [new_id() for _ in range(HOLDS)]

    async def open_account(self) -> Any:
        account = await self.store.accounts.create("Acme", now_ms=NOW_MS, plan="pro")
        await self.store.grants.add(account.id, wallet="tokens", amount=500, now_ms=NOW_MS)
        team = await self.store.members.create_team(account.id, "Core", now_ms=NOW_MS)
        await self.store.members.set_budget(
            "team", team.id, meter="tokens", amount=10**6, period=Period("month"), now_ms=NOW_MS
        )
        return account

    def row(self, hold: int, state: str, one: int, two: int, budget: int) -> ChargeRow:
        lines = [(number, amount) for number, amount in ((1, one), (2, two)) if amount]
        budgets = ((1, NOW_MS, budget),) if budget else ()
        account = self.accounts[self.holds[hold].account]
        return charge(account, *lines, hold_id=self.ids[hold], state=state, budgets=budgets)

    @rule(
        arrivals=st.lists(
            st.tuples(
                st.integers(0, HOLDS - 1),
                st.sampled_from(["settled", "lapsed"]),
                st.integers(0, 900),
                st.integers(0, 50),
                st.integers(0, 50),
            ),
            min_size=1,
            max_size=6,
        ),
        writer=st.integers(0, 1),
    )
    def commit(self, arrivals: list[tuple[int, str, int, int, int]], writer: int) -> None:
        rows = [self.row(*arrival) for arrival in arrivals]
        for (hold, *_), row in zip(arrivals, rows, strict=True):
            self.holds[hold].take(row)
        answers = self.shared.runner.run(self.shared.writers[writer].writer.commit(rows))
        for (hold, *_), answer in zip(arrivals, answers, strict=True):
            self.check(hold, answer)

    @rule(hold=st.integers(0, HOLDS - 1))
    def ask_again(self, hold: int) -> None:
        due = self.holds[hold].due
        if due is not None:
            [answer] = self.shared.runner.run(self.shared.writers[1].writer.commit([due]))
            self.check(hold, answer)

    def check(self, hold: int, answer: Committed) -> None:
        bill = self.holds[hold]
        assert bill.due is not None
        assert answer.state == bill.due.state
        assert len(answer.changes) == bill.changes
        for number in (1, 2):
            moved = sum(line.amount for change in answer.changes for line in change.lines if line.number == number)
            assert moved == sum(line.amount for line in bill.due.lines if line.number == number)
        seqs = [change.seq for change in answer.changes]
        assert seqs == sorted(set(seqs))

    @invariant()
    def the_database_agrees_with_the_model(self) -> None:
        for index, account in enumerate(self.accounts):
            bills = [bill for bill in self.holds if bill.account == index]
            snapshot = self.shared.runner.run(self.store.state.snapshot(account.id))
            assert snapshot.seq == sum(bill.changes for bill in bills)
            due = [bill.due for bill in bills if bill.due is not None]
            for grant in snapshot.grants:
                lines = [line.amount for row in due for line in row.lines if line.number == grant.number]
                assert grant.used == sum(lines)
            used = sum(line.amount for row in due for line in row.budgets)
            assert sum(use.used for use in snapshot.budgets) == used

    def teardown(self) -> None:
        for account in getattr(self, "accounts", ()):
            assert self.shared.runner.run(_differences(self.store, account.id)) == []


async def _differences(store: Store, account_id: str) -> list[object]:
    return [difference async for audited in store.ledger.audit(account_id) for difference in audited.differences]


def test_whatever_comes_in_whatever_order_the_books_follow_the_model(place: Place) -> None:
    async def opened(folder: Path) -> Store:
        return open_store(place.url, folder=folder, catalog=lambda: stores.CATALOG, now_ms=stores.Clock())

    with asyncio.Runner() as runner:
        shared = Shared(runner)
        shared.writers = [runner.run(opened(place.folder)) for _ in range(2)]
        try:
            run_state_machine_as_test(
                type("Writers", (Writers,), {"shared": shared}),
                settings=settings(
                    max_examples=25,
                    stateful_step_count=12,
                    deadline=None,
                    derandomize=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            for store in shared.writers:
                runner.run(store.close())


def test_whatever_a_charge_says_it_is_booked_or_rejected(place: Place) -> None:
    """No row, however strange, makes a commit raise: it would hold up all that come after it."""

    async def opened() -> Store:
        return open_store(place.url, folder=place.folder, catalog=lambda: stores.CATALOG, now_ms=stores.Clock())

    with asyncio.Runner() as runner:
        store = runner.run(opened())
        account = runner.run(store.accounts.create("Acme", now_ms=NOW_MS, plan="pro"))

        @settings(max_examples=150, deadline=None, derandomize=True)
        @given(st.lists(ROWS, min_size=1, max_size=4), st.booleans())
        def book(rows: list[ChargeRow], own: bool) -> None:
            if own:
                lines = (GrantLine("tokens", 1, 5),)
                rows = [replace(row, account_id=account.id, wallet="tokens", lines=lines, budgets=()) for row in rows]
            answers = runner.run(store.writer.commit(rows))
            assert [answer.hold_id for answer in answers] == [row.hold_id for row in rows]

        try:
            book()
        finally:
            runner.run(store.close())
