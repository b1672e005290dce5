"""The text that simulated models write: real words, some CJK and emoji, with a known number of tokens at every cut.

Rules
1. A *unit* is a piece of text that the tokenizers never merge with its neighbours (a word with its leading space, a
   full stop), so that the tokens of a run of units are the sum of their tokens.
2. The text is one long cycle of paragraphs; a passage starts at a paragraph and may go round as often as needed.

Not here: which model uses which encoding (``counting``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

import tiktoken

from gateway.providers.tokens import encoding


def _split(words: str) -> list[str]:
    return words.split()


_STARTERS = _split(
    "The This When With After Before Every Some Most People Today There Because While Then Here Its Many Both Each"
)
_WORDS = _split(
    "time year people way day man thing world life hand part child eye place work week case point company number group"
    " problem fact system program question government night water room mother area money story month lot right study"
    " book word business issue side kind head house service friend father power hour game line end member law car city"
    " community name president team minute idea body information back parent face others level office door health"
    " person art war history party result change morning reason research girl guy moment air teacher force"
    " education model"
    " gateway token answer stream river mountain light paper music garden window letter market street winter summer"
    " makes takes gives keeps finds knows wants comes goes sees looks uses works calls tries asks needs feels becomes"
    " small large early young important different public able bad good new first last long great little own old high"
    " quickly slowly often never always perhaps together again almost already into over under between through against"
)
# Each is a piece of its own for the tokenizers; some are several tokens, as in real answers.
_FOREIGN = ("世界", "東京", "モデル", "안녕하세요", "數據", "größer", "café", "мир", "naïve", "学習", "señor")
_EMOJI = ("🚀", "🎉", "🌍", "✨", "🧪")
_FILLER = " and"  # one token in every encoding: brings a passage to its exact length
_PARAGRAPHS = 96
_SEED = 20261120  # any; the same text in every process


def _units() -> tuple[list[str], list[int]]:
    """All units of one cycle, and the indexes of those that open a paragraph."""
    dice = Random(_SEED)  # noqa: S311  # text for tests, not a secret
    units: list[str] = []
    paragraphs: list[int] = []
    for _ in range(_PARAGRAPHS):
        paragraphs.append(len(units))
        sentences = dice.randint(3, 6)
        for sentence in range(sentences):
            starter = dice.choice(_STARTERS)
            units.append(starter if sentence == 0 else f" {starter}")
            for _ in range(dice.randint(5, 14)):
                roll = dice.random()
                pool = _WORDS if roll < 0.93 else _FOREIGN if roll < 0.98 else _EMOJI
                units.append(f" {dice.choice(pool)}")
            # A word before the full stop: after an emoji, the tokenizers would merge the two.
            units.append(f" {dice.choice(_WORDS)}")
            units.append(".\n\n" if sentence == sentences - 1 else ".")
    return units, paragraphs


@dataclass(frozen=True, slots=True)
class Passage:
    """A run of ``tokens`` tokens of one cycle, from unit ``start`` on."""

    cycle: Cycle
    start: int
    tokens: int

    @property
    def text(self) -> str:
        return self.cycle.between(self.start, 0, self.tokens)[0]

    def pieces(self, ends: Iterable[int]) -> Iterator[tuple[str, int]]:
        """The text cut near each of ``ends`` (tokens, ascending, the last one = all): (piece, tokens reached).

        A cut falls on the last unit boundary at most there, so a piece may be empty.
        """
        reached = 0
        for end in ends:
            piece, reached = self.cycle.between(self.start, reached, min(end, self.tokens), fill=end >= self.tokens)
            yield piece, reached


class Cycle:
    """The endless text, measured in one encoding."""

    def __init__(self, vocabulary: tiktoken.Encoding) -> None:
        units, self.paragraphs = _units()
        self._text = "".join(units)
        self._token_ends = [0]
        self._char_ends = [0]
        for unit in units:
            self._token_ends.append(self._token_ends[-1] + len(vocabulary.encode_ordinary(unit)))
            self._char_ends.append(self._char_ends[-1] + len(unit))
        self._tokens = self._token_ends[-1]

    def passage(self, seed: int, tokens: int) -> Passage:
        """The passage that ``seed`` opens, exactly ``tokens`` tokens long."""
        return Passage(self, self.paragraphs[seed % len(self.paragraphs)], tokens)

    def _boundary(self, start: int, tokens: int) -> tuple[int, int]:
        """The last unit boundary at most ``tokens`` after unit ``start``: (characters, tokens)."""
        base = self._token_ends[start]
        rounds, rest = divmod(base + tokens, self._tokens)
        unit = bisect_right(self._token_ends, rest) - 1
        return (
            rounds * len(self._text) + self._char_ends[unit],
            rounds * self._tokens + self._token_ends[unit] - base,
        )

    def between(self, start: int, after: int, until: int, *, fill: bool = True) -> tuple[str, int]:
        """Units of the tokens (after, until], and the tokens reached; ``fill`` reaches ``until`` exactly."""
        begin, _ = self._boundary(start, after)
        end, reached = self._boundary(start, until)
        size = len(self._text)
        rounds = begin // size
        text = self._text if end <= (rounds + 1) * size else self._text * (end // size - rounds + 1)
        piece = text[begin - rounds * size : end - rounds * size]
        return (piece + _FILLER * (until - reached), until) if fill else (piece, reached)


@cache
def cycle(encoding_name: str) -> Cycle:
    """The one text of this process in this encoding."""
    return Cycle(encoding(encoding_name))
