"""A charge's bytes: exact inverses for every charge there can be, compact, and versioned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.charges import (
    BudgetLine,
    ChargeRow,
    GrantLine,
    common,
    completed,
    decode,
    encode,
    lapsed,
    steps,
)
from gateway.domain.ledger import Book, Entry, GrantBalance, Kind, balance, charge_entries
from gateway.domain.usage import Basis, Usage
from tests.support.charges import AMOUNTS, IDS, ROWS, TIMES
from tests.support.stores import NOW_MS, charge


@settings(max_examples=300, deadline=None)
@given(ROWS)
def test_decode_is_the_inverse_of_encode(row: ChargeRow) -> None:
    assert decode(encode(row)) == row


@given(ROWS, IDS, TIMES, st.integers(1, 2**32 - 1))
def test_rows_that_share_all_but_hold_time_and_input_are_packed_like_any_other(
    row: ChargeRow, hold_id: str, at_ms: int, input_tokens: int
) -> None:
    plain = {"job": None, "job_type": None, "metadata": {}, "waived": 0}
    like = replace(row, held=0, charged=0, overrun=0, status=0, **plain)
    one = replace(like, hold_id=hold_id, created_at_ms=at_ms, ended_at_ms=at_ms, usage=Usage(input_tokens))
    assert completed(common(like), hold_id, at_ms, input_tokens) == encode(one)


@pytest.mark.parametrize("input_tokens", [-1, 0, 2**32])
def test_an_input_that_no_rows_share_is_a_value_error(input_tokens: int) -> None:
    with pytest.raises(ValueError):
        completed(b"", "hold", NOW_MS, input_tokens)


def test_the_usual_charge_is_small() -> None:
    row = charge("01a1f8ad-4417-74f2-89a4-c2f1effb74e0", (12, 1_545_000), key_id="01a1f8ad-446a-7125-b5c2-1ea2401fd615")
    assert len(encode(row)) < 190


@pytest.mark.parametrize("number", [2**32 - 1, 2**32, 2**63 - 1, 2**63, 10**30, -(2**63), -(2**63) - 1])
def test_a_number_beyond_all_bounds_still_travels(number: int) -> None:
    row = charge("account", (1, 5), usage=Usage(output=number), overrun=1)
    assert decode(encode(row)) == row


@pytest.mark.parametrize("size", [0, 1, 252, 253, 254, 255, 70_000])
def test_a_text_of_any_size_travels(size: int) -> None:
    row = charge("account", (1, 5), job="j" * size, model="m" * size, metadata={"note": "n" * size})
    assert decode(encode(row)) == row


def test_every_end_of_a_charge_is_missed() -> None:
    """Whatever is cut off its end, what is left is not mistaken for a charge."""
    data = encode(charge("account", (1, 5), budgets=((3, NOW_MS, 5),), job="nightly"))
    for size in range(len(data)):
        with pytest.raises(ValueError):
            decode(data[:size])


def _row_bytes() -> bytes:
    return encode(charge("01a1f8ad-4417-74f2-89a4-c2f1effb74e0", (1, 5)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x01" + _row_bytes()[1:],
        b"\x03" + _row_bytes()[1:],
        _row_bytes()[:-1],
        _row_bytes() + b"]",
        _row_bytes()[:18] + b"\xff" * 200,
        _row_bytes()[:1] + b"\xff\xff" + _row_bytes()[3:],
        _row_bytes()[:11] + b"\0" * 200,
        b"{}",
    ],
)
def test_bytes_that_are_no_charge_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_charge_or_a_value_error(data: bytes) -> None:
    try:
        decode(data)
    except ValueError:
        return


@pytest.mark.parametrize("basis", [Basis.ESTIMATED, Basis.HOLD])
def test_a_lapse_is_the_note_with_what_it_is_charged(basis: Basis) -> None:
    """The basis too: under ``on_abandon: hold`` the whole hold is charged, and nothing was estimated."""
    note = charge("account", (1, 999), overrun=3, status=200, end="complete", basis=basis)
    lines, budgets = (GrantLine("tokens", 1, 30), GrantLine("tokens", 2, 4)), (BudgetLine(1, 5, 34),)
    row = lapsed(note, lines=lines, budgets=budgets, ended_at_ms=NOW_MS + 7)
    assert (row.state, row.end, row.status, row.basis) == ("lapsed", "lapsed", 0, basis)
    assert (row.charged, row.overrun, row.lines, row.budgets) == (34, 0, lines, budgets)
    assert (row.hold_id, row.created_at_ms, row.ended_at_ms) == (note.hold_id, note.created_at_ms, NOW_MS + 7)


@pytest.mark.parametrize(
    ("known", "state", "todo"),
    [
        # nothing is known: the first word is written
        ((), "lapsed", ("lapsed",)),
        ((), "settled", ("settled",)),
        # a lapse is provisional
        (("lapsed",), "lapsed", ()),
        (("lapsed",), "settled", ("reversed", "settled")),
        # a settle is final
        (("settled",), "lapsed", ()),
        (("settled",), "settled", ()),
        (("lapsed", "reversed", "settled"), "lapsed", ()),
        (("lapsed", "reversed", "settled"), "settled", ()),
    ],
)
def test_a_charge_moves_once_from_none_to_lapsed_to_settled(
    known: tuple[str, ...], state: str, todo: tuple[str, ...]
) -> None:
    assert steps(known, state) == todo


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 3), AMOUNTS), max_size=12))
def test_entries_of_a_flush_add_up_to_its_lines(lines: list[tuple[str, int, int]]) -> None:
    entries = charge_entries(lines, seq_first=3, seq_last=9)
    for wallet, grant in {(wallet, grant) for wallet, grant, _ in lines}:
        mine = [(entry.kind, entry.amount) for entry in entries if (entry.wallet, entry.grant) == (wallet, grant)]
        assert balance(mine).used == sum(amount for *key, amount in lines if key == [wallet, grant])
        assert len(mine) <= 2
    assert all(entry.amount > 0 and (entry.seq_first, entry.seq_last) == (3, 9) for entry in entries)


def test_every_entry_is_between_a_grant_and_one_other_book() -> None:
    for kind in Kind:
        entry = Entry("tokens", 1, kind, 5)
        assert (entry.debit is Book.GRANT) != (entry.credit is Book.GRANT)


def test_a_grants_book_is_its_amount_less_its_use() -> None:
    """Whatever is posted, the book's own sum is what the three columns say (rule 3 of the ledger)."""
    entries: list[tuple[Kind, int]] = [(kind, 10 + i) for i, kind in enumerate(Kind)]
    book = 0
    for kind, amount in entries:
        book += amount if Entry("t", 1, kind, amount).credit is Book.GRANT else -amount
    columns: Any = balance(entries)
    assert book == columns.amount - columns.used + columns.written_off
    assert balance([]) == GrantBalance()
