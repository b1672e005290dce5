"""An answer's headers.

Rules
1. Names in lower case; a repeated one is a list, joined with commas. Nothing is left out.
   Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
2. Bytes that are not UTF-8 pass as they came.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeVar, overload

_T = TypeVar("_T")


_REMEMBERED_BYTES_MAX = 64  # of one name


def _lower(raw: bytes) -> str:
    """The parser has checked that it is a token."""
    return raw.decode("ascii").lower()


_remembered = lru_cache(1_024)(_lower)


class Headers(Mapping[str, str]):
    """Read-only, looked up in any case."""

    __slots__ = ("_values",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        values: dict[str, str] = {}
        for raw, value in pairs:
            name = _remembered(raw) if len(raw) <= _REMEMBERED_BYTES_MAX else _lower(raw)
            text = value.decode("utf-8", "surrogateescape").rstrip(" \t")
            values[name] = f"{values[name]}, {text}" if name in values else text
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str | _T) -> str | _T: ...
    def get(self, name: str, /, default: str | _T | None = None) -> str | _T | None:
        """Mapping's own would raise and catch."""
        return self._values.get(name.lower(), default)

    def items(self) -> ItemsView[str, str]:
        """Mapping's own would look each one up again."""
        return self._values.items()
