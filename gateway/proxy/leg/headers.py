"""An answer's headers.

Rules
1. Names in lower case; a repeated one is a list, joined with commas. Nothing is left out.
   Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
2. Bytes that are not UTF-8 pass as they came.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.proxy.names import Names


def _lower(raw: bytes) -> str:
    """The parser has checked that it is a token."""
    return raw.decode("ascii").lower()


_names = Names(_lower)


def headers_of(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that these pairs are."""
    headers: dict[str, str] = {}
    for raw, value in pairs:
        name = _names[raw]
        text = value.decode("utf-8", "surrogateescape").rstrip(" \t")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers
