"""What the scripts answer, unpacked into the engine's vocabulary. The first byte says which answer it is.

Not here: packing (``codec``), sending (``engine``).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from limits.codec import TAKE, Layout, u48
from limits.model import (
    AccountView,
    Demand,
    ExtendReply,
    Gone,
    GrantView,
    Hold,
    Late,
    Overloaded,
    PartitionState,
    Reauth,
    Refused,
    Reserved,
    ReserveReply,
    Scope,
    Settled,
    Stale,
    Take,
    Turn,
    Verdict,
    WalletDemand,
    WalletView,
    Warming,
)
from limits.values import dataclass

_VERDICTS: Final = {
    1: Verdict.LASTING,
    2: Verdict.HELD,
    3: Verdict.RATE,
    4: Verdict.CONCURRENCY,
    5: Verdict.TOO_LARGE,
}
_Q = struct.Struct("<Q")
_QQ = struct.Struct("<QQ")
_RESERVED = struct.Struct("<QQHB")
_VIEW = struct.Struct("<qQIH")
_REFUSED = struct.Struct("<BcBqqqqqQQB")
_CROSSED = struct.Struct("<BH")
_META = struct.Struct("<16s30sIII")
_GRANT = struct.Struct("<IqqqqIHIHi")
_BUDGET = struct.Struct("<IIHqqq")
_BURNING = struct.Struct("<HIqqqq")
_SUMS_SIZE: Final = 50  # a wallet's field begins with what was warned of and its sums


@dataclass(frozen=True, slots=True)
class Asked:
    """What a demand-shaped reply is about: the hold as it will be if it is granted, and how its demand was packed.

    ``demand`` is what was asked for, as ``layout`` has it: of a reserve the whole, of an extend what came on top."""

    account: str
    hold_id: str
    lease_ms: int
    note: bytes
    whole: Demand
    demand: Demand
    layout: Layout
    window_starts_ms: tuple[int, ...] = ()  # so far
    first_byte: bool = False


def decode_demand(reply: bytes, asked: Asked) -> ReserveReply:
    """The answer to a reserve."""
    match reply[:1]:
        case b"R":
            return _reserved(reply, asked)
        case b"F":
            return _refused(reply, asked)
        case b"S":
            return Stale(reply[1:].decode())
        case b"W":
            until_ms, now_ms = _QQ.unpack_from(reply, 1)
            return Warming(until_ms, now_ms, reply[17:].decode())
        case b"L":
            return Late(_Q.unpack_from(reply, 1)[0])
        case b"A":
            return Reauth(_Q.unpack_from(reply, 1)[0])
        case b"T":
            return Turn(*_QQ.unpack_from(reply, 1))
        case b"O":
            return Overloaded(_Q.unpack_from(reply, 1)[0])
    raise AssertionError(f"no such answer: {reply[:1]!r}")


def decode_extend(reply: bytes, asked: Asked) -> ExtendReply:
    """The answer to an extend."""
    if reply[:1] == b"G":
        return Gone()
    answer = decode_demand(reply, asked)
    assert isinstance(answer, Reserved | Refused | Stale | Warming)
    return answer


def _reserved(reply: bytes, asked: Asked) -> Reserved:
    now_ms, created_ms, version, count = _RESERVED.unpack_from(reply, 1)
    at = 1 + _RESERVED.size
    wallets, layout = asked.whole.form.wallets, asked.layout
    takes = []
    for _ in range(count):
        number, low, middle, high, wallet = TAKE.unpack_from(reply, at)
        takes.append(Take(wallets[wallet - 1].wallet, number, low + (middle << 32) + (high << 48)))
        at += TAKE.size
    count, at = reply[at], at + 1
    views = []
    for item in wallets[:count]:
        available, capacity, low, high = _VIEW.unpack_from(reply, at)
        views.append(WalletView(item.wallet, available, capacity, low + (high << 32)))
        at += _VIEW.size
    count, at = reply[at], at + 1
    pairs = struct.unpack_from(f"<{2 * count}Q", reply, at)
    windows = [(0, 0)] * count
    starts = list(asked.window_starts_ms) or [0] * count
    amounts = asked.demand.windows if asked.window_starts_ms else ()
    for place, index in enumerate(layout.windows):
        start_ms = pairs[2 * place + 1]
        windows[index] = (pairs[2 * place], start_ms + layout.lengths_ms[place])
        if not starts[index] or amounts[index].amount:  # windows that an extend does not touch stay as they began
            starts[index] = start_ms
    crossed, at = _crossed(reply, at + 16 * count, wallets)
    hold = Hold(
        asked.account, asked.hold_id, version, created_ms, asked.lease_ms, tuple(takes), asked.whole, tuple(starts),
        asked.note, asked.first_byte,
    )  # fmt: skip
    return Reserved(hold, tuple(views), crossed, tuple(windows), now_ms, reply[at:].decode())


def _crossed(reply: bytes, at: int, wallets: Sequence[WalletDemand]) -> tuple[tuple[tuple[str, int], ...], int]:
    """Thresholds crossed, and the position behind them."""
    count, at = reply[at], at + 1
    if not count:
        return (), at
    found = []
    for _ in range(count):
        wallet, permille = _CROSSED.unpack_from(reply, at)
        found.append((wallets[wallet - 1].wallet, permille))
        at += _CROSSED.size
    return tuple(found), at


def _refused(reply: bytes, asked: Asked) -> Refused:
    verdict, letter, place, limit, used, held, needed, available, resets_at_ms, now_ms, _ = _REFUSED.unpack_from(
        reply, 1
    )
    slot, scope, meter = _slot(letter, place - 1, asked)
    crossed, _ = _crossed(reply, _REFUSED.size, asked.demand.form.wallets)
    return Refused(
        verdict=_VERDICTS[verdict],
        slot=slot,
        scope=scope,
        meter=meter,
        limit=limit,
        used=used,
        held=held,
        needed=needed,
        available=available,
        resets_at_ms=resets_at_ms,
        server_ms=now_ms,
        crossed=crossed,
    )


def _slot(letter: bytes, index: int, asked: Asked) -> tuple[str, Scope | None, str]:
    """(slot, scope, meter) of a refusal."""
    demand = asked.demand.form
    match letter:
        case b"w":
            return "wallet", None, demand.wallets[index].wallet
        case b"b":
            budget = demand.budgets[asked.layout.budgets[index]]
            return "budget", budget.scope, budget.meter
        case b"n":
            window = demand.windows[asked.layout.windows[index]]
            return window.name, window.scope, ""
        case _:
            return "concurrency", demand.concurrency[asked.layout.concurrency[index]].scope, ""


def decode_settled(reply: bytes) -> Settled:
    return Settled(record=reply[10:].decode(), server_ms=_Q.unpack_from(reply, 2)[0], known=reply[1] == 1)


def decode_partition(reply: bytes) -> PartitionState:
    now_ms, entries = _QQ.unpack_from(reply, 1)
    return PartitionState(reply[17:].decode(), now_ms, entries)


def decode_view(reply: Sequence[bytes], wallets: Sequence[str]) -> AccountView:
    """The answer to a peek of a live account."""
    now_ms = _Q.unpack_from(reply[0], 1)[0]
    _, times, _, holds, _ = _META.unpack_from(reply[1])
    rev, seq, turn_at_ms = (u48(times, at) for at in (0, 6, 12))
    shown = tuple(
        decode_wallet(wallet, reply[2 + 2 * index], reply[3 + 2 * index], now_ms)
        for index, wallet in enumerate(wallets)
    )
    budgets = []
    for packed in reply[2 + 2 * len(wallets) :]:
        for number, low, high, counted, pending, held in _BUDGET.iter_unpack(packed):
            budgets.append((number, low + (high << 32), counted, pending, held))
    return AccountView(rev, seq, turn_at_ms, shown, tuple(budgets), holds, now_ms)


def decode_wallet(wallet: str, packed: bytes, listed: bytes, now_ms: int) -> tuple[WalletView, tuple[GrantView, ...]]:
    """A wallet's field and its list: its sums over what is open now, and every grant that Redis knows.

    The grant that burns now is known best by the wallet's field."""
    place = number = counted = pending = held = 0
    if packed:
        place, number, _, counted, pending, held = _BURNING.unpack_from(packed, _SUMS_SIZE)
    grants = []
    for index in range(len(listed) // (2 + _GRANT.size)):
        values = _GRANT.unpack_from(listed, index * (2 + _GRANT.size) + 2)
        grant = _grant_view(*values)
        if index + 1 == place:
            assert grant.number == number, "the wallet's field names a grant of its list"
            grant = replace(grant, counted=counted, pending=pending, held=held)
        grants.append(grant)
    return view_of(wallet, grants, now_ms), tuple(grants)


def _grant_view(
    number: int, amount: int, counted: int, pending: int, held: int,
    starts_low: int, starts_high: int, expires_low: int, expires_high: int, priority: int,
) -> GrantView:  # fmt: skip
    starts_at_ms, expires_at_ms = starts_low + (starts_high << 32), expires_low + (expires_high << 32)
    return GrantView(number, amount, counted, pending, held, expires_at_ms, starts_at_ms, priority)


def view_of(wallet: str, grants: Sequence[GrantView], now_ms: int) -> WalletView:
    """available = sum over open grants of amount - posted - held."""
    opened = [g for g in grants if g.starts_at_ms <= now_ms and (not g.expires_at_ms or g.expires_at_ms > now_ms)]
    capacity = sum(grant.amount for grant in opened)
    used = sum(grant.counted + grant.pending + grant.held for grant in opened)
    resets_at_ms = min((grant.expires_at_ms for grant in opened if grant.expires_at_ms), default=0)
    return WalletView(wallet, capacity - used, capacity, resets_at_ms)
