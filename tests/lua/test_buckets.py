"""A demand whose budgets are spread over buckets, with every kind of scope, and with amounts of every width."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from limits.model import AMOUNT_MAX, Demand, Refused, Reserved, Verdict
from tests.support.lab import (
    ACCOUNT,
    DAY_MS,
    HERE,
    HOUR_MS,
    KEY,
    LEASE_MS,
    NOW_MS,
    TEAM,
    USER,
    Lab,
    budget,
    concurrency,
    together,
    wallet,
    window,
)

NUMBERS = (1, 17, 2, 40, 9)  # buckets 0, 2, 0, 5, 1


def spread(amounts: Sequence[int], limit: int = AMOUNT_MAX) -> Demand:
    """A wallet, budgets that are not in the order of their buckets, windows, and scopes with all kinds of names."""
    periods = [NOW_MS, NOW_MS - DAY_MS, NOW_MS, NOW_MS - DAY_MS, NOW_MS]
    scopes = (HERE, TEAM, USER, KEY, HERE)
    return together(
        wallet(sum(amounts), abandon=7),
        *(
            budget(amount, limit, number=number, scope=scope, starts_ms=starts_ms, abandon=amount % 5)
            for number, scope, starts_ms, amount in zip(NUMBERS, scopes, periods, amounts, strict=True)
        ),
        *(window(index + 1, 100, scope=scope) for index, scope in enumerate((TEAM, HERE, USER))),
        window(5, 100, scope=HERE, name="tokens", length_ms=HOUR_MS),
        *(concurrency(9, scope=scope) for scope in (KEY, TEAM)),
    )


@pytest.mark.parametrize("most", [60, 2**47, 2**48, 2**50])
@pytest.mark.parametrize("end", ["settle", "release", "lapse", "confirm"])
async def test_a_hold_over_many_buckets_ends_as_it_began(lab: Lab, end: str, most: int) -> None:
    await lab.ready(2**52)
    amounts = (most, 11, 12, most - 1, 14)
    hold = await lab.told(await lab.hold(spread(amounts), note=b"note"))
    assert {budget[0]: budget[4] for budget in (await lab.view()).budgets} == dict(zip(NUMBERS, amounts, strict=True))
    (known,) = await lab.engine.open_holds(ACCOUNT)
    assert known.takes == ((1, sum(amounts)),) and known.created_at_ms == NOW_MS
    match end:
        case "settle":
            await lab.commit(await lab.settle(hold, 25, window_actuals=(None, 0, None, 1)))
        case "confirm":
            await lab.commit(lab.charge(hold, 25))
        case "release":
            await lab.engine.release(hold)
        case _:
            lab.advance(LEASE_MS + 1_000)
            assert await lab.engine.lapse(ACCOUNT) == [(hold.hold_id, True)]
            (entry,) = await lab.engine.outbox(0, older_than_ms=0, count=10)
            charged = [(line.number, line.amount) for line in entry.charge.budgets]
            owed = {number: amount % 5 for number, amount in zip(NUMBERS, amounts, strict=True) if amount % 5}
            assert dict(charged) == owed
            assert entry.charge.payload == b"note" and [line.amount for line in entry.charge.lines] == [7]
    view = await lab.view()
    assert [budget[4] for budget in view.budgets] == [0] * len(NUMBERS) and view.holds_open == 0
    assert view.wallets[0][1][0].held == 0 and await lab.drift() == {}
    left = {"settle": (99, 100, 97, 99), "release": (100,) * 4}.get(end, (99, 98, 97, 95))
    again = await lab.reserved(spread((0,) * len(NUMBERS)))
    if end != "lapse":  # else the minute's windows are over
        assert tuple(remaining for remaining, _ in again.windows) == tuple(
            rest - used for rest, used in zip(left, (1, 2, 3, 5), strict=True)
        )


@pytest.mark.parametrize("place", range(len(NUMBERS)))
async def test_the_budget_that_refuses_is_named_whatever_its_bucket(lab: Lab, place: int) -> None:
    await lab.ready(1_000)
    amounts = [50 if index == place else 10 for index in range(len(NUMBERS))]
    answer = await lab.ask(spread(amounts, limit=40))
    assert isinstance(answer, Refused)
    assert (answer.slot, answer.scope, answer.needed) == ("budget", spread(amounts).budgets[place].scope, 50)


async def test_a_hold_over_many_buckets_grows_in_the_slots_it_has(lab: Lab) -> None:
    await lab.ready(1_000)
    hold = await lab.hold(spread((10, 11, 12, 13, 14)))
    grown = await lab.engine.extend(hold, together(wallet(5), budget(5, AMOUNT_MAX, number=2, scope=USER)))
    assert isinstance(grown, Reserved)
    assert await lab.engine.extend(hold, together(wallet(5), budget(5, AMOUNT_MAX, number=2, scope=USER))) == grown
    held = {budget[0]: budget[4] for budget in (await lab.view()).budgets}
    assert held == {1: 10, 17: 11, 2: 17, 40: 13, 9: 14}
    await lab.commit(await lab.settle(grown.hold, 30))
    assert [budget[4] for budget in (await lab.view()).budgets] == [0] * 5 and await lab.drift() == {}


async def test_a_hold_of_nothing_begins_no_period_that_is_over(lab: Lab) -> None:
    await lab.ready(1_000)
    before_ms = NOW_MS - 30 * DAY_MS
    await lab.hold(budget(10, 100))
    await lab.hold(budget(0, 100, starts_ms=before_ms))
    assert [starts for _, starts, *_ in (await lab.view()).budgets] == [NOW_MS]
    answer = await lab.ask(budget(1, 100, starts_ms=before_ms))
    assert isinstance(answer, Refused) and answer.verdict is Verdict.LASTING
