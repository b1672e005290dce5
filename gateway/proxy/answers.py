"""What a client is told besides the model's words: refusals, errors, and the Tollgate-* headers."""

from __future__ import annotations

from gateway.domain.periods import rfc3339
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


def tell_quota(
    headers: dict[str, str],
    admission: Admission,
    asked: Asked,
    bound: Bound,
    *,
    now_ms: int,
    charged: int | None = None,
) -> None:
    """Add what a client may know of its quota when its answer begins; of a whole one also what it cost (``charged``),
    and what is left after it. A free call touches no wallet."""
    meter = admission.catalog.meters[admission.wallet]
    headers |= SERVER
    headers["Tollgate-Request-Id"] = admission.hold.hold_id
    view = admission.view
    if view is not None:
        remaining = view.available if charged is None else view.available + admission.held - charged
        headers["Tollgate-Wallet"] = admission.wallet
        headers["Tollgate-Held"] = meter.format(admission.held)
        headers["Tollgate-Remaining"] = meter.format(remaining if remaining > 0 else 0)
        if resets_at_ms := admission.resets_at_ms:
            headers["Tollgate-Resets-At"] = rfc3339(resets_at_ms)
        if charged is not None and meter.tokens_per_unit is not None:
            headers["Tollgate-Charged-Tokens"] = meter.tokens(charged)
            headers["Tollgate-Used-Tokens"] = meter.tokens(view.capacity - remaining)
        if warning := admission.warning(charged or 0):
            headers["Tollgate-Warning"] = warning
    if charged is not None:
        headers["Tollgate-Charged"] = meter.format(charged)
    clamped_to = _clamped_to(admission, asked, bound)
    if clamped_to is not None:
        headers["Tollgate-Clamped"] = str(clamped_to)
    headers |= asked.adapter.rate_limit_headers(admission.tightest(), now_ms)


def _clamped_to(admission: Admission, asked: Asked, bound: Bound) -> int | None:
    """The output bound that was lowered, by what can be paid or by the model's own most."""
    if admission.clamped_to is not None:
        return admission.clamped_to
    wanted = asked.call.output_tokens_asked
    return bound.output_tokens if wanted is not None and bound.output_tokens < wanted else None


def upstream_error_headers(admission: Admission) -> dict[str, str]:
    """Beside an upstream's own error."""
    return {**SERVER, "Tollgate-Request-Id": admission.hold.hold_id, "Tollgate-Error-Source": "upstream"}
