"""What providers report becomes our five kinds of tokens, and nothing is made of what they do not report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.domain.usage import AtLeast, Basis, Exact, NotServed, Usage
from gateway.providers import anthropic, openai_chat, openai_responses
from gateway.providers.families import family
from tests.unit.providers.goldens import ADAPTERS, call_of, run

Report = dict[str, Any]

ANTHROPIC: list[tuple[Report, Usage | None]] = [
    ({"input_tokens": 5, "output_tokens": 7}, Usage(input=5, output=7)),
    ({"input_tokens": 0, "output_tokens": 0}, Usage()),
    # cached tokens are apart from input; a lifetime that is not named is one of its own
    (
        {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 30},
        Usage(input=5, output=7, cache_read=100, cache_write=30),
    ),
    (
        {
            "input_tokens": 5,
            "output_tokens": 7,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        },
        Usage(input=5, output=7, cache_write_5m=10, cache_write_1h=20),
    ),
    (
        {"input_tokens": 5, "output_tokens": 7, "cache_creation": {"ephemeral_1h_input_tokens": 20}},
        Usage(input=5, output=7, cache_write_1h=20),
    ),
    # thinking is a part of output, never more than it
    (
        {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 6}},
        Usage(input=5, output=7, reasoning=6),
    ),
    (
        {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 60}},
        Usage(input=5, output=7, reasoning=7),
    ),
    # no report
    ({}, None),
    ({"input_tokens": 5}, None),
    ({"output_tokens": 7}, None),
    ({"input_tokens": None, "output_tokens": 7}, None),
    ({"input_tokens": -5, "output_tokens": 7}, None),
    ({"input_tokens": 5, "output_tokens": 7.5}, None),
    ({"input_tokens": 5, "output_tokens": "7"}, None),
    ({"input_tokens": True, "output_tokens": 7}, None),
    ({"input_tokens": 5, "output_tokens": 2**60}, None),
    # a part that is no number is no part
    ({"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": -1}, Usage(input=5, output=7)),
    ({"input_tokens": 5, "output_tokens": 7, "cache_creation": "x", "output_tokens_details": []}, Usage(5, output=7)),
]


@pytest.mark.parametrize(("reported", "usage"), ANTHROPIC)
def test_an_anthropic_report(reported: Report, usage: Usage | None) -> None:
    assert anthropic.usage_of(reported) == usage


def chat(prompt: Any, completion: Any, total: Any = None, **details: Any) -> Report:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion if total is None else total,
        **details,
    }


CHAT: list[tuple[Report, Usage | None]] = [
    (chat(5, 7), Usage(input=5, output=7)),
    (chat(0, 0), Usage()),
    # cached and written tokens are in the prompt's: taken apart
    (
        chat(100, 7, prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 30, "audio_tokens": 3}),
        Usage(input=10, cache_read=60, cache_write=30, output=7),
    ),
    (chat(100, 7, prompt_tokens_details={"cached_tokens": 160}), Usage(input=0, cache_read=100, output=7)),
    (
        chat(100, 7, prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 60}),
        Usage(input=0, cache_read=60, cache_write=40, output=7),
    ),
    (chat(5, 70, completion_tokens_details={"reasoning_tokens": 60}), Usage(input=5, output=70, reasoning=60)),
    # a provider that leaves reasoning out of completion_tokens has it in the total
    (
        chat(5, 10, 75, completion_tokens_details={"reasoning_tokens": 60}),
        Usage(input=5, output=70, reasoning=60),
    ),
    (chat(5, 10, 75), Usage(input=5, output=70, reasoning=60)),
    (chat(5, 10, 3), Usage(input=5, output=10)),
    ({"prompt_tokens": 5, "completion_tokens": 7}, Usage(input=5, output=7)),
    (chat(5, 7, prompt_tokens_details=None, completion_tokens_details=None), Usage(input=5, output=7)),
    ({"prompt_tokens": 5}, None),
    ({"prompt_tokens": -5, "completion_tokens": 7}, None),
    ({"prompt_tokens": 5, "completion_tokens": None}, None),
]


@pytest.mark.parametrize(("reported", "usage"), CHAT)
def test_a_chat_report(reported: Report, usage: Usage | None) -> None:
    assert openai_chat.usage_of(reported) == usage


RESPONSES: list[tuple[Report, Usage | None]] = [
    ({"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}, Usage(input=5, output=7)),
    (
        {
            "input_tokens": 100,
            "input_tokens_details": {
                "cached_tokens": 60,
                "cache_write_tokens": 30,
                "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 20},
            },
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 5},
        },
        Usage(input=10, cache_read=60, cache_write=30, output=7, reasoning=5),
    ),
    ({"input_tokens": 5}, None),
    ({"input_tokens": 5, "output_tokens": -1}, None),
]


@pytest.mark.parametrize(("reported", "usage"), RESPONSES)
def test_a_responses_report(reported: Report, usage: Usage | None) -> None:
    assert openai_responses.usage_of(reported) == usage


# --- whole answers -----------------------------------------------------------------------------------------------


def outcome_of(dialect: str, body: bytes, content_type: str = "application/json") -> Any:
    call = call_of(dialect, "gpt-5", stream=False)
    scanner = ADAPTERS[dialect].scanner(call, content_type=content_type, input_tokens=11, family=family("gpt-5"))
    assert run(scanner, [body[:10], body[10:]]) == body
    return scanner.outcome()


@pytest.mark.parametrize("dialect", list(ADAPTERS))
def test_a_200_that_is_an_error_is_not_served(dialect: str) -> None:
    body = b'{"error": {"message": "The model is overloaded", "code": 529}}'
    assert outcome_of(dialect, body) == NotServed()


@pytest.mark.parametrize("dialect", list(ADAPTERS))
def test_an_answer_that_nobody_can_read_is_estimated_by_its_bytes(dialect: str) -> None:
    outcome = outcome_of(dialect, b"<html>" + b"x" * 394, "text/html")
    assert outcome == AtLeast(Usage(input=11, output=100), Basis.ESTIMATED)


@pytest.mark.parametrize("dialect", list(ADAPTERS))
def test_a_large_answer_reports_the_usage_at_its_end(dialect: str) -> None:
    usage = {
        "anthropic": {"input_tokens": 3, "output_tokens": 4},
        "openai_chat": {"prompt_tokens": 3, "completion_tokens": 4},
        "openai_responses": {"input_tokens": 3, "output_tokens": 4},
    }[dialect]
    text = '"usage": {"input_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0, "output_tokens": 0} ' * 30_000
    body = json.dumps({"content": text, "usage": usage, "model": "m"}).encode()
    assert len(body) > 2_000_000
    assert outcome_of(dialect, body) == Exact(Usage(input=3, output=4))
    nothing = outcome_of(dialect, json.dumps({"content": text}).encode())
    assert isinstance(nothing, AtLeast)
    assert nothing.basis is Basis.ESTIMATED
    assert nothing.usage.output > 100_000


def test_without_usage_an_answers_text_and_tool_calls_are_counted() -> None:
    tool = {"name": "f", "arguments": '{"city": "New York"}'}
    message = {"role": "assistant", "content": "Hello there", "tool_calls": [{"function": tool}]}
    outcome = outcome_of("openai_chat", json.dumps({"choices": [{"message": message}]}).encode())
    assert outcome == AtLeast(Usage(input=11, output=2 + 7), Basis.COUNTED)
    content = [{"type": "text", "text": "Hello"}, {"type": "tool_use", "name": "f", "input": {"city": "New York"}}]
    outcome = outcome_of("anthropic", json.dumps({"content": content}).encode())
    assert isinstance(outcome, AtLeast)
    assert outcome.usage.output >= 6


def test_the_type_of_an_answer_counts_and_not_what_was_asked_for() -> None:
    stream = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n'
    assert outcome_of("openai_chat", stream, "text/event-stream") == Exact(Usage(input=3, output=4))
    call = call_of("openai_chat", "gpt-5", stream=True)
    scanner = ADAPTERS["openai_chat"].scanner(
        call, content_type="application/json", input_tokens=1, family=family("gpt-5")
    )
    run(scanner, [b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'])
    assert scanner.outcome() == Exact(Usage(input=3, output=4))
