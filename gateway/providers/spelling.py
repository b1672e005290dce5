"""How our own errors and limits are spelled in each dialect: what the SDKs turn into typed exceptions and waits.

Rules
1. The shapes are the providers' own; what they have no word for stands in the error's member ``tollgate``.
2. The member has all its keys always, so that a client may read any of them.

Sources: https://docs.anthropic.com/en/api/errors, https://docs.anthropic.com/en/api/rate-limits,
https://platform.openai.com/docs/guides/error-codes, https://platform.openai.com/docs/guides/rate-limits, and the error
classes of both official SDKs (anthropic ``_error_classes.py``, openai ``_exceptions.py``).

Not here: HTTP statuses and retry headers (``proxy``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from gateway.domain.periods import rfc3339
from gateway.errors import TollgateError, tollgate_member

Tightest = Mapping[str, tuple[int, int, int]]  # kind → (limit, remaining, resets_at_ms)
_KINDS = ("requests", "tokens")  # what the dialects have words for
_Named = Sequence[tuple[str, str, str, str]]  # kind, and how its limit, what remains of it and its reset are called
_ANTHROPIC_LIMITS = [
    (
        each,
        f"anthropic-ratelimit-{each}-limit",
        f"anthropic-ratelimit-{each}-remaining",
        f"anthropic-ratelimit-{each}-reset",
    )
    for each in _KINDS
]
_OPENAI_LIMITS = [
    (each, f"x-ratelimit-limit-{each}", f"x-ratelimit-remaining-{each}", f"x-ratelimit-reset-{each}") for each in _KINDS
]


def anthropic_error(error: TollgateError, request_id: str) -> dict[str, Any]:
    """``{"type":"error","error":{type,message,details?},"request_id"}``."""
    inner: dict[str, Any] = {"type": error.anthropic_type, "message": error.message}
    if error.anthropic_error_code is not None:
        inner["details"] = {"error_code": error.anthropic_error_code}
    inner["tollgate"] = tollgate_member(error)
    return {"type": "error", "error": inner, "request_id": request_id}


def openai_error(error: TollgateError, request_id: str) -> dict[str, Any]:
    """``{"error":{message,type,param,code,request_id}}``."""
    inner: dict[str, Any] = {
        "message": error.message,
        "type": error.openai_type,
        "param": error.param,
        "code": error.openai_code or error.code,
        "request_id": request_id,
    }
    inner["tollgate"] = tollgate_member(error)
    return {"error": inner}


def sse(content: dict[str, Any], name: str | None = None) -> bytes:
    """One event."""
    data = b"data: %b\n\n" % orjson.dumps(content)
    return data if name is None else b"event: %b\n" % name.encode() + data


def anthropic_limit_headers(tightest: Tightest) -> dict[str, str]:
    """``anthropic-ratelimit-<kind>-*``; the reset is an RFC 3339 instant, rounded up to a second."""
    return _limit_headers(_ANTHROPIC_LIMITS, tightest, lambda resets_at_ms: rfc3339(-(-resets_at_ms // 1000) * 1000))


def openai_limit_headers(tightest: Tightest, now_ms: int) -> dict[str, str]:
    """``x-ratelimit-*-<kind>``; the reset is a duration such as ``6m0s``."""
    return _limit_headers(_OPENAI_LIMITS, tightest, lambda resets_at_ms: duration(resets_at_ms - now_ms))


def _limit_headers(named: _Named, tightest: Tightest, spelled: Callable[[int], str]) -> dict[str, str]:
    """Limit, what remains and the reset as it is spelled, of each kind that the caller has a limit of."""
    headers: dict[str, str] = {}
    for kind, limit_name, remaining_name, reset_name in named:
        if kind in tightest:
            limit, remaining, resets_at_ms = tightest[kind]
            headers[limit_name] = str(limit)
            headers[remaining_name] = str(remaining if remaining > 0 else 0)
            headers[reset_name] = spelled(resets_at_ms)
    return headers


def duration(milliseconds: int) -> str:
    """As OpenAI writes them: ``120ms``, ``59s``, ``6m0s``, ``1h0m5s``."""
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    seconds = -(-milliseconds // 1000)
    if seconds < 60:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes}m{seconds % 60}s"
    return f"{minutes // 60}h{minutes % 60}m{seconds % 60}s"
