"""Changing a few top-level fields of a JSON body without touching a byte of the rest.

Rules
1. Only the named fields change. Order, white space, unknown fields and the digits of numbers stay as they were.
2. No field to change: the very same object comes back.
3. The body has been judged before (``bodies``): it is a valid object, and no named field is in it twice.

A client's body is spliced rather than written anew because a second serializer is a second meaning: large integers
would lose digits, and prompts their exact bytes, on which the provider's prompt cache depends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

_EDGE_BYTES = 2_048
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def with_fields(body: bytes, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> bytes:
    """``body`` with ``changes`` made; ``fields`` is its parsed content. New fields go to the end."""
    due = {name: value for name, value in changes.items() if name not in fields or fields[name] != value}
    if not due:
        return body
    replaced = {name: value for name, value in due.items() if name in fields}
    added = {name: value for name, value in due.items() if name not in fields}
    if replaced:
        body = _replace(body, replaced)
    if added:
        end = body.rindex(b"}")
        comma = b"," if fields else b""
        body = body[:end] + comma + orjson.dumps(added)[1:-1] + body[end:]
    return body


def _replace(body: bytes, changes: Mapping[str, Any]) -> bytes:
    """Splice new values over those of top-level fields that are there."""
    spans = _quick_spans(body, changes)
    if spans is None:
        text = body.decode()
        spans = [
            (len(text[:start].encode()), len(text[:end].encode()), name)
            for start, end, name in _members(text)
            if name in changes
        ]
    for start, end, name in sorted(spans, reverse=True):
        body = body[:start] + orjson.dumps(changes[name]) + body[end:]
    return body


_SCALAR = re.compile(rb'[ \t\n\r]*:[ \t\n\r]*(-?[0-9][0-9.eE+-]*|true|false|null|"[^"\\]*")')


def _quick_spans(body: bytes, names: Mapping[str, Any]) -> list[tuple[int, int, str]] | None:
    """Spans of scalar values near an end of the body, where fields usually stand. None: look properly."""
    spans = []
    for name in names:
        needle = b'"%b"' % name.encode()
        span = _top_level(body, needle, body.find(needle, 0, _EDGE_BYTES))
        if span is None:
            span = _top_level(body, needle, body.rfind(needle, -_EDGE_BYTES))
        if span is None:
            return None
        spans.append((*span, name))
    return spans


def _top_level(body: bytes, needle: bytes, at: int) -> tuple[int, int] | None:
    """The span of the value behind the key at ``at``, if it is surely one of the outermost object.

    A quoted word followed by a colon is a key, for within a string its quotes would be escaped. No other object has
    begun before it, or none ends between it and the end: then it belongs to the outermost one. There is no second key
    of that name, however spelled (rule 3).
    """
    value = _SCALAR.match(body, at + len(needle)) if at >= 0 else None
    if value is None:
        return None
    if body.find(b"{", body.index(b"{") + 1, at) < 0 or body.find(b"}", value.end()) == body.rindex(b"}"):
        return value.span(1)
    return None


def _members(text: str) -> list[tuple[int, int, str]]:
    """(start, end, name) of each top-level value, by the standard library's own scanner."""
    members = []
    at = _skip(text, 0) + 1
    at = _skip(text, at)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        members.append((at, end, name))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # it matches the empty string
    return found.end()
