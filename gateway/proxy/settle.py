"""Step 6: whatever happened, the hold ends here, once, on what is known of the usage."""

from __future__ import annotations

from gateway.domain.usage import Exact, NotServed, Outcome
from gateway.metrics import OTHER
from gateway.proxy.admit import Bound
from gateway.proxy.gateway import Gateway
from gateway.quota.admission import Admission, Bill, bill_of
from gateway.quota.counting import count_charge


def make_bill(
    gateway: Gateway, admission: Admission, outcome: Outcome, *, status: int, end: str, upstream: str | None
) -> Bill:
    """The bill of an outcome, on Redis' clock."""
    now_ms = gateway.quota.clock.now_ms()
    return bill_of(admission, outcome, status=status, end=end, upstream=upstream, now_ms=now_ms)


async def settle(gateway: Gateway, admission: Admission, bill: Bill, bound: Bound, outcome: Outcome) -> None:
    """End the hold and count what it came to. Never raises for a dependency that is away."""
    await gateway.quota.end(admission, bill)
    if admission.work.free:
        return
    if isinstance(outcome, NotServed):
        gateway.metrics.feature_uses.add((bill.row.feature, bill.row.plan, "not_served"), 1)
    else:
        _count(gateway, admission, bill, bound, outcome)


def _count(gateway: Gateway, admission: Admission, bill: Bill, bound: Bound, outcome: Outcome) -> None:
    """What dashboards and the hold's calibration want to know."""
    metrics, row = gateway.metrics, bill.row
    model, plan = row.model or OTHER, row.plan
    usage = row.usage
    for kind, amount in (
        ("input", usage.input),
        ("cache_read", usage.cache_read),
        ("cache_write", usage.cache_write + usage.cache_write_5m + usage.cache_write_1h),
        ("output", usage.output),
        ("reasoning", usage.reasoning),
    ):
        if amount:
            metrics.tokens.add((model, plan, kind), amount)
    count_charge(metrics, row, admission.catalog.meters[row.wallet])
    if isinstance(outcome, Exact):
        if bound.input_counted:
            metrics.estimate_ratio.observe((model, "input"), usage.input_total / bound.input_counted)
        if bound.output_tokens:
            metrics.estimate_ratio.observe((model, "output"), usage.output / bound.output_tokens)
