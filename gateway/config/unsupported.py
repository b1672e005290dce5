"""Keys of the contract whose behaviour is not there yet: read and checked, but refused when they are used.

Rules
1. What is off changes nothing and passes: an alert webhook without a URL, an empty map.
2. A line leaves this file together with the change that makes its key work.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.reading import Loc
from gateway.config.schema import Document, Plan


def unsupported(document: Document) -> Iterator[tuple[Loc, str]]:
    """Location and what was expected instead, of every key that is used and not supported yet."""
    for name, plan in document.plans.items():
        yield from ((("plans", name, key), expected) for key, expected in _plan(plan))


def _plan(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.hold == "learned":
        yield "hold", "worst_case: learned is not supported yet"
    if plan.on_exhausted == "error":
        because = "with worst-case holds no stream is ended by the quota, so error is not supported yet"
        yield "on_exhausted", f"stop: {because}"
    if plan.outage == "lease":
        yield "outage", "closed: lease is not supported yet"
