"""Chat Completions: the JSON answer and the stream of chunks.

Sources: https://platform.openai.com/docs/api-reference/chat/object and .../chat-streaming: the usage chunk has empty
choices and comes only when ``stream_options.include_usage`` asks for it (all other chunks then say ``"usage": null``).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import orjson

from gateway.domain.usage import Usage
from gateway.simulator.answer import Answer, Event
from gateway.simulator.problems import Problem, openai_error

FINISH_REASONS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
_OBFUSCATION = "0123456789abcdef"
DONE = b"data: [DONE]\n\n"


def json_body(answer: Answer) -> bytes:
    """The whole answer."""
    completion = _head(answer, "chat.completion")
    completion["choices"] = [_choice(answer, index) for index in range(answer.ask.choices)]
    if answer.usage_mode is None or answer.usage_mode == "zero":
        completion["usage"] = usage_fields(answer)
    completion["service_tier"] = "default"
    completion["system_fingerprint"] = "fp_5imulat0r0"
    return orjson.dumps(completion)


def _choice(answer: Answer, index: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text.text if answer.text is not None else None,
        "refusal": None,
        "annotations": [],
    }
    if answer.arguments is not None:
        message["tool_calls"] = [_tool_call(answer, index, answer.arguments)]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": FINISH_REASONS[answer.stop]}


def _tool_call(answer: Answer, index: int, arguments: str) -> dict[str, Any]:
    function = {"name": answer.tool, "arguments": arguments}
    return {"id": f"call_{answer.serial:020d}{index:04d}", "type": "function", "function": function}


def events(answer: Answer) -> Iterator[Event]:
    """The stream: a role chunk per choice, content, finish reasons, the usage chunk if asked for, [DONE]."""
    ask = answer.ask
    head = orjson.dumps(_head(answer, "chat.completion.chunk"))[:-1]
    head = b"data: " + head + b',"service_tier":"default","system_fingerprint":"fp_5imulat0r0"'
    tail = b',"usage":null' if ask.include_usage else b""
    padded = bool(ask.echo and ask.echo.get("obfuscation"))
    output = answer.reasoning * ask.choices  # thought before the first visible token
    for index in range(ask.choices):
        role = b'{"role":"assistant","content":"","refusal":null}'
        yield Event(_chunk(head, index, role, b"null", tail, padded), output, False)
    so_far = [answer.reasoning] * ask.choices
    lanes = [_deltas(answer, index) for index in range(ask.choices)]
    # The choices of one request are produced together: their chunks come interleaved.
    for row in zip_longest(*lanes):
        for index, step in enumerate(row):
            if step is not None:
                delta, so_far[index] = step
                yield Event(_chunk(head, index, delta, b"null", tail, padded), sum(so_far), True)
    output = answer.output * ask.choices
    finish = b'"%b"' % FINISH_REASONS[answer.stop].encode()
    for index in range(ask.choices):
        yield Event(_chunk(head, index, b"{}", finish, tail, padded), output, False)
    if ask.include_usage and answer.usage_mode in (None, "zero"):
        usage = orjson.dumps(usage_fields(answer))
        yield Event(head + b',"choices":[],"usage":' + usage + _padding(padded, 7) + b"}\n\n", output, False)
    yield Event(DONE, output, False)


def _deltas(answer: Answer, index: int) -> Iterator[tuple[bytes, int]]:
    """One choice: (delta, tokens produced so far, thinking included)."""
    done = answer.reasoning
    if answer.text is not None and answer.output > answer.reasoning:
        for piece, tokens in answer.text_pieces():
            yield b'{"content":%b}' % orjson.dumps(piece), answer.reasoning + tokens
        done += answer.visible_output
    if answer.arguments is not None:
        opening = {"index": 0, **_tool_call(answer, index, "")}
        yield b'{"tool_calls":[%b]}' % orjson.dumps(opening), done
        for piece, tokens in answer.argument_pieces():
            yield b'{"tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % orjson.dumps(piece), done + tokens


def _chunk(head: bytes, index: int, delta: bytes, finish: bytes, tail: bytes, padded: bool) -> bytes:
    choice = b',"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]' % (index, delta, finish)
    return head + choice + tail + _padding(padded, len(delta)) + b"}\n\n"


def _padding(padded: bool, seed: int) -> bytes:
    """``obfuscation`` evens out the sizes of chunks; its length varies."""
    return b',"obfuscation":"%b"' % _OBFUSCATION[seed % 16 :].encode() if padded else b""


def error_event(problem: Problem, _request_id: str, _events: int) -> bytes:
    """An error in the middle of a stream; nothing follows it."""
    return b"data: %b\n\n" % orjson.dumps({"error": openai_error(problem)})


def giant_line(answer: Answer) -> tuple[bytes, bytes]:
    """What goes around a very long filling: a chunk with an endless obfuscation."""
    head = orjson.dumps(_head(answer, "chat.completion.chunk"))[:-1]
    choice = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":null}]'
    return b"data: " + head + choice + b',"obfuscation":"', b'"}\n\n'


def usage_fields(answer: Answer) -> dict[str, Any]:
    """``usage`` as Chat Completions and Completions report it: cached tokens are part of the prompt's."""
    usage = Usage() if answer.usage_mode == "zero" else answer.usage
    prompt_details: dict[str, int] = {"cached_tokens": usage.cache_read, "audio_tokens": 0}
    if usage.cache_write:
        prompt_details["cache_write_tokens"] = usage.cache_write
    return {
        "prompt_tokens": usage.input_total,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answer.serial:029d}",
        "object": kind,
        "created": answer.created_s,
        "model": answer.ask.model,
    }
