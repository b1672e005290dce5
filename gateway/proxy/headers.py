"""Which headers cross the gateway. Allow-lists both ways: what is not named here stays on its side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from gateway.proxy.names import Names

_CONNECTION = b"connection"

# Client → upstream. Credentials, cookies, forwarding and hop-by-hop headers are never among them.
_REQUEST_ALLOWED = frozenset({b"content-type", b"accept", b"openai-beta"})
_REQUEST_ALLOWED_PREFIX = b"anthropic-"
_REQUEST_DENIED = frozenset({b"anthropic-organization", b"anthropic-organization-id", b"anthropic-workspace-id"})

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


def _passed(raw: bytes) -> bytes | None:
    """The name of a header that the upstream may see, in lower case; ``Connection`` is told, too. None: any other."""
    name = raw.lower()
    if name in _REQUEST_ALLOWED or name == _CONNECTION:
        return name
    return name if name.startswith(_REQUEST_ALLOWED_PREFIX) and name not in _REQUEST_DENIED else None


_names = Names(_passed)


def to_upstream(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The client's headers that the upstream may see, names in lower case; a repeated one becomes a list.

    What ``Connection`` names is of the client's connection to us, and stays here.
    Source: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
    """
    passed: dict[bytes, bytes] = {}
    for raw, value in headers:
        name = _names[raw]
        if name is not None:
            passed[name] = b"%b, %b" % (passed[name], value) if name in passed else value
    if _CONNECTION in passed:
        for named in passed.pop(_CONNECTION).lower().split(b","):
            passed.pop(named.strip(), None)
    return passed


def to_client(headers: Mapping[str, str]) -> dict[str, str]:
    """The upstream's headers, named in lower case, that the client may see; not what is no text in UTF-8."""
    told: dict[str, str] = {}
    for name, value in headers.items():
        if name in _RESPONSE_ALLOWED and value.isprintable():
            told[name] = value
    return told


@lru_cache(1_024)
def fixed(dialect: str, key: str) -> tuple[tuple[bytes, bytes], ...]:
    """What every request to an upstream brings: the provider's key as its dialect wants it, and what we are.

    Source: https://docs.anthropic.com/en/api/overview#authentication,
    https://platform.openai.com/docs/api-reference/authentication
    """
    secret = key.encode("utf-8", "surrogateescape")
    return (
        (b"x-api-key", secret) if dialect == "anthropic" else (b"authorization", b"Bearer " + secret),
        (b"accept-encoding", b"identity"),  # a compressed answer could not be metered as it passes
        (b"user-agent", b"tollgate"),
    )
