"""All services on one desk: what the command line, the admin API and the billing API call."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.billing.accounts import AccountService, MemberService
from gateway.billing.alerts.service import AlertService
from gateway.billing.audit import AuditService
from gateway.billing.budgets import BudgetService
from gateway.billing.desk import Desk
from gateway.billing.exports import ExportService
from gateway.billing.grants import GrantService
from gateway.billing.holds import HoldService
from gateway.billing.insight import InsightService
from gateway.billing.keys import KeyService
from gateway.billing.outlook import OutlookService
from gateway.billing.packages import PackageService
from gateway.billing.reports import ReportService
from gateway.billing.stripe.webhooks import StripeService
from gateway.billing.subscriptions import SubscriptionService


@dataclass(frozen=True, slots=True)
class Office:
    """Made by ``office_at``."""

    desk: Desk
    accounts: AccountService
    members: MemberService
    keys: KeyService
    subscriptions: SubscriptionService
    grants: GrantService
    packages: PackageService
    stripe: StripeService
    budgets: BudgetService
    reports: ReportService
    outlook: OutlookService
    exports: ExportService
    audit: AuditService
    holds: HoldService
    alerts: AlertService
    insight: InsightService


def office_at(desk: Desk) -> Office:
    return Office(
        desk=desk,
        accounts=AccountService(desk),
        members=MemberService(desk),
        keys=KeyService(desk),
        subscriptions=SubscriptionService(desk),
        grants=GrantService(desk),
        packages=PackageService(desk),
        stripe=StripeService(desk),
        budgets=BudgetService(desk),
        reports=ReportService(desk),
        outlook=OutlookService(desk),
        exports=ExportService(desk),
        audit=AuditService(desk),
        holds=HoldService(desk),
        alerts=AlertService(desk),
        insight=InsightService(desk),
    )
