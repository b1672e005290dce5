"""Counting: offline, never above the bytes, only what is new, bounded in memory."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from gateway.providers import families, tokens
from gateway.providers.adapter import Prompt
from gateway.providers.families import FAMILIES, Family, family
from gateway.providers.tokens import Counter
from tests.unit.providers.goldens import ADAPTERS

TEXTS = ["Hello, world", "こんにちは世界", "🚀🎉", "def f(x):\n    return x + 1\n", "<|endoftext|>", "", "größer " * 40]
every_family = pytest.mark.parametrize("of", FAMILIES.values(), ids=FAMILIES.keys())


class Encodes:
    """Counts the texts that were really encoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        count = tokens.count_text

        def counting(text: str, name: str) -> int:
            self.texts.append(text)
            return count(text, name)

        monkeypatch.setattr(tokens, "count_text", counting)


# --- offline -----------------------------------------------------------------------------------------------------

_OFFLINE = """
import os, socket, sys, tempfile
def refuse(*_, **__):
    raise AssertionError("the network was used")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
os.environ["TIKTOKEN_CACHE_DIR"] = tempfile.gettempdir() + "/there-is-nothing-here"
import tiktoken
from gateway.providers import tokens
tokens.preload()
for name in ("cl100k_base", "o200k_base"):
    assert tokens.encoding(name).decode(tokens.encoding(name).encode_ordinary("Hello 世界")) == "Hello 世界"
    assert tiktoken.get_encoding(name) is tokens.encoding(name)
assert "asyncio" not in sys.modules, "a sans-io package brought an event loop"
"""


def test_vocabularies_load_with_the_network_closed_and_nothing_cached() -> None:
    done = subprocess.run([sys.executable, "-c", _OFFLINE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_the_shipped_encodings_are_the_installed_tiktokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(_: str, expected_hash: str) -> dict[bytes, int]:
        asked.append(expected_hash)
        return {}

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", load)
    theirs: dict[str, Any] = getattr(openai_public, name)()
    ours = tokens._VOCABULARIES[name]
    assert (ours.pattern, ours.special) == (theirs["pat_str"], theirs["special_tokens"])
    assert asked == [ours.sha256]


def test_a_damaged_vocabulary_is_not_used(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    (tmp_path / "cl100k_base.tiktoken.gz").write_bytes(gzip.compress(b"IQ== 0\n"))
    monkeypatch.setattr(tokens, "_FOLDER", tmp_path)
    with pytest.raises(tokens.VocabularyDamaged):
        tokens.encoding.__wrapped__("cl100k_base")


# --- the bound ---------------------------------------------------------------------------------------------------


@every_family
@settings(derandomize=True, deadline=None, max_examples=60)
@given(texts=st.lists(st.text(max_size=60), max_size=4))
def test_a_prompt_never_has_more_tokens_than_bytes(of: Family, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    counted = Counter().count(Prompt(tuple(texts)), of)
    assert counted <= sum(len(text.encode()) for text in texts)
    assert counted >= sum(tokens.count_text(text, of.encoding) for text in texts)


@every_family
def test_a_count_is_the_encodings_times_the_factor_rounded_up(of: Family) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    plain = len(tokens.encoding(of.encoding).encode_ordinary(text))
    assert Counter().count(Prompt((text,), 7, 100), of) == -(-plain * of.factor_permille // 1000) + 107


def test_special_tokens_in_a_text_are_text() -> None:
    prompt = Prompt(("<|endoftext|><|fim_prefix|>",))
    assert Counter().count(prompt, families.OPENAI) > 5
    assert Counter().count(prompt, families.CLAUDE) > 5


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "^" * 300_000, "\r\n " * 100_000, "字" * 100_000])
def test_no_text_makes_counting_fail_or_blow_up(text: str) -> None:
    """tiktoken 0.14 alone panics on a million spaces."""
    for of in (families.CLAUDE, families.OPENAI):
        counted = Counter().count(Prompt((text,)), of)
        assert len(text) // 200 < counted <= len(text.encode())


def test_half_a_surrogate_pair_is_counted_like_anything_else() -> None:
    assert Counter().count(Prompt(("\ud800 x",)), families.OPENAI) > 0


# --- the memory --------------------------------------------------------------------------------------------------


def conversation(turns: int) -> bytes:
    said = [
        f'{{"role":"{"assistant" if turn % 2 else "user"}","content":"turn number {turn} says something"}}'
        for turn in range(turns)
    ]
    head = '"model":"claude-sonnet-4-5","max_tokens":9,"system":"Be kind."'
    tools = '"tools":[{"name":"t","input_schema":{"type":"object"}}]'
    return f'{{{head},{tools},"messages":[{",".join(said)}]}}'.encode()


def test_a_conversation_costs_its_new_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    encodes = Encodes(monkeypatch)
    counter = Counter()
    for turns in range(1, 30):
        call = ADAPTERS["anthropic"].parse(conversation(turns), {})
        encodes.texts.clear()
        counted = counter.count(call.prompt, family(call.model))
        assert counted == Counter().count(call.prompt, family(call.model))
        new = set(encodes.texts[: len(encodes.texts) - len(call.prompt.texts)])
        assert new == ({f"turn number {turns - 1} says something"} if turns > 1 else set(call.prompt.texts))


def test_each_encoding_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    encodes = Encodes(monkeypatch)
    counter, prompt = Counter(), Prompt(("größer",))
    for of in (families.OPENAI, families.CLAUDE, families.OPENAI, families.LLAMA):
        assert counter.count(prompt, of) == Counter().count(prompt, of)
    assert len(encodes.texts) == 4 + 2


def test_the_memory_is_bounded_in_bytes_and_keeps_what_was_used_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    encodes = Encodes(monkeypatch)
    counter = Counter(cache_bytes_max=160 * 200)
    often = Prompt(("asked for again and again",))
    for number in range(2_000):
        counter.count(Prompt((f"text {number}",)), families.OPENAI)
        counter.count(often, families.OPENAI)
        assert counter.cache_bytes <= 160 * 201
    assert encodes.texts.count("asked for again and again") == 1


def test_no_text_of_a_prompt_stays_in_memory() -> None:
    counter = Counter()
    counter.count(Prompt((f"a secret {'prompt'}",)), families.OPENAI)
    gc.collect()
    kept = list(counter._young.items())
    assert kept
    assert all(isinstance(key, int) and isinstance(value, int) for key, value in kept)


def test_a_remembered_count_takes_less_than_it_is_taken_for() -> None:
    counter = Counter()
    for number in range(5_000):
        counter.count(Prompt((f"text {number}",)), families.OPENAI)
    young = counter._young
    size = sys.getsizeof(young) + sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in young.items())
    assert size <= counter.cache_bytes


# --- off the loop ------------------------------------------------------------------------------------------------


def test_a_large_new_text_asks_for_a_thread_and_a_known_one_does_not() -> None:
    counter, of = Counter(), families.OPENAI
    small, large = Prompt(("word " * 9_000,)), Prompt(("word " * 6_000, "other " * 6_000))
    assert not counter.needs_thread(small, of)
    assert counter.needs_thread(large, of)
    counter.count(Prompt((large.texts[0],)), of)
    assert not counter.needs_thread(large, of)  # what is left to encode is small
    counter.count(large, of)
    assert not counter.needs_thread(Prompt(tuple(map(str, large.texts))), of)
    assert counter.needs_thread(large, families.CLAUDE)


# --- families ----------------------------------------------------------------------------------------------------

MODELS = {
    families.CLAUDE: "claude-2.1 claude-instant-1.2 claude-3-opus-20240229 claude-3-5-sonnet-latest"
    " claude-3-7-sonnet-20250219 claude-sonnet-4-20250514 claude-opus-4-1-20250805 claude-sonnet-4-5"
    " claude-haiku-4-5 claude-opus-4-6"
    " anthropic.claude-3-5-sonnet-20241022-v2:0 us.anthropic.claude-sonnet-4-20250514-v1:0 anthropic/claude-opus-4.6",
    families.CLAUDE_NEW: "claude-opus-4-7 claude-opus-4-8 claude-sonnet-5 claude-opus-5-5 claude-haiku-5-20260601"
    " anthropic/claude-opus-4.7 anthropic.claude-opus-4-7-v1:0 claude-sonnet-5@20260801 claude-mythos claude",
    families.OPENAI: "gpt-4o gpt-4o-mini gpt-4.1 gpt-4.5-preview gpt-5 gpt-5-mini gpt-5.4 gpt-6 o1 o3-mini o4-mini"
    " chatgpt-4o-latest codex-mini-latest openai/gpt-5 ft:gpt-4o-mini:acme gpt-oss-120b",
    families.OPENAI_OLD: "gpt-4 gpt-4-turbo gpt-4-0613 gpt-3.5-turbo gpt-35-turbo text-embedding-3-small",
    families.LLAMA: "llama-3.1-70b meta/llama3 Meta-Llama-3-8B",
    families.UNKNOWN: "mistral-large qwen3 deepseek-chat gemini-2.5-pro my-model",
}
NAMES = [(name, of) for of, names in MODELS.items() for name in names.split()]


@pytest.mark.parametrize(("name", "of"), NAMES, ids=[name for name, _ in NAMES])
def test_a_model_is_counted_by_its_family(name: str, of: Family) -> None:
    assert family(name) is of


def test_no_socket_is_opened_by_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for of in FAMILIES.values():
        assert Counter().count(Prompt(tuple(TEXTS)), of) > 0


@pytest.mark.parametrize("text", ["word " * 12_000, "Größe " * 12_000, "字" * 60_000])
def test_no_count_is_above_the_bound_by_bytes(text: str) -> None:
    counter, prompt = Counter(), Prompt((text,), framing_tokens=7, media_tokens=90)
    assert counter.is_large(prompt)
    for of in (families.OPENAI, families.CLAUDE):
        most, expected = counter.bound(prompt, of)
        assert counter.count(prompt, of) <= most == len(text.encode()) + 97
        assert 97 < expected < most
    assert not counter.is_large(Prompt(("word " * 9_000,)))
