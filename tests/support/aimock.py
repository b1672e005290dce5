"""A mock of the providers that nobody here wrote (npm ``@copilotkit/aimock``): it checks what we believe about them.

It is installed by ``.ci/tools`` into tests/npm by the hashes of its lock file. Where it isn't, tests fail and say so.
Its known difference from the real API: ``message_start`` already carries the final ``output_tokens``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.processes import spawn, wait_until

_CLI = Path(__file__).parents[1] / "npm/node_modules/@copilotkit/aimock/dist/cli.js"
_LISTENING = re.compile(r"listening on (http://[\d.]+:\d+)")

TEXT = "Hello! How can I help you today? Some more words: 世界, größer, 🚀. " * 3
INPUT_TOKENS, OUTPUT_TOKENS = 11, 57
TOOL_ARGUMENTS = {"location": "Oslo"}
# Each provider reads its own names; the others are ignored.
_USAGE = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "input_tokens": INPUT_TOKENS,
    "output_tokens": OUTPUT_TOKENS,
}
# By the words in the newest user message. Streams come in pieces of 20 characters.
FIXTURES: tuple[dict[str, Any], ...] = (
    {"match": {"userMessage": "say hello"}, "response": {"content": TEXT, "usage": _USAGE}},
    {
        "match": {"userMessage": "call a tool"},
        "response": {"toolCalls": [{"name": "get_forecast", "arguments": TOOL_ARGUMENTS}], "usage": _USAGE},
    },
    # Breaks the connection within the stream.
    {
        "match": {"userMessage": "break off"},
        "response": {"content": TEXT, "usage": _USAGE},
        "truncateAfterChunks": 6,
        "latency": 20,
    },
    {
        "match": {"userMessage": "refuse me"},
        "response": {
            "error": {"message": "Slow down.", "type": "rate_limit_error", "code": "rate_limit_exceeded"},
            "status": 429,
            "retryAfter": 3,
        },
    },
    {
        "match": {"userMessage": "fail now"},
        "response": {"error": {"message": "Oh no.", "type": "server_error"}, "status": 500},
    },
)


@dataclass(frozen=True, slots=True)
class Aimock:
    """A running mock."""

    url: str  # without /v1

    async def journal(self, **query: str | int) -> list[dict[str, Any]]:
        """Requests it received, oldest first: ``path``, ``headers``, ``body``, ``response``."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/__aimock/journal", params=query) as got:
            entries: list[dict[str, Any]] = await got.json()
            return entries


@contextmanager
def aimock(folder: Path, fixtures: Sequence[dict[str, Any]] = FIXTURES) -> Iterator[Aimock]:
    """The mock with these fixtures, its files in ``folder``; ended with the block. Needs node and the npm package."""
    assert _CLI.exists(), f"{_CLI} is missing: run .ci/tools, which installs the mock from npm"
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": list(fixtures)}))
    log = folder / "aimock.log"
    process = spawn(["node", _CLI, "--port", "0", "--fixtures", folder / "fixtures.json", "--strict"], log=log)
    try:
        found = wait_until(
            lambda: process.poll() is not None or _LISTENING.search(log.read_text()),
            what="aimock listens",
            within_s=20,
        )
        assert isinstance(found, re.Match), f"aimock ended: {log.read_text()}"
        yield Aimock(found[1])
    finally:
        process.terminate()
        process.wait(10)
