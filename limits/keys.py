"""How everything is spelled in Redis: keys, hash tags, fields. The only file that knows.

Rules
1. Everything of an account carries the hash tag of its partition, ``{p017}``; the partition is the CRC-32 of the
   account, modulo the number of partitions. So a script's keys are always of one slot.
2. A partition has two keys besides its accounts: the outbox (a stream) and the lease index with the partition's record
   (a sorted set). Once made, a key exists for ever.
3. A field's first byte says what it is; what follows is an id, as short as it goes: a UUID is 16 bytes.

Not here: what the fields contain (``lua/prelude.lua`` says it, ``codec`` speaks it).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple
from zlib import crc32

from limits.model import Scope, ScopeKind

META: Final = b"m"
HOLD: Final = b"h"
MARK: Final = b"p"
BUDGETS_PER_BUCKET: Final = 8
_KIND_LETTERS: Final = {ScopeKind.TEAM: b"t", ScopeKind.USER: b"u", ScopeKind.KEY: b"k"}
NARROWNESS: Final = {ScopeKind.ACCOUNT: 0, ScopeKind.TEAM: 1, ScopeKind.USER: 2, ScopeKind.KEY: 3}


def partition_of(account: str, partitions: int) -> int:
    """The partition of an account: fixed for ever once an installation has chosen how many there are."""
    return crc32(account.encode()) % partitions


def account_key(partition: int, account: str) -> bytes:
    """Raises ValueError for a name that would not fit into a charge."""
    name = account.encode()
    if not 0 < len(name) < 256:
        raise ValueError(f"an account's name has 1 to 255 bytes, not {len(name)}")
    return b"{p%03d}:a:%b" % (partition, name)


def outbox_key(partition: int) -> bytes:
    return b"{p%03d}:o" % partition


def leases_key(partition: int) -> bytes:
    return b"{p%03d}:l" % partition


def leader_key(name: str) -> bytes:
    return b"tollgate:lead:%b" % name.encode()


class Home(NamedTuple):
    """Where an account lies, and the keys that its scripts declare: its own, the outbox's, the lease index's."""

    partition: int
    keys: tuple[bytes, bytes, bytes]


@lru_cache(maxsize=65_536)
def home_of(account: str, partitions: int) -> Home:
    """Raises ValueError like ``account_key``."""
    partition = partition_of(account, partitions)
    return Home(partition, (account_key(partition, account), outbox_key(partition), leases_key(partition)))


class HoldNames(NamedTuple):
    """How a hold is spelled: its id, its field, and the field of its pending charge's mark."""

    id: bytes
    field: bytes
    mark: bytes


@lru_cache(maxsize=4096)
def hold_names(hold_id: str) -> HoldNames:
    """Raises ValueError for what is not the text of a UUID."""
    packed = hold_bytes(hold_id)
    return HoldNames(packed, HOLD + packed, MARK + packed)


@lru_cache(maxsize=1024)
def wallet_field(wallet: str) -> bytes:
    """Raises ValueError for a name that does not fit one length byte."""
    name = wallet.encode()
    if not 0 < len(name) < 256:
        raise ValueError(f"a wallet's name has 1 to 255 bytes, not {len(name)}")
    return b"w" + name


def list_field(wallet: str) -> bytes:
    """The wallet's grants, beside its own field."""
    return b"x" + wallet_field(wallet)[1:]


@lru_cache(maxsize=1024)
def bucket_field(budget: int) -> bytes:
    """Budgets live together, eight to a field, by their numbers."""
    return b"b%d" % (budget // BUDGETS_PER_BUCKET)


@lru_cache(maxsize=65_536)
def scope_field(scope: Scope) -> bytes:
    """The account's own scope needs no id; a UUID is packed, and its kind's letter is then a capital one."""
    if scope.kind is ScopeKind.ACCOUNT:
        return b"sa"
    letter = _KIND_LETTERS[scope.kind]
    try:
        packed = hold_bytes(scope.id)
    except ValueError:
        packed = b""
    if packed and hold_text(packed) == scope.id:
        return b"s" + letter.upper() + packed
    name = scope.id.encode()
    if not 0 < len(name) < 254:
        raise ValueError(f"a scope's id has 1 to 253 bytes, not {len(name)}")
    return b"s" + letter + name


def hold_bytes(hold_id: str) -> bytes:
    """The 16 bytes of a UUID's text. Raises ValueError."""
    packed = bytes.fromhex(hold_id.replace("-", ""))
    if len(packed) != 16 or len(hold_id) != 36:
        raise ValueError(f"not the text of a UUID: {hold_id!r}")
    return packed


def hold_text(packed: bytes) -> str:
    """The text of a UUID's 16 bytes."""
    text = packed.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
