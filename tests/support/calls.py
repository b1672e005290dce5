"""One call in each dialect, as bytes on a socket or as JSON for an HTTP client; and how each dialect tells an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

CLAUDE, GPT = "claude-haiku-4-5", "gpt-5"


@dataclass(frozen=True, slots=True)
class Dialect:
    """A metered route."""

    name: str  # as in metrics and usage rows
    path: str
    model: str
    bound: str  # the field of the output bound
    dialect: str  # of the upstreams that serve it

    def __str__(self) -> str:
        return self.name

    def body(self, steering: str = "", *, stream: bool = False, text: str = "Tell me of the sea.", **more: Any) -> Any:
        """A valid body; ``steering`` goes to the simulated model, ``more`` adds or replaces fields."""
        prompt = f"{text} [[simulate {steering}]]" if steering else text
        fields: dict[str, Any] = {"model": self.model}
        if self.name == "openai_responses":
            fields["input"] = prompt
        else:
            fields["messages"] = [{"role": "user", "content": prompt}]
        if self.name == "anthropic":
            fields["max_tokens"] = 1000
        if stream:
            fields["stream"] = stream
        return {**fields, **more}

    def headers(self, key: str | None, **more: str) -> dict[str, str]:
        """As the dialect's SDK would send them; names in ``more`` are written with underscores."""
        found = {"content-type": "application/json"}
        if self.name == "anthropic":
            found["anthropic-version"] = "2023-06-01"
        if key is not None:
            found.update({"x-api-key": key} if self.name == "anthropic" else {"authorization": f"Bearer {key}"})
        return {**found, **{name.replace("_", "-"): value for name, value in more.items()}}

    def request(self, key: str | None, body: Any, **more: str) -> bytes:
        """The whole request, as bytes. ``body`` is JSON or bytes."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"host": "gateway", "content-length": str(len(content)), **self.headers(key, **more)}
        return request_bytes("POST", self.path, headers, content)

    def error_code(self, answer: Any) -> str:
        """The reason in an error body of ours."""
        error = answer["error"]
        return str(error["tollgate"]["reason"])


ANTHROPIC = Dialect("anthropic", "/v1/messages", CLAUDE, "max_tokens", "anthropic")
CHAT = Dialect("openai_chat", "/v1/chat/completions", GPT, "max_completion_tokens", "openai")
RESPONSES = Dialect("openai_responses", "/v1/responses", GPT, "max_output_tokens", "openai")
DIALECTS = (ANTHROPIC, CHAT, RESPONSES)


def request_bytes(method: str, path: str, headers: dict[str, str], content: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return head.encode() + b"\r\n" + content
