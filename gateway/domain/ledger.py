"""Double entry: what each event posts between an account's grants and the books around them.

Rules
1. An entry moves an amount > 0 out of one book (debit) into another (credit): each meter is balanced by construction.
2. Every entry concerns one grant: one side of it is that grant's book, the other one of the counter-books.
3. What is in a grant's book = its amount − its used + what was written off; nothing is ever edited, a correction is an
   entry of the opposite kind.
4. Charges are posted per (account, grant, flush): one entry for all that was charged, one for all that was given back.

Not here: rows, and who may post what (``store``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from limits.values import dataclass


class Book(StrEnum):
    """Where amounts are. ``GRANT`` is the book of the entry's own grant."""

    GRANT = "grant"
    ISSUED = "issued"  # what the operator gave out
    SPENT = "spent"  # what calls used
    FORGIVEN = "forgiven"  # debt that nobody pays
    CARRIED = "carried"  # debt on its way to the next grant: empty at rest


class Kind(StrEnum):
    GRANTED = "granted"
    WITHDRAWN = "withdrawn"  # taken back before it was used
    CHARGED = "charged"
    REVERSED = "reversed"  # a provisional charge given back
    FORGIVEN = "forgiven"
    CARRIED_OUT = "carried_out"  # a debt leaves its grant …
    CARRIED_IN = "carried_in"  # … and burdens the next


_BOOKS: Final[Mapping[Kind, tuple[Book, Book]]] = MappingProxyType(
    {
        Kind.GRANTED: (Book.ISSUED, Book.GRANT),
        Kind.WITHDRAWN: (Book.GRANT, Book.ISSUED),
        Kind.CHARGED: (Book.GRANT, Book.SPENT),
        Kind.REVERSED: (Book.SPENT, Book.GRANT),
        Kind.FORGIVEN: (Book.FORGIVEN, Book.GRANT),
        Kind.CARRIED_OUT: (Book.CARRIED, Book.GRANT),
        Kind.CARRIED_IN: (Book.GRANT, Book.CARRIED),
    }
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One posting. ``seq_first``–``seq_last`` are the charge changes it sums up, 0 for other kinds."""

    wallet: str
    grant: int  # number
    kind: Kind
    amount: int
    seq_first: int = 0
    seq_last: int = 0

    @property
    def debit(self) -> Book:
        return _BOOKS[self.kind][0]

    @property
    def credit(self) -> Book:
        return _BOOKS[self.kind][1]


@dataclass(frozen=True, slots=True)
class GrantBalance:
    """A grant's columns as its entries say they should be."""

    amount: int = 0
    used: int = 0
    written_off: int = 0


def charge_entries(lines: Iterable[tuple[str, int, int]], *, seq_first: int, seq_last: int) -> list[Entry]:
    """The entries of one account's flush: ``lines`` are (wallet, grant number, amount), negative ones give back."""
    sums: dict[tuple[str, int, Kind], int] = {}
    for wallet, grant, amount in lines:
        if amount:
            key = (wallet, grant, Kind.CHARGED if amount > 0 else Kind.REVERSED)
            sums[key] = sums.get(key, 0) + abs(amount)
    return [
        Entry(wallet, grant, kind, amount, seq_first, seq_last)
        for (wallet, grant, kind), amount in sorted(sums.items())
    ]


def balance(entries: Iterable[tuple[Kind, int]]) -> GrantBalance:
    """What a grant's entries, as (kind, amount), add up to."""
    amount = used = written_off = 0
    for kind, moved in entries:
        match kind:
            case Kind.GRANTED:
                amount += moved
            case Kind.WITHDRAWN | Kind.CARRIED_IN:
                amount -= moved
            case Kind.CHARGED:
                used += moved
            case Kind.REVERSED:
                used -= moved
            case Kind.FORGIVEN | Kind.CARRIED_OUT:
                written_off += moved
    return GrantBalance(amount, used, written_off)
