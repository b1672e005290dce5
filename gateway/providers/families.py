"""Which tokenizer a model has, and how far tiktoken is from it.

Rules
1. A family is found by the model's name alone; a name that says nothing gets the most cautious family.
2. ``factor_permille`` turns tiktoken's count into one that is rarely too low. It is a bound for holds; learning the
   real one per model comes on top of it and never goes below.

Not here: counting (``tokens``).
"""

from __future__ import annotations

import re
from functools import lru_cache

from limits.values import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share a tokenizer: tokens = tiktoken's count in ``encoding`` x ``factor_permille`` / 1000."""

    name: str
    encoding: str
    factor_permille: int

    def scale(self, counted: int) -> int:
        """Tokens of this family for ``counted`` tokens of its encoding, rounded up."""
        return (counted * self.factor_permille + 999) // 1000


# Source of the factors: measured ratios against a reconstruction of Claude's tokenizers, content only (median / p95 of
# 3 kB samples): cl100k x 1.14 / 1.25 for models up to 4.6, x 1.49 / 1.6 for later ones, whose tokenizer Anthropic's
# documentation says to give about 30 % more tokens. cl100k over-counts non-Latin text, which keeps the bound safe
# where o200k fails. Llama 3 equals cl100k on Latin text and is below it on other scripts.
CLAUDE = Family("claude", "cl100k_base", 1250)
CLAUDE_NEW = Family("claude_new", "cl100k_base", 1600)
OPENAI = Family("openai", "o200k_base", 1000)
OPENAI_OLD = Family("openai_old", "cl100k_base", 1000)
LLAMA = Family("llama", "cl100k_base", 1000)
UNKNOWN = Family("unknown", "cl100k_base", 1600)

FAMILIES = {family.name: family for family in (CLAUDE, CLAUDE_NEW, OPENAI, OPENAI_OLD, LLAMA, UNKNOWN)}

# claude-sonnet-4-5-20250929, claude-3-7-sonnet-latest, anthropic.claude-opus-4-7-v1:0, claude-sonnet-5
_CLAUDE_VERSION = re.compile(r"claude-(?:[a-z]+-)*(\d{1,2})(?:[-.](\d{1,2}))?(?![\d])")
_CLAUDE_NEW_FROM = (4, 7)
_OPENAI_OLD = re.compile(r"gpt-3\.5|gpt-35|gpt-4(?![\d.o])")
_OPENAI = re.compile(r"(?:^|[/:])(?:ft:)?(?:gpt-|chatgpt-|o\d|codex|text-embedding|davinci|babbage)")


@lru_cache(maxsize=1024)
def family(model: str) -> Family:
    """The family of a model, by its name in any provider's spelling."""
    name = model.lower()
    if "claude" in name:
        return _claude(name)
    if _OPENAI_OLD.search(name) or "text-embedding" in name:
        return OPENAI_OLD
    if _OPENAI.search(name):
        return OPENAI
    return LLAMA if "llama" in name else UNKNOWN


def _claude(name: str) -> Family:
    """Claude changed its tokenizer with 4.7; a name without a version is taken for a new one."""
    if "claude-instant" in name or "claude-v" in name:
        return CLAUDE
    found = _CLAUDE_VERSION.search(name)
    if found is None:
        return CLAUDE_NEW
    version = (int(found[1]), int(found[2] or 0))
    return CLAUDE_NEW if version >= _CLAUDE_NEW_FROM else CLAUDE
