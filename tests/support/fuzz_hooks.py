"""Loaded by schemathesis: real names beside invented ones, so that cases reach behind the first 404.

``TOLLGATE_FUZZ_NAMES``: a JSON object, the name of a parameter or of a body's field → the values that exist.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

import schemathesis

NAMES: Final[dict[str, list[str]]] = json.loads(os.environ["TOLLGATE_FUZZ_NAMES"])


def _with_known(name: str, schema: Any) -> Any:
    """One of those that exist, or anything that the document allows."""
    return {"anyOf": [{"enum": NAMES[name]}, schema]} if name in NAMES else schema


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    for methods in raw_schema["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                parameter["schema"] = _with_known(_spelled(parameter), parameter["schema"])
    for schema in raw_schema["components"]["schemas"].values():
        properties = schema.get("properties", {})
        properties.update({name: _with_known(name, below) for name, below in properties.items()})


def _spelled(parameter: dict[str, Any]) -> str:
    """In a path ``account`` is what is operated on; in a query it is whom the key acts for."""
    own = parameter["in"] != "path" and parameter["name"] in ("Tollgate-Account", "account", "organizationId")
    return "own" if own else str(parameter["name"])
