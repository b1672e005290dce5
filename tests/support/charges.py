"""Charges of every shape there can be, for Hypothesis."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from gateway.domain.charges import BudgetLine, ChargeRow, GrantLine
from gateway.domain.units import AMOUNT_MAX
from gateway.domain.usage import Basis, Usage

AMOUNTS = st.integers(-AMOUNT_MAX, AMOUNT_MAX)
TIMES = st.integers(0, 2**53)
NUMBERS = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(codec=None), max_size=20)
IDS = st.one_of(st.uuids().map(str), st.uuids().map(lambda each: str(each).upper()), TEXT, st.just("x" * 36))
MAYBE = st.none() | TEXT
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SHADOWS = st.just((None, 0)) | st.tuples(TEXT, AMOUNTS)
_ROWS = st.builds(
    ChargeRow,
    hold_id=IDS,
    account_id=IDS,
    state=st.sampled_from(["lapsed", "settled"]),
    created_at_ms=TIMES,
    ended_at_ms=TIMES,
    route=TEXT,
    model=MAYBE,
    upstream=MAYBE,
    plan=TEXT,
    feature=TEXT,
    wallet=TEXT,
    card_version=TEXT,
    usage=st.builds(Usage, *[st.integers(0, AMOUNT_MAX)] * 7),
    basis=st.sampled_from(Basis),
    held=AMOUNTS,
    charged=AMOUNTS,
    overrun=AMOUNTS,
    lines=st.lists(st.builds(GrantLine, TEXT, NUMBERS, AMOUNTS), max_size=4).map(tuple),
    budgets=st.lists(st.builds(BudgetLine, NUMBERS, TIMES, AMOUNTS), max_size=4).map(tuple),
    status=st.integers(0, 599),
    end=TEXT,
    key_id=st.none() | IDS,
    team_id=st.none() | IDS,
    user_id=st.none() | IDS,
    job=MAYBE,
    job_type=MAYBE,
    metadata=st.dictionaries(TEXT, JSON, max_size=3),
)
ROWS = st.builds(lambda row, shadow: replace(row, shadow=shadow[0], waived=shadow[1]), _ROWS, SHADOWS)
