"""A request as bytes, and where it goes.

Rules
1. Nothing of a client's can end a line: names are tokens, values have no control characters, and what a query may not
   contain is percent-encoded.
2. Framing is ours: ``host``, ``content-length``, ``connection`` and their like are refused as headers.
3. What does not change from call to call is spelled once, and only so much of it is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from limits.values import dataclass

# Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET = re.compile(r'[!"$-~]*')  # what a request target may consist of: visible ASCII but "#"
_TARGET_SAFE = "".join(map(chr, range(0x21, 0x7F))).replace("#", "")
_FRAMING = frozenset(b"host content-length transfer-encoding connection keep-alive upgrade te trailer expect".split())
_REMEMBERED_MAX = 256
_REMEMBERED_BYTES_MAX = 256  # of a header's value
_PORTS = {"http": 80, "https": 443}

Fixed = tuple[tuple[bytes, bytes], ...]  # headers that every request to an address brings


class Origin(NamedTuple):
    """Whom a connection is to. A tuple, because it is looked up for every call."""

    is_tls: bool
    host: str  # as it is looked up and certified
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """An address without its query, and what every request to it begins with."""

    origin: Origin
    opening: bytes
    closing: bytes = field(repr=False)  # of the request line, the host and the fixed headers, which are secret


@lru_cache(_REMEMBERED_MAX)
def route(url: str, fixed: Fixed) -> Route:
    """``url`` has no query. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("not an http or https URL of a host")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    port = parts.port or _PORTS[parts.scheme]
    named = f"[{host}]" if ":" in host else host
    if port != _PORTS[parts.scheme]:
        named = f"{named}:{port}"
    if _TARGET.fullmatch(named) is None:
        raise ValueError("not the name of a host")
    lines = b"".join([_line(name, value) for name, value in fixed])
    opening = b"POST " + _target(parts.path or "/")
    return Route(
        Origin(parts.scheme == "https", host, port), opening, f" HTTP/1.1\r\nhost: {named}\r\n".encode() + lines
    )


def _target(text: str) -> bytes:
    if _TARGET.fullmatch(text) is None:
        text = quote(text, safe=_TARGET_SAFE, errors="surrogateescape")
    return text.encode("ascii")


def _line(name: bytes, value: bytes) -> bytes:
    """Raises ValueError."""
    if _TOKEN.fullmatch(name) is None or name.lower() in _FRAMING:
        raise ValueError("not a header that a request may bring")
    if _CONTROL.search(value) is not None:
        raise ValueError("a control character in a header")
    return b"%b: %b\r\n" % (name, value)


_remembered = lru_cache(_REMEMBERED_MAX)(_line)  # clients say the same over and over


def spell(url: str, fixed: Fixed, headers: Mapping[bytes, bytes], body_bytes: int) -> tuple[Origin, bytes]:
    """(whom to ask, the request's head). ``headers`` are named in lower case. Raises ValueError."""
    address, mark, query = url.partition("?")
    to = route(address, fixed)
    lines = [to.opening, b"?", _target(query), to.closing] if mark else [to.opening, to.closing]
    for name, value in headers.items():
        lines.append(_line(name, value) if value[_REMEMBERED_BYTES_MAX:] else _remembered(name, value))
    if b"content-type" not in headers:
        lines.append(b"content-type: application/json\r\n")
    lines.append(b"content-length: %d\r\n\r\n" % body_bytes)
    return to.origin, b"".join(lines)  # whatever bytes the client sent
