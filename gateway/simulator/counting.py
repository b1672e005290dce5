"""How many tokens a text is to a simulated model: the one place that knows encodings and factors.

Rules
1. Input is reported as a real provider would: a little below what a careful estimate bounds.
2. Output is reported by the rule that a gateway counts a cut answer with, so that the two can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tiktoken

from gateway.simulator.words import cycle

_CACHE_CHARACTERS_MAX = 32_000_000  # of texts whose count is remembered: a bench sends the same prompt over and over


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share a tokenizer. Factors are percent of the encoding's count."""

    name: str
    encoding: str
    input_percent: int
    output_percent: int
    message_tokens: int  # role markers of one message

    def output_tokens(self, counted: int) -> int:
        """What this family reports for a text of ``counted`` tokens of its encoding."""
        return -(-counted * self.output_percent // 100)

    def counted_within(self, output_tokens: int) -> int:
        """The longest text, in tokens of the encoding, that this family reports at most ``output_tokens`` for."""
        return output_tokens * 100 // self.output_percent


OPENAI = Family("openai", "o200k_base", input_percent=100, output_percent=100, message_tokens=3)
OPENAI_OLD = Family("openai_old", "cl100k_base", input_percent=100, output_percent=100, message_tokens=3)
CLAUDE = Family("claude", "cl100k_base", input_percent=114, output_percent=125, message_tokens=3)
CLAUDE_NEW = Family("claude_new", "cl100k_base", input_percent=149, output_percent=160, message_tokens=3)

# First match wins. Source for Claude: its newer tokenizer gives about 30 % more tokens than the one before.
_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("claude-opus-4-7", CLAUDE_NEW),
    ("claude-opus-4-8", CLAUDE_NEW),
    ("claude-opus-5", CLAUDE_NEW),
    ("claude-sonnet-5", CLAUDE_NEW),
    ("claude-haiku-5", CLAUDE_NEW),
    ("claude", CLAUDE),
    ("gpt-4-", OPENAI_OLD),
    ("gpt-3.5", OPENAI_OLD),
    ("text-embedding", OPENAI_OLD),
)


@cache
def family_of(model: str) -> Family:
    """The family of a model by its name; unknown ones count as OpenAI's newest."""
    if model == "gpt-4":
        return OPENAI_OLD
    return next((family for prefix, family in _FAMILIES if model.startswith(prefix)), OPENAI)


class _Counts:
    """Counts of texts seen before, dropped all at once when they hold too many characters."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._characters = 0

    def count(self, text: str, encoding: str) -> int:
        key = (encoding, text)
        known = self._counts.get(key)
        if known is not None:
            return known
        if self._characters > _CACHE_CHARACTERS_MAX:
            self._counts.clear()
            self._characters = 0
        self._characters += len(text)
        counted = len(tiktoken.get_encoding(encoding).encode_ordinary(text))
        self._counts[key] = counted
        return counted


_COUNTS = _Counts()


def count_text(text: str, encoding: str) -> int:
    """Tokens of ``text`` in an encoding; special tokens in it are text like any other."""
    return _COUNTS.count(text, encoding)


def input_tokens(texts: list[str], family: Family, *, messages: int, media: int) -> int:
    """What a provider reports for a prompt: its texts by the family's factor, its messages' framing, its media."""
    counted = sum(count_text(text, family.encoding) for text in texts)
    return counted * family.input_percent // 100 + messages * family.message_tokens + media


def warm_up() -> None:
    """Load what the first request would wait for (about half a second)."""
    for family in (OPENAI, CLAUDE):
        cycle(family.encoding)
