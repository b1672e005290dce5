"""Alerts by signed webhook, as Standard Webhooks has it.

Rules
1. Sent is what the receiver answered with a 2xx; everything else is repeated, but for 410: it wants no more.
2. No redirect is followed, no proxy of the environment is used, and the answer's body is not read.
3. What is told of a failure is its kind: a URL may hold a secret.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

import aiohttp

from gateway.billing.alerts.message import Message, webhook_body
from gateway.domain.alerts import Webhook, signing_key

TIMEOUT_S: Final = 15.0
CONNECTIONS_MAX: Final = 20
GONE: Final = 410


class Undelivered(Exception):
    """An alert did not arrive. ``lasting``: trying again is no use."""

    def __init__(self, why: str, *, lasting: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.lasting = lasting


def signature(secret: str, *, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(signing_key(secret), signed, hashlib.sha256)).decode()


class WebhookSender:
    """One HTTP client for all webhooks; ``close`` it."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, webhook: Webhook, message: Message, *, now_s: int) -> None:
        """Raises Undelivered."""
        body = webhook_body(message)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tollgate",
            "webhook-id": message.id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": signature(webhook.secret, message_id=message.id, timestamp_s=now_s, body=body),
        }
        try:
            async with self._opened().post(webhook.url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
                answer.close()  # whatever it says besides
        except TimeoutError as error:
            raise Undelivered("timeout") from error
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise Undelivered(type(error).__name__) from error
        if not 200 <= status < 300:
            raise Undelivered(f"HTTP {status}", lasting=status == GONE)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
