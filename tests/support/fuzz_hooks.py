"""Loaded by schemathesis: real names in place of some invented ones, so that cases reach behind the first 404.

``TOLLGATE_FUZZ_NAMES``: a JSON object, a path parameter's name → the values that exist.
"""

from __future__ import annotations

import json
import os
from typing import Any
from zlib import crc32

import schemathesis

NAMES: dict[str, list[str]] = json.loads(os.environ["TOLLGATE_FUZZ_NAMES"])
ACCOUNT = ("Tollgate-Account", "account", "organizationId")
OFTEN = 4  # of five


def _number(value: object) -> int:
    """The same for the same value, so that a case can be repeated."""
    return crc32(repr(value).encode("utf-8", "surrogatepass"))


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    return {
        name: NAMES[name][_number(value) % len(NAMES[name])]
        if name in NAMES and _number(value) % 5 < OFTEN
        else value
        for name, value in (path_parameters or {}).items()
    }


def _own_account(parts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Seldom another account than the key's: it would be refused before anything else is looked at."""
    if not isinstance(parts, dict):
        return parts
    return {
        name: NAMES["account"][0] if name in ACCOUNT and _number(value) % 5 < OFTEN else value
        for name, value in parts.items()
    }


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    return _own_account(headers)


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    return _own_account(query)
