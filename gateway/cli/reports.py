"""``tollgate balance``, ``usage``, ``transactions``, ``log``, ``audit`` and ``rebuild``."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.accounts import AccountRef
from gateway.cli.frame import EX_FAILED, Reach, command
from gateway.cli.money import Wallet
from gateway.cli.reading import month_of, span
from gateway.cli.terminal import Output, Progress, cell, listing, record, table

if TYPE_CHECKING:
    from gateway.billing.office import Office

WALLETS_SHOWN: Final = "wallet available held used granted period_used lifetime_used resets_at"
GRANTS_SHOWN: Final = "number wallet source amount used held available expires_at"
TOTALS_SHOWN: Final = "wallet calls charged input_tokens cached_tokens output_tokens total_tokens"
RECORDS_SHOWN: Final = "at model feature job_type wallet charged total_tokens basis state end"
TRANSACTIONS_SHOWN: Final = "id at wallet kind amount grant reason"
OUTLOOK_SHOWN: Final = "wallet available used_recently per_day runs_out_at"
LOG_SHOWN: Final = "id at actor action account detail"

From = Annotated[str | None, typer.Option("--from", help="From this time or date on.")]
To = Annotated[str | None, typer.Option("--to", help="Before this time or date.")]
Csv = Annotated[bool, typer.Option("--csv", help="All of it as CSV on stdout, however much it is.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000)]
After = Annotated[str | None, typer.Option("--after", metavar="CURSOR", help="The page behind this cursor.")]


@command(groups.app, "balance", Reach.REDIS, rich_help_panel=groups.LOOKING)
async def balance(office: Office, account: AccountRef) -> Output:
    """Show what an account has: what is left, held and used, per wallet and grant."""
    from gateway.billing.customer_views import standing_view

    found = await office.outlook.standing(account)
    view = standing_view(found, office.desk.catalog(), office.desk.now_ms())
    wallets: list[dict[str, object]] = view["wallets"]  # type: ignore[assignment]
    grants: list[dict[str, object]] = [grant for wallet in wallets for grant in wallet["grants"]]  # type: ignore[attr-defined]
    head = f"{found.balance.account.name}: {view['plan']}, {view['subscription_status']}"
    ends = f", until {view['period_ends_at']}" if view["period_ends_at"] else ""
    lines = [head + ends, "", *table(wallets, WALLETS_SHOWN)]
    if grants:
        lines += ["", *table(grants, GRANTS_SHOWN)]
    return Output(view, tuple(lines))


@command(groups.app, "forecast", Reach.REDIS, rich_help_panel=groups.LOOKING)
async def forecast(office: Office, account: AccountRef) -> Output:
    """Say when each wallet of an account runs out, by its use of the last days."""
    from gateway.billing.customer_views import forecast_view

    view = forecast_view(await office.outlook.forecast(account), office.desk.catalog())
    wallets: list[dict[str, object]] = view["wallets"]  # type: ignore[assignment]
    return Output(view, tuple(table(wallets, OUTLOOK_SHOWN)))


@command(groups.app, "usage", rich_help_panel=groups.LOOKING)
async def usage(
    office: Office,
    account: AccountRef,
    from_: From = None,
    to: To = None,
    month: Annotated[str | None, typer.Option("--month", help="A billing month in UTC: 2026-11.")] = None,
    by: Annotated[str, typer.Option("--by", help="Sum by: month, feature, model, user, job_type, …; commas.")] = "",
    user: Annotated[str | None, typer.Option("--user", help="A user's id or external id.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="A key's id.")] = None,
    team: Annotated[str | None, typer.Option("--team", help="A team's id or external id.")] = None,
    feature: Annotated[str | None, typer.Option("--feature")] = None,
    wallet: Annotated[str | None, typer.Option("--wallet")] = None,
    model: Annotated[str | None, typer.Option("--model")] = None,
    job: Annotated[str | None, typer.Option("--job")] = None,
    job_type: Annotated[str | None, typer.Option("--job-type")] = None,
    limit: Limit = 20,
    after: After = None,
    as_csv: Csv = False,
) -> Output:
    """Show what was charged, in sums and call by call, the newest first."""
    from gateway.billing.exports import USAGE_COLUMNS
    from gateway.billing.views import total_view, usage_view
    from gateway.store.usage import Filter

    from_ms, to_ms = span(from_, to)
    which = Filter(from_ms, to_ms, month_of(month), user, team, key, feature, wallet, model, job, job_type)
    if as_csv:
        found = await office.accounts.get(account)
        pages = office.exports.usage(found.id, await office.reports.with_ids(found, which))
        return await _csv(USAGE_COLUMNS, pages)
    groups_by = tuple(name.strip() for name in by.split(",") if name.strip())
    report = await office.reports.usage(account, which, by=groups_by, cursor=after, limit=limit)
    meters = office.desk.catalog().meters
    totals = [total_view(total, report.by, meters.get(total.wallet)) for total in report.totals]
    records = [usage_view(row, meters.get(row.wallet)) for row in report.records.items]
    document = {"account": report.account.id, "totals": totals, "records": records, "next": report.records.next}
    if not totals:
        return Output(document, (), ("Nothing was charged.",))
    shown = " ".join((*report.by, *TOTALS_SHOWN.split()))
    lines = (*table(totals, shown), "", *table(records, RECORDS_SHOWN))
    return Output(document, lines, more(report.records.next))


@command(groups.app, "transactions", rich_help_panel=groups.LOOKING)
async def transactions(
    office: Office,
    account: AccountRef,
    wallet: Wallet = None,
    from_: From = None,
    to: To = None,
    limit: Limit = 100,
    after: After = None,
    as_csv: Csv = False,
) -> Output:
    """List what moved an account's balances, the newest first."""
    from gateway.billing.exports import TRANSACTION_COLUMNS
    from gateway.billing.views import transaction_view
    from gateway.store.ledger import Times

    times = Times(*span(from_, to))
    if as_csv:
        found = await office.accounts.get(account)
        pages = office.exports.transactions(found.id, wallet=wallet, times=times)
        return await _csv(TRANSACTION_COLUMNS, pages)
    page = await office.reports.transactions(account, wallet=wallet, times=times, cursor=after, limit=limit)
    meters = office.desk.catalog().meters
    entries = [transaction_view(row, meters.get(row.wallet)) for row in page.items]
    return listing(entries, TRANSACTIONS_SHOWN, notes=more(page.next), nothing="Nothing moved yet.")


@command(groups.app, "log", rich_help_panel=groups.LOOKING)
async def log(
    office: Office,
    account: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Id, external id or e-mail.")] = None,
    limit: Limit = 100,
    after: After = None,
) -> Output:
    """List who changed what, the newest first."""
    from gateway.billing.views import audit_line_view

    page = await office.reports.audit_log(account, cursor=after, limit=limit)
    found = [audit_line_view(row) for row in page.items]
    return listing(found, LOG_SHOWN, notes=more(page.next), nothing="Nothing was changed yet.")


@command(groups.app, "audit", Reach.REDIS, rich_help_panel=groups.RUNNING)
async def audit(
    office: Office,
    account: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Only this one.")] = None,
) -> Output:
    """Compare Redis, ledger and balances. Exits with 1 on any difference."""
    total = 1 if account is not None else await office.audit.count()
    progress = Progress("audit", total)
    accounts = charges = loaded = moving = 0
    differences: list[dict[str, object]] = []
    try:
        async for audited in office.audit.audit(account):
            accounts += 1
            charges += audited.charges
            loaded += audited.loaded
            moving += audited.moving
            differences += [
                {"account": each.account_id, "what": each.what, "expected": each.expected, "found": each.found}
                for each in audited.differences
            ]
            progress.step()
    finally:
        progress.close()
    document = {
        "accounts": accounts,
        "charges": charges,
        "in_redis": loaded,
        "moving": moving,
        "difference": len(differences),
        "differences": differences,
    }
    lines = [*table(differences, "account what expected found"), ""] if differences else []
    summary = f"{accounts} accounts, {charges} charges, {loaded} accounts in Redis, {len(differences)} differences"
    lines.append(summary + (f", {moving} accounts moving" if moving else ""))
    return Output(document, tuple(lines), exit_code=EX_FAILED if differences else 0)


@command(groups.app, "rebuild", Reach.REDIS, rich_help_panel=groups.RUNNING)
async def rebuild(office: Office) -> Output:
    """Make Redis anew from SQL; safe while serving."""
    started_s = time.monotonic()
    progress = Progress("rebuild", await office.audit.count())
    done = 0
    try:
        async for _ in office.audit.rebuild():
            done += 1
            progress.step()
    finally:
        progress.close()
    return record({"accounts": done, "seconds": f"{time.monotonic() - started_s:.1f}"})


async def _csv(columns: tuple[str, ...], pages: AsyncIterator[list[dict[str, object]]]) -> Output:
    """A page in memory at a time."""
    from gateway.billing.exports import csv_lines, heading

    sys.stdout.write(heading(columns))
    async for page in pages:
        sys.stdout.write(csv_lines(page, columns))
    return Output(None, (), printed=True)


def more(cursor: str | None) -> tuple[str, ...]:
    return () if cursor is None else (f"There is more: --after {cell(cursor)}",)
