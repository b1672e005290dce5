"""Forms: a filled one is the demand that it spells out, for the packer, for the scripts, and for who compares."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limits import codec
from limits.engine import Engine
from limits.forms import Form, blank
from limits.model import AMOUNT_MAX, Demand, Hold, Reserved, Take
from tests.support.lab import HERE, TEAM, Lab, budget, concurrency, together, wallet, window

AMOUNTS = st.integers(0, AMOUNT_MAX)
TOKENS, COST, OWED = blank(0), blank(1), blank(2)


def demand(tokens: int, cost: int, owed: int) -> Demand:
    return together(
        wallet(cost, abandon=owed),
        budget(cost, AMOUNT_MAX, abandon=owed),
        window(1, 60, scope=TEAM),
        window(tokens, 10**9, name="tokens", scope=HERE),
        concurrency(5, scope=TEAM),
    )


FORM = Form(demand(TOKENS, COST, OWED), 3)


@given(AMOUNTS, AMOUNTS, AMOUNTS)
def test_a_filled_form_equals_the_demand_it_spells_out(tokens: int, cost: int, owed: int) -> None:
    plain, filled = demand(tokens, cost, owed), FORM.fill(tokens, cost, owed)
    assert filled == plain and plain == filled and hash(filled) == hash(plain)
    assert (filled.wallets, filled.budgets, filled.windows) == (plain.wallets, plain.budgets, plain.windows)
    assert filled != demand(tokens, cost, owed + 1)


def test_a_filled_form_shares_everything_but_its_amounts() -> None:
    one, other = (codec.layout(FORM.fill(*amounts)) for amounts in ((1, 2, 3), (4, 5, 6)))
    assert (one.limits, one.fields, one.windows) == (other.limits, other.fields, other.windows)
    assert len(one.slots) == len(other.slots) and one.slots != other.slots
    plain = codec.layout(demand(1, 2, 3))
    assert (plain.limits, plain.fields, plain.windows, plain.lengths_ms) == (
        one.limits, one.fields, one.windows, one.lengths_ms,
    )  # fmt: skip


@pytest.mark.parametrize("amounts", [(-1, 0, 0), (0, AMOUNT_MAX + 1, 0), (0, 0, -AMOUNT_MAX)])
def test_what_is_no_amount_fills_no_form(amounts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="an amount"):
        FORM.fill(*amounts)


def test_a_blank_that_a_form_does_not_have_is_no_amount() -> None:
    with pytest.raises(ValueError, match="an amount"):
        Form(wallet(blank(1)), 1)


@pytest.mark.parametrize("cost", [5_000, codec.NARROW - 1, codec.NARROW, 2**51])
async def test_a_filled_form_takes_and_gives_back_what_its_demand_would(lab: Lab, cost: int) -> None:
    """Reserved through a form, then renewed, grown and settled: the account stands as with the plain demand."""
    await lab.ready(2**52)
    held = {}
    for name, asked in (("plain", demand(70, cost, 900)), ("filled", FORM.fill(70, cost, 900))):
        reply = await lab.engine.reserve(lab.request(asked), ticket="t")
        assert isinstance(reply, Reserved)
        grown = await lab.engine.extend(reply.hold, demand(0, 50, 0))
        assert isinstance(grown, Reserved)
        await _renewed(lab.engine, grown.hold)
        held[name] = replace(grown.hold, hold_id="", created_at_ms=0), grown.wallets[0].available
        await lab.engine.release(grown.hold)
    assert held["plain"] == held["filled"]


async def _renewed(engine: Engine, hold: Hold) -> None:
    await engine.renew(engine.partition(hold.account), [hold])


@given(AMOUNTS)
def test_a_hold_is_kept_with_the_exact_amount_that_it_took(amount: int) -> None:
    hold_id = "01a1f8ad-4417-74f2-89a4-c2f1effb74e0"
    hold = Hold("acme", hold_id, 1, 1_700_000_000_000, 60_000, (Take("tokens", 7, amount),), wallet(amount), (), b"")
    assert codec.decode_hold(hold_id, codec.encode_hold(hold, codec.layout(hold.demand))).takes == ((7, amount),)
