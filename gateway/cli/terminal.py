"""What a command answers, and how it is printed: one aligned table or one JSON document, all else on stderr.

Rules
1. stdout carries the answer alone, so that it can be piped; notes, progress and errors go to stderr.
2. ``--json`` names are stable: they are the names in the command's own objects. Amounts are plain decimals as text.
3. A reader that goes away early is no error of ours: the command ends quietly, as a program ended by SIGPIPE would.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.errors import RequestError

Object = Mapping[str, object]
_NUMBER: Final = re.compile(r"[+-]?[0-9][0-9,]*(\.[0-9]+)?%?", re.ASCII)
_KEY: Final = re.compile(r"tg_[0-9A-Za-z]{12,}", re.ASCII)
_GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Output:
    """What a command answers: ``document`` for ``--json``, ``lines`` for people, ``notes`` for stderr. ``printed``: the
    answer was too long to be held, and stands on stdout already."""

    document: object
    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()
    exit_code: int = 0
    printed: bool = False


def listing(objects: Sequence[Object], shown: str, *, notes: tuple[str, ...] = (), nothing: str = "none") -> Output:
    """A list: all of each object as JSON, the fields named in ``shown`` as a table. ``nothing`` is said of no rows."""
    if not objects:
        return Output([], (), (*notes, nothing))
    return Output(list(objects), tuple(table(objects, shown)), notes)


def record(fields: Object, shown: str | None = None, *, notes: tuple[str, ...] = (), exit_code: int = 0) -> Output:
    """One object: name and value per line; ``shown`` names which fields people see."""
    names = list(fields) if shown is None else shown.split()
    width = max(len(heading(name)) for name in names)
    lines = tuple(f"{heading(name):<{width}}{_GAP}{cell(fields[name])}".rstrip() for name in names)
    return Output(fields, lines, notes, exit_code)


def heading(name: str) -> str:
    return name.replace("_", " ")


def cell(value: object) -> str:
    """A value as a person reads it: nothing for nothing, yes and no, lists by commas."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(cell(each) for each in value) or "-"
        case Mapping():
            return ", ".join(f"{name}={cell(each)}" for name, each in value.items()) or "-"
        case _:
            return "".join(letter if letter.isprintable() else "?" for letter in str(value)) or "-"


def table(objects: Sequence[Object], shown: str) -> list[str]:
    """Aligned columns with a heading; columns of numbers are flush right."""
    names = shown.split()
    rows = [[cell(each[name]) for name in names] for each in objects]
    right = [all(_NUMBER.fullmatch(row[index]) or row[index] == "-" for row in rows) for index in range(len(names))]
    heads = [heading(name).upper() for name in names]
    widths = [max(len(row[index]) for row in (heads, *rows)) for index in range(len(names))]
    return [
        _GAP.join(
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (heads, *rows)
    ]


def emit(output: Output, *, as_json: bool) -> None:
    """Print the answer. Raises BrokenPipeError when nobody reads it any more."""
    if output.printed:
        pass
    elif as_json:
        sys.stdout.write(json.dumps(output.document, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in output.lines)
    sys.stdout.flush()
    for note in output.notes:
        say(note)


def say(text: str) -> None:
    """A word on stderr, without any key that was typed where none belongs; nobody listening is no error."""
    try:
        sys.stderr.write(_KEY.sub("tg_...", text) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        silence(sys.stderr.fileno())


def silence(descriptor: int) -> None:
    """Send what is still written there to nowhere: the interpreter flushes once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises RequestError when nobody can be asked, or the answer is no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RequestError(f"{question} Say so with --yes: there is nobody to ask.", param="--yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RequestError("Nothing was done.", param="--yes")


class Progress:
    """A bar on stderr while something long goes on; silent when stderr is not a terminal."""

    _WIDTH = 30

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._on = sys.stderr.isatty()

    def step(self, by: int = 1) -> None:
        self._done += by
        if self._on:
            filled = self._WIDTH * self._done // max(self._total, 1)
            bar = "#" * filled + "." * (self._WIDTH - filled)
            sys.stderr.write(f"\r{self._what} [{bar}] {self._done}/{self._total}")
            sys.stderr.flush()

    def close(self) -> None:
        if self._on:
            sys.stderr.write("\n")
