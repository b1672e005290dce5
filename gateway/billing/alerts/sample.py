"""Whether the channels work: a sample through each of them, once, and nothing written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.billing.alerts import smtp
from gateway.billing.alerts.message import Message
from gateway.billing.alerts.webhook import Undelivered, WebhookSender
from gateway.domain.alerts import EMAIL, THRESHOLD, WEBHOOK, Channels, Mail, Webhook
from gateway.errors import RequestError
from gateway.store.common import new_id

_SAMPLE: Final = {"wallet": "tokens", "unit": "tokens", "percent": "90", "plan": "Sample", "resets_at": None}


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a sample on one channel; ``why`` is empty when it arrived."""

    channel: str
    why: str


async def send_sample(channels: Channels, *, email: str | None, now_ms: int) -> tuple[Tried, ...]:
    """E-mails go to ``email``. Raises RequestError: no channel, or nobody to write to."""
    if channels.webhook is None and channels.mail is None:
        raise RequestError("alerts.webhook and alerts.email are both off: there is nowhere to send to.")
    if channels.mail is not None and not email:
        raise RequestError("Say whom to write to: --email ADDRESS.", param="--email")
    message = Message(f"alert_test_{new_id()}", THRESHOLD, now_ms, "test", "Sample", None, email, _SAMPLE)
    tried = []
    if channels.webhook is not None:
        tried.append(Tried(WEBHOOK, await _posted(channels.webhook, message, now_ms // 1000)))
    if channels.mail is not None:
        tried.append(Tried(EMAIL, await _mailed(channels.mail, message)))
    return tuple(tried)


async def _posted(webhook: Webhook, message: Message, now_s: int) -> str:
    sender = WebhookSender()
    try:
        await sender.send(webhook, message, now_s=now_s)
    except Undelivered as error:
        return error.why
    finally:
        await sender.close()
    return ""


async def _mailed(mail: Mail, message: Message) -> str:
    try:
        await smtp.send(mail, message)
    except Undelivered as error:
        return error.why
    return ""
