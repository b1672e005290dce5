"""Which path speaks which dialect: one record per metered route, and nothing else knows them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from gateway.simulator import anthropic, openai_chat, openai_input, openai_responses, openai_simple
from gateway.simulator.answer import Answer, Ask, Event
from gateway.simulator.problems import Problem


@dataclass(frozen=True, slots=True)
class Route:
    """How one path parses a request (fields, headers) and spells its answer."""

    name: str
    dialect: str  # anthropic | openai
    parse: Callable[[Mapping[str, Any], Mapping[str, str]], Ask]
    body: Callable[[Answer], bytes]
    stream: Stream | None = None
    is_billed: bool = True  # whether a provider would bill its answers: counting tokens is free


@dataclass(frozen=True, slots=True)
class Stream:
    """How a path streams."""

    events: Callable[[Answer], Iterator[Event]]
    error_event: Callable[[Problem, str, int], bytes]  # problem, request id, events before it
    giant_line: Callable[[Answer], tuple[bytes, bytes]]  # what goes around its filling


def _count_tokens_body(answer: Answer) -> bytes:
    return orjson.dumps({"input_tokens": answer.usage.input_total})


ROUTES: dict[str, Route] = {
    "/v1/messages": Route(
        "messages",
        "anthropic",
        anthropic.parse,
        anthropic.json_body,
        Stream(anthropic.events, anthropic.error_event, anthropic.giant_line),
    ),
    "/v1/messages/count_tokens": Route(
        "count_tokens", "anthropic", partial(anthropic.parse, counting=True), _count_tokens_body, is_billed=False
    ),
    "/v1/chat/completions": Route(
        "chat",
        "openai",
        openai_input.parse_chat,
        openai_chat.json_body,
        Stream(openai_chat.events, openai_chat.error_event, openai_chat.giant_line),
    ),
    "/v1/responses": Route(
        "responses",
        "openai",
        openai_input.parse_responses,
        openai_responses.json_body,
        Stream(openai_responses.events, openai_responses.error_event, openai_responses.giant_line),
    ),
    "/v1/completions": Route(
        "completions",
        "openai",
        openai_input.parse_completions,
        openai_simple.completion_body,
        Stream(openai_simple.completion_events, openai_chat.error_event, openai_simple.completion_giant_line),
    ),
    "/v1/embeddings": Route("embeddings", "openai", openai_input.parse_embeddings, openai_simple.embeddings_body),
}
