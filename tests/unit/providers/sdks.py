"""Both official SDKs with answers of our choice instead of a network."""

from __future__ import annotations

from collections.abc import Callable

import anthropic
import httpx2
import openai

Answer = Callable[[httpx2.Request], httpx2.Response]


def anthropic_client(answer: Answer, *, retries: int = 0) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="tg_test",
        base_url="http://gateway.test",
        max_retries=retries,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )


def openai_client(answer: Answer, *, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="tg_test",
        base_url="http://gateway.test/v1",
        max_retries=retries,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )


def always(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> Answer:
    """The same answer to every request."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, headers={"content-type": content_type, **headers})

    return answer


def stream_of(data: bytes) -> Answer:
    return always(200, data, "text/event-stream; charset=utf-8")
