"""The Lua scripts as the server gets them: the shebang, the shared locals that the script reaches, the script.

Rules
1. One file per verb in ``lua/``, named as the engine's method. ``lua/prelude*.lua`` hold shared locals, in blocks
   separated by blank lines; a script carries only the blocks whose names it reaches, since each costs time per call.
2. A script's header says which flags its shebang has (``-- Flags: allow-oom``): what ends a hold runs over
   ``maxmemory`` too.
3. A script is known by its SHA-1, so that two releases side by side never mix their scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from limits.resp import Script

SHARED: Final = ("prelude", "prelude_holds", "prelude_lapse", "prelude_demand")
NAMES: Final = (
    "reserve", "extend", "settle", "release", "renew", "load", "confirm", "peek",
    "mark_stale", "outbox", "sweep", "lapse", "sync_seq", "lead",
)  # fmt: skip
_DEFINED: Final = re.compile(r"^local (?:function (\w+)|([\w, ]+))", re.MULTILINE)
_WORD: Final = re.compile(r"\b[A-Za-z_]\w*\b")
_COMMENT: Final = re.compile(r"--.*")
_FLAGS: Final = re.compile(r"^-- Flags: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """Some shared locals: the names it defines and the words it uses."""

    text: str
    names: frozenset[str]
    words: frozenset[str]


def read(name: str) -> str:
    """A Lua file's text, as shipped with the package."""
    return (files("limits") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def blocks_of(text: str) -> list[Block]:
    """The blocks of a shared file, comments left out."""
    blocks: list[Block] = []
    for part in text.split("\n\n"):
        code = "\n".join(line.rstrip() for line in _COMMENT.sub("", part).splitlines() if line.strip())
        if code:
            names = [name for single, many in _DEFINED.findall(code) for name in (single or many).split(",")]
            blocks.append(Block(code, frozenset(name.strip() for name in names), frozenset(_WORD.findall(code))))
    return blocks


def compose(source: str, shared: Sequence[Block]) -> str:
    """The script with the shared blocks that it reaches, in their order."""
    wanted = set(_WORD.findall(_COMMENT.sub("", source)))
    chosen: set[int] = set()
    grew = True
    while grew:
        grew = False
        for index, block in enumerate(shared):
            if index not in chosen and not wanted.isdisjoint(block.names):
                chosen.add(index)
                wanted |= block.words
                grew = True
    flags = _FLAGS.search(source)
    assert flags, "a script's header names its flags"
    shebang = "#!lua" if flags[1] == "none" else f"#!lua flags={flags[1]}"
    return "\n".join((shebang, *(shared[index].text for index in sorted(chosen)), source))


@cache
def script(name: str) -> Script:
    """The script of an engine method."""
    shared = [block for shared_name in SHARED for block in blocks_of(read(shared_name))]
    return Script.of(name, compose(read(name), shared).encode())
