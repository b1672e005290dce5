"""The words of the Redis protocol that the clients share: packing commands, and what an error reply means.

Rules
1. An error reply that proves that nothing ran is ``EngineUnavailable(sent=False)``; one whose effect may be partial
   is ``sent=True``; everything else a server can say about a command is the caller's mistake: ``ScriptRejected``.

Not here: connections (``connection``), slots and redirections (``cluster``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import hiredis

from limits.errors import EngineUnavailable, LimitsError, ScriptRejected
from limits.values import dataclass

Argument = bytes | int | str

# The server said no before it ran anything. Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
# and the shared replies in the servers' sources.
NOT_RUN = frozenset(
    ("LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "UNKILLABLE", "NOAUTH", "WRONGPASS", "NOPERM")
)
# Refused because of the server's state; inside a script an earlier write of the same script may stand.
REFUSED = frozenset(("OOM", "MISCONF", "READONLY", "NOREPLICAS", "NOGOODSLAVE", "IOERR", "UNBLOCKED", "MOVED", "ASK"))


_REMEMBERED_KEYS_MAX = 3  # an account's; a beat has hundreds of accounts, and others each time

# hiredis' own stub allows a tuple of one argument only.
_pack: Callable[[tuple[Argument, ...]], bytes] = cast(Any, hiredis.pack_command)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the hash the server knows it by. ``name`` is the engine method it belongs to."""

    name: str
    source: bytes
    sha: bytes

    @classmethod
    def of(cls, name: str, source: bytes) -> Script:
        """The script with its SHA1, which is the server's name for it and no secret."""
        return cls(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def pack(*args: Argument) -> bytes:
    """One command as bytes for the wire. Integers go as decimal text."""
    return _pack(args)


@dataclass(frozen=True, slots=True)
class Spelled:
    """Arguments as they stand in a command: how many, and their bytes."""

    count: int
    data: bytes

    @classmethod
    def of(cls, *args: Argument) -> Spelled:
        command = _pack(args)
        return cls(len(args), command[command.index(b"\n") + 1 :])


def blanks(*args: bytes | None) -> bytes:
    """Arguments as they stand in a command, to be filled in with ``%``: each None by an argument's length and bytes.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/#bulk-strings"""
    return b"".join(b"$%d\r\n%b\r\n" if arg is None else Spelled.of(arg).data.replace(b"%", b"%%") for arg in args)


def pack_evalsha(script: Script, keys: Sequence[bytes], args: Sequence[Argument] | Spelled) -> bytes:
    """``EVALSHA sha numkeys keys… args…``."""
    beginning = _remembered if len(keys) <= _REMEMBERED_KEYS_MAX else _beginning
    return _command(beginning(script.sha, *keys), args)


def pack_eval(script: Script, keys: Sequence[bytes], args: Sequence[Argument] | Spelled) -> bytes:
    """``EVAL source numkeys keys… args…``: runs the script and leaves it known by its hash."""
    return _command(Spelled.of(b"EVAL", script.source, len(keys), *keys), args)


def _beginning(sha: bytes, *keys: bytes) -> Spelled:
    """How a command begins that runs a script by its hash: the same for all of an account's calls."""
    return Spelled.of(b"EVALSHA", sha, len(keys), *keys)


_remembered = lru_cache(maxsize=16_384)(_beginning)


def _command(head: Spelled, args: Sequence[Argument] | Spelled) -> bytes:
    rest = args if isinstance(args, Spelled) else Spelled.of(*args)
    return b"*%d\r\n%b%b" % (head.count + rest.count, head.data, rest.data)


def code_of(reply: hiredis.ReplyError) -> str:
    """The first word of an error reply: ``NOSCRIPT``, ``MOVED``, ``ERR`` …"""
    return str(reply).partition(" ")[0]


def error_of(reply: hiredis.ReplyError) -> LimitsError:
    """The exception that an error reply stands for."""
    code, text = code_of(reply), str(reply)
    if code in NOT_RUN:
        return EngineUnavailable(text, sent="script:" in text)
    if code in REFUSED:
        return EngineUnavailable(text, sent=True)
    return ScriptRejected(text)
