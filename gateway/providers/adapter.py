"""What a dialect must know, sans-io: bytes in, facts out.

Rules
1. No socket, no loop, no clock. A scanner is fed what arrived, in whatever pieces, and must give the same bytes
   and the same usage for every way of cutting them.
2. Client bytes = upstream bytes, except the rewrites that a ``Rewrite`` or a hidden usage chunk documents.
3. ``parse`` is the only place where a client's body is judged; it raises ``errors.BadRequest`` with its ``code`` and
   ``param``.

Not here: prices, plans, quota, HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Protocol

from gateway.domain.usage import Outcome
from gateway.errors import TollgateError
from gateway.providers.families import Family
from gateway.providers.spelling import Tightest
from limits.values import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model will read. ``texts`` are counted one by one (so that a conversation costs its new turn)."""

    texts: tuple[str, ...]
    framing_tokens: int = 0  # role markers, tool wrappers: the documented overhead
    media_tokens: int = 0  # upper bounds of images and documents, by the providers' published formulas


@dataclass(slots=True)
class Call:
    """One parsed request. ``body`` is as received; ``fields`` its JSON, which ``rewrite`` may read but never edits."""

    model: str
    stream: bool
    prompt: Prompt
    output_tokens_asked: int | None  # the client's own bound per choice; None = it named none
    output_floor: int  # tokens that a clamp must stay above (thinking budget); 0 = none
    choices: int  # n, best_of: how many outputs the bound multiplies
    body: bytes
    fields: dict[str, Any]
    usage_hidden: bool = False  # include_usage was injected: the extra chunk must not reach the client
    extra: dict[str, Any] = field(default_factory=dict)  # dialect's own notes


class Scanner(Protocol):
    """Follows one answer. Exactly one of ``outcome``'s variants describes it at any time."""

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived, give what the client gets (the same object unless something must be hidden)."""

    def finish(self) -> bytes:
        """The upstream ended in order: give what was still held back."""

    def outcome(self) -> Outcome:
        """What is known now about the usage. Before any output byte: NotServed."""

    failed: bool  # the upstream ended it with an error event of its own; true once ``outcome`` was asked

    @property
    def complete(self) -> bool:
        """The dialect's own end was seen (message_stop, [DONE], response.completed, a whole JSON body)."""

    def event_boundary(self) -> bool:
        """True between two events: the place where our own error or end may be written."""

    def output_tokens_seen(self) -> int:
        """Tokens of the output that could be seen so far, by our own count."""


class Adapter(Protocol):
    name: str  # anthropic | openai_chat | openai_responses | ...: metric label `route`
    route: str  # path below the server root, e.g. /v1/messages
    dialect: str  # anthropic | openai: which upstreams can serve it
    upstream_path: str  # appended to the upstream's url
    free: bool  # counted by the rate limits only: no tokens are produced

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """Raises BadRequest."""

    def rewrite(
        self, call: Call, *, model: str | None, output_tokens_max: int | None, output_field: str | None
    ) -> bytes:
        """The body for the upstream: as received unless ``model`` (alias), ``output_tokens_max`` (injected or clamped,
        in the field the client sent, else ``output_field`` or the dialect's default) or include_usage must change."""

    def scanner(self, call: Call, *, content_type: str, input_tokens: int, family: Family) -> Scanner:
        """``input_tokens`` is the estimate from before the call, ``family`` the tokenizer: both for cut answers."""

    def error_body(self, error: TollgateError, request_id: str) -> bytes: ...

    def error_event(self, error: TollgateError, request_id: str, scanner: Scanner | None = None) -> bytes:
        """A mid-stream error in this dialect; ``scanner`` knows the number of the event (Responses)."""

    def rate_limit_headers(self, tightest: Tightest, now_ms: int) -> dict[str, str]:
        """The dialect's own headers for the caller's tightest limits."""
