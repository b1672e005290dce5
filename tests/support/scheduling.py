"""Which tests of a parallel run stay together: those that share what a module's fixture makes, such as a server.

Rules
1. Every other test goes alone to whichever process is free, so that no process is left with a long rest.
2. A module that shares is one unit per database: what it serves is served once for SQLite and once for PostgreSQL,
   not once more in every process. Units of many tests start first.
3. The tidy tests share the parsed sources.

pytest-xdist's own ``xdist_group`` marks say the same, but are lost with pytest 9.2 and its structured test ids:
https://github.com/pytest-dev/pytest-xdist/issues/1386
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[2]
DATABASES = ("sqlite", "postgresql")
SHARED = 'scope="module"'
TIDY = "tests/tidy"


@cache
def shares(module: str) -> bool:
    """True when the module has a fixture for all its tests."""
    return SHARED in (ROOT / module).read_text(encoding="utf-8")


def unit(test_id: str) -> str:
    """The tests with the same answer run in one process, one after another."""
    module, _, test = test_id.partition("::")
    if module.startswith(TIDY):
        return TIDY
    if not shares(module):
        return test_id
    return module + next((f"[{database}]" for database in DATABASES if f"[{database}" in test), "")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands a process the next unit as soon as its last is nearly done."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)
