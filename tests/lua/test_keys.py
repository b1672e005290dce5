"""How things are spelled, and that what is packed comes back."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limits import codec, keys
from limits.model import AMOUNT_MAX, BudgetLine, Charge, ChargeState, Scope, ScopeKind, Take


def test_keys_are_spelled_as_the_readme_says() -> None:
    assert keys.account_key(17, "acme") == b"{p017}:a:acme"
    assert keys.outbox_key(17) == b"{p017}:o"
    assert keys.leases_key(17) == b"{p017}:l"
    assert keys.leader_key("reaper") == b"tollgate:lead:reaper"
    assert keys.wallet_field("tokens") == b"wtokens"
    assert [keys.bucket_field(number) for number in (0, 7, 8, 4_000_000_000)] == [b"b0", b"b0", b"b1", b"b500000000"]


def test_an_account_has_its_partition_for_ever() -> None:
    """A change here would strand every account's state in Redis."""
    assert [keys.partition_of(name, 256) for name in ("acme", "b\u00fcro", "")] == [62, 17, 0]
    spread = Counter(keys.partition_of(str(uuid.UUID(int=n)), 256) for n in range(20_000))
    assert len(spread) == 256 and max(spread.values()) < 150


def test_scopes_never_share_a_field() -> None:
    """A packed UUID, its own text, and a text that looks like packed bytes are three scopes."""
    text = "0192f0c4-3f6e-7c1a-9f00-1234567890ab"
    names = [text, text.upper(), text.replace("-", ""), "exactly-16-bytes", "x", text[:-1]]
    scopes = [Scope(kind, name) for kind in (ScopeKind.TEAM, ScopeKind.USER, ScopeKind.KEY) for name in names]
    fields = {keys.scope_field(scope) for scope in scopes}
    assert len(fields) == len(scopes)
    assert keys.scope_field(Scope(ScopeKind.USER, text)) == b"sU" + uuid.UUID(text).bytes
    assert keys.scope_field(Scope(ScopeKind.ACCOUNT, "whatever")) == b"sa"


@pytest.mark.parametrize("name", ["", "w" * 256, "\u00fc" * 128])
def test_names_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        keys.wallet_field(name)
    with pytest.raises(ValueError, match="bytes"):
        keys.scope_field(Scope(ScopeKind.TEAM, name))


def test_a_hold_id_is_sixteen_bytes_and_back() -> None:
    text = str(uuid.uuid4())
    assert keys.hold_text(keys.hold_bytes(text)) == text


NUMBERS = st.integers(0, 2**32 - 1)
AMOUNTS = st.integers(0, AMOUNT_MAX)


@settings(max_examples=60, derandomize=True, database=None)
@given(
    account=st.text(min_size=1, max_size=40),
    lines=st.lists(st.builds(Take, st.sampled_from(("tokens", "usd")), NUMBERS, AMOUNTS), max_size=5),
    budgets=st.lists(st.builds(BudgetLine, NUMBERS, st.integers(0, 2**48 - 1), AMOUNTS), max_size=5),
    payload=st.binary(max_size=300),
    state=st.sampled_from(ChargeState),
)
def test_a_charge_comes_back_from_the_outbox_as_it_was(
    account: str, lines: list[Take], budgets: list[BudgetLine], payload: bytes, state: ChargeState
) -> None:
    lines.sort(key=lambda line: line.wallet)
    charge = Charge(account, str(uuid.UUID(int=7)), state, tuple(lines), tuple(budgets), payload)
    vector, _ = codec.encode_lines(charge.lines, charge.budgets, codec.Fields.of())
    packed, at = codec.encode_charge(charge, vector)
    assert codec.decode_vector(packed, at - 1)[:2] == (charge.lines, charge.budgets)
    entry = codec.decode_entry(b"5000-3", packed, 6_000)
    assert (entry.charge, entry.entry_id, entry.age_ms) == (charge, "5000-3", 1_000)
