"""OpenAI's smaller routes: models, Completions, Embeddings.

Sources: https://platform.openai.com/docs/api-reference/models/list, .../completions/object, .../embeddings/object
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import orjson

from gateway.simulator.answer import Answer, Event
from gateway.simulator.openai_chat import DONE, FINISH_REASONS, usage_fields

_MODELS = ("gpt-5", "gpt-5-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-3.5-turbo-instruct", "text-embedding-3-small")
_DIMENSIONS = 32  # short ones: their size is not what tests look at
_DIMENSIONS_MAX = 3072


def models_body(only: str | None) -> bytes | None:
    """``GET /v1/models``, or one of them; None where there is no such model."""
    about = {"object": "model", "created": 1_767_225_600, "owned_by": "system"}
    data = [{"id": model, **about} for model in _MODELS if only in (None, model)]
    if only is not None:
        return orjson.dumps(data[0]) if data else None
    return orjson.dumps({"object": "list", "data": data})


def completion_body(answer: Answer) -> bytes:
    """A whole answer of ``/v1/completions``."""
    completion = _head(answer)
    text = answer.text.text if answer.text is not None else ""
    finish = FINISH_REASONS[answer.stop]
    completion["choices"] = [_choice(index, text, finish) for index in range(answer.ask.choices)]
    if answer.usage_mode in (None, "zero"):
        completion["usage"] = usage_fields(answer)
    return orjson.dumps(completion)


def completion_events(answer: Answer) -> Iterator[Event]:
    """The stream of ``/v1/completions``: pieces of text, finish reasons, the usage chunk if asked for, [DONE]."""
    ask = answer.ask
    head = _head(answer)
    if ask.include_usage:
        head["usage"] = None
    so_far = [0] * ask.choices
    lanes = [list(answer.text_pieces()) if answer.text is not None else [] for _ in range(ask.choices)]
    for row in zip_longest(*lanes):
        for index, step in enumerate(row):
            piece, so_far[index] = step
            yield _event({**head, "choices": [_choice(index, piece, None)]}, sum(so_far), content=True)
    total = answer.output * ask.choices
    for index in range(ask.choices):
        yield _event({**head, "choices": [_choice(index, "", FINISH_REASONS[answer.stop])]}, total)
    if ask.include_usage and answer.usage_mode in (None, "zero"):
        yield _event({**head, "choices": [], "usage": usage_fields(answer)}, total)
    yield Event(DONE, total, False)


def completion_giant_line(answer: Answer) -> tuple[bytes, bytes]:
    """What goes around a very long filling."""
    chunk = orjson.dumps({**_head(answer), "choices": [_choice(0, "", None)]})
    return b"data: " + chunk[:-1] + b',"obfuscation":"', b'"}\n\n'


def embeddings_body(answer: Answer) -> bytes:
    """``/v1/embeddings``: small vectors that follow from the index and the input's count; base64 where asked for."""
    echo = answer.ask.echo or {}
    asked = echo.get("dimensions")
    dimensions = min(asked, _DIMENSIONS_MAX) if isinstance(asked, int) and asked > 0 else _DIMENSIONS
    data: list[dict[str, Any]] = []
    for index in range(answer.ask.choices):
        vector = [((index + 1) * (place + 3) % 17 - 8) / 16 for place in range(dimensions)]
        packed = echo.get("encoding_format") == "base64"
        value = b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if packed else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": answer.usage.input_total, "total_tokens": answer.usage.input_total}
    body: dict[str, Any] = {"object": "list", "data": data, "model": answer.ask.model, "usage": usage}
    if answer.usage_mode == "zero":
        body["usage"] = {"prompt_tokens": 0, "total_tokens": 0}
    elif answer.usage_mode is not None:
        del body["usage"]
    return orjson.dumps(body)


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"cmpl-{answer.serial:029d}",
        "object": "text_completion",
        "created": answer.created_s,
        "model": answer.ask.model,
    }


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def _event(chunk: dict[str, Any], output: int, *, content: bool = False) -> Event:
    return Event(b"data: %b\n\n" % orjson.dumps(chunk), output, content)
