"""Answers that are no event stream: whole JSON bodies.

Rules
1. A JSON answer passes as it comes; up to ``BODY_BYTES_MAX`` of it are kept to be parsed, of a larger one a window
   before its end, where usage stands.
2. A body that is an error was not served: nothing is charged.

Not here: streams (``sse``), errors by their status (``proxy.forward``), what a usage object means (the adapters).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

from gateway.domain.usage import AtLeast, Basis, Exact, NotServed, Outcome, Usage
from gateway.providers.families import Family
from gateway.providers.sse import OPAQUE_BYTES_PER_TOKEN, WINDOW_BYTES, last_usage, unescaped
from gateway.providers.tokens import count_text

BODY_BYTES_MAX = 1_048_576
_TOKENS_MAX = 2**53 - 1

UsageOf = Callable[[dict[str, Any]], Usage | None]
TextsOf = Callable[[dict[str, Any]], list[str] | None]


def tokens_in(usage: dict[str, Any], name: str) -> int | None:
    """A reported number of tokens. A negative one or a fraction is no report: it would give quota back."""
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= _TOKENS_MAX else None


def part_in(usage: dict[str, Any], name: str) -> dict[str, Any]:
    """A nested object of a usage report; empty when there is none."""
    value = usage.get(name)
    return value if type(value) is dict else {}


def cached_in(details: dict[str, Any], given: int) -> tuple[int, int]:
    """Of ``given`` input tokens, how many were read from the provider's cache and how many written to it, as OpenAI's
    details of an input tell them; never more than the input."""
    if not details:
        return 0, 0
    read, written = tokens_in(details, "cached_tokens") or 0, tokens_in(details, "cache_write_tokens") or 0
    if read + written > given:
        read = min(given, read)
        written = given - read
    return read, written


class WholeScanner:
    """Follows one JSON answer."""

    __slots__ = (
        "_body",
        "_bytes",
        "_content",
        "_family",
        "_finished",
        "_found",
        "_input_tokens",
        "_is_large",
        "_text",
        "_texts_of",
        "_usage_of",
        "failed",
    )

    def __init__(
        self, usage_of: UsageOf, text: re.Pattern[bytes], input_tokens: int, family: Family, *, texts_of: TextsOf
    ) -> None:
        self._usage_of = usage_of
        self._texts_of = texts_of
        self._text = text
        self._input_tokens = input_tokens
        self._family = family
        self._body = bytearray()
        self._bytes = 0
        self._is_large = False
        self._finished = False
        self.failed = False  # an error is told by its status
        self._found: Outcome | None = None
        self._content: dict[str, Any] | None = None  # of all that came, where that is JSON

    def feed(self, chunk: bytes) -> bytes:
        """The same object, always."""
        self._found = self._content = None
        self._bytes += len(chunk)
        self._body += chunk
        if self._bytes > BODY_BYTES_MAX and (not self._is_large or len(self._body) > 2 * WINDOW_BYTES):
            self._is_large = True
            del self._body[:-WINDOW_BYTES]
        return chunk

    def finish(self) -> bytes:
        self._finished = True
        return b""

    @property
    def complete(self) -> bool:
        """A whole JSON body came."""
        if self._is_large:
            return self._finished
        return self._parsed() is not None

    def event_boundary(self) -> bool:
        """Nothing can be written into a JSON body."""
        return not self._bytes

    def output_tokens_seen(self) -> int:
        """Tokens of the output that could be seen so far, by our own count."""
        content = None if self._is_large else self._parsed()
        texts = self._texts_of(content) if content is not None else None
        if texts is None:
            texts = [unescaped(piece) for piece in self._text.findall(self._body)]
        seen = self._family.scale(sum(count_text(text, self._family.encoding) for text in texts))
        return seen + (self._bytes - len(self._body)) // OPAQUE_BYTES_PER_TOKEN

    def outcome(self) -> Outcome:
        """What is known now about the usage."""
        if self._found is not None:
            return self._found
        content = None if self._is_large else self._parsed()
        reported = last_usage(bytes(self._body)) if self._is_large else (content or {}).get("usage")
        usage = self._usage_of(reported) if type(reported) is dict else None
        self._found = Exact(usage) if usage is not None else self._seen(content)
        return self._found

    def _seen(self, content: dict[str, Any] | None) -> Outcome:
        """Of an answer that does not tell its usage."""
        if not self._bytes or (content is not None and content.get("error")):
            return NotServed()
        output = self.output_tokens_seen()
        if not output and content is None:  # nothing that we can read: bytes are all there is to go by
            output = -(-self._bytes // OPAQUE_BYTES_PER_TOKEN)
            return AtLeast(Usage(input=self._input_tokens, output=output), Basis.ESTIMATED)
        basis = Basis.COUNTED if output and not self._is_large else Basis.ESTIMATED
        return AtLeast(Usage(input=self._input_tokens, output=output), basis)

    def _parsed(self) -> dict[str, Any] | None:
        if self._content is None:
            try:
                content = orjson.loads(self._body)
            except orjson.JSONDecodeError:
                return None
            self._content = content if type(content) is dict else None
        return self._content
