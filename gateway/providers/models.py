"""Bodies of GET /v1/models and /v1/models/{id}, in the shape that each SDK parses.

Sources: https://platform.openai.com/docs/api-reference/models, https://docs.anthropic.com/en/api/models-list, and both
SDKs' ``Model`` and ``ModelInfo`` types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

_CREATED_UNKNOWN = "1970-01-01T00:00:00Z"  # as Anthropic writes an unknown release date
_PAGE_DEFAULT = 20
_PAGE_MAX = 1_000


def model_list(ids: Sequence[str], dialect: str, query: Mapping[str, str] | None = None) -> bytes:
    """All models; Anthropic's shape has pages: ``limit`` (1 to 1000, default all), ``after_id``, ``before_id``."""
    unique = list(dict.fromkeys(ids))
    if dialect != "anthropic":
        return orjson.dumps({"object": "list", "data": [_openai(model_id) for model_id in unique]})
    page, has_more = _page(unique, query or {})
    return orjson.dumps(
        {
            "data": [_anthropic(model_id) for model_id in page],
            "has_more": has_more,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }
    )


def model(model_id: str, dialect: str) -> bytes:
    """One model."""
    return orjson.dumps(_anthropic(model_id) if dialect == "anthropic" else _openai(model_id))


def _page(ids: list[str], query: Mapping[str, str]) -> tuple[list[str], bool]:
    """One page, and whether there is more in its direction. Words that are no numbers mean the default."""
    limit = query.get("limit", "")
    size = min(_PAGE_MAX, max(1, int(limit))) if limit.isascii() and limit.isdigit() else max(_PAGE_DEFAULT, len(ids))
    before, after = query.get("before_id"), query.get("after_id")
    if before in ids:
        ids = ids[: ids.index(before)]
        return ids[-size:], len(ids) > size
    if after in ids:
        ids = ids[ids.index(after) + 1 :]
    return ids[:size], len(ids) > size


def _openai(model_id: str) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "tollgate"}


def _anthropic(model_id: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": model_id,
        "display_name": model_id,
        "created_at": _CREATED_UNKNOWN,
        "lifecycle": "active",
    }
