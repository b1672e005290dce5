"""Which headers cross the gateway. Allow-lists both ways: what is not named here stays on its side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Client → upstream. Credentials, cookies, forwarding and hop-by-hop headers are never among them.
_REQUEST_ALLOWED = frozenset({"content-type", "accept", "openai-beta"})
_REQUEST_ALLOWED_PREFIXES = ("anthropic-",)
_REQUEST_DENIED = frozenset({"anthropic-organization", "anthropic-organization-id", "anthropic-workspace-id"})

# Upstream → client. The provider's rate limits and organization are the gateway's own affair.
_RESPONSE_ALLOWED = frozenset(
    {
        "content-type",
        "request-id",
        "x-request-id",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "openai-processing-ms",
        "openai-version",
        "cache-control",
    }
)


def to_upstream(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The client's headers that the upstream may see, names in lower case; a repeated one becomes a list.

    What ``Connection`` names is of the client's connection to us, and stays here.
    Source: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
    """
    passed: dict[str, str] = {}
    connection = ""
    for name, value in headers:
        lower = name.lower()
        if lower in _REQUEST_ALLOWED or (lower.startswith(_REQUEST_ALLOWED_PREFIXES) and lower not in _REQUEST_DENIED):
            passed[lower] = value if lower not in passed else f"{passed[lower]}, {value}"
        elif lower == "connection":
            connection += f",{value}"
    if connection:
        for name in connection.lower().split(","):
            passed.pop(name.strip(), None)
    passed["accept-encoding"] = "identity"  # a compressed answer could not be metered as it passes
    passed["user-agent"] = "tollgate"
    return passed


def to_client(headers: Mapping[str, str]) -> dict[str, str]:
    """The upstream's headers that the client may see."""
    return {name: value for name, value in headers.items() if name.lower() in _RESPONSE_ALLOWED}


def credential(dialect: str, key: str) -> dict[str, str]:
    """How each dialect wants the provider's key.

    Source: https://docs.anthropic.com/en/api/overview#authentication,
    https://platform.openai.com/docs/api-reference/authentication
    """
    return {"x-api-key": key} if dialect == "anthropic" else {"authorization": f"Bearer {key}"}
