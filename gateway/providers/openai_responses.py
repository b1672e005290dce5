"""The OpenAI Responses dialect.

Rules
1. ``input_tokens`` includes cached tokens and those written to a cache: they are taken apart here.
2. A stream always reports usage, in the response of its last event: completed, incomplete or failed.
3. A background response is refused: its usage would be told to a later request, which is not metered.

Sources: https://platform.openai.com/docs/api-reference/responses, .../responses-streaming, types of the official SDK.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.domain.usage import AtLeast, Exact, NotServed, Outcome, Usage
from gateway.errors import BadRequest, TollgateError
from gateway.providers import bodies, spelling
from gateway.providers.adapter import Call, Scanner
from gateway.providers.answers import cached_in, part_in, tokens_in
from gateway.providers.dialect import OpenAIDialect, renamed, spliced
from gateway.providers.families import Family
from gateway.providers.openai_input import read_response
from gateway.providers.sse import StreamScanner

_DELTA = re.compile(rb'"delta"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)')
_TEXT = re.compile(rb'"(?:text|arguments|refusal)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)')
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d+)')
_FINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_CONTEXT_FIELDS = ("previous_response_id", "conversation")


def usage_of(usage: dict[str, Any]) -> Usage | None:
    """Our kinds from a usage object; None unless it has both input and output."""
    given, output = tokens_in(usage, "input_tokens"), tokens_in(usage, "output_tokens")
    if given is None or output is None:
        return None
    read, written = cached_in(part_in(usage, "input_tokens_details"), given)
    reasoning = 0
    if details := part_in(usage, "output_tokens_details"):
        reasoning = tokens_in(details, "reasoning_tokens") or 0
    return Usage(
        input=given - read - written,
        cache_read=read,
        cache_write=written,
        output=output,
        reasoning=min(output, reasoning),
    )


class ResponsesScanner(StreamScanner):
    """Follows a stream of response events."""

    NEEDLES: ClassVar[tuple[bytes, ...]] = (b'"response"', b'"error"')
    ENDS: ClassVar[tuple[bytes, ...]] = (b"response.completed", b"response.incomplete", b"response.failed")
    SERVED: ClassVar[tuple[bytes, ...]] = (b'"response.',)
    TEXT: ClassVar[re.Pattern[bytes]] = _DELTA

    __slots__ = ("_usage", "sequence_number")

    def __init__(self, input_tokens: int, of: Family) -> None:
        super().__init__(input_tokens, of)
        self._usage: Usage | None = None
        self.sequence_number = -1

    def _on_event(self, name: bytes, content: dict[str, Any]) -> None:
        kind = content.get("type")
        if kind == "error":
            self.failed = True
        elif kind in _FINAL:
            self.done = True
            self.failed = self.failed or kind == "response.failed"
            usage = usage_of(part_in(part_in(content, "response"), "usage"))
            self._usage = usage if usage is not None else self._usage

    def _on_giant(self, head: bytes, usage: dict[str, Any] | None) -> None:
        self.served = self.served or b'"response.' in head
        if any(end in head for end in self.ENDS):
            self.done = True
            self.failed = self.failed or b"response.failed" in head
            self._usage = usage_of(usage) if usage is not None else self._usage

    def _note(self, data: bytes) -> None:
        """The number of the last event."""
        at = data.rfind(b'"sequence_number"')
        number = _NUMBER.match(data, at) if at >= 0 else None
        if number is not None:
            self.sequence_number = int(number[1])

    def _outcome(self) -> Outcome:
        if self._usage is not None:
            return Exact(self._usage)
        visible = self.output_tokens_seen()
        if not self.served or (self.failed and not visible):
            return NotServed()
        return AtLeast(Usage(input=self.input_tokens, output=visible), self._counted_basis(visible))

    def next_number(self) -> int:
        """The sequence number of an event of our own."""
        self._digest()
        return self.sequence_number + 1


class OpenAIResponses(OpenAIDialect):
    """POST /v1/responses."""

    name = "openai_responses"
    route = "/v1/responses"
    upstream_path = "/responses"
    ANSWER_TEXT = _TEXT

    usage_of = staticmethod(usage_of)

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """Raises BadRequest."""
        fields, model = bodies.opened(body)
        if bodies.flag_of(fields, "background"):
            raise BadRequest(
                "field_not_allowed", "Background responses cannot be metered and are not served.", param="background"
            )
        unseen = [name for name in _CONTEXT_FIELDS if fields.get(name) is not None]
        if not fields.get("input") and not fields.get("prompt") and not unseen:
            raise BadRequest("invalid_request", "The field 'input' must not be empty.", param="input")
        return Call(
            model=model,
            stream=bodies.flag_of(fields, "stream"),
            prompt=read_response(fields, model),
            output_tokens_asked=bodies.tokens_of(fields, "max_output_tokens", least=1),
            output_floor=0,
            choices=1,
            body=body,
            fields=fields,
            extra={"context_unseen": unseen[0]} if unseen else {},
        )

    def rewrite(
        self, call: Call, *, model: str | None, output_tokens_max: int | None, output_field: str | None
    ) -> bytes:
        """The output bound is ``max_output_tokens``; ``output_field`` is for chat only."""
        changes = renamed(model)
        if output_tokens_max is not None:
            changes["max_output_tokens"] = output_tokens_max
        return spliced(call, changes)

    def _stream_scanner(self, call: Call, input_tokens: int, family: Family) -> Scanner:
        return ResponsesScanner(input_tokens, family)

    def error_event(self, error: TollgateError, request_id: str, scanner: Scanner | None = None) -> bytes:
        """``event: error``. The member ``error`` is what makes the SDK raise; the rest is the documented event."""
        inner = spelling.openai_error(error, request_id)["error"]
        number = scanner.next_number() if isinstance(scanner, ResponsesScanner) else 0
        event = {
            "type": "error",
            "sequence_number": number,
            "code": inner["code"],
            "message": inner["message"],
            "param": inner["param"],
            "error": inner,
        }
        return spelling.sse(event, "error")
