"""What a Messages request gives a model to read: texts to count, and bounds for the rest.

Rules
1. Nothing that costs tokens is left out: a block of a kind nobody knows counts as its own JSON.
2. One text per message part, so that a conversation's old turns are found in the counter's memory.

Source of the framing: https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/overview (tokens of the tool use
system prompt, at most 530 over all models), .../computer-use and .../text-editor for their tools' own; message framing
as `count_tokens` reports it for one-word messages.
"""

from __future__ import annotations

from typing import Any

from gateway.providers import bodies, media
from gateway.providers.adapter import Prompt
from gateway.providers.families import Family

_BASE_TOKENS = 8
_MESSAGE_TOKENS = 4
_BLOCK_TOKENS = 2
_TOOLS_TOKENS = 530
_SERVER_TOOL_TOKENS = 1_500  # each tool that Anthropic describes to the model itself, at most
_NESTING_MAX = 8  # of blocks within blocks
_BESIDE_MESSAGES = frozenset({"tools", "system", "output_config", "output_format", "mcp_servers"})
_TEXT_FIELDS = {"text": "text", "thinking": "thinking", "redacted_thinking": "data"}


def read_prompt(fields: dict[str, Any], of: Family) -> Prompt:
    """Raises BadRequest for what is no conversation."""
    reader = _Reader(of)
    if not _BESIDE_MESSAGES.isdisjoint(fields):
        reader.beside_messages(fields)
    messages = bodies.messages_of(fields)
    reader.framing += _MESSAGE_TOKENS * len(messages)
    for message in messages:
        content = message.get("content")
        if type(content) is str:
            reader.texts.append(content)
        else:
            reader.content(content, 0)
    return Prompt(tuple(reader.texts), reader.framing, reader.media)


class _Reader:
    def __init__(self, of: Family) -> None:
        self._family = of
        self.texts: list[str] = []
        self.framing = _BASE_TOKENS
        self.media = 0

    def beside_messages(self, fields: dict[str, Any]) -> None:
        """Raises BadRequest."""
        for tool in bodies.list_of(fields, "tools"):
            self.tool(tool)
        system = fields.get("system")
        if system is not None:
            self.content(system, 0)
        shape = bodies.object_of(fields, "output_config").get("format") or fields.get("output_format")
        if shape:
            self.texts.append(bodies.as_text(shape))
        if fields.get("mcp_servers"):
            self.framing += _SERVER_TOOL_TOKENS

    def tool(self, tool: Any) -> None:
        """A tool of the client's own is its definition; one of Anthropic's is described to the model by Anthropic."""
        if not self.texts:
            self.framing += _TOOLS_TOKENS
        self.texts.append(bodies.as_text(tool))
        if bodies.kind_of(tool) not in (None, "custom"):
            self.framing += _SERVER_TOOL_TOKENS

    def content(self, content: Any, nesting: int) -> None:
        """A string, or a list of blocks."""
        if type(content) is str:
            self.texts.append(content)
        elif type(content) is list:
            for block in content:
                self.block(block, nesting)
        elif content is not None:
            self.texts.append(bodies.as_text(content))

    def block(self, block: Any, nesting: int) -> None:
        kind = bodies.kind_of(block)
        self.framing += _BLOCK_TOKENS
        text = block.get(_TEXT_FIELDS[kind]) if kind in _TEXT_FIELDS else None
        if type(text) is str:
            self.texts.append(text)
        elif kind == "image":
            self.media += media.claude_image(self._family, _inline(block))
        elif kind == "document":
            self._document(block, nesting)
        elif kind == "tool_use":
            self.texts.append(f"{block.get('name')}{bodies.as_text(block.get('input'))}")
        elif kind == "tool_result" and nesting < _NESTING_MAX:
            self.content(block.get("content"), nesting + 1)
        else:
            self.texts.append(bodies.as_text(block))

    def _document(self, block: dict[str, Any], nesting: int) -> None:
        for name in ("title", "context"):
            if isinstance(block.get(name), str):
                self.texts.append(block[name])
        source = block.get("source")
        source = source if isinstance(source, dict) else {}
        kind, data = source.get("type"), source.get("data")
        if kind == "text" and isinstance(data, str):
            self.texts.append(data)
        elif kind == "content" and nesting < _NESTING_MAX:
            self.content(source.get("content"), nesting + 1)
        else:
            self.media += media.document(_inline(block))


def _inline(block: dict[str, Any]) -> str | None:
    """The base64 of an inline source; None for an address or a file id."""
    source = block.get("source")
    data = source.get("data") if isinstance(source, dict) and source.get("type") == "base64" else None
    return data if isinstance(data, str) else None
