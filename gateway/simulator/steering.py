"""How a test says what a simulated model shall do: ``x-simulate: k=v,k=v`` or ``[[simulate k=v k=v]]`` in the prompt.

Rules
1. The header wins over the marker, key by key; of several markers the last counts (the newest turn).
2. An unknown key or a bad value is a 400 that names it: a test with a typo must not pass.
3. Every wait is bounded.

Events are counted from 1 as they go on the wire, framing events and pings included; "after event 0" is after the
headers and before the first event.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

_MARKER = re.compile(rb"\[\[simulate ([^\]]{1,500})\]\]")
WAIT_MS_MAX = 600_000
OUTPUT_TOKENS_MAX = 1_000_000
BYTES_MAX = 200_000_000

USAGES = ("missing", "zero", "partial")
STOPS = ("end_turn", "max_tokens", "tool_use")


class SteeringError(ValueError):
    """The steering names something this simulator does not know."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection (RST): ``before`` any answer, after the ``headers``, ``within`` K events, ``after`` all."""

    where: str
    events: int = 0


@dataclass(frozen=True, slots=True)
class Steering:
    """What was asked for. None: not asked, the default stands."""

    output: int | None = None  # output tokens in all, per choice, thinking included
    chunk: int | None = None  # output tokens per content event
    events: int | None = None  # content events
    delay: int = 0  # ms before each content event
    ttfb: int = 0  # ms before the headers
    input: int | None = None  # as the dialect's own field reports it
    cached: int = 0
    cache_write: int = 0  # 5 minutes, or a lifetime the dialect does not name
    cache_write_1h: int = 0
    reasoning: int | None = None
    usage: str | None = None  # missing | zero | partial (only at the start of an Anthropic stream)
    status: int | None = None
    retry_after: int | None = None  # seconds, with status
    kind: str | None = None  # with status: quota (insufficient_quota), key, context
    reset: Reset | None = None
    stall: int | None = None  # hang after this event until the peer leaves, or the cap
    truncate: int | None = None  # after this event send half a line, then end in order
    giant: int | None = None  # bytes of one long line after the first content event
    gzip: int | None = None  # answer compressed though nobody asked; a JSON body is padded to so many bytes
    redirect: bool = False
    error_event: int | None = None  # after this event an error event
    stop: str | None = None
    tool: bool = False
    thinking: bool = False
    overrun: bool = False  # ``output`` may pass the request's own bound
    tag: str | None = None  # kept in the journal: finds this call again


_FIELDS = {field.name: field for field in fields(Steering)}
_INTEGER_MAX = {
    "output": OUTPUT_TOKENS_MAX, "chunk": OUTPUT_TOKENS_MAX, "events": OUTPUT_TOKENS_MAX, "delay": WAIT_MS_MAX,
    "ttfb": WAIT_MS_MAX, "input": 10_000_000, "cached": 10_000_000, "cache_write": 10_000_000,
    "cache_write_1h": 10_000_000, "reasoning": OUTPUT_TOKENS_MAX, "status": 599, "retry_after": 86_400,
    "stall": 10_000_000, "truncate": 10_000_000, "giant": BYTES_MAX, "gzip": BYTES_MAX, "error_event": 10_000_000,
}  # fmt: skip
_AT_LEAST_ONE = frozenset({"chunk", "events", "gzip"})
_BOOLEANS = frozenset({"redirect", "tool", "thinking", "overrun"})
_CHOICES = {"usage": USAGES, "stop": STOPS, "kind": ("quota", "key", "context")}

NONE = Steering()


def read(header: str | None, body: bytes) -> Steering:
    """What a request asks for. Raises SteeringError."""
    pairs: dict[str, str] = {}
    # The search is cheap and spares nearly every body the regular expression.
    if b"[[simulate " in body:
        markers = _MARKER.findall(body)
        if not markers:
            raise SteeringError("the [[simulate ...]] marker is not closed")
        pairs.update(_pairs(markers[-1].decode("utf-8", "replace")))
    if header is not None:
        pairs.update(_pairs(header))
    return Steering(**{name: _value(name, text) for name, text in pairs.items()}) if pairs else NONE


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in text.replace(",", " ").split():
        name, _, value = item.partition("=")
        if name.replace("-", "_") not in _FIELDS:
            raise SteeringError(f"unknown simulate key {name!r}; known: {', '.join(sorted(_FIELDS))}")
        found[name.replace("-", "_")] = value
    return found


def _value(name: str, text: str) -> Any:
    if name in _INTEGER_MAX:
        least = 1 if name in _AT_LEAST_ONE else 0
        if not text.isdecimal() or not least <= int(text) <= _INTEGER_MAX[name]:
            raise SteeringError(
                f"simulate {name}: expected an integer from {least} to {_INTEGER_MAX[name]}, found {text!r}"
            )
        return int(text)
    if name in _BOOLEANS:
        if text not in ("", "0", "1"):
            raise SteeringError(f"simulate {name}: expected 0 or 1, found {text!r}")
        return text != "0"
    if name in _CHOICES:
        if text not in _CHOICES[name]:
            raise SteeringError(f"simulate {name}: expected one of {', '.join(_CHOICES[name])}, found {text!r}")
        return text
    return _reset(text) if name == "reset" else text[:200]


def _reset(text: str) -> Reset:
    where, _, events = text.partition(":")
    if where == "within" and events.isdecimal():
        return Reset(where, int(events))
    if where in ("before", "headers", "after") and not events:
        return Reset(where)
    raise SteeringError(f"simulate reset: expected before, headers, within:K or after, found {text!r}")
