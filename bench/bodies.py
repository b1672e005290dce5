"""The prompts that callers send: English of given sizes, the same in every run.

Each body has a run of sixteen ``@``, which the load generator replaces by a number that never repeats: the last turn
of a conversation is always new, while earlier turns are what a gateway may already have counted.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

MARKER = "@" * 16
MODEL = "gpt-5-mini"
OUTPUT_TOKENS = 200
WORDS = Path(__file__).with_name("words.txt").read_text().split()


def prose(size: int, seed: int) -> str:
    """About ``size`` bytes of English-looking sentences."""
    rng = random.Random(seed)
    sentences: list[str] = []
    length = 0
    while length < size:
        words = " ".join(rng.choices(WORDS, k=rng.randint(6, 18)))
        sentence = words.capitalize() + rng.choice([". ", ". ", "? ", ", "])
        sentences.append(sentence)
        length += len(sentence)
    return "".join(sentences)[:size]


def body(messages: list[tuple[str, str]], *, chunks: int = 0) -> bytes:
    """A chat completions call; with ``chunks``, streamed in that many."""
    call: dict[str, object] = {
        "model": MODEL,
        "messages": [{"role": role, "content": text} for role, text in messages],
        "max_tokens": chunks or OUTPUT_TOKENS,
    }
    if chunks:
        call |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(call, separators=(",", ":")).encode()


def short(*, chunks: int = 0) -> bytes:
    """1 KB: one question."""
    return body([("user", f"{MARKER} {prose(900, seed=1)}")], chunks=chunks)


def conversation() -> bytes:
    """20 KB: nine turns of 2.2 KB; only the last one is new."""
    turns = [("user" if turn % 2 == 0 else "assistant", prose(2200, seed=turn)) for turn in range(8)]
    return body([*turns, ("user", f"{MARKER} {prose(2200, seed=8)}")])


def long() -> bytes:
    """100 KB in one message, all of it new."""
    return body([("user", f"{MARKER} {prose(100_000, seed=2)}")])
