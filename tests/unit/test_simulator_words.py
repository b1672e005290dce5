"""The simulated models' text: its tokens are known at every cut."""

from __future__ import annotations

import pytest

from gateway.providers.tokens import encoding
from gateway.simulator.words import cycle

ENCODINGS = ("o200k_base", "cl100k_base")
# Short ones, ones that end inside a unit of several tokens, and more than one round of the cycle.
LENGTHS = (0, 1, 2, 3, 7, 24, 100, 1_000, 5_000, 12_345)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_passage_has_exactly_the_tokens_asked_for(name: str, tokens: int) -> None:
    for seed in (0, 1, 17, 95, 4_000_000_000):
        text = cycle(name).passage(seed, tokens).text
        assert len(encoding(name).encode_ordinary(text)) == tokens


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("step", [1, 2, 5, 40])
def test_pieces_join_to_the_text_and_say_how_many_tokens_were_reached(name: str, step: int) -> None:
    passage = cycle(name).passage(3, 300)
    so_far = ""
    for piece, reached in passage.pieces([*range(step, 300, step), 300]):
        so_far += piece
        assert len(encoding(name).encode_ordinary(so_far)) == reached
    assert so_far == passage.text
    assert reached == 300


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_text_has_scripts_and_emoji_of_several_bytes_and_no_leading_space(name: str) -> None:
    text = cycle(name).passage(0, 4_000).text
    assert not text.startswith(" ")
    assert any("぀" <= character <= "鿿" for character in text)
    assert any(character > "\uffff" for character in text)


def test_a_cycle_is_one_text_whatever_the_encoding() -> None:
    first, second = (cycle(name).passage(5, 200).text for name in ENCODINGS)
    shorter = min(len(first), len(second)) - 40  # the ends are filled up to the exact number of tokens
    assert first[:shorter] == second[:shorter]
