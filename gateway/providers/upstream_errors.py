"""An upstream's own errors: whose fault they are, whether another upstream may do better, and what must be masked.

Rules
1. 401, 402 and 403 answer *our* credential or billing, for the client has none there. The one exception is a 403 that
   judges the request's content.
2. Nothing that names our account at the provider reaches a client: keys, organizations, projects, workspaces.

Sources: https://docs.anthropic.com/en/api/errors, https://platform.openai.com/docs/guides/error-codes.

Not here: retrying, alerts (``proxy``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.providers.sse import events
from limits.values import dataclass

_OWN_STATUSES = frozenset({401, 402, 403})
_RETRYABLE_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
# 429 and 400 bodies that mean: this credential's money is gone. The next credential may have some.
_BILLING = re.compile(
    rb"insufficient_quota|billing_hard_limit_reached|billing_not_active|billing_error|enforced_spend_limit_reached"
    rb"|credit balance is too low"
)
_CONTENT = re.compile(rb"moderation|content_policy|content_filter|flagged|safety|cyber_policy", re.IGNORECASE)

_MASKS: tuple[tuple[re.Pattern[bytes], bytes], ...] = (
    (re.compile(rb"\bsk-(?:[A-Za-z0-9_*\-]|\.(?=[A-Za-z0-9_*.\-])){6,}"), b"sk-***"),
    (re.compile(rb"\bsess-[A-Za-z0-9]{8,}"), b"sess-***"),
    (re.compile(rb"\borg-[A-Za-z0-9]{6,}"), b"org-***"),
    (re.compile(rb"\bproj_[A-Za-z0-9]{6,}"), b"proj_***"),
    (re.compile(rb"\bwrkspc_[A-Za-z0-9]{6,}"), b"wrkspc_***"),
    (re.compile(rb"\buser-[A-Za-z0-9]{16,}"), b"user-***"),
    # Anthropic names the organization by its UUID in rate limit messages.
    (re.compile(rb"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), b"***"),
)


# An error as an event of a stream tells it. Within a text of the model's both would be spelled with escapes.
_ERROR = b'"error"'
_TELLS_ERROR = re.compile(rb'"error"\s*:\s*[{"]|"type"\s*:\s*"error"')


@dataclass(frozen=True, slots=True)
class Fault:
    """What an upstream's error status means for us."""

    is_ours: bool  # our credential or our billing: 502 upstream_misconfigured, and the operator is told
    is_retryable: bool  # another upstream, key or moment may answer
    needs_alert: bool  # the operator should know


def fault(status: int, body: bytes = b"") -> Fault:
    """Classify an error by its status and what is known of its body."""
    if status in _OWN_STATUSES:
        is_ours = not (status == 403 and _CONTENT.search(body))
        return Fault(is_ours, is_retryable=is_ours, needs_alert=is_ours)
    if status in (400, 429) and _BILLING.search(body):
        return Fault(is_ours=False, is_retryable=True, needs_alert=True)
    return Fault(is_ours=False, is_retryable=status in _RETRYABLE_STATUSES, needs_alert=False)


def mask(body: bytes, secrets: Iterable[str] = ()) -> bytes:
    """The body without what names our account: ``secrets`` (our keys) and everything that looks like an id of ours."""
    for secret in secrets:
        if secret:
            body = body.replace(secret.encode(), b"***")
    for pattern, instead in _MASKS:
        body = pattern.sub(instead, body)
    return body


def mask_events(data: bytes, secrets: Iterable[str] = ()) -> bytes:
    """Events of a stream, those that tell an error masked; the same object when none does."""
    if _ERROR not in data or _TELLS_ERROR.search(data) is None:
        return data
    return b"".join(mask(event, secrets) if _TELLS_ERROR.search(event) else event for event in events(data))
