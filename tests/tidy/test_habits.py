"""Habits that a reader may rely on anywhere in the project."""

from __future__ import annotations

import ast
import re

import pytest

from tests.tidy.tree import PACKAGES, ROOT, TEXT, Source, called, files, functions, name_of, python

OURS = python(*PACKAGES)
TESTS = python("tests")
BROAD_ALLOWED = (
    "gateway/app.py",
    "gateway/cli",
    "gateway/__main__.py",
    "gateway/billing/http/frame.py",
    "gateway/proxy/handler.py",
)
# Plumbing: seconds to wait, never an amount.
FLOATS_ALLOWED = ("limits/connection.py", "limits/cluster.py", "limits/client.py")
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
MACHINE = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("root", "work", "home/" + r"\w+", "Users/" + r"\w+")) + r")/")


def found(complaints: list[str]) -> str:
    return "\n" + "\n".join(complaints)


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Catches everything and keeps it: one that ends with a bare ``raise`` only cleans up."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)
    last = handler.body[-1]
    return broad and not (isinstance(last, ast.Raise) and last.exc is None)


def test_everything_is_caught_only_at_the_outer_edge() -> None:
    """Elsewhere an unknown exception is a bug that must be seen."""
    wrong = [
        f"{source.name}:{node.lineno}"
        for source in OURS
        if not source.name.startswith(BROAD_ALLOWED)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]
    assert not wrong, found(wrong)


def test_no_float_stands_near_an_amount() -> None:
    wrong = [
        f"{source.name}:{node.lineno}: {node.value}"
        for source in python("limits", "gateway/domain")
        if source.name not in FLOATS_ALLOWED
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, float)
    ]
    assert not wrong, found(wrong)


def test_no_module_hides_state_behind_global() -> None:
    wrong = [
        f"{source.name}:{node.lineno}"
        for source in OURS
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Global)
    ]
    assert not wrong, found(wrong)


@pytest.mark.parametrize("source", OURS, ids=[source.name for source in OURS])
def test_every_module_says_what_it_is(source: Source) -> None:
    assert not source.tree.body or ast.get_docstring(source.tree), f"{source.name} has no docstring"


def test_nothing_is_left_unfinished() -> None:
    wrong = []
    for path in files(suffixes={".py", ".lua", ".c", ".md", ".yaml", ""}):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if UNFINISHED.search(line):
                wrong.append(f"{name_of(path)}:{number}: {line.strip()}")
    for source in OURS:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name) and node.id == "NotImplemented" + "Error":
                wrong.append(f"{source.name}:{node.lineno}: {node.id}")
    assert not wrong, found(wrong)


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    banned = {"pytest.skip", "pytest.xfail", "pytest.importorskip", "unittest.skip"}
    marks = ("pytest.mark.skip", "pytest.mark.xfail", "pytest.mark.flaky")
    wrong = [
        f"{source.name}:{node.lineno}: {ast.unparse(node)[:60]}"
        for source in TESTS
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Call) and called(node) in banned)
        or (isinstance(node, ast.Attribute) and ast.unparse(node).startswith(marks))
    ]
    assert not wrong, found(wrong)


def test_no_test_sleeps() -> None:
    """A test waits for a thing to happen, with a deadline; it never guesses how long that takes."""
    wrong = [
        f"{source.name}:{node.lineno}: {ast.unparse(node)}"
        for source in TESTS
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and called(node).split(".")[-1] == "sleep"
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]
    assert not wrong, found(wrong)


def test_a_test_name_is_a_sentence() -> None:
    """``test_settle_twice_posts_once``, not ``test_settle``: the name says what must hold."""
    wrong = [
        f"{source.name}:{node.lineno}: {node.name}"
        for source in TESTS
        for node in functions(source.tree)
        if node.name.startswith("test_") and node.name.count("_") < 3
    ]
    assert not wrong, found(wrong)


def test_lock_files_name_no_host() -> None:
    """A lock says what and with which hash; where it comes from is the installing machine's business."""
    locks = [ROOT / "requirements.lock", ROOT / "requirements-dev.lock", *files("tests", suffixes={".json"})]
    wrong = [
        name_of(path)
        for path in locks
        if (path.suffix == ".lock" or path.name == "package-lock.json") and "://" in path.read_text(encoding="utf-8")
    ]
    assert not wrong, found(wrong)


def test_every_locked_package_has_a_hash() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins = [number for number, line in enumerate(lines) if line and not line.startswith((" ", "#"))]
        assert pins
        assert [lines[number] for number in pins if "--hash=sha256:" not in lines[number + 1]] == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    wrong = []
    for path in files(suffixes=TEXT):
        if path.parts[-3:-1] == ("tests", "data"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE.search(line):
                wrong.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert not wrong, found(wrong)
