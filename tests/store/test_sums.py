"""Sums for the drift check: many accounts at one instant, on grants that have not ended and live budgets."""

from __future__ import annotations

from gateway.domain.accounts import AccountSums
from gateway.domain.periods import Period
from gateway.store.store import Store
from tests.support.stores import DAY_MS, NOW_MS, charge


async def test_sums_are_of_charges_up_to_the_seq_for_every_account_asked_for(store: Store) -> None:
    one, two, idle = [await store.accounts.create("Acme", now_ms=NOW_MS, plan="pro") for _ in range(3)]
    team = await store.members.create_team(one.id, "Team", now_ms=NOW_MS)
    for meter in ("tokens", "uses"):
        await store.members.set_budget("team", team.id, meter=meter, amount=10, period=Period("month"), now_ms=NOW_MS)
    old_ms = NOW_MS - 40 * DAY_MS
    uses = ((1, old_ms, 5), (1, NOW_MS, 7))
    rows = [charge(one, (1, 300), budgets=uses), charge(two, (1, 40)), charge(one, (1, 4), budgets=uses[1:])]
    await store.writer.commit(rows)
    found = await store.sums.of(
        [one.id, two.id, idle.id, "nobody"], grants_since_ms=NOW_MS, budgets_since_ms=NOW_MS - DAY_MS
    )
    assert found == {
        one.id: AccountSums(2, {1: ("tokens", 304)}, {1: "tokens", 2: "uses"}, {(1, NOW_MS): 14}),
        two.id: AccountSums(1, {1: ("tokens", 40)}, {}, {}),
        idle.id: AccountSums(0, {1: ("tokens", 0)}, {}, {}),
    }


async def test_what_has_ended_or_was_removed_has_no_sum(store: Store) -> None:
    account = await store.accounts.create("Acme", now_ms=NOW_MS)  # a trial of 7 days
    team = await store.members.create_team(account.id, "Team", now_ms=NOW_MS)
    _, budget = await store.members.set_budget(
        "team", team.id, meter="tokens", amount=10, period=Period("month"), now_ms=NOW_MS
    )
    await store.writer.commit([charge(account, (1, 300), budgets=((budget.number, NOW_MS, 300),))])
    await store.members.remove_budget(account.id, budget.number, now_ms=NOW_MS)
    found = await store.sums.of([account.id], grants_since_ms=NOW_MS + 8 * DAY_MS, budgets_since_ms=0)
    assert found == {account.id: AccountSums(1, {}, {}, {})}
