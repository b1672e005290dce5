"""``tollgate grant``, ``adjust``, ``budgets …`` and ``plans …``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.accounts import AccountRef, Reason
from gateway.cli.frame import Reach, command
from gateway.cli.reading import later_ms
from gateway.cli.terminal import Output, listing, record
from gateway.errors import RequestError

if TYPE_CHECKING:
    from gateway.billing.office import Office

PLANS_SHOWN: Final = "name label price period renews allowance ends default"
BUDGETS_SHOWN: Final = "number scope id meter amount raised used period"
Wallet = Annotated[str | None, typer.Option("--wallet", help="A meter; needed when there is more than one.")]
Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="A plain decimal of the meter.")]


@command(groups.app, "grant", Reach.DELIVERY, rich_help_panel=groups.MONEY)
async def grant(
    office: Office,
    account: AccountRef,
    amount: Amount,
    wallet: Wallet = None,
    reason: Reason = "",
    expires: Annotated[str | None, typer.Option("--expires", help="A time, a date, or a duration such as 30d.")] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="For one user, whose budget in this meter rises with it.")
    ] = None,
) -> Output:
    """Give an account, or one of its users, an amount."""
    from gateway.billing.views import grant_view

    ends_ms = 0 if expires is None else later_ms(expires, office.desk.now_ms(), param="--expires")
    meter, made = await office.grants.grant(
        account, amount, wallet=wallet, reason=reason, expires_at_ms=ends_ms, user=user
    )
    return record(grant_view(made, meter), "number wallet source amount expires_at")


@command(
    groups.app,
    "adjust",
    Reach.DELIVERY,
    context_settings={"ignore_unknown_options": True},
    rich_help_panel=groups.MONEY,
)
async def adjust(
    office: Office,
    account: AccountRef,
    amount: Annotated[str, typer.Argument(metavar="±AMOUNT", help="A plain decimal of the meter, with its sign.")],
    wallet: Wallet = None,
    reason: Reason = "",
) -> Output:
    """Raise (+) or lower (-) what a wallet has; lowering takes at most what is left."""
    meter, done = await office.grants.adjust(account, amount, wallet=wallet, reason=reason)
    asked = meter.parse(amount, signed=True)
    fields = {
        "wallet": meter.name,
        "asked": meter.format(asked),
        "adjusted": meter.format(done.amount),
        "balance": meter.format(done.balance),
    }
    short = done.amount != asked
    return record(fields, notes=("Less was left than was to be taken.",) if short else ())


@command(groups.budgets, "set", Reach.DELIVERY)
async def set_budget(
    office: Office,
    scope: Annotated[str, typer.Argument(metavar="team|user|key")],
    scope_id: Annotated[str, typer.Argument(metavar="ID", help="Its id; with --account also its external id.")],
    meter: Annotated[str, typer.Argument(metavar="METER")],
    amount: Amount,
    period: Annotated[str, typer.Option("--period", help="month, year, once, or a duration such as 7d.")] = "month",
    account: Annotated[str | None, typer.Option("--account", help="Whose team or user it is.")] = None,
) -> Output:
    """Set the ceiling of a team, a user or a key in a meter."""
    from gateway.billing.views import budget_view

    unit, budget = await office.budgets.set(
        scope, scope_id, meter=meter, text=amount, period=period, account_ref=account
    )
    return record(budget_view(budget, unit, office.desk.now_ms()), "number scope id meter amount period")


@command(groups.budgets, "list")
async def list_budgets(office: Office, account: AccountRef) -> Output:
    """List an account's budgets."""
    from gateway.billing.views import budget_view

    meters = office.desk.catalog().meters
    budgets = await office.budgets.list(account)
    found = [budget_view(budget, meters.get(budget.meter), office.desk.now_ms(), used) for budget, used in budgets]
    return listing(found, BUDGETS_SHOWN, nothing="This account has no budgets.")


@command(groups.budgets, "remove", Reach.DELIVERY)
async def remove_budget(
    office: Office, account: AccountRef, number: Annotated[int, typer.Argument(metavar="NUMBER")]
) -> Output:
    """Lift a budget."""
    await office.budgets.remove(account, number)
    return record({"number": number, "removed": True})


@command(groups.plans, "list")
async def list_plans(office: Office) -> Output:
    """List the config's plans."""
    from gateway.billing.views import plan_view

    catalog = office.desk.catalog()
    return listing([plan_view(plan, catalog) for plan in catalog.plans.values()], PLANS_SHOWN)


@command(groups.plans, "show")
async def show_plan(office: Office, plan: Annotated[str, typer.Argument(metavar="PLAN")]) -> Output:
    """Show a plan."""
    from gateway.billing.desk import shown
    from gateway.billing.views import plan_view

    catalog = office.desk.catalog()
    found = catalog.plans.get(plan)
    if found is None:
        raise RequestError(f"There is no plan {shown(plan)}; there is: {', '.join(catalog.plans)}.", param="plan")
    return record(plan_view(found, catalog))
