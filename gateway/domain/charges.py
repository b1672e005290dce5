"""The charge of one call: the usage row, as it travels from the worker through Redis' outbox into SQL.

Rules
1. A charge is keyed by its hold's id. It moves none → lapsed → settled, each once; SQL decides, in any order.
2. ``encode``/``decode`` are exact inverses and versioned: a worker of the next release may find this one's rows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.domain.usage import Basis, Usage

LAPSED: Final = "lapsed"
SETTLED: Final = "settled"
REVERSED: Final = "reversed"  # a lapse taken back by its settle; a row of the bill, never a state of a charge
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class GrantLine:
    wallet: str
    grant: int  # number
    amount: int


@dataclass(frozen=True, slots=True)
class BudgetLine:
    budget: int  # number
    starts_at_ms: int
    amount: int


@dataclass(frozen=True, slots=True)
class ChargeRow:
    """One line of the bill. Amounts in meter steps."""

    hold_id: str
    account_id: str
    state: str  # lapsed | settled
    created_at_ms: int  # when the hold was taken (server time)
    ended_at_ms: int
    route: str  # adapter name, or "metering"
    model: str | None
    upstream: str | None
    plan: str
    feature: str
    wallet: str
    card_version: str  # rates card version, "" for fixed prices
    usage: Usage
    basis: Basis
    held: int
    charged: int  # = sum of lines
    overrun: int  # charged above held
    lines: tuple[GrantLine, ...]
    budgets: tuple[BudgetLine, ...]
    status: int  # HTTP status answered; 0 for lapsed
    end: str  # complete | client_left | upstream_error | quota | lapsed | released
    key_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    job: str | None = None
    job_type: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    shadow: str | None = None  # why it would have been refused, had its plan not been in shadow
    waived: int = 0  # what such a call would have cost; ``charged`` is 0


@dataclass(frozen=True, slots=True)
class ChargeChange:
    """What SQL made of a charge: the account's next seq, and what it added to grants and budgets (may be negative)."""

    seq: int
    lines: tuple[GrantLine, ...]
    budgets: tuple[BudgetLine, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """All changes of one hold's charge so far, oldest first, and the state that SQL holds now."""

    account_id: str
    hold_id: str
    state: str
    changes: tuple[ChargeChange, ...]


def lapsed(
    note: ChargeRow, *, lines: Sequence[GrantLine], budgets: Sequence[BudgetLine], ended_at_ms: int
) -> ChargeRow:
    """The provisional charge of a lapsed hold: what its worker noted when it was taken, with what it is charged."""
    return replace(
        note,
        state=LAPSED,
        basis=Basis.ESTIMATED,
        ended_at_ms=ended_at_ms,
        charged=sum(line.amount for line in lines),
        overrun=0,
        lines=tuple(lines),
        budgets=tuple(budgets),
        status=0,
        end=LAPSED,
    )


def steps(known: Collection[str], state: str) -> tuple[str, ...]:
    """The rows to write when a charge of ``state`` comes to a hold that has rows of the ``known`` states (law 3).

    A settle after a lapse reverses it and writes its own row; a lapse after a settle, or anything twice, writes none.
    """
    if SETTLED in known or state in known:
        return ()
    return (REVERSED, SETTLED) if LAPSED in known else (state,)


# --- the wire ----------------------------------------------------------------------------------------------------
# version, which ids are packed, times; then each packed id as 16 bytes; then a JSON array of all the rest. Ids are most
# of a row's text, and a row lies in Redis as long as its call lives.

_HEAD: Final = struct.Struct("<BBqq")
_ID_BYTES: Final = 16
_IDS: Final = 5  # hold, account, key, team, user: bit i of the mask says that id i is packed
_dumps: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_loads: Final = json.JSONDecoder().decode


def encode(row: ChargeRow) -> bytes:
    """The row as bytes. ``decode`` gives it back, equal."""
    usage = row.usage
    mask, packed, rest = 0, [], []
    for index, value in enumerate((row.hold_id, row.account_id, row.key_id, row.team_id, row.user_id)):
        raw = None if value is None else _pack_id(value)
        if raw is None:
            rest.append(value)
        else:
            mask |= 1 << index
            packed.append(raw)
    body = (
        rest,
        row.state,
        row.route,
        row.model,
        row.upstream,
        row.plan,
        row.feature,
        row.wallet,
        row.card_version,
        (
            usage.input,
            usage.cache_read,
            usage.cache_write_5m,
            usage.cache_write_1h,
            usage.cache_write,
            usage.output,
            usage.reasoning,
        ),
        row.basis.value,
        row.held,
        row.charged,
        row.overrun,
        [(line.wallet, line.grant, line.amount) for line in row.lines],
        [(line.budget, line.starts_at_ms, line.amount) for line in row.budgets],
        row.status,
        row.end,
        row.job,
        row.job_type,
        row.metadata or 0,
        *((row.shadow, row.waived) if row.shadow is not None else ()),
    )
    head = _HEAD.pack(VERSION, mask, row.created_at_ms, row.ended_at_ms)
    return b"".join((head, *packed, _dumps(body).encode("ascii")))


def decode(data: bytes) -> ChargeRow:
    """The inverse of ``encode``. Raises ValueError for bytes that are no row, or one of a version not known here."""
    if len(data) < _HEAD.size or data[0] != VERSION:
        raise ValueError(f"not a charge of version {VERSION}")
    _, mask, created_at_ms, ended_at_ms = _HEAD.unpack_from(data)
    start = _HEAD.size + _ID_BYTES * mask.bit_count()
    try:
        body = _loads(data[start:].decode("ascii"))
        return _row(body, _ids(data, mask, body[0]), created_at_ms, ended_at_ms)
    except (LookupError, TypeError) as error:
        raise ValueError("not a charge") from error


def _row(body: list[Any], ids: list[str | None], created_at_ms: int, ended_at_ms: int) -> ChargeRow:
    hold_id, account_id, key_id, team_id, user_id = ids
    (_, state, route, model, upstream, plan, feature, wallet, card_version, usage, basis, held, charged, overrun,
     lines, budgets, status, end, job, job_type, metadata, *shadow) = body  # fmt: skip
    if hold_id is None or account_id is None:
        raise ValueError("a charge needs its hold and its account")
    return ChargeRow(
        hold_id, account_id, state, created_at_ms, ended_at_ms, route, model, upstream, plan, feature, wallet,
        card_version, Usage(*usage), Basis(basis), held, charged, overrun,
        tuple([GrantLine(*line) for line in lines]), tuple([BudgetLine(*line) for line in budgets]),
        status, end, key_id, team_id, user_id, job, job_type, metadata or {}, *shadow,
    )  # fmt: skip


def _ids(data: bytes, mask: int, rest: list[str | None]) -> list[str | None]:
    start, given = _HEAD.size, iter(rest)
    ids: list[str | None] = []
    for index in range(_IDS):
        if mask >> index & 1:
            ids.append(_unpack_id(data[start : start + _ID_BYTES]))
            start += _ID_BYTES
        else:
            ids.append(next(given, None))
    return ids


def _pack_id(value: str) -> bytes | None:
    """A UUID in its canonical spelling as 16 bytes; None for any other text, which travels as it is."""
    if len(value) != 36 or not value.isascii():
        return None
    try:
        raw = bytes.fromhex(value.replace("-", ""))
    except ValueError:
        return None
    return raw if len(raw) == _ID_BYTES and _unpack_id(raw) == value else None


def _unpack_id(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
