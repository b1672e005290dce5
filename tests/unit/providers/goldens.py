"""The golden answers of ``tests/data``: bytes as a provider sends them, and what metering must find in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.domain.usage import AtLeast, Exact, NotServed, Outcome, Usage
from gateway.providers.adapter import Adapter, Call, Scanner
from gateway.providers.families import family
from gateway.providers.registry import ANTHROPIC, OPENAI_CHAT, OPENAI_RESPONSES

FOLDER = Path(__file__).parents[2] / "data"
INPUT_ESTIMATE = 11  # what the gateway counted before the call
ADAPTERS: dict[str, Adapter] = {
    "anthropic": ANTHROPIC,
    "openai_chat": OPENAI_CHAT,
    "openai_responses": OPENAI_RESPONSES,
}


@dataclass(frozen=True)
class Golden:
    """One answer."""

    dialect: str
    name: str
    data: bytes
    expected: dict[str, Any]

    @property
    def adapter(self) -> Adapter:
        return ADAPTERS[self.dialect]

    @property
    def is_stream(self) -> bool:
        return self.name.endswith(".sse")

    @property
    def usage(self) -> Usage:
        return Usage(**self.expected["usage"])

    def scanner(self, *, hidden: bool = False) -> Scanner:
        call = call_of(self.dialect, self.expected["model"], choices=self.expected.get("choices", 1))
        call.usage_hidden = hidden
        return self.adapter.scanner(
            call,
            content_type="text/event-stream; charset=utf-8" if self.is_stream else "application/json",
            input_tokens=INPUT_ESTIMATE,
            family=family(self.expected["model"]),
        )

    def check(self, outcome: Outcome) -> None:
        """The outcome is the expected one."""
        match self.expected["outcome"]:
            case "exact":
                assert outcome == Exact(self.usage)
            case "at_least":
                assert isinstance(outcome, AtLeast)
                assert outcome.usage == self.usage
            case _:
                assert outcome == NotServed()


def call_of(dialect: str, model: str, *, choices: int = 1, stream: bool = True) -> Call:
    """A parsed call of this dialect."""
    fields: dict[str, Any] = {"model": model, "stream": stream}
    if dialect == "openai_responses":
        fields["input"] = "Hello"
    else:
        fields["messages"] = [{"role": "user", "content": "Hello"}]
        fields["n" if dialect == "openai_chat" else "max_tokens"] = choices if dialect == "openai_chat" else 100
    if dialect == "openai_chat" and stream:
        fields["stream_options"] = {"include_usage": True}
    return ADAPTERS[dialect].parse(json.dumps(fields).encode(), {})


def load() -> list[Golden]:
    """Every golden answer, in order of its name."""
    found = []
    for sidecar in sorted(FOLDER.glob("*/*.expected.json")):
        name = sidecar.name.removesuffix(".expected.json")
        data = sidecar.with_name(name).read_bytes()
        found.append(Golden(sidecar.parent.name, name, data, json.loads(sidecar.read_text())))
    return found


ALL = load()
STREAMS = [golden for golden in ALL if golden.is_stream]
BODIES = [golden for golden in ALL if not golden.is_stream]


def title(golden: Golden) -> str:
    return f"{golden.dialect}/{golden.name}"


def run(scanner: Scanner, pieces: list[bytes]) -> bytes:
    """Feed the pieces, and the upstream's end; what the client got."""
    out = [scanner.feed(piece) for piece in pieces]
    out.append(scanner.finish())
    return b"".join(out)
