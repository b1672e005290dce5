"""A function fits on a screen and a file in a sitting: 70 and 500 lines, in Python, Lua and C alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.tidy.tree import CODE, files, functions, name_of, python

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500

# A function that starts at the left margin ends with the first `end` (Lua) or `}` (C) at the left margin.
LUA_START, LUA_END = re.compile(r"^(?:local\s+)?function\s+([\w.:]+)"), re.compile(r"^end\b")
C_START, C_END = re.compile(r"^[a-z][\w\s*]*?\b(\w+)\([^;]*$"), re.compile(r"^\}")


def blocks(path: Path, start: re.Pattern[str], end: re.Pattern[str]) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of each function at the left margin."""
    name, first = "", 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not name and (match := start.match(line)):
            name, first = match[1], number
        elif name and end.match(line):
            yield name, first, number - first + 1
            name = ""


def test_no_file_is_longer_than_a_sitting() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files(suffixes=CODE)}
    assert not {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX}


def test_no_python_function_is_longer_than_a_screen() -> None:
    long = {
        f"{source.name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for source in python()
        for node in functions(source.tree)
        if node.end_lineno and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert not long


def test_no_lua_or_c_function_is_longer_than_a_screen() -> None:
    patterns = {".lua": (LUA_START, LUA_END), ".c": (C_START, C_END)}
    long = {
        f"{name_of(path)}:{first} {name}": lines
        for path in files(suffixes=set(patterns))
        for name, first, lines in blocks(path, *patterns[path.suffix])
        if lines > FUNCTION_LINES_MAX
    }
    assert not long
