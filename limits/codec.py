"""What the scripts read and answer, packed: demands, holds, charges, snapshots. ``lua/prelude.lua`` has the layouts.

Rules
1. Little endian; amounts are 8-byte integers, so that neither NaN nor a fraction can be said; times are Unix ms.
2. What is packed here is checked here: an amount outside 0 … 2^53-1, a slot named twice, too many of anything is a
   ValueError before anything is sent.

Not here: keys and field names (``keys``), sending (``engine``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from limits import keys
from limits.model import (
    AMOUNT_MAX,
    BudgetLine,
    Charge,
    ChargeState,
    Confirm,
    Demand,
    Grant,
    Hold,
    OfBudget,
    OfGrant,
    OpenHold,
    OutboxEntry,
    Scope,
    Snapshot,
    Take,
    WindowDemand,
)
from limits.resp import Spelled
from limits.values import dataclass

STATES: Final = {ChargeState.LAPSED: 1, ChargeState.SETTLED: 2}
STATE_NAMES: Final = {number: state for state, number in STATES.items()}
_WINDOW_CODES: Final = {"requests": 1, "tokens": 2, "uses": 3}
_COUNTS_HOLDS: Final = 128
WIDE: Final = 128  # values of 8 bytes
NARROW: Final = 2**48  # below it, a value has 6 bytes
_U32: Final = 2**32
_WINDOW_STARTS: Final = 2**24
TIME_MAX: Final = 2**48
FIELDS_MAX: Final = 240  # so that a place in a list of fields is one byte, whatever a charge adds
BUDGETS_MAX: Final = 2**24  # their numbers are dense: a load looks at every field up to the largest

_BYTES = [bytes((number,)) for number in range(256)]
TAKE = struct.Struct("<IIHBB")  # grant, amount of 7 bytes, wallet
_LINE = struct.Struct("<Iq")
_HOLD = struct.Struct("<HBIHBB")
_SEQ = struct.Struct("<QH")
_CONFIRM = struct.Struct("<16sBI")
_PERIOD = struct.Struct("<IIHq")
_GRANT = struct.Struct("<IQqQQi")


class Fields(dict[bytes, bytes]):
    """The fields that a script reads, each with its place, a byte from 1 on: those given (a copy of others', or ``of``
    names), then whatever else its coded lines live in."""

    @classmethod
    def of(cls, *names: bytes) -> Fields:
        return cls(zip(names, _BYTES[1:], strict=False))

    def __missing__(self, name: bytes) -> bytes:
        if len(self) == 255:
            raise ValueError("coded lines live in at most 255 fields")
        place = self[name] = _BYTES[len(self) + 1]
        return place


@dataclass(frozen=True, slots=True)
class Layout:
    """A demand, packed: ``slots`` (the tail without its note), ``limits`` of the same slots, and their fields.

    Budgets are grouped by bucket there, windows and concurrency by scope: ``budgets``, ``windows`` and ``concurrency``
    say which one each is.
    """

    slots: bytes
    limits: bytes
    fields: Spelled
    settled: Fields  # with the places that they have when a hold of this demand is settled
    budgets: tuple[int, ...]
    windows: tuple[int, ...]
    concurrency: tuple[int, ...]
    lengths_ms: tuple[int, ...]  # of ``windows``


class _Kinds(dict[bytes, int]):
    """What many slots have in common, in the order of its first use."""

    def index(self, kind: bytes) -> int:
        """From 1."""
        return self.setdefault(kind, len(self) + 1)


class _Values:
    """The distinct amounts of a demand: each slot names one by its index, from 1.

    The first ``blanks`` places are for amounts that are not known yet: -1 stands for the first of them."""

    def __init__(self, blanks: int) -> None:
        self._blanks = blanks
        self._indices: dict[int, int] = {}

    def index(self, amount: int) -> int:
        found = self._indices.get(amount)
        if found is None:
            if -self._blanks <= amount < 0:
                return -amount
            check_amounts((amount,))
            found = self._indices[amount] = self._blanks + len(self._indices) + 1
            if found > 255:
                raise ValueError("a demand has at most 255 different amounts")
        return found

    def packed(self) -> bytes:
        """As the tail has them: narrow, unless one of them is too large for that."""
        amounts = [0] * self._blanks + list(self._indices) or [0]
        amounts += [0] * (-len(amounts) % 4)
        blocks = len(amounts) // 4
        if max(amounts) < NARROW:
            return b"".join((_BYTES[blocks], *(amount.to_bytes(6, "little") for amount in amounts)))
        return struct.pack(f"<B{len(amounts)}Q", WIDE + blocks, *amounts)


def check_amounts(amounts: Iterable[int]) -> None:
    """Raises ValueError for what is no amount of a demand."""
    for amount in amounts:
        if not 0 <= amount <= AMOUNT_MAX:
            raise ValueError(f"an amount is within 0 and 2^53-1, not {amount}")


def layout(demand: Demand) -> Layout:
    """Pack a demand; done once per demand, since a hold's is needed again to settle it. Raises ValueError."""
    known = demand.packed
    if isinstance(known, Layout):
        return known
    packed = laid_out(demand)
    object.__setattr__(demand, "packed", packed)
    return packed


def laid_out(demand: Demand, blanks: int = 0) -> Layout:
    """The work of it. So many amounts of the demand may be blanks (see ``forms``), which are packed as 0, first."""
    values = _Values(blanks)
    wallets = _count((item.wallet for item in demand.wallets), "wallets")
    buckets, scopes = _buckets(demand), _scopes(demand)
    budgets = tuple(index for grouped in buckets.values() for index in grouped)
    windows = tuple(index for grouped, _ in scopes.values() for index in grouped)
    budget_kinds, window_kinds = _Kinds(), _Kinds()
    prices, members, used = bytearray(), bytearray(), bytearray()
    limits: list[int] = []
    for wallet in demand.wallets:
        prices += bytes((values.index(wallet.abandon), values.index(wallet.amount)))
        limits.append(wallet.minimum)
    for eighth, grouped in buckets.items():
        members += eighth.to_bytes(3, "little") + _BYTES[len(grouped)]
        for budget in (demand.budgets[index] for index in grouped):
            kind = bytes([values.index(number) for number in (budget.amount, budget.abandon, budget.starts_at_ms)])
            members += bytes((budget_kinds.index(kind), budget.number % keys.BUDGETS_PER_BUCKET))
            limits += (budget.limit, budget.ends_at_ms)
    flags = bytearray()
    for grouped, counted in scopes.values():
        flags.append(len(grouped) + (_COUNTS_HOLDS if counted else 0))
        limits += (demand.concurrency[index].limit for index in counted)
        limits += (demand.windows[index].limit for index in grouped)
    for index in windows:
        code, length_s = window_key(demand.windows[index])
        kind = bytes((code, values.index(length_s), values.index(demand.windows[index].amount)))
        used.append(window_kinds.index(kind))
    names = [keys.wallet_field(item.wallet) for item in demand.wallets]
    fields = (*names, *(b"b%d" % eighth for eighth in buckets), *(keys.scope_field(scope) for scope in scopes))
    if len(fields) > FIELDS_MAX:
        raise ValueError(f"a demand lives in at most {FIELDS_MAX} fields, not {len(fields)}")
    counts = (wallets, len(budget_kinds), len(budgets), len(buckets), len(scopes), len(window_kinds), len(windows))
    texts = [_BYTES[len(name) - 1] + name[1:] for name in names] + [_scope_text(scope) for scope in scopes]
    slots = (bytes(counts), prices, *budget_kinds, *window_kinds, flags, members, used, *texts)
    narrowness = [keys.NARROWNESS[demand.budgets[index].scope.kind] for index in budgets]
    narrowness += [keys.NARROWNESS[scope.kind] for scope in scopes]
    return Layout(
        slots=b"".join((values.packed(), *slots)),
        limits=struct.pack(f"<{len(limits)}Q", *limits) + bytes(narrowness),
        fields=Spelled.of(*fields),
        settled=Fields.of(keys.META, keys.HOLD, keys.MARK, *fields),
        budgets=budgets,
        windows=windows,
        concurrency=tuple(index for _, counted in scopes.values() for index in counted),
        lengths_ms=tuple(demand.windows[index].length_ms for index in windows),
    )


def _buckets(demand: Demand) -> dict[int, list[int]]:
    """Which budgets live together, by the places of the budgets in the demand."""
    _count((item.number for item in demand.budgets), "budgets")
    buckets: dict[int, list[int]] = {}
    for index, budget in enumerate(demand.budgets):
        _whole(budget.starts_at_ms, TIME_MAX)
        buckets.setdefault(_whole(budget.number, BUDGETS_MAX) // keys.BUDGETS_PER_BUCKET, []).append(index)
    return buckets


def _scope_text(scope: Scope) -> bytes:
    """A scope's name in a tail: its letter, and where the letter does not say how long the rest is, its length."""
    name = keys.scope_field(scope)[1:]
    return name if name[:1].isupper() or len(name) == 1 else name[:1] + _BYTES[len(name) - 1] + name[1:]


def _scopes(demand: Demand) -> dict[Scope, tuple[list[int], list[int]]]:
    """Which windows and which concurrency each scope has, by their places in the demand."""
    _count(((item.scope, item.name, item.length_ms) for item in demand.windows), "windows")
    _count((item.scope for item in demand.concurrency), "concurrency limits")
    scopes: dict[Scope, tuple[list[int], list[int]]] = {}
    for index, window in enumerate(demand.windows):
        scopes.setdefault(window.scope, ([], []))[0].append(index)
    for index, concurrency in enumerate(demand.concurrency):
        scopes.setdefault(concurrency.scope, ([], []))[1].append(index)
    _count(scopes, "scopes")
    return scopes


def _count(names: Iterable[object], what: str) -> int:
    """How many; at most 127, none twice."""
    listed = list(names)
    if len(listed) > 127 or len(set(listed)) != len(listed):
        raise ValueError(f"at most 127 {what}, none of them twice")
    return len(listed)


def window_key(window: WindowDemand) -> tuple[int, int]:
    """(code, length in seconds). Raises ValueError for an unknown name or a length that is no whole second."""
    length_s, rest = divmod(window.length_ms, 1000)
    if rest or not 0 < length_s < _U32 or window.name not in _WINDOW_CODES:
        raise ValueError(f"no such window: {window.name} of {window.length_ms} ms")
    return _WINDOW_CODES[window.name], length_s


def encode_hold(hold: Hold, packed: Layout) -> bytes:
    """The whole hold, as Redis keeps it."""
    places = {wallet.wallet: place for place, wallet in enumerate(hold.demand.form.wallets, 1)}
    created_ms, windows = hold.created_at_ms, len(packed.windows)
    head = _HOLD.pack(hold.version, int(hold.first_byte), created_ms % _U32, created_ms >> 32, len(hold.takes), windows)
    parts = [head]
    for take in hold.takes:
        amount = take.amount
        parts.append(TAKE.pack(take.number, amount % _U32, (amount >> 32) % 2**16, amount >> 48, places[take.wallet]))
    parts += ((hold.window_starts_ms[index] % _WINDOW_STARTS).to_bytes(3, "little") for index in packed.windows)
    return b"".join((*parts, packed.slots, hold.note))


def decode_hold(hold_id: str, packed: bytes) -> OpenHold:
    """What the head and the takes of a kept hold say."""
    _, first_byte, low, high, count, _ = _HOLD.unpack_from(packed)
    takes = TAKE.iter_unpack(packed[_HOLD.size : _HOLD.size + count * TAKE.size])
    amounts = tuple((number, least + (middle << 32) + (most << 48)) for number, least, middle, most, _ in takes)
    return OpenHold(hold_id, low + (high << 32), bool(first_byte), amounts)


def encode_lines(
    lines: Sequence[OfGrant], budgets: Sequence[OfBudget], fields: Fields, *, signed: bool = False
) -> tuple[bytes, bytes]:
    """What a charge or a delta puts on grants and budgets: as a vector, to be kept, and as coded lines, to be counted,
    with the places of their fields instead of names. Raises ValueError for an amount out of range, or too many."""
    if len(lines) > 255 or len(budgets) > 255:
        raise ValueError("a charge has at most 255 lines, and as many budgets")
    lowest = -AMOUNT_MAX if signed else 0
    wallets: dict[str, list[bytes]] = {}
    coded, periods = [_BYTES[len(lines)]], [_BYTES[len(budgets)]]
    for line in lines:
        wallet, amount = line.wallet, line.amount
        if not lowest <= amount <= AMOUNT_MAX:
            raise ValueError(f"an amount is within {lowest} and 2^53-1, not {amount}")
        packed = _LINE.pack(line.number, amount)
        if wallet in wallets:
            wallets[wallet].append(packed)
        else:
            wallets[wallet] = [packed]
        coded += (fields[keys.wallet_field(wallet)], packed)
    coded += periods
    for budget in budgets:
        number, starts_ms, amount = budget.number, budget.starts_at_ms, budget.amount
        if not lowest <= amount <= AMOUNT_MAX:
            raise ValueError(f"an amount is within {lowest} and 2^53-1, not {amount}")
        packed = _PERIOD.pack(number, starts_ms % _U32, starts_ms >> 32, amount)
        periods.append(packed)
        coded += (fields[keys.bucket_field(number)], packed)
    parts = [_BYTES[len(wallets)]]
    for wallet, grants in wallets.items():
        name = keys.wallet_field(wallet)[1:]
        parts += (_BYTES[len(name)], name, _BYTES[len(grants)], *grants)
    return b"".join((*parts, *periods)), b"".join(coded)


def encode_charge(charge: Charge, vector: bytes) -> tuple[bytes, int]:
    """A charge as it goes into the outbox, and the position of its vector in it (from 1)."""
    account, hold_id = charge.account.encode(), keys.hold_names(charge.hold_id).id
    size, state = len(account), STATES[charge.state]
    head = struct.pack(f"<B16sB{size}sH", state, hold_id, size, account, len(vector))
    return b"".join((head, vector, charge.payload)), len(head) + 1


def decode_vector(packed: bytes, at: int) -> tuple[tuple[Take, ...], tuple[BudgetLine, ...], int]:
    """(lines, budgets, position behind)."""
    lines: list[Take] = []
    budgets: list[BudgetLine] = []
    wallets, at = packed[at], at + 1
    for _ in range(wallets):
        size, at = packed[at], at + 1
        wallet, at = packed[at : at + size].decode(), at + size
        count, at = packed[at], at + 1
        for _ in range(count):
            number, amount = _LINE.unpack_from(packed, at)
            lines.append(Take(wallet, number, amount))
            at += _LINE.size
    count, at = packed[at], at + 1
    for _ in range(count):
        number, starts_at_ms = u32(packed, at), u48(packed, at + 4)
        amount = int.from_bytes(packed[at + 10 : at + 18], "little", signed=True)
        budgets.append(BudgetLine(number, starts_at_ms, amount))
        at += 18
    return tuple(lines), tuple(budgets), at


def decode_entry(entry_id: bytes, packed: bytes, now_ms: int) -> OutboxEntry:
    """An entry of the outbox with its whole charge."""
    size = packed[17]
    lines, budgets, at = decode_vector(packed, 20 + size)
    charge = Charge(
        account=packed[18 : 18 + size].decode(),
        hold_id=keys.hold_text(packed[1:17]),
        state=STATE_NAMES[packed[0]],
        lines=lines,
        budgets=budgets,
        payload=packed[at:],
    )
    created_ms = int(entry_id.partition(b"-")[0])
    return OutboxEntry(entry_id.decode(), charge, max(0, now_ms - created_ms))


def encode_confirm(confirm: Confirm, fields: Fields) -> bytes:
    """A charge that SQL has, with its deltas in order of seq, each as a vector and as coded lines."""
    parts: list[bytes] = []
    deltas = confirm.deltas if len(confirm.deltas) < 2 else sorted(confirm.deltas, key=lambda item: item.seq)
    for delta in deltas:
        vector, lines = encode_lines(delta.lines, delta.budgets, fields, signed=True)
        parts += (_SEQ.pack(delta.seq, len(vector)), vector, lines)
    packed = b"".join(parts)
    return _CONFIRM.pack(keys.hold_names(confirm.hold_id).id, STATES[confirm.state], len(packed)) + packed


def encode_snapshot(snapshot: Snapshot) -> tuple[bytes, list[bytes | int]]:
    """The head of a load, and its wallets and buckets as arguments; grants in burn order."""
    numbers = (snapshot.seq, snapshot.rev, snapshot.turn_at_ms, snapshot.period_at_ms)
    head = struct.pack("<QQQQ", *(_whole(number, TIME_MAX) for number in numbers))
    args: list[bytes | int] = [len(snapshot.wallets)]
    for state in snapshot.wallets:
        grants = sorted(state.grants, key=lambda g: (g.priority, g.expires_at_ms or 2**63, g.number))
        args.append(keys.wallet_field(state.wallet)[1:])
        args.append(b"".join(_packed_grant(g) for g in grants))
    buckets: dict[int, list[bytes]] = {}
    for budget in snapshot.budgets:
        number, starts_ms = _whole(budget.number, BUDGETS_MAX), _whole(budget.starts_at_ms, TIME_MAX)
        packed = _PERIOD.pack(number, starts_ms % _U32, starts_ms >> 32, budget.counted)
        buckets.setdefault(number // keys.BUDGETS_PER_BUCKET, []).append(packed)
    for first, periods in buckets.items():
        args += (keys.bucket_field(first * keys.BUDGETS_PER_BUCKET), b"".join(periods))
    return head, args


def _packed_grant(grant: Grant) -> bytes:
    return _GRANT.pack(
        _whole(grant.number, _U32),
        _whole(grant.amount, AMOUNT_MAX + 1),
        grant.counted,
        _whole(grant.starts_at_ms, TIME_MAX),
        _whole(grant.expires_at_ms, TIME_MAX),
        grant.priority,
    )


def _whole(number: int, limit: int) -> int:
    """A number that fits its place. Raises ValueError."""
    if not 0 <= number < limit:
        raise ValueError(f"{number} is not within 0 and {limit - 1}")
    return number


def u32(packed: bytes, at: int) -> int:
    return int.from_bytes(packed[at : at + 4], "little")


def u48(packed: bytes, at: int) -> int:
    return int.from_bytes(packed[at : at + 6], "little")
