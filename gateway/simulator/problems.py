"""Error answers in the providers' own shapes.

Sources: https://docs.anthropic.com/en/api/errors and https://platform.openai.com/docs/guides/error-codes (shapes,
types, codes). The messages follow the providers' wording, so that masking of organizations and keys can be tested on
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

ANTHROPIC_ORGANIZATION = "7c1b2f9e-0b1d-4a43-9c64-51d2c8a4e0aa"
OPENAI_ORGANIZATION = "org-s1mUlAtEdM0dElS4uTlGaTe0"
OPENAI_PROJECT = "proj_S1muLat3dPr0j3ctF0rT3sts"


class Problem(Exception):
    """A request that the provider refuses."""

    def __init__(
        self, status: int, kind: str, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind  # the dialect's own ``type``
        self.message = message
        self.code = code
        self.param = param


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> Problem:
    """A 400 in either dialect."""
    return Problem(400, "invalid_request_error", message, param=param, code=code)


@dataclass(frozen=True, slots=True)
class _Fault:
    kind: str
    message: str
    code: str | None = None
    param: str | None = None


_ANTHROPIC: dict[int, _Fault] = {
    400: _Fault("invalid_request_error", "messages: at least one message is required"),
    401: _Fault("authentication_error", "invalid x-api-key"),
    402: _Fault("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: _Fault("permission_error", "Your API key does not have permission to use the specified resource."),
    404: _Fault("not_found_error", "model: no-such-model"),
    413: _Fault("request_too_large", "Request exceeds the maximum size"),
    429: _Fault(
        "rate_limit_error",
        "This request would exceed your organization's rate limit of 50 requests per minute"
        f" (org: {ANTHROPIC_ORGANIZATION}). For details, refer to: https://docs.anthropic.com/en/api/rate-limits.",
    ),
    500: _Fault("api_error", "Internal server error"),
    503: _Fault("api_error", "Service unavailable"),
    504: _Fault("timeout_error", "Request timed out"),
    529: _Fault("overloaded_error", "Overloaded"),
}
_OPENAI: dict[int, _Fault] = {
    400: _Fault("invalid_request_error", "Invalid value for 'messages'.", param="messages", code="invalid_value"),
    401: _Fault(
        "invalid_request_error",
        "Incorrect API key provided: sk-proj-********************9wXy. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    ),
    402: _Fault(
        "invalid_request_error", "Your account is not active, please check your billing details.", "billing_not_active"
    ),
    403: _Fault(
        "invalid_request_error",
        f"Project `{OPENAI_PROJECT}` does not have access to the model.",
        code="model_not_found",
    ),
    404: _Fault(
        "invalid_request_error",
        "The model `no-such-model` does not exist or you do not have access to it.",
        code="model_not_found",
    ),
    429: _Fault(
        "tokens",
        f"Rate limit reached for the model in organization {OPENAI_ORGANIZATION} on tokens per min (TPM): Limit 30000,"
        " Used 29800, Requested 900. Please try again in 1.4s. Visit"
        " https://platform.openai.com/account/rate-limits to learn more.",
        code="rate_limit_exceeded",
    ),
    500: _Fault("server_error", "The server had an error while processing your request. Sorry about that!"),
    503: _Fault(
        "service_unavailable_error", "That model is currently overloaded with other requests.", "server_overloaded"
    ),
    529: _Fault(
        "service_unavailable_error", "That model is currently overloaded with other requests.", "server_overloaded"
    ),
}
_KINDS: dict[tuple[str, str], _Fault] = {
    ("openai", "quota"): _Fault(
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details. For more information on this"
        " error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
        code="insufficient_quota",
    ),
    ("openai", "key"): _OPENAI[401],
    ("openai", "context"): _Fault(
        "invalid_request_error",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130001 tokens."
        " Please reduce the length of the messages.",
        code="context_length_exceeded",
        param="messages",
    ),
    ("anthropic", "quota"): _Fault(
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or"
        " purchase credits.",
    ),
    ("anthropic", "key"): _ANTHROPIC[401],
    ("anthropic", "context"): _Fault("invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"),
}


def steered(dialect: str, status: int, kind: str | None) -> Problem:
    """The problem that a provider of ``dialect`` answers with this status."""
    table = _ANTHROPIC if dialect == "anthropic" else _OPENAI
    fallback = _Fault("api_error" if dialect == "anthropic" else "server_error", "The request failed.")
    fault = table.get(status, fallback) if kind is None else _KINDS[dialect, kind]
    return Problem(status, fault.kind, fault.message, code=fault.code, param=fault.param)


def body(dialect: str, problem: Problem, request_id: str) -> bytes:
    """The error body of a whole answer."""
    if dialect == "anthropic":
        error = {"type": problem.kind, "message": problem.message}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
    return orjson.dumps({"error": openai_error(problem)})


def openai_error(problem: Problem) -> dict[str, str | None]:
    """The member ``error`` of OpenAI's bodies and stream events."""
    return {"message": problem.message, "type": problem.kind, "param": problem.param, "code": problem.code}


def retryable(status: int) -> bool:
    """Anthropic says so in ``x-should-retry``."""
    return status in (408, 409, 429) or status >= 500
