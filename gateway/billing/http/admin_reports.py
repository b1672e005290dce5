"""``/admin/v1``: what accounts used, what moved their balances, who did what, and whether it all adds up."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from gateway.billing.http.answers import (
    AuditAnswer,
    AuditLineAnswer,
    TotalsAnswer,
    TransactionAnswer,
    UsageAnswer,
)
from gateway.billing.http.models import NAME_MAX, NoQuery, PageOf, SpanQuery, TimesQuery
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.views import View, audit_line_view, total_view, transaction_view, usage_view
from gateway.domain.periods import MONTH
from gateway.store.ledger import Times
from gateway.store.usage import Filter

Exact = Annotated[str | None, Field(max_length=NAME_MAX)]


class UsageFilter(SpanQuery):
    """Which records; what is not said may be any."""

    month: Annotated[str | None, Field(pattern=MONTH, description="A billing month in UTC.")] = None
    user: Exact = None
    team: Exact = None
    key: Exact = None
    feature: Exact = None
    wallet: Exact = None
    model: Exact = None
    job: Exact = None
    job_type: Exact = None

    def which(self) -> Filter:
        return Filter(
            from_ms=self.from_ms,
            to_ms=self.to_ms,
            month=self.month,
            user_id=self.user,
            team_id=self.team,
            key_id=self.key,
            feature=self.feature,
            wallet=self.wallet,
            model=self.model,
            job=self.job,
            job_type=self.job_type,
        )


class UsageQuery(UsageFilter, TimesQuery):
    """A page of them."""


class TotalsQuery(UsageFilter):
    by: Annotated[str, Field(max_length=NAME_MAX, description="Commas between: month, feature, model, user, …")] = ""


class WalletQuery(TimesQuery):
    wallet: Exact = None


async def usage(call: Call[UsageQuery, None]) -> View:
    which = call.query
    page = await call.office.reports.records(
        call.path("account"), which.which(), cursor=which.cursor, limit=which.limit
    )
    meters = call.office.desk.catalog().meters
    return {"items": [usage_view(row, meters.get(row.wallet)) for row in page.items], "next": page.next}


async def totals(call: Call[TotalsQuery, None]) -> View:
    by = tuple(name.strip() for name in call.query.by.split(",") if name.strip())
    found = await call.office.reports.totals(call.path("account"), call.query.which(), by=by)
    meters = call.office.desk.catalog().meters
    return {"items": [total_view(total, by, meters.get(total.wallet)) for total in found]}


async def transactions(call: Call[WalletQuery, None]) -> View:
    which = call.query
    page = await call.office.reports.transactions(
        call.path("account"),
        wallet=which.wallet,
        times=Times(which.from_ms, which.to_ms),
        cursor=which.cursor,
        limit=which.limit,
    )
    meters = call.office.desk.catalog().meters
    return {"items": [transaction_view(row, meters.get(row.wallet)) for row in page.items], "next": page.next}


async def log_of_account(call: Call[TimesQuery, None]) -> View:
    return await _log(call, call.path("account"))


async def log(call: Call[TimesQuery, None]) -> View:
    return await _log(call, None)


async def _log(call: Call[TimesQuery, None], account_ref: str | None) -> View:
    which = call.query
    times = Times(which.from_ms, which.to_ms)
    page = await call.office.reports.audit_log(account_ref, times=times, cursor=which.cursor, limit=which.limit)
    return {"items": [audit_line_view(row) for row in page.items], "next": page.next}


async def audit(call: Call[NoQuery, None]) -> View:
    (audited,) = [each async for each in call.office.audit.audit(call.path("account"))]
    return {
        "account": audited.account_id,
        "charges": audited.charges,
        "in_redis": audited.loaded,
        "moving": audited.moving,
        "differences": [
            {"what": each.what, "expected": each.expected, "found": each.found} for each in audited.differences
        ],
    }


_ONE: Final = "/admin/v1/accounts/{account}"
ROUTES: Final = (
    Route("GET", f"{_ONE}/usage", Who.ADMIN, usage, PageOf[UsageAnswer], "Its usage records, the newest first.",
          query=UsageQuery),
    Route("GET", f"{_ONE}/usage/totals", Who.ADMIN, totals, TotalsAnswer, "What they add up to.", query=TotalsQuery),
    Route("GET", f"{_ONE}/transactions", Who.ADMIN, transactions, PageOf[TransactionAnswer],
          "What moved its balances, the newest first.", query=WalletQuery),
    Route("GET", f"{_ONE}/log", Who.ADMIN, log_of_account, PageOf[AuditLineAnswer],
          "Who changed what of it, the newest first.", query=TimesQuery),
    Route("GET", "/admin/v1/log", Who.ADMIN, log, PageOf[AuditLineAnswer], "Who changed what, the newest first.",
          query=TimesQuery),
    Route("POST", f"{_ONE}/audit", Who.ADMIN, audit, AuditAnswer, "Compare its Redis, ledger and balances."),
)  # fmt: skip
