"""The docs know every public name: error codes, metrics and config keys (commands: tests/unit/test_cli_docs.py)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest

from gateway import errors
from tests.tidy.tree import ROOT, called, files, name_of, python

DOCS = ROOT / "docs"


def doc(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def tree_of(kind: type[errors.TollgateError]) -> Iterator[type[errors.TollgateError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree_of(below)


CODES = sorted({kind.code for kind in tree_of(errors.TollgateError)})


def bad_request_codes() -> set[str]:
    """The codes that ``BadRequest``, one class for many, is raised with."""
    return {
        node.args[0].value
        for source in python("gateway")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and called(node).split(".")[-1] == "BadRequest"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


def metrics() -> set[str]:
    """Every ``tollgate_…`` name written as a string where metrics are declared."""
    return {
        node.value
        for source in python("gateway")
        if source.name.startswith("gateway/metrics")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"tollgate_[a-z_]+", node.value)
    }


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_has_a_section_in_the_docs(code: str) -> None:
    known = re.findall(r"^### `(\w+)`$", doc("errors.md"), re.MULTILINE)
    assert code in known


def test_every_code_of_a_bad_request_has_a_row_in_the_docs() -> None:
    known = re.findall(r"^\| `(\w+)` \|", doc("errors.md"), re.MULTILINE)
    assert bad_request_codes() <= set(known)


@pytest.mark.parametrize("kind", sorted(tree_of(errors.TollgateError), key=lambda kind: kind.__name__))
def test_an_error_is_answered_as_the_docs_say(kind: type[errors.TollgateError]) -> None:
    """The table's row: status, whether to retry, and how each dialect spells it."""
    anthropic = kind.anthropic_type + (f" ({kind.anthropic_error_code})" if kind.anthropic_error_code else "")
    openai = f"{kind.openai_type} / {kind.openai_code or kind.code}"
    row = f"| `{kind.code}` | {kind.status} | {'yes' if kind.retry else 'no'} | {anthropic} | {openai} |"
    assert row in doc("errors.md").splitlines()


def test_every_metric_has_a_row_in_the_docs() -> None:
    known = re.findall(r"^\| `(tollgate_\w+)` \|", doc("metrics.md"), re.MULTILINE)
    assert metrics() <= set(known)


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in [*files("docs", suffixes={".md"}), ROOT / "README.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{name_of(path)}: {target}")
    assert not broken, "\n".join(broken)


def config_keys() -> set[str]:
    """Every key of config.yaml, as the schema spells it; names that the operator chooses are no keys."""
    schema = json.loads((ROOT / "config.schema.json").read_text(encoding="utf-8"))
    sections = [schema, *schema["$defs"].values()]
    return {key for section in sections for key in section.get("properties", {})}


def test_every_config_key_is_in_the_docs() -> None:
    text = re.sub(r"^```.*?^```", "", doc("configuration.md"), flags=re.MULTILINE | re.DOTALL)
    spelled = re.findall(r"`[^`\n]+`", text) + re.findall(r"^## .*$", text, re.MULTILINE)
    known = set(re.findall(r"\w+", " ".join(spelled)))
    missing = {key for key in config_keys() if key not in known and not key.endswith("_file")}
    assert not missing


def test_what_the_docs_show_of_the_examples_stands_in_them() -> None:
    """Each block of YAML under "Five systems", line by line, in the file that its heading names."""
    text = doc("billing.md").partition("## Five systems")[2]
    shown = re.findall(r"^### .*?\(\.\./(examples/\S+\.yaml)\)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(shown) == 5
    missing = []
    for name, section in shown:
        lines = {line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()}
        [block] = re.findall(r"^```yaml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        missing += [f"{name}: {line}" for line in block.splitlines() if line.strip() not in lines]
    assert not missing, "\n".join(missing)
