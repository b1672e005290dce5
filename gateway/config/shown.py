"""The running config as an operator may see it: what the file says, with nothing that the environment holds.

Rules
1. What the file takes from the environment is shown as it is written there, ``${NAME}``, and a default behind it not.
   Secrets cannot stand in a file otherwise (``secrets``).
   What came from a file of secrets is shown as ``…``.
2. URLs are shown without what stands before their host's ``@``. Numbers are shown as they are written, as texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.config.model import Config
from gateway.config.reading import Loc, Source

_REFERENCE: Final = re.compile(r"\$\{(\w+)(:-[^{}]+)?\}")
_USERINFO: Final = re.compile(r"(//)[^/@\s]*@")


def without_secrets(source: Source) -> Mapping[str, Any]:
    """The file's tree, safe to show."""
    shown = _shown(source, source.tree, ())
    assert isinstance(shown, dict), "a config that was loaded is a mapping"
    return shown


def _shown(source: Source, value: Any, loc: Loc) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _shown(source, below, (*loc, name)) for name, below in value.items()}
    if isinstance(value, list):
        return [_shown(source, below, (*loc, index)) for index, below in enumerate(value)]
    if not isinstance(value, str):
        return value
    text = source.raw.get(loc, "…")  # what did not stand in the file came from a file of secrets
    return _USERINFO.sub(r"\1…@", _REFERENCE.sub(_name_only, text))


def _name_only(reference: re.Match[str]) -> str:
    return f"${{{reference[1]}:-…}}" if reference[2] else reference[0]


def running(config: Config) -> dict[str, object]:
    """The config in force."""
    settings = config.settings
    return {
        "version": config.version,
        "path": str(config.path),
        "listen": f"{settings.listen.host}:{settings.listen.port}",
        "admin": f"{settings.admin.host}:{settings.admin.port}",
        "upstreams_off": [name for name, upstream in settings.upstreams.items() if not upstream.on],
        "stripe_off": settings.stripe_off,
        "document": config.document,
    }
