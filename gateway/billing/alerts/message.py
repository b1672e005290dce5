"""What an alert says, in the shape each channel takes. Pure.

Rules
1. The same alert is the same message whenever it is sent: its id, time and body do not change from one attempt to the
   next.
2. Amounts are plain decimals as text, times RFC 3339 in UTC; no key, no prompt.
3. Whatever an account is called, it stays text: no header of an e-mail can be added by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

import orjson

from gateway.billing.views import exactly
from gateway.domain.alerts import Mail, words_of
from gateway.store.alerts import Claim

_SUBJECT_MAX = 150


@dataclass(frozen=True, slots=True)
class Message:
    """One alert to one account."""

    id: str  # unique for ever: whoever has seen it may ignore it
    kind: str
    at_ms: int
    account_id: str
    account_name: str
    external_id: str | None
    email: str | None
    detail: Mapping[str, Any]


def message_of(claim: Claim) -> Message:
    alert = claim.alert
    return Message(
        id=f"alert_{alert.account_id}_{alert.id}",
        kind=alert.kind,
        at_ms=alert.created_at_ms,
        account_id=alert.account_id,
        account_name=claim.account_name,
        external_id=claim.external_id,
        email=claim.email,
        detail=alert.detail,
    )


def webhook_body(message: Message) -> bytes:
    """JSON with ``type``, ``timestamp`` and ``data``, as Standard Webhooks recommends."""
    words = words_of(message.kind, message.detail)
    return orjson.dumps(
        {
            "type": f"alert.{message.kind}",
            "timestamp": exactly(message.at_ms),
            "data": {
                "id": message.id,
                "account": {"id": message.account_id, "external_id": message.external_id, "name": message.account_name},
                "title": words.title,
                "text": words.text,
                "detail": dict(message.detail),
            },
        }
    )


def mail_of(message: Message, mail: Mail) -> EmailMessage:
    """A plain text for the account's address. Raises ValueError when the address cannot be one."""
    words = words_of(message.kind, message.detail)
    if message.email is None or not _is_address(message.email):
        raise ValueError("the account's e-mail is not an address")
    letter = EmailMessage()
    letter["From"] = mail.sender
    letter["To"] = message.email
    letter["Subject"] = _line(words.title)[:_SUBJECT_MAX]
    letter["Date"] = format_datetime(datetime.fromtimestamp(message.at_ms / 1000, UTC))
    letter["Message-ID"] = f"<{message.id}@{mail.sender.rpartition('@')[2]}>"
    letter["Auto-Submitted"] = "auto-generated"  # no out-of-office answers, RFC 3834
    letter.set_content(f"Hello {_line(message.account_name)},\n\n{words.text}\n\n-- \n{message.id}\n")
    return letter


def _is_address(text: str) -> bool:
    local, at, domain = text.partition("@")
    plain = text.isprintable() and not any(letter in ' <>,;:"()[]\\' for letter in text)
    return bool(local and at and domain) and plain and "@" not in domain and not text.startswith("-")


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
