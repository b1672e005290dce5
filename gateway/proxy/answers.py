"""What a client is told besides the model's words: refusals, errors, and the Tollgate-* headers."""

from __future__ import annotations

from gateway.domain.periods import rfc3339
from gateway.domain.units import Meter
from gateway.edge import SERVER, refusal_headers, status_of
from gateway.errors import TollgateError
from gateway.providers.adapter import Adapter
from gateway.proxy.admit import Bound
from gateway.proxy.parse import Asked
from gateway.proxy.visit import Whole
from gateway.quota.admission import Admission


def error_response(error: TollgateError, adapter: Adapter, *, request_id: str, quota_status: int) -> Whole:
    """An error in the dialect's shape."""
    headers = refusal_headers(error, request_id=request_id)
    headers["request-id" if adapter.dialect == "anthropic" else "x-request-id"] = request_id
    headers["content-type"] = "application/json"
    return Whole(status_of(error, quota_status), headers, adapter.error_body(error, request_id))


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
    if meter.tokens_per_unit is not None:
        headers["Tollgate-Charged-Tokens"] = meter.tokens(charged)
        headers["Tollgate-Used-Tokens"] = meter.tokens(admission.view.capacity - remaining)
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
