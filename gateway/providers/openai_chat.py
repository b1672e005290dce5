"""The OpenAI Chat Completions dialect.

Rules
1. ``prompt_tokens`` includes cached tokens and those written to a cache: they are taken apart here.
2. A stream reports usage only when asked. We always ask (``stream_options.include_usage``); the extra chunk does not
   reach a client that did not ask itself.
3. Reasoning is part of ``completion_tokens``. Where a provider leaves it out, ``total_tokens`` still has it.

Sources: https://platform.openai.com/docs/api-reference/chat, .../chat-streaming, types of the official SDK (3.51).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import orjson

from gateway.domain.usage import AtLeast, Exact, NotServed, Outcome, Usage
from gateway.errors import BadRequest, TollgateError
from gateway.providers import bodies, spelling
from gateway.providers.adapter import Call, Scanner
from gateway.providers.answers import cached_in, part_in, tokens_in
from gateway.providers.dialect import OpenAIDialect, renamed, spliced
from gateway.providers.families import Family
from gateway.providers.openai_input import read_chat
from gateway.providers.sse import TAIL_BYTES_MAX, WHOLE, StreamScanner, event_data, events

_TEXT = re.compile(rb'"(?:content|arguments|reasoning_content|reasoning|refusal)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)')
_USAGE_KEY = b'_tokens"'  # prompt_, completion_, total_: in a usage object always, elsewhere only escaped
_OUTPUT_FIELDS = ("max_completion_tokens", "max_tokens")


def usage_of(usage: dict[str, Any]) -> Usage | None:
    """Our kinds from a usage object; None unless it has both prompt and completion tokens."""
    prompt, output = tokens_in(usage, "prompt_tokens"), tokens_in(usage, "completion_tokens")
    if prompt is None or output is None:
        return None
    read, written = cached_in(part_in(usage, "prompt_tokens_details"), prompt)
    reasoning = 0
    if details := part_in(usage, "completion_tokens_details"):
        reasoning = tokens_in(details, "reasoning_tokens") or 0
    unlisted = (tokens_in(usage, "total_tokens") or 0) - prompt - output
    if unlisted > 0:
        output += unlisted
        reasoning = max(reasoning, unlisted)
    return Usage(
        input=prompt - read - written,
        cache_read=read,
        cache_write=written,
        output=output,
        reasoning=min(output, reasoning),
    )


class ChatScanner(StreamScanner):
    """Follows a stream of chunks."""

    NEEDLES: ClassVar[tuple[bytes, ...]] = (_USAGE_KEY, b'"error"', b"[DONE]")
    ENDS: ClassVar[tuple[bytes, ...]] = (b"[DONE]",)
    SERVED: ClassVar[tuple[bytes, ...]] = (b'"choices"',)
    TEXT: ClassVar[re.Pattern[bytes]] = _TEXT

    __slots__ = ("_exact", "_usage")

    def __init__(self, choices: int, input_tokens: int, of: Family) -> None:
        super().__init__(input_tokens, of, choices=choices)
        self._usage: Usage | None = None
        self._exact = False

    def _on_event(self, name: bytes, content: dict[str, Any]) -> None:
        if content.get("error"):
            self.failed = True
        reported = content.get("usage")
        if not isinstance(reported, dict):
            return
        usage = usage_of(reported)
        if usage is not None:
            self._usage = usage
            self._exact = not content.get("choices")

    def _on_words(self, data: bytes) -> None:
        if data.startswith(b"[DONE]"):
            self.done = True

    def _on_giant(self, head: bytes, usage: dict[str, Any] | None) -> None:
        self.served = self.served or b'"choices"' in head
        found = usage_of(usage) if usage is not None else None
        if found is not None:
            self._usage = found

    def _outcome(self) -> Outcome:
        usage = self._usage
        if usage is not None and (self._exact or self.done):
            return Exact(usage)
        if usage is None and not self.served:
            return NotServed()
        visible = self.output_tokens_seen()
        if usage is not None:  # running totals in every chunk, and a cut: the larger of both
            output = max(visible, usage.output)
            return AtLeast(replace(usage, output=output), self._counted_basis(output))
        return AtLeast(Usage(input=self.input_tokens, output=visible), self._counted_basis(visible))


class HidingChatScanner(ChatScanner):
    """Follows a stream whose usage chunk is there because we asked for it: the client does not get it."""

    __slots__ = ()

    def feed(self, chunk: bytes) -> bytes:
        """As every scanner, with one more search per chunk."""
        if self._mid or _USAGE_KEY in chunk or not chunk.endswith(WHOLE):
            return self._feed_parts(chunk)
        tail = self._tail
        tail += chunk
        if len(tail) > TAIL_BYTES_MAX:
            self._digest()
        return chunk

    def _whole(self, data: bytes) -> bytes:
        super()._whole(data)
        self._hid_last = False
        if _USAGE_KEY not in data:
            return data
        kept = []
        for event in events(data):
            self._hid_last = _USAGE_KEY in event and _is_usage_chunk(event)
            # Blank lines before an event are not the event.
            kept.append(event[: len(event) - len(event.lstrip(b"\r\n"))] if self._hid_last else event)
        return b"".join(kept)


def _is_usage_chunk(event: bytes) -> bool:
    """The extra chunk: empty choices, a usage object, nothing else that a client may want."""
    try:
        content = orjson.loads(event_data(event)[1])
    except orjson.JSONDecodeError:
        return False
    return (
        isinstance(content, dict)
        and content.get("choices") == []
        and isinstance(content.get("usage"), dict)
        and not content.get("moderation")
        and not content.get("error")
    )


class OpenAIChat(OpenAIDialect):
    """POST /v1/chat/completions."""

    name = "openai_chat"
    route = "/v1/chat/completions"
    upstream_path = "/chat/completions"
    ANSWER_TEXT = _TEXT

    usage_of = staticmethod(usage_of)

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """Raises BadRequest."""
        fields, model = bodies.opened(body)
        stream = bodies.flag_of(fields, "stream")
        options = bodies.object_of(fields, "stream_options")
        return Call(
            model=model,
            stream=stream,
            prompt=read_chat(fields, model),
            output_tokens_asked=self._output_tokens(fields),
            output_floor=0,
            choices=bodies.choices_of(fields, "n", "best_of"),
            body=body,
            fields=fields,
            usage_hidden=stream and not bodies.flag_of(options, "include_usage"),
        )

    def _output_tokens(self, fields: dict[str, Any]) -> int | None:
        """The client's bound. Both fields at once are refused, as OpenAI does."""
        asked = bodies.tokens_of(fields, "max_completion_tokens", least=1)
        deprecated = bodies.tokens_of(fields, "max_tokens", least=1)
        if asked is None:
            return deprecated
        if deprecated is not None:
            raise BadRequest(
                "invalid_request", "Send max_completion_tokens or max_tokens, not both.", param="max_tokens"
            )
        return asked

    def rewrite(
        self, call: Call, *, model: str | None, output_tokens_max: int | None, output_field: str | None
    ) -> bytes:
        """The output bound goes into the field the client sent, else into ``output_field`` or max_completion_tokens."""
        changes = renamed(model)
        if output_tokens_max is not None:
            sent = next((name for name in _OUTPUT_FIELDS if call.fields.get(name) is not None), None)
            changes[sent or output_field or _OUTPUT_FIELDS[0]] = output_tokens_max
        if call.usage_hidden:
            options = call.fields.get("stream_options")
            changes["stream_options"] = {**(options or {}), "include_usage": True}
        return spliced(call, changes)

    def _stream_scanner(self, call: Call, input_tokens: int, family: Family) -> Scanner:
        kind = HidingChatScanner if call.usage_hidden else ChatScanner
        return kind(call.choices, input_tokens, family)

    def error_event(self, error: TollgateError, request_id: str, scanner: Scanner | None = None) -> bytes:
        """``data: {"error":…}``; the SDK raises APIError from it."""
        return spelling.sse(spelling.openai_error(error, request_id))
