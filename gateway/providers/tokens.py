"""Counting tokens with tiktoken, offline: what a prompt will cost at most, and what a cut answer came to.

Rules
1. Never above the UTF-8 byte bound: a byte-level tokenizer cannot make more tokens than there are bytes.
2. A conversation costs its new turn only: counts are remembered by content, within a bound in bytes.
3. What is remembered is a keyed 64-bit hash, a length and a count. No text of a prompt stays.
4. Texts are encoded in slices: tiktoken 0.14 panics on long runs of white space, and its list of tokens is large.
5. Nothing is downloaded, no file is written: the vocabularies are read from this package and checked by their sums.

Not here: threads. A caller with an event loop asks ``needs_thread`` and decides.
"""

from __future__ import annotations

import gzip
import hashlib
from binascii import a2b_base64
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import tiktoken
from tiktoken import registry

from gateway.providers.adapter import Prompt
from gateway.providers.families import Family, family
from limits.values import dataclass

__all__ = ["Counter", "Family", "count_text", "encoding", "family", "preload"]

_FOLDER = Path(__file__).with_name("vocabularies")
_SLICE_CHARACTERS = 16_384  # a slice is at most ~10 ms of encoding, whatever it holds
_THREAD_CHARACTERS = 50_000  # more than this, uncached, would hold an event loop up for milliseconds
BYTES_PER_TOKEN = 4  # of English, about: an estimate, never a bound
_ENTRY_BYTES = 160  # of one remembered count: two integers and its place in a dict, measured generously
_CACHE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    sha256: str  # of the unpacked rank file
    pattern: str
    special: dict[str, int]


# Source: tiktoken 0.14.0, tiktoken_ext/openai_public.py (MIT); a test compares them with the installed tiktoken.
_VOCABULARIES = {
    "cl100k_base": _Vocabulary(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"""
        r"""\s+(?!\S)|\s""",
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": _Vocabulary(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "|".join(
            (
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"""
                r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"""
                r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""\p{N}{1,3}""",
                r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
                r"""\s*[\r\n]+""",
                r"""\s+(?!\S)""",
                r"""\s+""",
            )
        ),
        {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
}


class VocabularyDamaged(RuntimeError):
    """A shipped vocabulary does not match its checksum: the installation is damaged."""


@cache
def encoding(name: str) -> tiktoken.Encoding:
    """A tiktoken encoding from the shipped ranks, ~0.2 s the first time.

    It is also put into tiktoken's own registry, so that nobody else in this process makes tiktoken go to the network.
    Raises KeyError for an unknown name, VocabularyDamaged.
    """
    vocabulary = _VOCABULARIES[name]
    ranks_file = gzip.decompress((_FOLDER / f"{name}.tiktoken.gz").read_bytes())
    if hashlib.sha256(ranks_file).hexdigest() != vocabulary.sha256:
        raise VocabularyDamaged(name)
    fields = ranks_file.split()
    built = tiktoken.Encoding(
        name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=dict(zip(map(a2b_base64, fields[::2]), map(int, fields[1::2]), strict=True)),
        special_tokens=vocabulary.special,
    )
    return registry.ENCODINGS.setdefault(name, built)


def preload(names: Iterable[str] = tuple(_VOCABULARIES)) -> None:
    """Build the encodings now: called before workers are forked, so that they share the memory (~120 MB)."""
    for name in names:
        encoding(name)


def count_text(text: str, name: str) -> int:
    """Tokens of ``text`` in an encoding. Special tokens in it are text like any other."""
    encode = encoding(name).encode_ordinary
    if len(text) <= _SLICE_CHARACTERS:
        return len(encode(text))
    return sum(len(encode(text[start : start + _SLICE_CHARACTERS])) for start in range(0, len(text), _SLICE_CHARACTERS))


class Counter:
    """Counts prompts; remembers what it counted. One per process; may be used from several threads at once.

    Two generations instead of an order of use: a hit in the old one moves to the young one, and when the young one is
    full it becomes the old one. A hit costs one look-up, and what was used lately stays. A count is packed behind its
    text's length; a str keeps its hash, so that asking twice about one object costs one pass.
    """

    def __init__(self, *, cache_bytes_max: int = _CACHE_BYTES_MAX) -> None:
        self._generation_entries_max = max(1, cache_bytes_max // (2 * _ENTRY_BYTES))
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    @property
    def cache_bytes(self) -> int:
        """What the remembered counts take at most."""
        return (len(self._young) + len(self._old)) * _ENTRY_BYTES

    def count(self, prompt: Prompt, of: Family) -> int:
        """Input tokens that this prompt comes to, rarely less: texts x the family's factor, framing and media."""
        texts = prompt.texts
        name, young = of.encoding, self._young
        counted = characters = 0
        for text in texts:
            key = hash((name, text))
            packed = young.get(key)
            if packed is None or packed >> 32 != len(text):
                packed = self._sought(key, text, name)
            counted += packed & 0xFFFF_FFFF
            characters += packed >> 32
        tokens = of.scale(counted)
        # A text has at least as many bytes as characters: only above them is the byte bound worth its price.
        if tokens > characters:
            tokens = min(tokens, sum(len(text.encode("utf-8", "replace")) for text in texts))
        return tokens + prompt.framing_tokens + prompt.media_tokens

    def is_large(self, prompt: Prompt) -> bool:
        """True when there is so much text that encoding it would need a thread."""
        return sum(map(len, prompt.texts)) > _THREAD_CHARACTERS

    def bound(self, prompt: Prompt, of: Family) -> tuple[int, int]:
        """(Input tokens that this prompt cannot exceed, those that it may come to), without encoding it."""
        most = sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in prompt.texts)
        beside = prompt.framing_tokens + prompt.media_tokens
        return most + beside, min(most, of.scale(-(-most // BYTES_PER_TOKEN))) + beside

    def needs_thread(self, prompt: Prompt, of: Family) -> bool:
        """True when more text than ~50 KB would have to be encoded now."""
        if not self.is_large(prompt):
            return False
        left = _THREAD_CHARACTERS - sum(map(len, prompt.texts))
        for text in prompt.texts:
            key = hash((of.encoding, text))
            packed = self._young.get(key) or self._old.get(key)
            if packed is not None and packed >> 32 == len(text):
                left += len(text)
        return left < 0

    def _sought(self, key: int, text: str, name: str) -> int:
        """The length and the count of a text that is not among the young."""
        packed = self._old.get(key)
        if packed is None or packed >> 32 != len(text):
            packed = len(text) << 32 | count_text(text, name)
        if len(self._young) >= self._generation_entries_max:
            self._old, self._young = self._young, {}
        self._young[key] = packed
        return packed
