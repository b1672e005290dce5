"""OpenAI's smaller routes: models, Completions, Embeddings.

Sources: https://platform.openai.com/docs/api-reference/models/list, .../completions/object, .../embeddings/object
"""

from __future__ import annotations

import orjson

_MODELS = ("gpt-5", "gpt-5-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-3.5-turbo-instruct", "text-embedding-3-small")


def models_body() -> bytes:
    """``GET /v1/models``."""
    data = [{"id": model, "object": "model", "created": 1_767_225_600, "owned_by": "system"} for model in _MODELS]
    return orjson.dumps({"object": "list", "data": data})
