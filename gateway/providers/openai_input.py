"""What an OpenAI request gives a model to read: texts to count, and bounds for the rest. Chat and Responses.

Rules
1. Nothing that costs tokens is left out: a part of a kind nobody knows counts as its own JSON.
2. One text per message part, so that a conversation's old turns are found in the counter's memory.

Source of the framing: OpenAI cookbook, "How to count tokens with tiktoken": 3 tokens per message and 1 per name, 3 for
the reply's opening; at most 12 more per tool.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import BadRequest
from gateway.providers import bodies, media
from gateway.providers.adapter import Prompt

_MESSAGE_TOKENS = 4  # with its role
_REPLY_TOKENS = 3
_TOOL_TOKENS = 12
_TOOLS_TOKENS = 20
_SERVER_TOOL_TOKENS = 1_500  # a tool that OpenAI describes to the model itself, at most
_PLAIN_TOOLS = frozenset({"function", "custom"})
_BESIDE_MESSAGES = frozenset({"tools", "functions", "response_format", "prediction", "web_search_options"})
_BESIDE_CONTENT = frozenset({"tool_calls", "function_call", "name", "refusal", "reasoning_content"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"})


def read_chat(fields: dict[str, Any], model: str) -> Prompt:
    """Raises BadRequest for what is no conversation."""
    reader = _Reader(model)
    if not _BESIDE_MESSAGES.isdisjoint(fields):
        reader.beside_messages(fields)
    reader.messages(bodies.messages_of(fields))
    return Prompt(tuple(reader.texts), reader.framing, reader.media)


def read_response(fields: dict[str, Any], model: str) -> Prompt:
    """``input`` (a string or items), ``instructions``, ``tools``, ``text.format``, ``prompt.variables``.

    Raises BadRequest.
    """
    reader = _Reader(model)
    reader.tools(bodies.list_of(fields, "tools"))
    reader.items(fields, "instructions")
    reader.items(fields, "input")
    shape = bodies.object_of(fields, "text").get("format")
    if isinstance(shape, dict) and "schema" in shape:
        reader.plain(shape)
    template = bodies.object_of(fields, "prompt")
    if template:
        reader.plain(template)
    return Prompt(tuple(reader.texts), reader.framing, reader.media)


def _no_items(name: str) -> BadRequest:
    return BadRequest("invalid_request", f"The field '{name}' must be a string or a list of items.", param=name)


class _Reader:
    def __init__(self, model: str) -> None:
        self._model = model
        self.texts: list[str] = []
        self.framing = _REPLY_TOKENS
        self.media = 0

    def plain(self, value: Any) -> None:
        """Anything that the model reads as a structure."""
        self.texts.append(bodies.as_text(value))
        self.framing += _TOOL_TOKENS

    def tools(self, tools: list[Any]) -> None:
        if tools:
            self.framing += _TOOLS_TOKENS
        for tool in tools:
            self.plain(tool)
            if (bodies.kind_of(tool) or "function") not in _PLAIN_TOOLS:
                self.framing += _SERVER_TOOL_TOKENS

    def beside_messages(self, fields: dict[str, Any]) -> None:
        """What a chat gives to read besides its conversation. Raises BadRequest."""
        self.tools(bodies.list_of(fields, "tools"))
        for function in bodies.list_of(fields, "functions"):
            self.plain(function)
        for name in ("response_format", "prediction"):
            if isinstance(fields.get(name), dict):
                self.plain(fields[name])
        if fields.get("web_search_options") is not None:
            self.framing += _SERVER_TOOL_TOKENS

    def messages(self, messages: list[dict[str, Any]]) -> None:
        """Chat messages, most of them a role and a text."""
        self.framing += _MESSAGE_TOKENS * len(messages)
        for message in messages:
            content = message.get("content")
            if type(content) is str:
                self.texts.append(content)
            else:
                self.parts(content)
            if not _BESIDE_CONTENT.isdisjoint(message):
                self._beside_content(message)

    def _beside_content(self, message: dict[str, Any]) -> None:
        for name in ("tool_calls", "function_call"):
            if message.get(name):
                self.texts.append(bodies.as_text(message[name]))
        for name in ("name", "refusal", "reasoning_content"):
            if isinstance(message.get(name), str):
                self.texts.append(message[name])
                self.framing += 1

    def items(self, fields: dict[str, Any], name: str) -> None:
        """A text, or a list of input items. Raises BadRequest."""
        given = fields.get(name)
        if isinstance(given, str):
            self.framing += _MESSAGE_TOKENS
            self.texts.append(given)
        elif isinstance(given, list):
            for item in given:
                if type(item) is not dict:
                    raise _no_items(name)
                self.item(item)
        elif given is not None:
            raise _no_items(name)

    def item(self, item: dict[str, Any]) -> None:
        """An input item of Responses: a message, or a call, an output, reasoning, as its own JSON but for its media."""
        self.framing += _MESSAGE_TOKENS
        kind = item.get("type") or "message"
        if kind == "message" and "content" in item:
            content = item["content"]
            if type(content) is str:
                self.texts.append(content)
            else:
                self.parts(content)
        elif kind == "function_call_output" or kind == "custom_tool_call_output":
            self.parts(item.get("output"))
        elif kind == "reasoning":
            self.parts(item.get("summary"))
            self.parts(item.get("content"))
            if isinstance(item.get("encrypted_content"), str):
                self.media += len(item["encrypted_content"]) // 4 + 1
        elif kind == "computer_call_output":
            self.part(item.get("output"))
        elif kind == "image_generation_call":
            self._image(item.get("result"), None)
        elif kind == "item_reference":
            self.media += media.DOCUMENT_TOKENS_UNSEEN // 10
        else:
            self.texts.append(bodies.as_text(item))

    def parts(self, content: Any) -> None:
        """A string, or a list of parts."""
        if type(content) is list:
            for part in content:
                self.part(part)
        elif content is not None:
            self.part(content)

    def part(self, part: Any) -> None:
        if type(part) is str:
            self.texts.append(part)
            return
        kind = bodies.kind_of(part)
        if kind in _TEXT_PARTS:
            text = part.get("refusal") if kind == "refusal" else part.get("text")
            self.texts.append(text if type(text) is str else bodies.as_text(part))
        elif kind in ("image_url", "input_image", "computer_screenshot"):
            self._image_part(part)
        elif kind == "input_audio":
            self._audio(part)
        elif kind in ("file", "input_file"):
            self._file(part["file"] if isinstance(part.get("file"), dict) else part)
        else:
            self.texts.append(bodies.as_text(part))

    def _image_part(self, part: dict[str, Any]) -> None:
        inner = part.get("image_url")
        if isinstance(inner, dict):
            self._image(inner.get("url"), inner.get("detail"))
        else:
            self._image(inner, part.get("detail"))

    def _image(self, url: Any, detail: Any) -> None:
        """``url`` is an address, a data URL or bare base64."""
        data = media.data_of_url(url) if isinstance(url, str) else None
        self.media += media.openai_image(self._model, data, detail)

    def _audio(self, part: dict[str, Any]) -> None:
        inner = part.get("input_audio")
        data = inner.get("data") if isinstance(inner, dict) else None
        self.media += media.audio(data) if isinstance(data, str) else media.DOCUMENT_TOKENS_UNSEEN

    def _file(self, part: dict[str, Any]) -> None:
        data = part.get("file_data")
        inline = (media.data_of_url(data) or data) if isinstance(data, str) else None
        self.media += media.document(inline)
