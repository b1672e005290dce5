"""Each Lua script opens with its contract, and the engine, the metrics and the docs call it by the same name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT, files

SHARED = "prelude"  # prelude.lua, prelude_….lua: local functions, put in front of scripts
SCRIPTS = [path for path in files("limits", suffixes={".lua"}) if not path.stem.startswith(SHARED)]
IDS = [path.stem for path in SCRIPTS]
SECTIONS = {
    "keys": re.compile(r"^-- *KEYS\b", re.MULTILINE),
    "arguments": re.compile(r"^-- *ARGV\b", re.MULTILINE),
    "reply": re.compile(r"^-- *Repl(?:y|ies)\b", re.MULTILINE),
}
UNITS = re.compile(r"\b(ms|milliseconds|seconds|steps|bytes|count|number|string|json|packed|flag)\b", re.IGNORECASE)


def header(path: Path) -> str:
    """The comment lines before the first line of code."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("--"):
            break
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize("path", SCRIPTS, ids=IDS)
def test_a_script_opens_with_its_purpose(path: Path) -> None:
    first = header(path).lstrip().splitlines()[:1]
    assert first and re.match(r"--+ *\S.{15,}", first[0]), f"{path.name}: the first line says what it does"


@pytest.mark.parametrize("path", SCRIPTS, ids=IDS)
def test_a_script_states_keys_arguments_and_reply(path: Path) -> None:
    missing = [name for name, pattern in SECTIONS.items() if not pattern.search(header(path))]
    assert not missing, f"{path.name}: the header has no section for {', '.join(missing)}"


@pytest.mark.parametrize("path", SCRIPTS, ids=IDS)
def test_a_script_names_units_for_its_arguments(path: Path) -> None:
    arguments = SECTIONS["arguments"].split(header(path), maxsplit=1)[-1]
    assert UNITS.search(arguments), f"{path.name}: arguments come with their unit"


@pytest.mark.parametrize("path", SCRIPTS, ids=IDS)
def test_a_script_never_reads_a_whole_account(path: Path) -> None:
    """HGETALL, KEYS and SCAN cost more as an account grows; randomness repeats after a restart."""
    code = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
    assert not re.search(r"['\"](HGETALL|HKEYS|HVALS|KEYS|SCAN|HSCAN)['\"]|math\.random", code, re.I)


@pytest.mark.parametrize("path", SCRIPTS, ids=IDS)
def test_a_script_is_an_engine_method_of_the_same_name(path: Path) -> None:
    engine = ROOT / "limits" / "engine.py"
    tree = ast.parse(engine.read_text(encoding="utf-8"))
    methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)}
    assert path.stem in methods
