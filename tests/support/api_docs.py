"""The tables of routes in ``docs/api.md``, made from the rows that serve; ``python -m tests.support.api_docs`` renews
them.

What stands between ``<!-- routes: NAME -->`` and ``<!-- end -->`` is made here; everything else is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from gateway.billing.http import tables
from gateway.billing.http.route import Route

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "api.md"
TABLES: Final = {"customers": tables.CUSTOMERS, "operators": tables.OPERATORS}
_BETWEEN: Final = re.compile(r"(<!-- routes: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(document: str) -> str:
    """The document with its tables as they should be."""
    return _BETWEEN.sub(lambda found: f"{found[1]}{rows(TABLES[found[2]])}{found[3]}", document)


def rows(routes: Iterable[Route]) -> str:
    lines = ["| route | who | what it does | takes |", "|---|---|---|---|"]
    lines += [
        f"| `{route.method} {route.path}` | {route.who.value} | {route.summary} | {_takes(route)} |" for route in routes
    ]
    return "\n".join(lines) + "\n"


def _takes(route: Route) -> str:
    """Names of the query and of the body; needed ones are bold."""
    parts = []
    query = _names(route.query)
    if query:
        parts.append(f"?{', '.join(query)}")
    if isinstance(route.body, type):
        body = _names(route.body)
        parts.append(f"{{{', '.join(body)}}}" if body else "JSON")
    elif route.body is not None:
        parts.append(route.body.media or "a body")
    if route.idempotent:
        parts.append("`Idempotency-Key`")
    return "; ".join(parts)


def _names(model: type[BaseModel]) -> list[str]:
    if "root" in model.model_fields:
        return []
    named = {field.alias or name: field.is_required() for name, field in model.model_fields.items()}
    return [f"**{name}**" if needed else name for name, needed in named.items()]


if __name__ == "__main__":
    FILE.write_text(renewed(FILE.read_text(encoding="utf-8")), encoding="utf-8")
