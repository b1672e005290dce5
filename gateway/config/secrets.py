"""Secrets of a config file: from the environment or from files, never written down in it.

Rules
1. A secret is ``"${NAME}"`` or ``"${NAME:-default}"`` as a whole, or its ``*_file`` sibling names a file that holds it.
2. The same holds for the password inside a URL.
3. No message shows what a secret is or was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gateway.config.reading import Loc, Problem, Source

_SECRETS: Final[tuple[Loc, ...]] = (
    ("server", "admin_token"),
    ("server", "secret"),
    ("upstreams", "*", "keys", "*"),
    ("stripe", "secret_key"),
    ("stripe", "webhook_secret"),
    ("alerts", "webhook", "secret"),
)
_URLS: Final[tuple[Loc, ...]] = (
    ("storage", "redis"),
    ("storage", "database"),
    ("upstreams", "*", "url"),
    ("alerts", "webhook", "url"),
    ("alerts", "email", "smtp"),
)
_FILES: Final[tuple[Loc, ...]] = (
    ("server", "admin_token_file"),
    ("server", "secret_file"),
    ("storage", "redis_file"),
    ("storage", "database_file"),
    ("upstreams", "*", "keys_file"),
    ("stripe", "secret_key_file"),
    ("stripe", "webhook_secret_file"),
    ("alerts", "webhook", "secret_file"),
    ("alerts", "email", "smtp_file"),
)
_REFERENCE: Final = re.compile(r"\$\{[^{}]*\}")
_PASSWORD: Final = re.compile(r"//[^/@]*?:([^@/]+)@")
_FILE_MAX_BYTES: Final = 65_536


def apply_secrets(source: Source, folder: Path) -> None:
    """Check that no secret is written down, and put what the ``*_file`` keys name (relative to ``folder``) in place."""
    for pattern in _SECRETS:
        for loc in _matching(source.tree, pattern):
            raw = source.raw.get(loc, "")
            if raw and _REFERENCE.fullmatch(raw) is None:
                _plaintext(source, loc, "a secret")
    for pattern in _URLS:
        for loc in _matching(source.tree, pattern):
            password = _PASSWORD.search(source.raw.get(loc, ""))
            if password is not None and _REFERENCE.fullmatch(password[1]) is None:
                _plaintext(source, loc, "a password")
    for pattern in _FILES:
        for loc in _matching(source.tree, pattern):
            _fill_from_file(source, loc, folder)


def _plaintext(source: Source, loc: Loc, kind: str) -> None:
    source.raw[loc] = ""  # so that no later message shows it
    own = loc[-1] if isinstance(loc[-1], str) else loc[-2]
    text = f'expected {kind} as "${{NAME}}" or in {own}_file, found it in plain text'
    source.problems.append(Problem(loc, text))


def _fill_from_file(source: Source, loc: Loc, folder: Path) -> None:
    section = _at(source.tree, loc[:-1])
    name = str(loc[-1]).removesuffix("_file")
    file = section[loc[-1]]
    if not isinstance(file, str) or not file:
        return
    if any(section.get(name) or ()) if isinstance(section.get(name), list) else section.get(name):
        source.problems.append(Problem(loc, f"expected either {name} or {name}_file, found both"))
        return
    path = folder / file
    try:
        with path.open("rb") as stream:
            data = stream.read(_FILE_MAX_BYTES + 1)
        lines = data.decode("utf-8").split("\n")
    except OSError as error:
        source.problems.append(Problem(loc, f"expected a readable file, found {file!r}: {error.strerror}"))
        return
    except UnicodeDecodeError:
        source.problems.append(Problem(loc, f"expected a file of UTF-8 text, found {file!r}"))
        return
    found = [line.strip() for line in lines if line.strip()]
    if len(data) > _FILE_MAX_BYTES or not found or (name != "keys" and len(found) > 1):
        expected = "one key per line" if name == "keys" else "one line"
        source.problems.append(Problem(loc, f"expected a file of {expected}, found {file!r}"))
        return
    section[name] = found if name == "keys" else found[0]


def _matching(tree: Any, pattern: Loc) -> Iterator[Loc]:
    """The locations in the tree that a pattern means; ``*`` is any key or index."""
    if not pattern:
        yield ()
        return
    step, *rest = pattern
    steps: list[str | int] = [step]
    if step == "*":
        steps = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    for each in steps:
        inside = isinstance(tree, list) if isinstance(each, int) else isinstance(tree, dict) and each in tree
        if inside:
            yield from ((each, *below) for below in _matching(tree[each], tuple(rest)))


def _at(tree: Any, loc: Loc) -> Any:
    for step in loc:
        tree = tree[step]
    return tree
