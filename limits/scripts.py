"""The Lua scripts as the server gets them: the shebang, the shared locals that the script reaches, the script.

A server runs a script's whole text at every call, so that each local function costs time even when it isn't used, and
more with each outer local it refers to (measured: 7 of 60 µs). Hence the rules.

Rules
1. One file per verb in ``lua/``, named as the engine's method. ``lua/prelude*.lua`` hold shared locals, in blocks
   separated by blank lines; a script carries only the blocks whose names it reaches.
2. Shared constants, ``local UPPER_CASE = literal``, are written into the code as their values.
3. ``-- Seldom: name name`` in a script's header: these are defined, with what only they need, when they are called.
4. A script's header says which flags its shebang has (``-- Flags: allow-oom``): what ends a hold runs over
   ``maxmemory`` too.
5. A script is known by its SHA-1, so that two releases side by side never mix their scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Final

from limits.resp import Script
from limits.values import dataclass

SHARED: Final = ("prelude", "prelude_grants", "prelude_holds", "prelude_lapse", "prelude_demand")
NAMES: Final = (
    "reserve", "extend", "settle", "release", "renew", "load", "confirm", "peek",
    "mark_stale", "outbox", "sweep", "lapse", "sync_seq", "lead",
)  # fmt: skip
_CONSTANTS: Final = re.compile(r"^local ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*) =\s+((?:'[^']*'|-?[\d.e]+|, *)+)$")
_LITERAL: Final = re.compile(r"'[^']*'|-?[\d.e]+")
_DEFINED: Final = re.compile(r"^local (?:function (\w+)|([\w, ]+))", re.MULTILINE)
_WORD: Final = re.compile(r"\b[A-Za-z_]\w*\b")
_COMMENT: Final = re.compile(r"--.*")
_FLAGS: Final = re.compile(r"^-- Flags: (.+)$", re.MULTILINE)
_SELDOM: Final = re.compile(r"^-- Seldom: ([\w ]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """Some shared locals: the names it defines and the words it uses."""

    text: str
    names: frozenset[str]
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Shared:
    """What scripts may reach: blocks in their order, and constants with their values."""

    blocks: tuple[Block, ...]
    constants: dict[str, str]

    def reached(self, words: frozenset[str], *, without: frozenset[str] = frozenset()) -> set[int]:
        """The blocks that some words reach, directly or not; ``without`` those names."""
        wanted, chosen = set(words - without), set[int]()
        grew = True
        while grew:
            grew = False
            for index, block in enumerate(self.blocks):
                if index not in chosen and not wanted.isdisjoint(block.names):
                    chosen.add(index)
                    wanted |= block.words - without
                    grew = True
        return chosen


def read(name: str) -> str:
    """A Lua file's text, as shipped with the package."""
    return (files("limits") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def parse(texts: Sequence[str]) -> Shared:
    """The blocks and constants of the shared files, comments left out."""
    blocks: list[Block] = []
    constants: dict[str, str] = {}
    for part in "\n\n".join(texts).split("\n\n"):
        lines = [line.rstrip() for line in _COMMENT.sub("", part).splitlines()]
        code = "\n".join(line for line in lines if line)
        if found := _CONSTANTS.match(code.replace("\n", " ")):
            constants |= dict(zip(found[1].split(", "), _LITERAL.findall(found[2]), strict=True))
        elif code:
            names = [name for single, many in _DEFINED.findall(code) for name in (single or many).split(",")]
            blocks.append(Block(code, frozenset(name.strip() for name in names), words_of(code)))
    return Shared(tuple(blocks), constants)


def words_of(code: str) -> frozenset[str]:
    return frozenset(_WORD.findall(_COMMENT.sub("", code)))


def compose(source: str, shared: Shared) -> str:
    """The script as the server gets it."""
    flags, seldom = _FLAGS.search(source), _SELDOM.search(source)
    assert flags, "a script's header names its flags"
    code = "\n".join(line for line in _COMMENT.sub("", source).splitlines() if line.strip())
    rare = frozenset(seldom[1].split()) if seldom else frozenset[str]()
    always = shared.reached(words_of(code), without=rare)
    used = words_of(code).union(*(shared.blocks[index].words for index in always))
    parts = []
    for index, block in enumerate(shared.blocks):
        if index in always:
            parts.append(block.text)
        for name in sorted(block.names & rare & used):
            inner = [shared.blocks[one].text for one in sorted(shared.reached(frozenset((name,))) - always)]
            parts += (f"local function {name}(...)", *inner, f"return {name}(...)", "end")
    text = _WORD.sub(lambda word: shared.constants.get(word[0], word[0]), "\n".join((*parts, code)))
    return ("#!lua" if flags[1] == "none" else f"#!lua flags={flags[1]}") + "\n" + text + "\n"


@cache
def script(name: str) -> Script:
    """The script of an engine method."""
    return Script.of(name, compose(read(name), parse([read(shared) for shared in SHARED])).encode())
