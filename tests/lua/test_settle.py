"""A charge falls where its lines say, however they are said; and who settles what Redis does not know learns why."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from limits.errors import ScriptRejected
from limits.model import AMOUNT_MAX, BudgetLine, Charge, ChargeState, Confirm, Delta, Hold, Take
from tests.support.lab import ACCOUNT, DAY_MS, LEASE_MS, NOW_MS, Lab, budget, concurrency, together, wallet

WALLETS = ("tokens", "credits", "gifts", "unheard")
DEMAND = together(
    wallet(35, abandon=12),
    wallet(8, name="credits", abandon=6),
    *(budget(43, 5_000, number=number, abandon=7) for number in (3, 9, 1)),
)
HELD = {("tokens", 1): 10, ("tokens", 2): 20, ("tokens", 3): 5, ("credits", 4): 5, ("credits", 5): 3}
ELSEWHERE = (Take("gifts", 6, 7), Take("credits", 8, 2), Take("tokens", 9, 4), Take("unheard", 10, 1))


Item = TypeVar("Item")


def shuffled(items: tuple[Item, ...], seed: int) -> tuple[Item, ...]:
    return tuple(random.Random(seed).sample(items, k=len(items)))


SHAPES: dict[str, Callable[[tuple[Take, ...]], tuple[Take, ...]]] = {
    "as they were taken": lambda lines: lines,
    "the other way round": lambda lines: lines[::-1],
    "wallets by turns": lambda lines: (*lines[::2], *lines[1::2]),
    "each twice in a row": lambda lines: tuple(line for line in lines for _ in range(2)),
    "all of them again": lambda lines: (*lines, *(replace(line, amount=1) for line in lines)),
    "some of them": lambda lines: lines[1:4:2],
    "nothing of some": lambda lines: tuple(replace(line, amount=line.amount * (line.number % 2)) for line in lines),
    "more than was held": lambda lines: tuple(replace(line, amount=line.amount + 50) for line in lines),
    "also grants that were not held": lambda lines: (*ELSEWHERE, *lines),
    "grants that were not held alone": lambda _: ELSEWHERE,
    "no lines at all": lambda _: (),
    "everything in disorder": lambda lines: shuffled((*lines, *ELSEWHERE, *lines[1:3]), 7),
}


def budget_lines(hold: Hold, shape: str) -> tuple[BudgetLine, ...]:
    """What each budget gets; also said twice, of another period, or of a budget that was not held."""
    lines = tuple(BudgetLine(item.number, item.starts_at_ms, 20 + item.number) for item in hold.demand.budgets)
    if shape != "everything in disorder":
        return lines
    earlier = BudgetLine(9, NOW_MS - 30 * DAY_MS, 5)
    return shuffled((*lines, *lines[:2], earlier, BudgetLine(11, NOW_MS, 6), BudgetLine(40, NOW_MS, 0)), 3)


def sums(lines: tuple[Take, ...]) -> dict[tuple[str, int], int]:
    found: Counter[tuple[str, int]] = Counter()
    for line in lines:
        found[(line.wallet, line.number)] += line.amount
    return {key: amount for key, amount in found.items() if amount}


def budget_sums(lines: tuple[BudgetLine, ...]) -> dict[tuple[int, int], int]:
    found: Counter[tuple[int, int]] = Counter()
    for line in lines:
        found[(line.number, line.starts_at_ms)] += line.amount
    return {key: amount for key, amount in found.items() if amount}


async def put(lab: Lab, what: str) -> tuple[dict[tuple[str, int], int], dict[tuple[int, int], int]]:
    """What is counted, pending or held on each grant and each budget; zeros left out."""
    view = await lab.view(*WALLETS)
    grants = {(shown.wallet, grant.number): getattr(grant, what) for shown, kept in view.wallets for grant in kept}
    place = ("counted", "pending", "held").index(what)
    budgets = {(number, starts): amounts[place] for number, starts, *amounts in view.budgets}
    return tuple({key: amount for key, amount in found.items() if amount} for found in (grants, budgets))  # type: ignore[return-value]


async def held(lab: Lab) -> Hold:
    for name, amounts in {"tokens": (10, 20, 100), "credits": (5, 100), "gifts": (50,)}.items():
        for amount in amounts:
            lab.grant(amount, wallet=name)
    assert await lab.load()
    hold = await lab.hold(DEMAND)
    assert {(take.wallet, take.number): take.amount for take in hold.takes} == HELD
    return hold


async def lapse(lab: Lab, hold: Hold) -> Charge:
    """The hold's worker stops after its first byte; answers what is charged for that."""
    await lab.told(hold)
    lab.advance(LEASE_MS + 1_000)
    assert await lab.engine.sweep(0, count=10) == [(ACCOUNT, hold.hold_id, True)]
    (entry,) = await lab.engine.outbox(0, older_than_ms=0, count=10)
    assert await put(lab, "pending") == (sums(entry.charge.lines), budget_sums(entry.charge.budgets))
    return entry.charge


def against(charge: Charge) -> tuple[tuple[Take, ...], tuple[BudgetLine, ...]]:
    return (
        tuple(replace(line, amount=-line.amount) for line in charge.lines),
        tuple(replace(line, amount=-line.amount) for line in charge.budgets),
    )


@pytest.mark.parametrize("before", ["open", "grown", "ended", "lapsed", "lapsed and open again"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_charge_falls_where_its_lines_say_in_any_order_and_however_often(
    lab: Lab, shape: str, before: str
) -> None:
    hold = await held(lab)
    lines, budgets = SHAPES[shape](hold.takes), budget_lines(hold, shape)
    deltas = [Delta(1, lines, budgets)]
    if before == "grown":  # and nobody heard of it: Redis has other takes than the worker
        await lab.engine.extend(hold, together(wallet(3), wallet(90, name="credits")))
    elif before == "ended":
        await lab.engine.release(hold)
    elif before != "open":
        lapsed = await lapse(lab, hold)
        deltas = [
            Delta(1, lapsed.lines, lapsed.budgets), Delta(2, *against(lapsed)), Delta(3, lines, budgets),
        ]  # fmt: skip
        if before != "lapsed":
            await lab.engine.renew(0, [hold])
    charge = Charge(ACCOUNT, hold.hold_id, ChargeState.SETTLED, lines, budgets, b"row")
    for _ in range(2):  # a reply was lost
        await lab.engine.settle(hold, charge)
        assert await put(lab, "held") == ({}, {})
        assert await put(lab, "pending") == (sums(lines), budget_sums(budgets))
    (entry,) = await lab.engine.outbox(0, older_than_ms=0, count=10)
    assert (sums(entry.charge.lines), entry.charge.budgets) == (sums(lines), budgets)
    for _ in range(2):
        await lab.engine.confirm(Confirm(ACCOUNT, hold.hold_id, ChargeState.SETTLED, tuple(deltas)))
        assert await put(lab, "pending") == ({}, {})
        assert await put(lab, "counted") == (sums(lines), budget_sums(budgets))
    assert not await lab.engine.outbox(0, older_than_ms=0, count=10)


async def test_what_a_charge_made_known_is_gone_with_a_load_that_does_not_name_it(lab: Lab) -> None:
    hold = await held(lab)
    charge = Charge(ACCOUNT, hold.hold_id, ChargeState.SETTLED, ELSEWHERE, (), b"row")
    await lab.engine.settle(hold, charge)
    await lab.commit(charge)
    assert (await put(lab, "counted"))[0] == sums(ELSEWHERE)
    assert await lab.load()
    view = await lab.view(*WALLETS)
    assert [{grant.number for grant in grants} for _, grants in view.wallets] == [{1, 2, 3}, {4, 5}, {6}, set()]


@pytest.mark.parametrize("amounts", [(AMOUNT_MAX, 1), (2**52, 2**52 - 1, 1), (1, AMOUNT_MAX)])
async def test_a_charge_beyond_what_is_exact_is_refused_whole_though_none_of_its_lines_is(
    lab: Lab, amounts: tuple[int, ...]
) -> None:
    await lab.ready(10, 100)
    hold = await lab.hold(together(wallet(30), concurrency(1)))
    charge = replace(lab.charge(hold, 0), lines=tuple(Take("tokens", 2, amount) for amount in amounts))
    with pytest.raises(ScriptRejected):
        await lab.engine.settle(hold, charge)
    assert await put(lab, "held") == ({("tokens", 1): 10, ("tokens", 2): 20}, {})
    assert await put(lab, "pending") == ({}, {}) and not await lab.engine.outbox(0, older_than_ms=0, count=10)
    with pytest.raises(ScriptRejected):  # SQL has it: then at least its hold is over, and nothing of it is left open
        await lab.engine.confirm(Confirm(ACCOUNT, hold.hold_id, ChargeState.SETTLED, (Delta(1, charge.lines, ()),)))
    view = await lab.view()
    assert (view.holds_open, view.seq, await put(lab, "held"), await put(lab, "counted")) == (0, 0, ({}, {}), ({}, {}))
    await lab.hold(concurrency(1))


@pytest.mark.parametrize("forgotten", [True, False])
async def test_settle_names_the_record_only_where_redis_did_not_know_the_hold(lab: Lab, forgotten: bool) -> None:
    """What it knows it has not forgotten; where it did not, it may have forgotten others, too."""
    await lab.ready(100)
    holds = [await lab.hold(wallet(10)) for _ in range(3)]
    before = (await lab.engine.renew(0, [])).record
    settled = [await lab.engine.settle(holds[0], lab.charge(holds[0], 5)) for _ in range(2)]
    assert [(each.known, each.record) for each in settled] == [(True, ""), (False, before)]
    if forgotten:
        lab.advance(1)
        await lab.client.execute("FLUSHALL")
        lost = await lab.engine.settle(holds[1], lab.charge(holds[1], 5))
        assert (lost.known, lost.record) == (False, (await lab.engine.renew(0, [])).record)
        assert lost.record != before
    else:
        await lab.promote()
        kept = await lab.engine.settle(holds[1], lab.charge(holds[1], 5))
        assert (kept.known, kept.record) == (True, "")
        after = (await lab.engine.renew(0, [])).record
        await lab.engine.release(holds[2])
        gone = await lab.engine.settle(holds[2], lab.charge(holds[2], 5))
        assert after != before and (gone.known, gone.record) == (False, after)
