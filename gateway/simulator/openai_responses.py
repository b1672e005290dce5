"""The Responses API: the JSON answer and the stream of numbered events.

Sources: https://platform.openai.com/docs/api-reference/responses/object and .../responses-streaming. The stream ends
with ``response.completed`` or ``response.incomplete``; there is no ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import orjson

from gateway.domain.usage import Usage
from gateway.simulator.answer import Answer, Event
from gateway.simulator.problems import Problem, openai_error

_OBFUSCATION = "0123456789abcdef"


def json_body(answer: Answer) -> bytes:
    """The whole answer."""
    return orjson.dumps(_response(answer, _final_status(answer), _items(answer)))


def events(answer: Answer) -> Iterator[Event]:
    """The stream: created, in_progress, each output item with its parts and deltas, then the final response."""
    numbers = count()
    output = 0
    for name in ("response.created", "response.in_progress"):
        yield _event(name, next(numbers), {"response": _response(answer, "in_progress", [])}, 0)
    for index, item in enumerate(_items(answer)):
        steps = _STEPS[item["type"]]
        for name, facts, produced, content in steps(answer, item):
            output = max(output, produced)
            yield _event(name, next(numbers), {"output_index": index, **facts}, output, content=content)
    status = _final_status(answer)
    final = {"response": _response(answer, status, _items(answer))}
    yield _event(f"response.{status}", next(numbers), final, answer.output)


_Step = tuple[str, dict[str, Any], int, bool]  # event, its facts, output tokens produced by then, carries content


def _reasoning_steps(answer: Answer, item: dict[str, Any]) -> Iterator[_Step]:
    """Thinking stays hidden: its item comes and goes without text."""
    yield "response.output_item.added", {"item": {**item, "summary": []}}, 0, False
    yield "response.output_item.done", {"item": item}, answer.reasoning, True


def _message_steps(answer: Answer, item: dict[str, Any]) -> Iterator[_Step]:
    where = {"item_id": item["id"], "content_index": 0}
    base = answer.reasoning
    yield "response.output_item.added", {"item": {**item, "status": "in_progress", "content": []}}, base, False
    yield "response.content_part.added", {**where, "part": {**item["content"][0], "text": ""}}, base, False
    produced = base
    for piece, tokens in answer.text_pieces():
        produced = base + tokens
        padding = _OBFUSCATION[len(piece) % 16 :]
        facts = {**where, "delta": piece, "logprobs": [], "obfuscation": padding}
        yield "response.output_text.delta", facts, produced, True
    done = {**where, "text": item["content"][0]["text"], "logprobs": []}
    yield "response.output_text.done", done, produced, False
    yield "response.content_part.done", {**where, "part": item["content"][0]}, produced, False
    yield "response.output_item.done", {"item": item}, produced, False


def _call_steps(answer: Answer, item: dict[str, Any]) -> Iterator[_Step]:
    where = {"item_id": item["id"]}
    base = produced = answer.output - answer.arguments_output
    yield "response.output_item.added", {"item": {**item, "status": "in_progress", "arguments": ""}}, base, False
    for piece, tokens in answer.argument_pieces():
        produced = base + tokens
        yield "response.function_call_arguments.delta", {**where, "delta": piece}, produced, True
    arguments = {**where, "arguments": item["arguments"]}
    yield "response.function_call_arguments.done", arguments, produced, False
    yield "response.output_item.done", {"item": item}, produced, False


_STEPS = {"reasoning": _reasoning_steps, "message": _message_steps, "function_call": _call_steps}


def _event(name: str, number: int, facts: dict[str, Any], output: int, *, content: bool = False) -> Event:
    data = orjson.dumps({"type": name, "sequence_number": number, **facts})
    return Event(b"event: %b\ndata: %b\n\n" % (name.encode(), data), output, content)


def error_event(problem: Problem, _request_id: str, events_before: int) -> bytes:
    """An error in the middle of a stream; nothing follows it. Flat as documented, nested as the API sends it."""
    error = openai_error(problem)
    flat = {"code": error["code"], "message": error["message"], "param": error["param"]}
    data = {"type": "error", "sequence_number": events_before, **flat, "error": error}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(data)


def giant_line(answer: Answer) -> tuple[bytes, bytes]:
    """What goes around a very long filling: a delta of no text with an endless obfuscation."""
    facts = {"type": "response.output_text.delta", "sequence_number": 0, "item_id": f"msg_{answer.serial:048d}"}
    facts |= {"output_index": 0, "content_index": 0, "delta": "", "logprobs": []}
    return b"event: response.output_text.delta\ndata: " + orjson.dumps(facts)[:-1] + b',"obfuscation":"', b'"}\n\n'


def _final_status(answer: Answer) -> str:
    return "incomplete" if answer.stop == "max_tokens" else "completed"


def _items(answer: Answer) -> list[dict[str, Any]]:
    """The output items as they end."""
    items: list[dict[str, Any]] = []
    status = _final_status(answer)
    if answer.reasoning:
        items.append({"id": f"rs_{answer.serial:048d}", "type": "reasoning", "summary": []})
    if answer.text is not None and answer.output > answer.reasoning:
        text = {"type": "output_text", "annotations": [], "logprobs": [], "text": answer.text.text}
        message = {"id": f"msg_{answer.serial:048d}", "type": "message", "status": status, "content": [text]}
        items.append({**message, "role": "assistant"})
    if answer.arguments is not None:
        call = {"id": f"fc_{answer.serial:048d}", "type": "function_call", "status": "completed"}
        items.append(
            {**call, "arguments": answer.arguments, "call_id": f"call_{answer.serial:024d}", "name": answer.tool}
        )
    return items


def _response(answer: Answer, status: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    final = status != "in_progress"
    return {
        "id": f"resp_{answer.serial:048d}",
        "object": "response",
        "created_at": answer.created_s,
        "status": status,
        "background": False,
        "completed_at": answer.created_s if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "max_tool_calls": None,
        "model": answer.ask.model,
        "output": items,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default" if final else "auto",
        "store": True,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "top_logprobs": 0,
        "truncation": "disabled",
        "usage": _usage(answer) if final and answer.usage_mode in (None, "zero") else None,
        **(answer.ask.echo or {}),
    }


def _usage(answer: Answer) -> dict[str, Any]:
    """Cached and cache-writing tokens are part of ``input_tokens``."""
    usage = Usage() if answer.usage_mode == "zero" else answer.usage
    return {
        "input_tokens": usage.input_total,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }
