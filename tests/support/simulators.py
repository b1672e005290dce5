"""Simulated models for tests: on the test's own loop, or as one child process; and their journal by either way.

``in_process()`` is quick and shares the test's loop; ``child()`` is what several workers and blocking code need.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp
import anthropic
import openai

from gateway.simulator.child import Simulator, spawn
from gateway.simulator.server import Models, serve


@dataclass(frozen=True, slots=True)
class LocalModels:
    """Simulated models on this loop."""

    url: str
    models: Models
    journal: JournalReader


@dataclass(frozen=True, slots=True)
class JournalReader:
    """Reads the journal over HTTP, wherever the models run."""

    url: str

    async def entries(self, **query: str | int) -> list[dict[str, Any]]:
        """Entries by ``since``, ``id``, ``tag``; with ``wait=N`` once N match and all have ended (``wait_ms``)."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/journal", params=query) as answer:
            answer.raise_for_status()
            entries: list[dict[str, Any]] = await answer.json()
            return entries

    async def ended(self, tag: str, *, count: int = 1, wait_ms: int = 10_000) -> list[dict[str, Any]]:
        """The ``count`` ended entries with this tag. Fails when they do not come in time, or when there are more."""
        entries = await self.entries(tag=tag, wait=count, wait_ms=wait_ms)
        assert len(entries) == count, f"{len(entries)} entries are tagged {tag}, not {count}"
        assert all(entry["end"] != "open" for entry in entries), f"an answer tagged {tag} is still open"
        return entries

    async def last_id(self) -> int:
        """The newest entry's id: what ``since`` starts from."""
        last: int = (await self.totals())["last_id"]
        return last

    async def totals(self) -> dict[str, Any]:
        """Sums over everything served since the last clear."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/journal/totals") as answer:
            totals: dict[str, Any] = await answer.json()
            return totals

    async def clear(self) -> None:
        """Forget ended entries and totals."""
        async with aiohttp.ClientSession() as session, session.delete(f"{self.url}/journal") as answer:
            answer.raise_for_status()


@asynccontextmanager
async def in_process(*, stall_max_s: float = 30.0) -> AsyncIterator[LocalModels]:
    """Simulated models on the running loop."""
    serving = await serve("127.0.0.1", 0, stall_max_s=stall_max_s)
    try:
        yield LocalModels(serving.url, serving.models, JournalReader(serving.url))
    finally:
        await serving.close()


@contextmanager
def child() -> Iterator[Simulator]:
    """Simulated models as a child process: for a session fixture."""
    simulator = spawn()
    try:
        yield simulator
    finally:
        simulator.stop()


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients: each would spend 0.1 s on loading the certificates that no test needs."""
    return ssl.create_default_context()


@asynccontextmanager
async def anthropic_client(url: str, *, key: str = "sk-ant-test", **options: Any) -> AsyncIterator[Any]:
    """The official Anthropic SDK, without retries unless asked."""
    http = anthropic.DefaultAsyncHttpxClient(verify=_tls())
    settings = {"max_retries": 0, "http_client": http, **options}
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, **settings) as client:
        yield client


@asynccontextmanager
async def openai_client(url: str, *, key: str = "sk-test", **options: Any) -> AsyncIterator[Any]:
    """The official OpenAI SDK, without retries unless asked. ``url`` has no ``/v1``."""
    http = openai.DefaultAsyncHttpxClient(verify=_tls())
    settings = {"max_retries": 0, "http_client": http, **options}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, **settings) as client:
        yield client
