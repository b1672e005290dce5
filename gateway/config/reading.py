"""YAML text → plain values that know their lines, with the environment filled in.

Rules
1. Scalars stay text (numbers are never binary floats), except ``true``, ``false`` and ``null``.
2. Only plain data: no tags, no duplicate or merge keys, aliases only within a bound, a bounded size and depth.
3. ``${NAME}`` and ``${NAME:-default}`` are filled in here; what stood in the file is kept for messages, so that no
   value of the environment is ever shown.
4. Every problem found is reported, not just the first one.

Not here: what a key means (``schema``), and files of secrets (``secrets``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Loc = tuple[str | int, ...]

SIZE_MAX_BYTES: Final = 1_000_000
_VALUES_MAX: Final = 20_000
_DEPTH_MAX: Final = 32
_CORE: Final = "tag:yaml.org,2002:"
_TEXT_TAGS: Final = frozenset(_CORE + kind for kind in ("str", "timestamp"))
_NUMBER_TAGS: Final = frozenset(_CORE + kind for kind in ("int", "float"))
_TRUE: Final = frozenset(("true", "yes", "on", "y"))  # the latter three only under "%YAML 1.1"
_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")


class Number(str):
    """A scalar that YAML reads as a number, as written."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and ``expected …, found …``."""

    loc: Loc
    text: str
    line: int | None = None


@dataclass(slots=True)
class Source:
    """A file as read: values with the environment filled in, and per location its line and its text in the file."""

    tree: Any = None
    lines: dict[Loc, int] = field(default_factory=dict)
    raw: dict[Loc, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, loc: Loc) -> int | None:
        """The line of a location, or of the nearest enclosing one that stands in the file."""
        while loc not in self.lines:
            if not loc:
                return None
            loc = loc[:-1]
        return self.lines[loc]

    def found(self, loc: Loc) -> str:
        """What stands at a location, for ``found …``: never a value of the environment."""
        if loc in self.raw:
            text = self.raw[loc]
            return repr(text if len(text) <= 60 else text[:57] + "...") if text else "an empty text"
        value = self.tree
        for step in loc:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return "nothing"
        match value:
            case None:
                return "nothing"
            case bool():
                return str(value).lower()
            case dict():
                return "a mapping"
            case str():
                return "a text that is not shown"  # out of a file of secrets
            case _:
                return "a list"


def read(data: bytes, env: Mapping[str, str]) -> Source:
    """Parse a config file. Never raises: what is wrong is in ``problems``, and then ``tree`` may be incomplete."""
    source = Source()
    if len(data) > SIZE_MAX_BYTES:
        source.problems.append(Problem((), f"expected at most {SIZE_MAX_BYTES} bytes, found {len(data)}"))
        return source
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        source.problems.append(Problem((), f"expected UTF-8, found the byte 0x{data[error.start]:02x}", line))
        return source
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.composer.warn_double_anchors = False  # legal: an alias means the latest one
        node = yaml.compose(text)
    except (YAMLError, RecursionError) as error:
        source.problems.append(_yaml_problem(error, text))
        return source
    if not isinstance(node, MappingNode):
        source.problems.append(Problem((), f"expected a mapping of keys, found {'a value' if node else 'nothing'}", 1))
        return source
    source.lines[()] = 1
    source.tree = _Builder(source, env).value(node, (), frozenset())
    return source


def _yaml_problem(error: Exception, text: str) -> Problem:
    if isinstance(error, RecursionError):
        return Problem((), "expected shallow nesting, found a value nested too deeply")
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return Problem((), f"expected readable YAML, found: {str(error).splitlines()[0]}")
    at_end = error.context_mark is not None and "end of stream" in str(error.problem)
    number = (error.context_mark if at_end else error.problem_mark).line  # an open quote: where it was opened
    lines = text.splitlines()
    line = lines[number] if number < len(lines) else ""
    said = str(error.problem or error.context or "an error")
    if "${" in line and _bare_reference(line):
        return Problem((), 'expected references in quotes, found a bare ${…}: quote it, as "${NAME}"', number + 1)
    if "'\\t'" in said or line.startswith("\t"):
        return Problem((), "expected spaces for indentation, found a tab", number + 1)
    said = said.removeprefix("but ")
    if said.startswith("expected"):
        return Problem((), said.replace(", but got", ", found"), number + 1)
    return Problem((), f"expected valid YAML, found: {said.removeprefix('found ')}", number + 1)


def _bare_reference(line: str) -> bool:
    """A ``${`` outside of quotes."""
    return "${" in re.sub(r"\"[^\"]*\"|'[^']*'", "", line)


class _Builder:
    """Turns YAML nodes into plain values, noting lines, texts and problems in the source."""

    def __init__(self, source: Source, env: Mapping[str, str]) -> None:
        self._source = source
        self._env = env
        self._values = 0

    def value(self, node: Node, loc: Loc, above: frozenset[int]) -> Any:
        """The plain value of a node. ``above`` holds the nodes that enclose it: an alias to one has no end."""
        self._values += 1
        if self._values == _VALUES_MAX:
            self._problem(loc, f"expected at most {_VALUES_MAX} values, found more: aliases multiply", node)
        if self._values >= _VALUES_MAX:
            return None
        if id(node) in above or len(above) > _DEPTH_MAX:
            self._problem(loc, "expected shallow nesting, found a value nested too deeply", node)
            return None
        match node:
            case ScalarNode():
                return self._scalar(node, loc)
            case SequenceNode() if self._plain(node, loc, "seq"):
                inside = above | {id(node)}
                return [self._item(item, (*loc, index), inside) for index, item in enumerate(node.value)]
            case MappingNode() if self._plain(node, loc, "map"):
                return self._mapping(node, loc, above | {id(node)})
        return None

    def _item(self, node: Node, loc: Loc, above: frozenset[int]) -> Any:
        self._source.lines[loc] = node.start_mark.line + 1
        return self.value(node, loc, above)

    def _mapping(self, node: MappingNode, loc: Loc, above: frozenset[int]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, ScalarNode) or key.tag == _CORE + "merge":
                shown = "a merge key '<<'" if isinstance(key, ScalarNode) else "a list or mapping as a key"
                self._problem(loc, f"expected plain keys, found {shown}", key)
                continue
            name = str(key.value)
            if name in values:
                first = self._source.lines[(*loc, name)]
                self._problem((*loc, name), f"expected each key once, found it again (first on line {first})", key)
                continue
            self._source.lines[(*loc, name)] = key.start_mark.line + 1
            values[name] = self.value(child, (*loc, name), above)
        return values

    def _plain(self, node: Node, loc: Loc, kind: str) -> bool:
        if node.tag == _CORE + kind:
            return True
        self._problem(loc, f"expected plain values, found the tag {_tag(node)}", node)
        return False

    def _scalar(self, node: ScalarNode, loc: Loc) -> Any:
        text = str(node.value)
        if node.tag == _CORE + "null":
            return None
        if node.tag == _CORE + "bool":
            return text.lower() in _TRUE
        if node.tag in _NUMBER_TAGS:
            self._source.raw[loc] = text
            return Number(text)
        if node.tag not in _TEXT_TAGS:
            self._problem(loc, f"expected plain values, found the tag {_tag(node)}", node)
            return None
        self._source.raw[loc] = text
        return self._filled(text, loc, node)

    def _filled(self, text: str, loc: Loc, node: Node) -> str:
        if "${" in _REFERENCE.sub("", text):
            self._problem(loc, 'expected references as "${NAME}" or "${NAME:-default}"', node)
            return text

        def value(match: re.Match[str]) -> str:
            name, default = match.groups()
            if default is not None:
                return self._env.get(name) or default
            if name not in self._env:
                self._problem(loc, f"expected the environment variable {name} to be set, found nothing", node)
            return self._env.get(name, "")

        return _REFERENCE.sub(value, text)

    def _problem(self, loc: Loc, text: str, node: Node) -> None:
        self._source.problems.append(Problem(loc, text, node.start_mark.line + 1))


def _tag(node: Node) -> str:
    return repr(str(node.tag).replace(_CORE, "!!"))
