"""Load a config file as a whole, or say everything that is wrong with it at once.

Rules
1. A message is ``FILE:LINE: path: expected …, found …``; messages stand in the order of the file.
2. No message shows a secret or a value of the environment.
3. An invalid file gives no config, not a partial one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gateway.config.build import build
from gateway.config.checks import check, expected_one_of
from gateway.config.model import Config
from gateway.config.reading import SIZE_MAX_BYTES, Loc, Problem, Source, read
from gateway.config.schema import Document
from gateway.config.secrets import apply_secrets
from gateway.config.shown import without_secrets
from gateway.config.unsupported import unsupported
from gateway.errors import ConfigError

_MAPS: Final = ("upstreams", "meters", "rates", "features", "services", "plans", "packages", "messages")
_PROBLEMS_SHOWN: Final = 100
_EXPECTED: Final = {  # pydantic's own kinds of errors, as they can come out of the schema
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "missing": "a value",
}


def load(path: Path, env: Mapping[str, str]) -> Config:
    """The config at ``path``, its references filled from ``env``. Raises ConfigError with every problem in it."""
    try:
        with path.open("rb") as stream:
            data = stream.read(SIZE_MAX_BYTES + 1)
    except OSError as error:
        found = "a folder" if path.is_dir() else (error.strerror or "an error").lower()
        raise ConfigError([f"{path}: expected a readable file, found: {found}"]) from None
    return parse(data, path, env)


def parse(data: bytes, path: Path, env: Mapping[str, str]) -> Config:
    """The config in ``data`` as if read from ``path``, whose folder ``*_file`` keys start from. Raises ConfigError."""
    source = read(data, env)
    document = None
    if isinstance(source.tree, dict):
        apply_secrets(source, path.parent)
        document = _validated(source)
    if source.problems or document is None:
        raise ConfigError(_told(source, path))
    return replace(build(document, path, data), document=without_secrets(source))


def _told(source: Source, path: Path) -> list[str]:
    """The problems as lines, in the order of the file, each once."""
    told: dict[str, int] = {}
    for problem in source.problems:
        line = problem.line if problem.line is not None else source.line(problem.loc)
        where = ".".join(str(step) for step in problem.loc)
        text = f"{path}:{line}: " if line is not None else f"{path}: "
        told.setdefault(text + (f"{where}: " if where else "") + problem.text, line or 0)
    lines = sorted(told, key=lambda text: told[text])
    left = len(lines) - _PROBLEMS_SHOWN
    return lines if left <= 0 else [*lines[:_PROBLEMS_SHOWN], f"{path}: and {left} more"]


def _validated(source: Source) -> Document | None:
    """The document, its problems noted in ``source``. Sections that do not validate are left out for the checks between
    sections, so that both kinds of problems are told together; None when too little is left for them."""
    declared = {name: _keys(source.tree.get(name)) for name in _MAPS}
    document, positions = _document(source)
    if document is None:
        return None
    for loc, expected, found in check(document, declared, positions):
        source.problems.append(Problem(loc, f"expected {expected}, found {found or source.found(loc)}"))
    for loc, expected in unsupported(document):
        source.problems.append(Problem(loc, f"expected {expected}, found {source.found(loc)}"))
    return document


def _document(source: Source) -> tuple[Document | None, tuple[int, ...]]:
    """What validates of the tree, and the positions of the models that are left."""
    tree = dict(source.tree)
    models = tree.get("models")
    positions = tuple(range(len(models))) if isinstance(models, list) else ()
    try:
        return Document.model_validate(tree), positions
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    source.problems.extend(_problem(each, source) for each in errors)
    positions = _prune(tree, [each["loc"] for each in errors], positions)
    try:
        return Document.model_validate(tree), positions
    except ValidationError:
        return None, ()


def _prune(tree: dict[str, Any], locs: Collection[Loc], positions: tuple[int, ...]) -> tuple[int, ...]:
    """Take what does not validate out of the tree: an entry of a map, a model, or a whole other section."""
    bad_models = {loc[1] for loc in locs if loc[0] == "models" and len(loc) > 1}
    for loc in locs:
        section = str(loc[0])
        if section in _MAPS and len(loc) > 1:
            tree[section] = {name: entry for name, entry in tree[section].items() if name != loc[1]}
        elif section != "models" or len(loc) == 1:
            tree.pop(section, None)
    left = tuple(position for position in positions if position not in bad_models)
    if "models" in tree and bad_models:
        tree["models"] = [tree["models"][position] for position in left]
    return left


def _problem(error: Any, source: Source) -> Problem:
    """A pydantic error as our sentence."""
    loc: Loc = tuple(step for step in error["loc"] if step != "[key]")
    kind = error["type"]
    context = error.get("ctx", {})
    if kind == "extra_forbidden":
        expected = expected_one_of(_fields(loc[:-1]), str(loc[-1]))
        return Problem(loc, f"expected {expected}, found {str(loc[-1])!r}")
    if kind == "value_error":
        expected = context["error"].expected
    elif kind == "literal_error":
        expected = context["expected"].replace("'", "")
    else:
        expected = _EXPECTED.get(kind, error["msg"])
    if "[key]" in error["loc"]:
        return Problem(loc, f"expected {expected}, found {str(loc[-1])!r}")
    return Problem(loc, f"expected {expected}, found {source.found(loc)}")


def _fields(loc: Loc) -> list[str]:
    """The keys that the schema knows at a location."""
    kind: Any = Document
    for step in loc:
        while get_origin(kind) in (Union, UnionType):
            kind = next(each for each in get_args(kind) if each is not type(None))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields
            kind = next(field.annotation for name, field in fields.items() if (field.alias or name) == step)
        else:
            kind = next(each for each in reversed(get_args(kind)) if each is not ...)
    while get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    return [field.alias or name for name, field in kind.model_fields.items()]


def _keys(value: Any) -> Collection[str]:
    return tuple(value) if isinstance(value, dict) else ()
