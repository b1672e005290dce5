"""How many tokens a text is to a simulated model: the one place that knows encodings and factors.

Rules
1. Input is reported as a real provider would: a little below what a careful estimate bounds.
2. Output is reported by the rule that a gateway counts a cut answer with, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.providers.tokens import Family, count_text, family, preload
from gateway.simulator.words import cycle

__all__ = ["Family", "Texts", "count_text", "family", "preload_all", "visible_within"]

_CACHE_CHARACTERS_MAX = 32_000_000  # of texts whose count is remembered: a bench sends the same prompt over and over
_MESSAGE_TOKENS = 3  # role markers of one message; source: OpenAI's cookbook, "How to count tokens with tiktoken"

# What providers really report, in permille of the encoding's count: the measured medians, where the family's own
# factor is a bound (see ``gateway.providers.families`` for the measurement).
_REPORTED_PERMILLE = {"claude": 1140, "claude_new": 1490, "openai": 1000, "openai_old": 1000, "llama": 1000}
_REPORTED_PERMILLE_UNKNOWN = 1000


class Texts:
    """Counts of texts seen before, dropped all at once when they hold too many characters."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._characters = 0

    def count(self, text: str, encoding: str) -> int:
        """Tokens of ``text`` in an encoding."""
        key = (encoding, text)
        known = self._counts.get(key)
        if known is not None:
            return known
        if self._characters > _CACHE_CHARACTERS_MAX:
            self._counts.clear()
            self._characters = 0
        self._characters += len(text)
        counted = self._counts[key] = count_text(text, encoding)
        return counted

    def input_tokens(self, texts: Sequence[str], of: Family, *, messages: int, media_tokens: int) -> int:
        """What a provider reports for a prompt: its texts by the family's factor, its messages' framing, its media."""
        counted = sum(self.count(text, of.encoding) for text in texts)
        permille = _REPORTED_PERMILLE.get(of.name, _REPORTED_PERMILLE_UNKNOWN)
        return counted * permille // 1000 + messages * _MESSAGE_TOKENS + media_tokens


def visible_within(of: Family, output_tokens: int) -> int:
    """The longest text, in tokens of the encoding, that this family reports at most ``output_tokens`` for."""
    return output_tokens * 1000 // of.factor_permille


def preload_all() -> None:
    """Build now what the first request would wait for (about half a second)."""
    preload()
    for encoding in ("o200k_base", "cl100k_base"):
        cycle(encoding)
