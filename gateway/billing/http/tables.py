"""All routes of the billing APIs, by listener. A new table is named here; then it is served, documented and tested."""

from __future__ import annotations

from typing import Final

from gateway.billing.http import (
    admin_accounts,
    admin_alerts,
    admin_keys,
    admin_money,
    admin_payments,
    admin_reports,
    admin_running,
    customer,
    events,
    holds,
    metering,
    openapi,
    payments,
    tokens,
)
from gateway.billing.http.route import Route, Who

CUSTOMERS: Final[tuple[Route, ...]] = openapi.documented(
    *customer.ROUTES,
    *events.ROUTES,
    *holds.ROUTES,
    *metering.ROUTES,
    *tokens.ROUTES,
    *payments.ROUTES,
    who=Who.PUBLIC,
)  # fmt: skip

OPERATORS: Final[tuple[Route, ...]] = openapi.documented(
    *admin_accounts.ROUTES,
    *admin_keys.ROUTES,
    *admin_money.ROUTES,
    *admin_payments.ROUTES,
    *admin_reports.ROUTES,
    *admin_alerts.ROUTES,
    *admin_running.ROUTES,
    who=Who.ADMIN,
)  # fmt: skip
