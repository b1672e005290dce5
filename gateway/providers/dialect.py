"""What all adapters do alike."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import orjson

from gateway.domain.usage import Usage
from gateway.errors import TollgateError
from gateway.providers import spelling
from gateway.providers.adapter import Call, Scanner
from gateway.providers.answers import WholeScanner
from gateway.providers.families import Family
from gateway.providers.rewriting import with_fields
from gateway.providers.spelling import Tightest


class Dialect:
    """The base of every adapter: which scanner follows an answer."""

    name: str
    route: str
    dialect: str
    upstream_path: str
    free: bool = False
    ANSWER_TEXT: ClassVar[re.Pattern[bytes]]  # group 1: a piece of visible output in a whole JSON answer

    def scanner(self, call: Call, *, content_type: str, input_tokens: int, family: Family) -> Scanner:
        """Follows an answer of this type; without a type, what was asked for is taken for granted."""
        if "event-stream" in content_type or (not content_type and call.stream):
            return self._stream_scanner(call, input_tokens, family)
        return WholeScanner(self.usage_of, self.ANSWER_TEXT, input_tokens, family, texts_of=self.texts_of)

    @staticmethod
    def usage_of(usage: dict[str, Any]) -> Usage | None:
        """Our kinds of tokens from a usage object of this dialect; None unless input and output are both there."""
        raise AssertionError("an adapter's own")

    def texts_of(self, answer: dict[str, Any]) -> list[str] | None:
        """The visible output of a whole answer; None where ``ANSWER_TEXT`` finds all of it."""
        return None

    def _stream_scanner(self, call: Call, input_tokens: int, family: Family) -> Scanner:
        raise AssertionError("an adapter's own")


class OpenAIDialect(Dialect):
    """How both OpenAI dialects spell what is ours."""

    dialect = "openai"

    def error_body(self, error: TollgateError, request_id: str) -> bytes:
        """``{"error":{message,type,param,code,…}}``."""
        return orjson.dumps(spelling.openai_error(error, request_id))

    def rate_limit_headers(self, tightest: Tightest, now_ms: int) -> dict[str, str]:
        """``x-ratelimit-*``."""
        return spelling.openai_limit_headers(tightest, now_ms)


def renamed(model: str | None) -> dict[str, Any]:
    """What every rewrite begins with: the model's name at its upstream, where that is another one."""
    return {} if model is None else {"model": model}


def spliced(call: Call, changes: dict[str, Any]) -> bytes:
    """The body with changed fields; the very same object when there is nothing to change."""
    return with_fields(call.body, call.fields, changes) if changes else call.body
