"""The Anthropic Messages dialect, versions 2023-06-01 and 2026-10-21.

Rules
1. ``input_tokens`` excludes what was read from or written into a cache: the five kinds are disjoint as reported.
2. ``message_start`` reports the input, ``message_delta`` cumulative totals: a later number replaces an earlier one.
3. ``max_tokens`` may be 0 (it warms the cache). A clamp stays above ``thinking.budget_tokens``.

Sources: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/api/messages-count-tokens,
https://docs.anthropic.com/en/docs/build-with-claude/streaming, types of the official SDK (anthropic 2.10).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from gateway.domain.usage import AtLeast, Exact, NotServed, Outcome, Usage
from gateway.errors import BadRequest, TollgateError
from gateway.providers import bodies, spelling
from gateway.providers.adapter import Call, Scanner
from gateway.providers.answers import part_in, tokens_in
from gateway.providers.anthropic_input import read_prompt
from gateway.providers.dialect import Dialect, renamed, spliced
from gateway.providers.families import Family, family
from gateway.providers.spelling import Tightest
from gateway.providers.sse import StreamScanner

_TEXT = re.compile(rb'"(?:text|thinking|partial_json)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)')


def usage_of(usage: dict[str, Any]) -> Usage | None:
    """Our five kinds from a usage object; None unless it has both input and output."""
    fresh, output = tokens_in(usage, "input_tokens"), tokens_in(usage, "output_tokens")
    if fresh is None or output is None:
        return None
    written_5m = written_1h = thinking = 0
    if split := part_in(usage, "cache_creation"):
        written_5m = tokens_in(split, "ephemeral_5m_input_tokens") or 0
        written_1h = tokens_in(split, "ephemeral_1h_input_tokens") or 0
    if details := part_in(usage, "output_tokens_details"):
        thinking = tokens_in(details, "thinking_tokens") or 0
    written = tokens_in(usage, "cache_creation_input_tokens") or 0
    return Usage(
        input=fresh,
        cache_read=tokens_in(usage, "cache_read_input_tokens") or 0,
        cache_write_5m=written_5m,
        cache_write_1h=written_1h,
        cache_write=max(0, written - written_5m - written_1h),
        output=output,
        reasoning=min(output, thinking),
    )


class MessagesScanner(StreamScanner):
    """Follows a stream of message events."""

    NEEDLES: ClassVar[tuple[bytes, ...]] = (b'"usage"', b'"error"', b"message_stop")
    ENDS: ClassVar[tuple[bytes, ...]] = (b"message_stop",)
    SERVED: ClassVar[tuple[bytes, ...]] = (b"message_start", b"content_block_", b"message_delta")
    TEXT: ClassVar[re.Pattern[bytes]] = _TEXT

    __slots__ = ("reported", "started", "stopped")

    def __init__(self, input_tokens: int, of: Family) -> None:
        super().__init__(input_tokens, of)
        self.reported: dict[str, Any] = {}  # usage so far, later numbers over earlier ones
        self.started = False  # message_start went by
        self.stopped = False  # the final totals went by

    def _on_event(self, name: bytes, content: dict[str, Any]) -> None:
        match content.get("type"):
            case "message_start":
                self.started = True
                self._report(part_in(part_in(content, "message"), "usage"))
            case "message_delta":
                usage = part_in(content, "usage")
                self._report(usage)
                if tokens_in(usage, "output_tokens") is not None and part_in(content, "delta").get("stop_reason"):
                    self.stopped = True
            case "message_stop":
                self.done = True
            case "error":
                self.failed = True
            case _:
                self.failed = self.failed or name == b"error"

    def _report(self, usage: dict[str, Any]) -> None:
        self.reported.update((name, value) for name, value in usage.items() if value is not None)

    def _on_giant(self, head: bytes, usage: dict[str, Any] | None) -> None:
        if usage is not None and b"message_" in head:
            self._report(usage)

    def _outcome(self) -> Outcome:
        usage = usage_of(self.reported)
        if usage is not None and self.stopped:
            return Exact(usage)
        if not (self.served or self.started or self.stopped):
            return NotServed()
        visible = self.output_tokens_seen()
        # message_start has seen a token or two of the output: better than nothing, when nothing was visible.
        output = visible or tokens_in(self.reported, "output_tokens") or 0
        known = dict(self.reported) if "input_tokens" in self.reported else {"input_tokens": self.input_tokens}
        known["output_tokens"] = output
        counted = usage_of(known) or Usage(input=self.input_tokens, output=output)
        return AtLeast(counted, self._counted_basis(visible))


class AnthropicMessages(Dialect):
    """POST /v1/messages."""

    name = "anthropic"
    route = "/v1/messages"
    dialect = "anthropic"
    upstream_path = "/v1/messages"
    ANSWER_TEXT = _TEXT

    usage_of = staticmethod(usage_of)

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """Raises BadRequest."""
        fields, model = bodies.opened(body)
        return Call(
            model=model,
            stream=bodies.flag_of(fields, "stream"),
            prompt=read_prompt(fields, family(model)),
            output_tokens_asked=bodies.tokens_of(fields, "max_tokens", least=0),
            output_floor=self._floor(fields),
            choices=1,
            body=body,
            fields=fields,
        )

    def parse_count(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """A body of /v1/messages/count_tokens: the same without an output. Raises BadRequest."""
        fields, model = bodies.opened(body)
        return Call(
            model=model,
            stream=False,
            prompt=read_prompt(fields, family(model)),
            output_tokens_asked=0,
            output_floor=0,
            choices=1,
            body=body,
            fields=fields,
        )

    def _floor(self, fields: dict[str, Any]) -> int:
        """The thinking budget: max_tokens must stay above it.

        Source: https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
        """
        thinking = bodies.object_of(fields, "thinking")
        if thinking.get("type") != "enabled":
            return 0
        budget = thinking.get("budget_tokens")
        if type(budget) is not int or not 0 < budget <= bodies.TOKENS_MAX:
            raise BadRequest(
                "invalid_request", "thinking.budget_tokens must be a positive integer.", param="thinking.budget_tokens"
            )
        return budget

    def rewrite(
        self, call: Call, *, model: str | None, output_tokens_max: int | None, output_field: str | None
    ) -> bytes:
        """The body for the upstream; ``output_field`` has no other name here."""
        changes = renamed(model)
        if output_tokens_max is not None:
            changes["max_tokens"] = output_tokens_max
        return spliced(call, changes)

    def texts_of(self, answer: dict[str, Any]) -> list[str] | None:
        """Text and thinking, and the input of tool calls, which is no string here."""
        content = answer.get("content")
        if not isinstance(content, list):
            return None
        blocks = [block for block in content if isinstance(block, dict)]
        texts = [block[name] for block in blocks for name in ("text", "thinking") if isinstance(block.get(name), str)]
        return texts + [bodies.as_text(block["input"]) for block in blocks if block.get("input") is not None]

    def _stream_scanner(self, call: Call, input_tokens: int, family: Family) -> Scanner:
        return MessagesScanner(input_tokens, family)

    def error_body(self, error: TollgateError, request_id: str) -> bytes:
        return orjson.dumps(spelling.anthropic_error(error, request_id))

    def error_event(self, error: TollgateError, request_id: str, scanner: Scanner | None = None) -> bytes:
        """``event: error``; the SDK raises its status error from it."""
        return spelling.sse(spelling.anthropic_error(error, request_id), "error")

    def rate_limit_headers(self, tightest: Tightest, now_ms: int) -> dict[str, str]:
        return spelling.anthropic_limit_headers(tightest)
