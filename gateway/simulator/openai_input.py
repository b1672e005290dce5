"""What OpenAI's routes accept, and the texts their models read.

Sources: https://platform.openai.com/docs/api-reference/chat/create, .../responses/create, .../embeddings/create,
.../completions/create; framing of 3 tokens per message as in OpenAI's cookbook "How to count tokens with tiktoken".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.simulator.answer import Ask
from gateway.simulator.problems import Problem, invalid

_IMAGE_TOKENS = 60  # what the smallest images cost: any published bound is above it
_FILE_TOKENS = 120
_REASONING_MODELS = ("gpt-5", "o1", "o3", "o4")
_REASONING_CHOICES_MAX = 128  # of n


def parse_chat(fields: Mapping[str, Any], _headers: Mapping[str, str]) -> Ask:
    """A request to ``/v1/chat/completions``. Raises Problem."""
    model = _model(fields)
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise invalid("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    if not messages:
        raise invalid(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    stream = fields.get("stream") is True
    options = fields.get("stream_options")
    if options is not None and not stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise invalid(message, param="stream_options")
    if "max_tokens" in fields and fields["max_tokens"] is not None and model.startswith(_REASONING_MODELS):
        raise invalid(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
            " instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    bound, bound_field = _bound(fields, "max_completion_tokens", "max_tokens")
    reader = _Reader()
    tools = _tools(fields, reader)
    for message in messages:
        if not isinstance(message, dict):
            raise invalid(
                "Invalid type for 'messages[0]': expected an object.", param="messages[0]", code="invalid_type"
            )
        reader.read(message.get("content"))
        for call in message.get("tool_calls") or ():
            reader.texts.append(orjson.dumps(call.get("function")).decode())
    return Ask(
        model=model,
        stream=stream,
        texts=reader.texts,
        messages=len(messages),
        media_tokens=reader.media_tokens,
        bound=bound,
        bound_field=bound_field,
        choices=_count(fields, "n"),
        tools=tools,
        tool_forced=fields.get("tool_choice") not in (None, "auto", "none"),
        include_usage=options.get("include_usage") if isinstance(options, dict) else None,
        echo={"obfuscation": not (isinstance(options, dict) and options.get("include_obfuscation") is False)},
    )


def parse_responses(fields: Mapping[str, Any], _headers: Mapping[str, str]) -> Ask:
    """A request to ``/v1/responses``. Raises Problem."""
    model = _model(fields)
    items = fields.get("input")
    if not isinstance(items, str | list) or not items:
        raise invalid("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    bound, bound_field = _bound(fields, "max_output_tokens")
    if bound is not None and bound < 16:
        raise invalid(
            f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got {bound}"
            " instead.",
            param="max_output_tokens",
            code="integer_below_min_value",
        )
    reader = _Reader()
    tools = _tools(fields, reader)
    reader.read(fields.get("instructions"))
    reader.read_items(items)
    return Ask(
        model=model,
        stream=fields.get("stream") is True,
        texts=reader.texts,
        messages=1 if isinstance(items, str) else len(items),
        media_tokens=reader.media_tokens,
        bound=bound,
        bound_field=bound_field,
        tools=tools,
        tool_forced=fields.get("tool_choice") not in (None, "auto", "none"),
        echo={
            "instructions": fields.get("instructions"),
            "max_output_tokens": bound,
            "metadata": fields.get("metadata") or {},
            "parallel_tool_calls": fields.get("parallel_tool_calls") is not False,
            "previous_response_id": fields.get("previous_response_id"),
            "temperature": fields.get("temperature", 1.0),
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": fields.get("tools") or [],
            "top_p": fields.get("top_p", 1.0),
            "user": fields.get("user"),
        },
    )


def parse_completions(fields: Mapping[str, Any], _headers: Mapping[str, str]) -> Ask:
    """A request to ``/v1/completions``. Raises Problem."""
    model = _model(fields)
    options = fields.get("stream_options")
    bound, bound_field = _bound(fields, "max_tokens")
    reader = _Reader()
    reader.read_items(fields.get("prompt") or "")
    prompts = fields.get("prompt")
    prompt_count = len(prompts) if isinstance(prompts, list) and prompts and isinstance(prompts[0], str) else 1
    return Ask(
        model=model,
        stream=fields.get("stream") is True,
        texts=reader.texts,
        media_tokens=reader.media_tokens,
        bound=16 if bound is None else bound,  # the API's own default
        bound_field=bound_field,
        choices=_count(fields, "n") * prompt_count,
        include_usage=options.get("include_usage") if isinstance(options, dict) else None,
    )


def parse_embeddings(fields: Mapping[str, Any], _headers: Mapping[str, str]) -> Ask:
    """A request to ``/v1/embeddings``; ``choices`` is the number of vectors. Raises Problem."""
    model = _model(fields)
    items = fields.get("input")
    if not isinstance(items, str | list) or not items:
        raise invalid("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    reader = _Reader()
    reader.read_items(items)
    many = isinstance(items, list) and not isinstance(items[0], int)
    echo = {"dimensions": fields.get("dimensions"), "encoding_format": fields.get("encoding_format")}
    return Ask(
        model=model,
        texts=reader.texts,
        media_tokens=reader.media_tokens,
        bound=0,
        choices=len(items) if many else 1,
        echo=echo,
    )


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise Problem(400, "invalid_request_error", "you must provide a model parameter")
    return model


def _bound(fields: Mapping[str, Any], *names: str) -> tuple[int | None, str | None]:
    for name in names:
        bound = fields.get(name)
        if bound is None:
            continue
        if isinstance(bound, bool) or not isinstance(bound, int):
            message = f"Invalid type for '{name}': expected an integer, but got something else instead."
            raise invalid(message, param=name, code="invalid_type")
        if bound < 1:
            message = f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {bound} instead."
            raise invalid(message, param=name, code="integer_below_min_value")
        return bound, name
    return None, None


def _count(fields: Mapping[str, Any], name: str) -> int:
    count = fields.get(name)
    if count is None:
        return 1
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _REASONING_CHOICES_MAX:
        raise invalid(f"Invalid '{name}': expected an integer from 1 to 128.", param=name, code="invalid_value")
    return count


def _tools(fields: Mapping[str, Any], reader: _Reader) -> tuple[str, ...]:
    names = []
    for tool in fields.get("tools") or ():
        if isinstance(tool, dict):
            reader.texts.append(orjson.dumps(tool).decode())
            function = tool.get("function")
            names.append(str((function if isinstance(function, dict) else tool).get("name", "")))
    return tuple(names)


class _Reader:
    """Collects what the model reads."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.media_tokens = 0

    def read_items(self, items: Any) -> None:
        """``input`` or ``prompt``: a text, texts, tokens, or the items of a conversation."""
        if isinstance(items, list) and items and isinstance(items[0], int):
            self.media_tokens += len(items)
        elif isinstance(items, list):
            for item in items:
                if isinstance(item, dict):
                    self._item(item)
                else:
                    self.read_items(item)
        else:
            self.read(items)

    def _item(self, item: dict[str, Any]) -> None:
        self.read(item.get("content"))
        for name in ("arguments", "output"):
            if isinstance(item.get(name), str):
                self.texts.append(item[name])

    def read(self, content: Any) -> None:
        """A string, or a list of content parts."""
        if isinstance(content, str):
            self.texts.append(content)
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, dict):
                    self._part(part)

    def _part(self, part: dict[str, Any]) -> None:
        kind = part.get("type")
        if kind in ("image_url", "input_image"):
            self.media_tokens += _IMAGE_TOKENS
        elif kind in ("file", "input_file", "input_audio"):
            self.media_tokens += _FILE_TOKENS
        elif isinstance(part.get("text"), str):
            self.texts.append(part["text"])
