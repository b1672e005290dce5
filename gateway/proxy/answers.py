"""What a client is told besides the model's words: refusals, errors, and the Tollgate-* headers."""

from __future__ import annotations

import random

from aiohttp import web

from gateway.domain.periods import rfc3339
from gateway.domain.units import Meter
from gateway.errors import Refusal, TollgateError
from gateway.providers.adapter import Adapter
from gateway.proxy.admit import Bound
from gateway.proxy.parse import Asked
from gateway.quota.admission import Admission

RETRY_AFTER_MAX_S = 60
SERVER = {"Server": "tollgate"}  # and no version of anything


def refusal_headers(error: TollgateError, *, request_id: str, dialect: str) -> dict[str, str]:
    """Headers of our own answers: what the SDKs' retry logic reads, and who says so.

    Source: x-should-retry and retry-after, as read by anthropic-sdk-python and openai-python (`_base_client.py`).
    """
    headers = {
        **SERVER,
        "Tollgate-Request-Id": request_id,
        "Tollgate-Error-Source": "gateway",
        "x-should-retry": "true" if error.retry else "false",
        "request-id" if dialect == "anthropic" else "x-request-id": request_id,
    }
    if error.retry:
        wait_s = error.retry_after_s or 1
        if not isinstance(error, Refusal):  # whose wait is jittered already
            wait_s += random.randint(0, wait_s)  # noqa: S311  # so that those who failed together come back apart
        headers["retry-after"] = str(min(RETRY_AFTER_MAX_S, wait_s))
    if error.detail is not None and error.detail.resets_at:
        headers["Tollgate-Resets-At"] = error.detail.resets_at
    return headers


def error_response(error: TollgateError, adapter: Adapter, *, request_id: str, quota_status: int) -> web.Response:
    """An error in the dialect's shape."""
    status = quota_status if isinstance(error, Refusal) and error.status == 429 and not error.retry else error.status
    return web.Response(
        status=status,
        body=adapter.error_body(error, request_id),
        content_type="application/json",
        headers=refusal_headers(error, request_id=request_id, dialect=adapter.dialect),
    )


def admitted_headers(admission: Admission, asked: Asked, bound: Bound, *, now_ms: int) -> dict[str, str]:
    """What a client may know of its quota when its answer begins. A free call touches no wallet."""
    meter = admission.catalog.meters[admission.wallet]
    headers = {**SERVER, "Tollgate-Request-Id": admission.hold.hold_id}
    if admission.view is not None:
        headers["Tollgate-Wallet"] = admission.wallet
        headers["Tollgate-Held"] = meter.format(admission.held)
        headers["Tollgate-Remaining"] = meter.format(max(0, admission.remaining))
    if admission.resets_at_ms:
        headers["Tollgate-Resets-At"] = rfc3339(admission.resets_at_ms)
    if warning := admission.warning():
        headers["Tollgate-Warning"] = warning
    clamped_to = _clamped_to(admission, asked, bound)
    if clamped_to is not None:
        headers["Tollgate-Clamped"] = str(clamped_to)
    headers.update(_rate_limit_headers(admission, asked.adapter, now_ms))
    return headers


def _clamped_to(admission: Admission, asked: Asked, bound: Bound) -> int | None:
    """The output bound that was lowered, by what can be paid or by the model's own most."""
    if admission.clamped_to is not None:
        return admission.clamped_to
    wanted = asked.call.output_tokens_asked
    return bound.output_tokens if wanted is not None and bound.output_tokens < wanted else None


def upstream_error_headers(admission: Admission) -> dict[str, str]:
    """Beside an upstream's own error."""
    return {**SERVER, "Tollgate-Request-Id": admission.hold.hold_id, "Tollgate-Error-Source": "upstream"}


def charged_headers(admission: Admission, charged: int) -> dict[str, str]:
    """Of a whole answer: what it cost and what is left after it."""
    meter: Meter = admission.catalog.meters[admission.wallet]
    if admission.view is None:
        return {"Tollgate-Charged": meter.format(charged)}
    remaining = admission.remaining + admission.held - charged
    headers = {"Tollgate-Charged": meter.format(charged), "Tollgate-Remaining": meter.format(max(0, remaining))}
    if warning := admission.warning(charged):
        headers["Tollgate-Warning"] = warning
    return headers


def _rate_limit_headers(admission: Admission, adapter: Adapter, now_ms: int) -> dict[str, str]:
    """The dialect's own headers for the tightest requests and tokens limit."""
    headers: dict[str, str] = {}
    for kind in ("requests", "tokens"):
        tightest = admission.tightest(kind)
        if tightest is not None:
            limit, remaining, resets_at_ms = tightest
            headers.update(
                adapter.rate_limit_headers(
                    kind=kind, limit=limit, remaining=remaining, resets_at_ms=resets_at_ms, now_ms=now_ms
                )
            )
    return headers
