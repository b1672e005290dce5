"""The charge of one call: the usage row, as it travels from the worker through Redis' outbox into SQL.

Rules
1. A charge is keyed by its hold's id. It moves none → lapsed → settled, each once; SQL decides, in any order.
2. ``encode``/``decode`` are exact inverses and versioned: a worker of the next release may find this one's rows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from functools import lru_cache
from typing import Final

from gateway.domain.usage import Basis, Usage
from limits.values import dataclass

LAPSED: Final = "lapsed"
SETTLED: Final = "settled"
REVERSED: Final = "reversed"  # a lapse taken back by its settle; a row of the bill, never a state of a charge
VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class GrantLine:
    """What is charged to one grant, by the grant's number."""

    wallet: str
    number: int
    amount: int


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """What is charged to one budget's period, by the budget's number."""

    number: int
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
class Unreadable:
    """A charge of the outbox whose row cannot be read here: damaged, or written by a release that is gone."""

    hold_id: str
    account_id: str
    state: str
    why: str
    row: bytes


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
    """The provisional charge of a lapsed hold: what its worker noted when it was taken, its basis too, with what it is
    charged."""
    return replace(
        note,
        state=LAPSED,
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
# A row lies in Redis as long as its call lives, and is packed twice for each call. So numbers that are 0 are left out,
# ids are 16 bytes, and the texts that calls share are packed once.
#
#   B version, H flags, q created ms; q ended ms if it differs; the numbers that are not 0, I each, or q if one is too
#   large or negative; texts: hold | account, key, team, user | route, model, plan, feature, wallet, card version |
#   state, basis, end, upstream, shadow | if any: job, job type, metadata (JSON); B lines of (I grant, q amount, text
#   wallet or none = the row's); B budgets of (I number, q start ms, q amount)
#   text: B 0 = none; 1 + length, and UTF-8; 254 = I length, and UTF-8; 255 = a UUID's 16 bytes

_HEAD: Final = struct.Struct("<BHq")
_INPUT_ONLY: Final = struct.Struct("<BHqI")  # a head and its numbers, where there is but the first
_NUMBERS: Final = 12  # usage, held, charged, overrun, status, waived: flag i says that number i is not 0
_WIDE, _ENDED, _EXTRAS, _SPELLED = 1 << 12, 1 << 13, 1 << 14, 1 << 15
_LINE: Final = struct.Struct("<Iq")
_BUDGET: Final = struct.Struct("<Iqq")
_Q: Final = struct.Struct("<q")
_LONG_TEXT: Final = struct.Struct("<BI")
_NONE, _LONG, _UUID, _ID_BYTES = b"\0", 254, 255, 16
_dumps: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_loads: Final = json.JSONDecoder().decode


def encode(row: ChargeRow) -> bytes:
    """The row as bytes. ``decode`` gives it back, equal."""
    used, wallet = row.usage, row.wallet
    flags, numbers = _pack_numbers(
        (
            used.input, used.cache_read, used.cache_write_5m, used.cache_write_1h, used.cache_write, used.output,
            used.reasoning, row.held, row.charged, row.overrun, row.status, row.waived,
        )
    )  # fmt: skip
    ended = extras = b""
    if row.ended_at_ms != row.created_at_ms:
        flags |= _ENDED
        ended = _Q.pack(row.ended_at_ms)
    if row.job is not None or row.job_type is not None or row.metadata:
        flags |= _EXTRAS
        extras = _text(row.job) + _text(row.job_type) + _text(_dumps(row.metadata))
    lines, budgets = [bytes((len(row.lines),))], [len(row.budgets)]
    for line in row.lines:
        lines += (_LINE.pack(line.number, line.amount), _NONE if line.wallet == wallet else _text(line.wallet))
    for budget in row.budgets:
        budgets += (budget.number, budget.starts_at_ms, budget.amount)
    return b"".join(
        (
            _HEAD.pack(VERSION, flags, row.created_at_ms),
            ended,
            numbers,
            _one(row.hold_id),
            _texts(row.account_id, row.key_id, row.team_id, row.user_id),
            _texts(row.route, row.model, row.plan, row.feature, wallet, row.card_version),
            _texts(row.state, row.basis, row.end, row.upstream, row.shadow),
            extras,
            *lines,
            struct.pack("<B" + budgets[0] * "Iqq", *budgets),
        )
    )


def common(row: ChargeRow) -> bytes:
    """What ``encode`` makes of all rows that differ from this one in nothing but their hold, their time and an input of
    at least a token, with no other number, no job and no metadata."""
    packed = encode(replace(row, hold_id="", created_at_ms=0, ended_at_ms=0, usage=Usage(1)))
    return packed[len(completed(b"", "", 0, 1)) :]


def completed(shared: bytes, hold_id: str, at_ms: int, input_tokens: int) -> bytes:
    """One of those rows, as ``encode`` packs it. Raises ValueError for no tokens, or more than 4 bytes can say."""
    if not 0 < input_tokens < 1 << 32:
        raise ValueError(f"not an input that a row has in common with others: {input_tokens}")
    return _INPUT_ONLY.pack(VERSION, 1, at_ms, input_tokens) + _one(hold_id) + shared


def decode(data: bytes) -> ChargeRow:
    """The inverse of ``encode``. Raises ValueError for bytes that are no row, or one of a version not known here."""
    if not data or data[0] != VERSION:
        raise ValueError(f"not a charge of version {VERSION}")
    try:
        return _row(_Reader(data))
    except (struct.error, LookupError, TypeError) as error:
        raise ValueError("not a charge") from error


def _row(read: _Reader) -> ChargeRow:
    _, flags, created_at_ms = read.fields(_HEAD)
    ended_at_ms = read.fields(_Q)[0] if flags & _ENDED else created_at_ms
    numbers = _unpack_numbers(read, flags)
    hold_id, account_id = read.name(), read.name()
    key_id, team_id, user_id = read.text(), read.text(), read.text()
    route, model, plan, feature, wallet, card_version = (
        read.name(), read.text(), read.name(), read.name(), read.name(), read.name()
    )  # fmt: skip
    state, basis, end, upstream, shadow = read.name(), Basis(read.name()), read.name(), read.text(), read.text()
    job, job_type, metadata = (read.text(), read.text(), _loads(read.name())) if flags & _EXTRAS else (None, None, {})
    if not isinstance(metadata, dict):
        raise ValueError("not a charge")
    lines, budgets = [], []
    for _ in range(read.byte()):
        grant, amount = read.fields(_LINE)
        other = read.text()
        lines.append(GrantLine(wallet if other is None else other, grant, amount))
    for _ in range(read.byte()):
        budgets.append(BudgetLine(*read.fields(_BUDGET)))
    read.end()
    return ChargeRow(
        hold_id, account_id, state, created_at_ms, ended_at_ms, route, model, upstream, plan, feature, wallet,
        card_version, Usage(*numbers[:7]), basis, numbers[7], numbers[8], numbers[9], tuple(lines), tuple(budgets),
        numbers[10], end, key_id, team_id, user_id, job, job_type, metadata, shadow, numbers[11],
    )  # fmt: skip


def _pack_numbers(numbers: Sequence[int]) -> tuple[int, bytes]:
    """Flags, and the numbers that are not 0. What no provider can mean is spelled out: it must not stop a bill."""
    flags, flag, given = 0, 1, []
    for number in numbers:
        if number:
            flags |= flag
            given.append(number)
        flag += flag
    try:
        return flags, struct.pack(f"<{len(given)}I", *given)
    except struct.error:
        pass
    try:
        return flags | _WIDE, struct.pack(f"<{len(given)}q", *given)
    except struct.error:
        return flags | _SPELLED, _text(_dumps(given))


def _unpack_numbers(read: _Reader, flags: int) -> list[int]:
    count = (flags & (1 << _NUMBERS) - 1).bit_count()
    if flags & _SPELLED:
        given = _loads(read.name())
        if not isinstance(given, list) or len(given) != count or not all(type(number) is int for number in given):
            raise ValueError("not a charge")
    else:
        given = list(read.fields(struct.Struct(f"<{count}{'q' if flags & _WIDE else 'I'}")))
    following = iter(given)
    return [next(following) if flags >> index & 1 else 0 for index in range(_NUMBERS)]


@lru_cache(maxsize=16_384)
def _texts(*values: str | None) -> bytes:
    """Texts that many calls share."""
    return b"".join(_text(value) for value in values)


@lru_cache(maxsize=1_024)
def _one(value: str) -> bytes:
    """A text that one call needs twice."""
    return _text(value)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NONE
    if len(value) == 36 and (raw := _pack_id(value)) is not None:
        return b"\xff" + raw
    packed = value.encode("utf-8", "surrogatepass")
    size = len(packed) + 1
    return (bytes((size,)) if size < _LONG else _LONG_TEXT.pack(_LONG, len(packed))) + packed


class _Reader:
    """Packed values, one after the other. Raises LookupError and struct.error behind the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        found: tuple[int, ...] = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return found

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def name(self) -> str:
        """A text that is never none."""
        found = self.text()
        if found is None:
            raise ValueError("not a charge")
        return found

    def text(self) -> str | None:
        size = self.byte()
        if size == 0:
            return None
        if size == _UUID:
            return _unpack_id(self._bytes(_ID_BYTES))
        length = int.from_bytes(self._bytes(4), "little") if size == _LONG else size - 1
        return self._bytes(length).decode("utf-8", "surrogatepass")

    def _bytes(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise LookupError
        self._at += count
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("not a charge")


def _pack_id(value: str) -> bytes | None:
    """A UUID in its canonical spelling as 16 bytes; None for any other text, which travels as it is."""
    digits = value.replace("-", "")
    if len(digits) != 32 or not value.isascii() or not value[8] == value[13] == value[18] == value[23] == "-":
        return None
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        return None
    return raw if len(raw) == _ID_BYTES and value == value.lower() else None


def _unpack_id(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
