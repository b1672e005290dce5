"""The Messages API: what it accepts, its JSON answer, its stream of events.

Sources: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/docs/build-with-claude/streaming, and
for version 2026-10-21 https://docs.anthropic.com/en/api/versioning: sampling parameters are no longer accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.domain.usage import Usage
from gateway.simulator.answer import Answer, Ask, Event
from gateway.simulator.problems import Problem, invalid

VERSIONS = ("2023-06-01", "2026-10-21")
_REMOVED_IN_2026 = ("temperature", "top_p", "top_k")
_THINKING_BUDGET_LEAST = 1024
_IMAGE_TOKENS_MAX = 60  # below what any published formula gives for an ordinary image ...
_IMAGE_CHARACTERS_PER_TOKEN = 40  # ... and for a tiny one, by the size of its base64
_DOCUMENT_TOKENS = 120
_START_OUTPUT_TOKENS = 1  # message_start has seen next to nothing of the output


def parse(fields: Mapping[str, Any], headers: Mapping[str, str], *, counting: bool = False) -> Ask:
    """A request to ``/v1/messages``, or to ``count_tokens`` when ``counting``. Raises Problem."""
    version = headers.get("anthropic-version")
    if version is None:
        raise invalid("anthropic-version: header is required")
    if version not in VERSIONS:
        raise invalid(f"anthropic-version: {version!r} is not a valid version")
    required = ("model", "messages") if counting else ("model", "max_tokens", "messages")
    for name in required:
        if name not in fields:
            raise invalid(f"{name}: Field required")
    if version != "2023-06-01":
        for name in _REMOVED_IN_2026:
            if name in fields:
                raise invalid(f"{name}: Extra inputs are not permitted")
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise invalid("messages: at least one message is required")
    bound = None if counting else _bound(fields)
    reader = _Reader()
    # The conversation last: its newest turn is what the answer's text follows from.
    reader.read(fields.get("system"))
    tools = [tool for tool in fields.get("tools") or () if isinstance(tool, dict)]
    for tool in tools:
        reader.texts.append(orjson.dumps(tool).decode())
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise invalid("messages: Input should be a valid message")
        reader.read(message.get("content"))
    choice = fields.get("tool_choice")
    return Ask(
        model=str(fields["model"]),
        stream=fields.get("stream") is True,
        texts=reader.texts,
        messages=len(messages),
        media_tokens=reader.media_tokens,
        bound=bound,
        bound_field="max_tokens",
        thinking=_thinks(fields, bound),
        tools=tuple(str(tool.get("name", "")) for tool in tools),
        tool_forced=isinstance(choice, dict) and choice.get("type") in ("any", "tool"),
        cached_apart=True,
    )


def _bound(fields: Mapping[str, Any]) -> int:
    bound = fields["max_tokens"]
    if isinstance(bound, bool) or not isinstance(bound, int):
        raise invalid("max_tokens: Input should be a valid integer")
    if bound < 0:
        raise invalid("max_tokens: Input should be greater than or equal to 0")
    return bound


def _thinks(fields: Mapping[str, Any], bound: int | None) -> bool:
    """Whether thinking is on. Raises Problem where its budget does not fit."""
    thinking = fields.get("thinking")
    if not isinstance(thinking, dict):
        return False
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
        if not isinstance(budget, int) or budget < _THINKING_BUDGET_LEAST:
            raise invalid("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if bound is not None and bound <= budget:
            raise invalid(
                "`max_tokens` must be greater than `thinking.budget_tokens`. Please consult our documentation at"
                " https://docs.claude.com/en/docs/build-with-claude/extended-thinking#max-tokens-and-context-window-size"
            )
        return True
    return thinking.get("type") == "adaptive"


def _image_tokens(source: Any) -> int:
    data = source.get("data") if isinstance(source, dict) else None
    if not isinstance(data, str):
        return _IMAGE_TOKENS_MAX
    return min(_IMAGE_TOKENS_MAX, len(data) // _IMAGE_CHARACTERS_PER_TOKEN)


class _Reader:
    """Collects what the model reads."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.media_tokens = 0

    def read(self, content: Any) -> None:
        """A string, or a list of content blocks."""
        if isinstance(content, str):
            self.texts.append(content)
        elif isinstance(content, list):
            for block in content:
                if isinstance(block, dict):
                    self._block(block)

    def _block(self, block: dict[str, Any]) -> None:
        kind = block.get("type")
        if kind == "image":
            self.media_tokens += _image_tokens(block.get("source"))
        elif kind == "document":
            self._document(block.get("source"))
        elif kind == "tool_use":
            self.texts.append(orjson.dumps(block.get("input")).decode())
        elif kind == "tool_result":
            self.read(block.get("content"))
        else:
            text = block.get("text") or block.get("thinking")
            if isinstance(text, str):
                self.texts.append(text)

    def _document(self, source: Any) -> None:
        text = source.get("data") if isinstance(source, dict) and source.get("type") == "text" else None
        if isinstance(text, str):
            self.texts.append(text)
        else:
            self.media_tokens += _DOCUMENT_TOKENS


def message_id(serial: int) -> str:
    """A message's id; its shape as the API's."""
    return f"msg_01{serial:022d}"


def json_body(answer: Answer) -> bytes:
    """The whole answer."""
    content: list[dict[str, Any]] = []
    if answer.thought is not None:
        content.append({"type": "thinking", "thinking": answer.thought.text, "signature": _signature(answer.serial)})
    if answer.text is not None and answer.output:
        content.append({"type": "text", "text": answer.text.text})
    if answer.arguments is not None:
        content.append(_tool_block(answer, orjson.loads(answer.arguments)))
    message = _message(answer)
    message.update(content=content, stop_reason=answer.stop, usage=_usage(answer.usage))
    if answer.usage_mode in ("missing", "partial"):
        del message["usage"]
    elif answer.usage_mode == "zero":
        message["usage"] = _usage(Usage())
    return orjson.dumps(message)


def events(answer: Answer) -> Iterator[Event]:
    """The stream: message_start; per block start, deltas, stop; message_delta with cumulative usage; message_stop."""
    yield Event(_sse("message_start", {"type": "message_start", "message": _start_message(answer)}), 0, False)
    output = 0
    for index, (block, deltas) in enumerate(_blocks(answer)):
        yield Event(_sse_start(index, block), output, False)
        if index == 0:
            yield Event(b'event: ping\ndata: {"type": "ping"}\n\n', output, False)
        so_far = 0
        for kind, name, piece, so_far in deltas:
            data = b'{"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}' % (
                index, kind, name, orjson.dumps(piece),
            )  # fmt: skip
            content = kind != b"signature_delta"
            yield Event(b"event: content_block_delta\ndata: " + data + b"\n\n", output + so_far, content)
        output += so_far
        stop = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index
        yield Event(stop, output, False)
    yield Event(_sse("message_delta", _message_delta(answer)), answer.output, False)
    yield Event(b'event: message_stop\ndata: {"type":"message_stop"}\n\n', answer.output, False)


_Delta = tuple[bytes, bytes, str, int]  # type, field, value, reported tokens of this block so far


def _blocks(answer: Answer) -> Iterator[tuple[dict[str, Any], Iterator[_Delta]]]:
    """Each content block as it starts, and its deltas."""
    if answer.thought is not None:
        yield {"type": "thinking", "thinking": "", "signature": ""}, _thinking_deltas(answer)
    if answer.text is not None and answer.output:
        pieces = answer.text_pieces()
        yield {"type": "text", "text": ""}, ((b"text_delta", b"text", piece, tokens) for piece, tokens in pieces)
    if answer.arguments is not None:
        arguments = (
            (b"input_json_delta", b"partial_json", piece, tokens) for piece, tokens in answer.argument_pieces()
        )
        yield _tool_block(answer, {}), arguments


def _thinking_deltas(answer: Answer) -> Iterator[_Delta]:
    for piece, tokens in answer.thought_pieces():
        yield b"thinking_delta", b"thinking", piece, tokens
    yield b"signature_delta", b"signature", _signature(answer.serial), answer.reasoning


def error_event(problem: Problem, request_id: str, _: int) -> bytes:
    """An error in the middle of a stream."""
    error = {"type": problem.kind, "message": problem.message}
    return _sse("error", {"type": "error", "error": error, "request_id": request_id})


def giant_line(_: Answer) -> tuple[bytes, bytes]:
    """What goes around a very long filling: an event of a type nobody knows, which every client must skip."""
    return b'event: padding\ndata: {"type":"padding","padding":"', b'"}\n\n'


def _start_message(answer: Answer) -> dict[str, Any]:
    message = _message(answer)
    usage = _usage(answer.usage)
    usage["output_tokens"] = min(_START_OUTPUT_TOKENS, answer.output)
    usage.pop("output_tokens_details", None)
    if answer.usage_mode == "zero":
        usage = _usage(Usage())
    if answer.usage_mode != "missing":
        message["usage"] = usage
    return message


def _message_delta(answer: Answer) -> dict[str, Any]:
    """Cumulative, input kinds included. Source: streaming docs, "the token counts shown in usage are cumulative"."""
    usage = _usage(Usage() if answer.usage_mode == "zero" else answer.usage)
    for name in ("cache_creation", "service_tier"):
        del usage[name]
    delta: dict[str, Any] = {
        "type": "message_delta",
        "delta": {"stop_reason": answer.stop, "stop_sequence": None},
        "usage": usage,
    }
    if answer.usage_mode in ("missing", "partial"):
        del delta["usage"]
    return delta


def _message(answer: Answer) -> dict[str, Any]:
    return {
        "model": answer.ask.model,
        "id": message_id(answer.serial),
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    reported: dict[str, Any] = {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output,
        "service_tier": "standard",
    }
    if usage.reasoning:
        reported["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return reported


def _tool_block(answer: Answer, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_01{answer.serial:022d}", "name": answer.tool, "input": arguments}


def _signature(serial: int) -> str:
    return f"EqQBCkYIARgC{serial:032d}Ag=="


def _sse(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


def _sse_start(index: int, block: dict[str, Any]) -> bytes:
    return _sse("content_block_start", {"type": "content_block_start", "index": index, "content_block": block})


_MODELS = (
    ("claude-opus-5-5", "Claude Opus 5.5"),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5"),
    ("claude-sonnet-4-6", "Claude Sonnet 4.6"),
    ("claude-sonnet-4-5", "Claude Sonnet 4.5"),
    ("claude-haiku-4-5", "Claude Haiku 4.5"),
)


def models_body(only: str | None) -> bytes | None:
    """``GET /v1/models``, or one of them; None where there is no such model.

    Source: https://docs.anthropic.com/en/api/models-list
    """
    data = [
        {
            "type": "model",
            "id": model,
            "display_name": name,
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
        }
        for model, name in _MODELS
        if only in (None, model)
    ]
    if only is not None:
        return orjson.dumps(data[0]) if data else None
    return orjson.dumps({"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})
