"""Response headers as the providers send them, and what the journal may keep of a request's.

Sources: https://docs.anthropic.com/en/api/rate-limits#response-headers,
https://platform.openai.com/docs/guides/rate-limits/headers
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from gateway.simulator.problems import ANTHROPIC_ORGANIZATION, OPENAI_ORGANIZATION, OPENAI_PROJECT

KEPT = frozenset({
    "accept", "accept-encoding", "anthropic-beta", "anthropic-version", "connection", "content-encoding",
    "content-length", "content-type", "host", "openai-beta", "openai-organization", "openai-project", "te",
    "transfer-encoding", "user-agent", "x-simulate",
})  # fmt: skip
GATEWAY_ID_HEADERS = ("tollgate-request-id", "x-request-id", "x-client-request-id")

_COOKIE = "__cf_bm=s1mulat3d.cooki3-0123456789; path=/; HttpOnly; Secure; SameSite=None"


@lru_cache(maxsize=2)
def _anthropic(now_s: int) -> dict[str, str]:
    """All but the request's own; ``now_s`` makes the resets move."""
    reset = datetime.fromtimestamp(now_s + 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "anthropic-organization-id": ANTHROPIC_ORGANIZATION,
        "anthropic-ratelimit-requests-limit": "4000",
        "anthropic-ratelimit-requests-remaining": "3999",
        "anthropic-ratelimit-requests-reset": reset,
        "anthropic-ratelimit-input-tokens-limit": "2000000",
        "anthropic-ratelimit-input-tokens-remaining": "1999000",
        "anthropic-ratelimit-input-tokens-reset": reset,
        "anthropic-ratelimit-output-tokens-limit": "400000",
        "anthropic-ratelimit-output-tokens-remaining": "399000",
        "anthropic-ratelimit-output-tokens-reset": reset,
        "Set-Cookie": _COOKIE,
        "Server": "simulated-models",
    }


_OPENAI = {
    "openai-organization": OPENAI_ORGANIZATION,
    "openai-project": OPENAI_PROJECT,
    "openai-processing-ms": "12",
    "openai-version": "2020-10-01",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-limit-tokens": "2000000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-remaining-tokens": "1999000",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-reset-tokens": "30ms",
    "Set-Cookie": _COOKIE,
    "Server": "simulated-models",
}


def answer(dialect: str, request_id: str, *, now_s: int) -> dict[str, str]:
    """The headers of a served answer, without its content type."""
    if dialect == "anthropic":
        return {"request-id": request_id, **_anthropic(now_s)}
    return {"x-request-id": request_id, **_OPENAI}


def request_id(dialect: str, entry_id: int) -> str:
    """As the provider would call the request."""
    return f"req_011C{entry_id:020d}" if dialect == "anthropic" else f"req_{entry_id:032x}"
