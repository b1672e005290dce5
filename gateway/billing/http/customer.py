"""``/api/billing``: what a customer sees with its own key: what it has, what it used, what there is to buy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import Field

from gateway.billing import exports
from gateway.billing.choosing import choose, leave
from gateway.billing.customer_views import forecast_view, rates_view, standing_view, subscription_view
from gateway.billing.http.admin_reports import UsageFilter, UsageQuery, WalletQuery
from gateway.billing.http.answers import PackagesAnswer, PlansAnswer, TransactionAnswer
from gateway.billing.http.customer_answers import (
    ExplainAnswer,
    ForecastAnswer,
    KeysAnswer,
    RatesAnswer,
    RecordsAnswer,
    StandingAnswer,
    SubscribedAnswer,
    SubscriptionAnswer,
)
from gateway.billing.http.models import NAME_MAX, ErrorBody, Name, NoQuery, PageOf, Query, SpanQuery, Strict
from gateway.billing.http.route import Call, Raw, Route, Who
from gateway.billing.money_views import package_view
from gateway.billing.subscriptions import PERIODS_MAX
from gateway.billing.views import View, key_view, plan_view, total_view, transaction_view, usage_view, when
from gateway.domain.accounts import Caller
from gateway.edge import SERVER
from gateway.quota.credentials import bind
from gateway.store.ledger import Times

EXPLAIN_BYTES_MAX: Final = 8_388_608


class RecordsQuery(UsageQuery):
    by: Annotated[
        str, Field(max_length=NAME_MAX, description="Sums too, by day, month, feature, model, user, …; commas.")
    ] = ""


class ExplainBody(Strict):
    """The request that an app would send (``route`` and ``body``), or a call's facts (all the others)."""

    route: Name | None = None
    body: Any = None
    feature: Name | None = None
    model: Name | None = None
    input_tokens: Annotated[int, Field(ge=0)] = 0
    output_tokens: Annotated[int, Field(ge=0)] = 0
    uses: Annotated[int, Field(ge=1)] = 1


class EntriesQuery(SpanQuery):
    wallet: Annotated[str | None, Field(max_length=NAME_MAX)] = None


async def balance(call: Call[NoQuery, None]) -> View:
    desk = call.office.desk
    return standing_view(await call.office.outlook.standing(call.account.id), desk.catalog(), desk.now_ms())


async def plans(call: Call[NoQuery, None]) -> View:
    catalog = call.office.desk.catalog()
    return {"items": [plan_view(plan, catalog) for plan in catalog.plans.values()]}


async def packages(call: Call[NoQuery, None]) -> View:
    catalog = call.office.desk.catalog()
    return {"items": [package_view(package, catalog) for package in catalog.packages.values()]}


async def subscription(call: Call[NoQuery, None]) -> View:
    return await _subscription(call)


class SubscribeBody(Strict):
    """``periods``: how many are paid at once, where the plan says so."""

    plan: Name
    periods: Annotated[int, Field(ge=1, le=PERIODS_MAX)] = 1


class CancelQuery(Query):
    now: Annotated[bool, Field(description="At once, with what is left of it; not of a free plan.")] = False


async def subscribe(call: Call[NoQuery, SubscribeBody]) -> View:
    desk = call.office.desk
    chosen = await choose(desk, call.account.id, call.body.plan, periods=call.body.periods)
    return {
        "url": None if chosen.purchase is None else chosen.purchase.url,
        "takes_effect_at": when(chosen.at_ms),
        "subscription": await _subscription(call),
    }


async def cancel(call: Call[CancelQuery, None]) -> View:
    await leave(call.office.desk, call.account.id, now=call.query.now)
    return await _subscription(call)


async def _subscription(call: Call[Any, Any]) -> View:
    desk = call.office.desk
    return subscription_view(await call.office.outlook.standing(call.account.id), desk.catalog(), desk.now_ms())


async def transactions(call: Call[WalletQuery, None]) -> View:
    which = call.query
    page = await call.office.reports.transactions(
        call.account.id,
        wallet=which.wallet,
        times=Times(which.from_ms, which.to_ms),
        cursor=which.cursor,
        limit=which.limit,
    )
    meters = call.office.desk.catalog().meters
    return {"items": [transaction_view(row, meters.get(row.wallet)) for row in page.items], "next": page.next}


async def usage(call: Call[RecordsQuery, None]) -> View:
    which, reports = call.query, call.office.reports
    meters = call.office.desk.catalog().meters
    by = tuple(name.strip() for name in which.by.split(",") if name.strip())
    totals = await reports.totals(call.account.id, which.which(), by=by) if by else ()
    page = await reports.records(call.account.id, which.which(), cursor=which.cursor, limit=which.limit)
    return {
        "totals": [total_view(total, by, meters.get(total.wallet)) for total in totals],
        "items": [usage_view(row, meters.get(row.wallet)) for row in page.items],
        "next": page.next,
    }


async def rates(call: Call[NoQuery, None]) -> View:
    return rates_view(call.office.desk.catalog())


async def forecast(call: Call[NoQuery, None]) -> View:
    return forecast_view(await call.office.outlook.forecast(call.account.id), call.office.desk.catalog())


async def keys(call: Call[NoQuery, None]) -> View:
    desk = call.office.desk
    return {"items": [key_view(key, desk.now_ms()) for key in await call.office.keys.list(call.account.id)]}


async def usage_csv(call: Call[UsageFilter, None]) -> web.StreamResponse:
    which = await call.office.reports.with_ids(call.account, call.query.which())
    return await _csv(call, "usage.csv", exports.USAGE_COLUMNS, call.office.exports.usage(call.account.id, which))


async def transactions_csv(call: Call[EntriesQuery, None]) -> web.StreamResponse:
    which = call.query
    times = Times(which.from_ms, which.to_ms)
    pages = call.office.exports.transactions(call.account.id, wallet=which.wallet, times=times)
    return await _csv(call, "transactions.csv", exports.TRANSACTION_COLUMNS, pages)


async def explain(call: Call[NoQuery, ExplainBody]) -> View:
    frame, key = call.frame, call.key
    assert key is not None and call.caller is not None, "only with a key"
    account_id = call.account.id

    async def refresh(stale: Caller) -> Caller:
        again = await frame.callers.again(key, stale=stale, account_ref=account_id)
        return await bind(frame.callers, again, call.request.headers)

    document = call.body.model_dump(exclude_unset=True)
    return await frame.explain(document, headers=call.request.headers, caller=call.caller, refresh=refresh)


async def _csv(
    call: Call[Any, None], name: str, columns: tuple[str, ...], pages: AsyncIterator[Iterable[View]]
) -> web.StreamResponse:
    """A page at a time, as fast as its reader reads; the first one is read before anything is answered."""
    headers = {
        **SERVER,
        "Content-Type": f"{exports.CSV_TYPE}; charset=utf-8",
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "Tollgate-Request-Id": call.id,
    }
    response = web.StreamResponse(headers=headers)
    async for page in pages:
        if not response.prepared:
            await response.prepare(call.request)
            await response.write(exports.heading(columns).encode())
        await response.write(exports.csv_lines(page, columns).encode())
    await response.write_eof()
    return response


_CSV: Final = Raw(exports.CSV_TYPE)
ROUTES: Final = (
    Route("GET", "/api/billing/balance", Who.KEY, balance, StandingAnswer, "What each wallet has, and what was used."),
    Route("GET", "/api/billing/plans", Who.SHOPPER, plans, PlansAnswer, "The plans that are for sale."),
    Route("GET", "/api/billing/packages", Who.SHOPPER, packages, PackagesAnswer, "What can be bought once."),
    Route("GET", "/api/billing/subscription", Who.KEY, subscription, SubscriptionAnswer,
          "The account's plan: status, periods, terms, and what it allows."),
    Route("POST", "/api/billing/subscribe", Who.KEY, subscribe, SubscribedAnswer,
          "Take a plan that costs nothing, or be told where it is paid.", body=SubscribeBody,
          others={409: ErrorBody}, idempotent=True),
    Route("DELETE", "/api/billing/subscription", Who.KEY, cancel, SubscriptionAnswer,
          "Let the plan end with what is paid of it, or at once.", query=CancelQuery),
    Route("GET", "/api/billing/transactions", Who.KEY, transactions, PageOf[TransactionAnswer],
          "What moved the balances, the newest first.", query=WalletQuery),
    Route("GET", "/api/billing/usage", Who.KEY, usage, RecordsAnswer, "What was used, the newest first, and in sums.",
          query=RecordsQuery),
    Route("GET", "/api/billing/rates", Who.KEY, rates, RatesAnswer, "What work costs."),
    Route("GET", "/api/billing/forecast", Who.KEY, forecast, ForecastAnswer,
          "When each wallet runs out at its recent pace."),
    Route("GET", "/api/billing/keys", Who.KEY, keys, KeysAnswer, "The account's keys, but for the keys themselves."),
    Route("GET", "/api/billing/usage.csv", Who.KEY, usage_csv, _CSV, "Usage records as CSV.", query=UsageFilter),
    Route("GET", "/api/billing/transactions.csv", Who.KEY, transactions_csv, _CSV, "Transactions as CSV.",
          query=EntriesQuery),
    Route("POST", "/api/v1/explain", Who.KEY, explain, ExplainAnswer,
          "What would be decided about a call, and why; nothing is taken.", body=ExplainBody,
          body_bytes_max=EXPLAIN_BYTES_MAX),
)  # fmt: skip
