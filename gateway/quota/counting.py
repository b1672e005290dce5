"""What dashboards want to know of a charge, whoever ended the call: a proxied one or one by API."""

from __future__ import annotations

from gateway.domain.charges import ChargeRow
from gateway.domain.units import Meter
from gateway.metrics import Metrics


def count_charge(metrics: Metrics, row: ChargeRow, meter: Meter | None) -> None:
    """Its use, its overrun and how well it was held; what was charged is counted where SQL decides it."""
    metrics.feature_uses.add((row.feature, row.plan, row.end), 1)
    if meter is not None and row.overrun:
        metrics.overrun_units.add((row.wallet,), row.overrun / meter.scale)
    if row.held:
        metrics.hold_ratio.observe((), row.charged / row.held)
