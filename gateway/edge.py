"""What both HTTP edges do alike, the data plane's and the billing APIs': a bounded body, and the headers of a no.

Rules
1. A body is bounded in bytes and in time, whether its length was declared or not.
2. ``x-should-retry`` and ``retry-after`` tell the truth: only what a minute's waiting can help is said to be worth it.

Not here: what a body means, and how an API spells an error.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from aiohttp import ClientPayloadError, HttpVersion11, web

from gateway.errors import (
    BodyTooLarge,
    ExpectationFailed,
    Refusal,
    RequestError,
    RequestTimeout,
    TollgateError,
    UnsupportedEncoding,
)

RETRY_AFTER_MAX_S: Final = 60
SERVER: Final = {"Server": "tollgate"}  # and no version of anything
_BROKEN: Final = (OSError, web.RequestPayloadError, ClientPayloadError)


def body_at_hand(request: web.BaseRequest, *, bytes_max: int) -> bytes | None:
    """The body when all of it is here, as nearly always; None while it is under way.

    Raises BodyTooLarge, ExpectationFailed, RequestError."""
    content = request.content
    if not content.is_eof():
        return None
    if "Expect" in request.headers:
        _expects_word(request)
    try:
        body = content.read_nowait()
    except _BROKEN as error:
        raise _broken() from error
    if len(body) > bytes_max:
        raise BodyTooLarge
    return body


async def read_body(request: web.BaseRequest, *, bytes_max: int, within_s: float) -> bytes:
    """Raises BodyTooLarge, RequestTimeout, ExpectationFailed, RequestError."""
    whole = body_at_hand(request, bytes_max=bytes_max)
    if whole is not None:
        return whole
    if (request.content_length or 0) > bytes_max:
        raise BodyTooLarge
    if "Expect" in request.headers and _expects_word(request) and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            while piece := await request.content.readany():
                body += piece
                if len(body) > bytes_max:
                    raise BodyTooLarge
        return bytes(body)
    except TimeoutError as error:
        raise RequestTimeout from error
    except _BROKEN as error:
        raise _broken() from error


def _broken() -> RequestError:
    return RequestError("The request broke off before its body was complete.")


def check_media(request: web.BaseRequest, media: str | None) -> None:
    """The body is plain, and of this type (JSON's relatives are JSON; an untyped one is taken for it); None: of any.

    Raises UnsupportedEncoding."""
    headers = request.headers
    if media == headers.get("Content-Type") and "Content-Encoding" not in headers:
        return  # nearly always
    if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise UnsupportedEncoding("Send the body without Content-Encoding.")
    sent = request.content_type
    if media is None or "Content-Type" not in headers or sent == media:
        return
    if media != "application/json" or not sent.endswith("+json"):
        raise UnsupportedEncoding(f"Send Content-Type: {media}, not {sent[:60]!r}.")


def _expects_word(request: web.BaseRequest) -> bool:
    """Whether the client waits to be told to go on: by now its key and its headers are good. Raises ExpectationFailed.

    Source: https://www.rfc-editor.org/rfc/rfc9110#section-10.1.1
    """
    if request.version < HttpVersion11:
        return False
    if request.headers["Expect"].lower() != "100-continue":
        raise ExpectationFailed
    return True


def status_of(error: TollgateError, quota_status: int) -> int:
    """The error's status; a lasting quota refusal's is the operator's choice (``refusals.quota_status``)."""
    return quota_status if isinstance(error, Refusal) and error.status == 429 and not error.retry else error.status


def refusal_headers(error: TollgateError, *, request_id: str) -> dict[str, str]:
    """Headers of our own errors: what the SDKs' retry logic reads, and who says so.

    Source: x-should-retry and retry-after, as read by anthropic-sdk-python and openai-python (`_base_client.py`).
    """
    headers = {
        **SERVER,
        "Tollgate-Request-Id": request_id,
        "Tollgate-Error-Source": "gateway",
        "x-should-retry": "true" if error.retry else "false",
    }
    if error.retry:
        wait_s = error.retry_after_s or 1
        if not isinstance(error, Refusal):  # whose wait is jittered already
            wait_s += random.randint(0, wait_s)  # noqa: S311  # so that those who failed together come back apart
        headers["retry-after"] = str(min(RETRY_AFTER_MAX_S, wait_s))
    if error.detail is not None and error.detail.resets_at:
        headers["Tollgate-Resets-At"] = error.detail.resets_at
    return headers
