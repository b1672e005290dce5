"""The project's own files, read once: what the tidy tests walk.

Not here: any rule. Each rule is a test with the sentence it keeps in its name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("limits", "gateway", "tollgate")
FOLDERS = (*PACKAGES, "tests", "bench", "docs", "examples", "deploy", ".ci")
NOT_OURS = {".git", "node_modules", "__pycache__", "build", ".venv"}  # fetched or generated
CODE = {".py", ".lua", ".c"}
TEXT = {*CODE, ".md", ".toml", ".yaml", ".yml", ".json", ".lock", ".conf", ".sh", ".html", ".css", ".js", ".txt", ""}


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file: its path from the root, its module name and its syntax tree, parsed when first asked for."""

    name: str
    module: str

    @property
    def tree(self) -> ast.Module:
        return _parsed(self.name)


@cache
def _parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def files(*folders: str, suffixes: set[str] | None = None) -> list[Path]:
    """Our files below the given folders (all of them when none is given), sorted; with the files at the root."""
    tops = [ROOT / folder for folder in folders or FOLDERS]
    found = [path for top in tops for path in top.rglob("*") if path.is_file()]
    if not folders:
        found += [path for path in ROOT.iterdir() if path.is_file()]
    kept = (path for path in found if not NOT_OURS & set(path.relative_to(ROOT).parts))
    return sorted(path for path in kept if suffixes is None or path.suffix in suffixes)


def name_of(path: Path) -> str:
    """The path as it is written in a complaint: from the root, with slashes."""
    return path.relative_to(ROOT).as_posix()


@cache
def python(*folders: str) -> tuple[Source, ...]:
    """Every Python file below the folders."""
    return tuple(Source(name_of(path), _module(path)) for path in files(*folders, suffixes={".py"}))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def called(node: ast.Call) -> str:
    """The dotted name of what is called, as far as it is written out: ``asyncio.sleep``."""
    return ast.unparse(node.func)
