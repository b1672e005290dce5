"""docs/cli.md has every command and every option, and ``--help`` knows every command that the docs name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli.root import app

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
ROOT: Any = typer.main.get_command(app)
EVERYWHERE = {"--config", "--data", "--json", "--help", "--version", "--yes", "--after", "--limit"}


def commands(group: Any, path: str = "tollgate") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(ROOT))


def rows(command: str) -> list[str]:
    return [line for line in DOCS.splitlines() if re.search(rf"`{command}( [^`]*)?`", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_row_with_its_options(command: str) -> None:
    (row,) = rows(command)
    options = {name for each in COMMANDS[command].params for name in each.opts if name.startswith("--")}
    missing = sorted(option for option in options - EVERYWHERE if f"{option}" not in row)
    assert not missing, f"docs/cli.md, {command}: {', '.join(missing)}"


def test_the_docs_name_no_command_that_is_not_there() -> None:
    named = {
        match[1]
        for line in DOCS.splitlines()
        if line.startswith("|")
        for match in re.finditer(r"`(tollgate [a-z -]+)", line)
    }
    unknown = {name for name in named if not any(name.strip().startswith(command) for command in COMMANDS)}
    assert not unknown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_a_sentence_what_it_does(command: str) -> None:
    assert (COMMANDS[command].help or "").strip().endswith(".")
