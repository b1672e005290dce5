"""POST /v1/messages/count_tokens: the provider's own count of an input. It produces nothing and costs nothing.

Source: https://docs.anthropic.com/en/api/messages-count-tokens
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.domain.usage import Exact, NotServed, Outcome, Usage
from gateway.providers.adapter import Call, Scanner
from gateway.providers.answers import WholeScanner
from gateway.providers.anthropic import AnthropicMessages
from gateway.providers.families import Family


class CountScanner(WholeScanner):
    """A whole answer is served, for nothing."""

    __slots__ = ()

    def outcome(self) -> Outcome:
        return Exact(Usage()) if self.complete else NotServed()


class AnthropicCount(AnthropicMessages):
    """The same body without an output."""

    name = "anthropic_count"
    route = "/v1/messages/count_tokens"
    upstream_path = "/v1/messages/count_tokens"
    free = True

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """Raises BadRequest."""
        return self.parse_count(body, headers)

    def scanner(self, call: Call, *, content_type: str, input_tokens: int, family: Family) -> Scanner:
        """Never a stream."""
        return CountScanner(self.usage_of, self.ANSWER_TEXT, input_tokens, family, texts_of=self.texts_of)
