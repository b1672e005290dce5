"""Keys of the contract whose behaviour is not there yet: read and checked, but refused when they are used.

Rules
1. What is off changes nothing and passes: an alert webhook without a URL, an empty map.
2. A line leaves this file together with the change that makes its key work.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.reading import Loc
from gateway.config.schema import Alerts, Document, Plan


def unsupported(document: Document) -> Iterator[tuple[Loc, str]]:
    """Location and what was expected instead, of every key that is used and not supported yet."""
    yield from ((("alerts", *loc), expected) for loc, expected in _alerts(document.alerts))
    for name, plan in document.plans.items():
        yield from ((("plans", name, key), expected) for key, expected in _plan(plan))


def _alerts(alerts: Alerts) -> Iterator[tuple[Loc, str]]:
    for meter in alerts.low_balance:
        yield ("low_balance", meter), "none: low-balance alerts are not supported yet"
    if alerts.webhook is not None and alerts.webhook.url:
        yield ("webhook", "url"), "none: alert webhooks are not supported yet"
    if alerts.email is not None and alerts.email.smtp:
        yield ("email", "smtp"), "none: alert e-mails are not supported yet"
    if alerts.rapid_use is not None:
        yield ("rapid_use",), "none: rapid_use is not supported yet"
    if alerts.spike is not None:
        yield ("spike",), "none: spike is not supported yet"
    if alerts.refused:
        yield ("refused",), "false: alerts on refusals are not supported yet"


def _plan(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.hold == "learned":
        yield "hold", "worst_case: learned is not supported yet"
    if plan.on_exhausted == "error":
        because = "with worst-case holds no stream is ended by the quota, so error is not supported yet"
        yield "on_exhausted", f"stop: {because}"
    if plan.outage == "lease":
        yield "outage", "closed: lease is not supported yet"
