"""``tollgate alerts …`` and ``tollgate insight``: what was told to whom, and what operators should know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.frame import EX_FAILED, command
from gateway.cli.reports import After, From, Limit, To, more
from gateway.cli.terminal import Output, heading, listing, table

if TYPE_CHECKING:
    from gateway.billing.office import Office

ALERTS_SHOWN: Final = "id at account kind title webhook email"
TRIED_SHOWN: Final = "channel arrived error"
FEATURES_SHOWN: Final = "feature wallet calls charged tokens"
USERS_SHOWN: Final = "account user wallet calls charged tokens"
RISKS_SHOWN: Final = "account name plan wallet available granted used_percent per_day runs_out_at"


@command(groups.alerts, "list")
async def list_alerts(
    office: Office,
    account: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Id, external id or e-mail.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="threshold, refused, payment_failed, …")] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="With a delivery that is pending, sent or failed.")
    ] = None,
    limit: Limit = 100,
    after: After = None,
) -> Output:
    """List what was told, the newest first, and how far each delivery got."""
    from gateway.billing.alerts.service import alert_view

    page = await office.alerts.list(account, kind=kind, state=state, cursor=after, limit=limit)
    found = [alert_view(record) for record in page.items]
    shown = [{**view, **_deliveries(view)} for view in found]
    output = listing(shown, ALERTS_SHOWN, notes=more(page.next), nothing="Nobody was told of anything.")
    return Output(found, output.lines, output.notes)


@command(groups.alerts, "test")
async def test(
    office: Office,
    email: Annotated[str | None, typer.Option("--email", help="Whom to write to.", metavar="ADDRESS")] = None,
) -> Output:
    """Send a sample to the configured channels, once. Exits with 1 when one did not arrive."""
    from gateway.billing.alerts.sample import send_sample

    tried = await send_sample(office.desk.channels(), email=email, now_ms=office.desk.now_ms())
    rows: list[dict[str, object]] = [
        {"channel": each.channel, "arrived": not each.why, "error": each.why or None} for each in tried
    ]
    return Output(rows, tuple(table(rows, TRIED_SHOWN)), exit_code=EX_FAILED if any(each.why for each in tried) else 0)


def _deliveries(view: dict[str, object]) -> dict[str, object]:
    """A column per channel: how far it got."""
    columns: dict[str, object] = {"webhook": None, "email": None}
    for each in view["deliveries"]:  # type: ignore[attr-defined]
        columns[each["channel"]] = each["state"] + (f" ({each['last_error']})" if each["last_error"] else "")
    return columns


@command(groups.app, "insight", rich_help_panel=groups.LOOKING)
async def insight(
    office: Office,
    account: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Only this one.")] = None,
    from_: From = None,
    to: To = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100)] = 20,
) -> Output:
    """Show what is used most this month, by feature and by user, and whose wallets run out soon."""
    from gateway.billing.desk import instant_ms
    from gateway.billing.insight import insight_view, month_until

    desk = office.desk
    asked = [None if text is None else instant_ms(text, param=name) for text, name in ((from_, "--from"), (to, "--to"))]
    from_ms, to_ms = month_until(desk.now_ms(), *asked)
    view = insight_view(await office.insight.look(account, from_ms=from_ms, to_ms=to_ms, limit=limit), desk.catalog())
    lines: list[str] = []
    for name, shown in (("features", FEATURES_SHOWN), ("users", USERS_SHOWN), ("at_risk", RISKS_SHOWN)):
        rows: list[dict[str, object]] = view[name]  # type: ignore[assignment]
        if rows:
            lines += [heading(name).capitalize(), *table(rows, shown), ""]
    return Output(view, tuple(lines[:-1]), () if lines else ("Nothing was used, and nothing is at risk.",))
