"""``tollgate subscribe`` and ``subscription …``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import groups
from gateway.cli.accounts import ONE_SHOWN, AccountRef, Yes
from gateway.cli.frame import Reach, command
from gateway.cli.reading import later_ms, pairs
from gateway.cli.terminal import Output, confirm, record

if TYPE_CHECKING:
    from gateway.billing.office import Office
    from gateway.billing.subscriptions import Terms
    from gateway.domain.accounts import Account
    from gateway.store.subscriptions import Change

Moment = Annotated[str, typer.Option("--ends-at", help="A time, a date, or a duration from now such as 7d.")]
OwnPrice = Annotated[str | None, typer.Option("--price", help="The account's own price.")]
OwnAllowance = Annotated[
    list[str], typer.Option("--allowance", metavar="WALLET=AMOUNT", help="The account's own allowance; repeatable.")
]
OwnEntitlement = Annotated[
    list[str], typer.Option("--entitlement", metavar="NAME=VALUE", help="What the account has besides; repeatable.")
]


@command(groups.app, "subscribe", Reach.DELIVERY, rich_help_panel=groups.MONEY)
async def subscribe(
    office: Office,
    account: AccountRef,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    ends_at: Annotated[str | None, typer.Option("--ends-at", help="When the first period ends.")] = None,
    anchor: Annotated[str | None, typer.Option("--anchor", help="Where its periods start from. Default: now.")] = None,
    price: OwnPrice = None,
    allowance: OwnAllowance = [],  # noqa: B006
    entitlement: OwnEntitlement = [],  # noqa: B006
) -> Output:
    """Move an account to a plan: its period starts anew, nothing of it is used."""
    from gateway.billing.desk import instant_ms

    changed = await office.subscriptions.subscribe(
        account,
        plan,
        terms=_terms(price, allowance, entitlement),
        anchor_ms=None if anchor is None else instant_ms(anchor, param="--anchor"),
        ends_at_ms=None if ends_at is None else later_ms(ends_at, office.desk.now_ms(), param="--ends-at"),
    )
    return _account(changed, office)


@command(groups.subscription, "upgrade", Reach.DELIVERY)
async def upgrade(
    office: Office,
    account: AccountRef,
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    price: OwnPrice = None,
    allowance: OwnAllowance = [],  # noqa: B006
    entitlement: OwnEntitlement = [],  # noqa: B006
) -> Output:
    """Move to another plan now; what is left of the old plan's price is credited."""
    terms = _terms(price, allowance, entitlement)
    return _change(await office.subscriptions.change(account, plan, at_end=False, terms=terms), office)


@command(groups.subscription, "downgrade", Reach.DELIVERY)
async def downgrade(
    office: Office,
    account: AccountRef,
    plan: Annotated[str | None, typer.Argument(metavar="PLAN", help="Default: what the plan falls back to.")] = None,
    now: Annotated[bool, typer.Option("--now", help="At once; what is left of the price is credited.")] = False,
) -> Output:
    """Move to another plan at the end of what is paid."""
    catalog, found = office.desk.catalog(), await office.accounts.get(account)
    following = catalog.plans.get(found.subscription.plan)
    default = catalog.default_plan if following is None or following.ends == "block" else following.ends
    return _change(await office.subscriptions.change(found.id, plan or default, at_end=not now), office)


@command(groups.subscription, "restart", Reach.DELIVERY)
async def restart(office: Office, account: AccountRef) -> Output:
    """Start the plan's period anew now, with nothing of it used."""
    return _account(await office.subscriptions.restart(account), office)


@command(groups.subscription, "check", Reach.DELIVERY)
async def check(office: Office, account: AccountRef) -> Output:
    """Let end what is over, let begin what follows, and show the account."""
    return _account(await office.subscriptions.check(account), office)


@command(groups.subscription, "refund", Reach.DELIVERY)
async def refund(
    office: Office,
    account: AccountRef,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The payment's own name, as it was told to renew.")],
    yes: Yes = False,
) -> Output:
    """Take back what is left of what a payment granted, and end what it paid for. Moves no money."""
    found = await office.accounts.get(account)
    confirm(f"Take back what is left of payment {key} of {found.name}?", yes=yes)
    return _account(await office.subscriptions.refund(found.id, key), office)


@command(groups.subscription, "renew", Reach.DELIVERY)
async def renew(
    office: Office,
    account: AccountRef,
    periods: Annotated[int, typer.Option("--periods", min=1, help="How many periods were paid.")] = 1,
    plan: Annotated[str | None, typer.Option("--plan", help="What was paid for. Default: the account's plan.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="The payment's own name: it counts once.")] = None,
    paid: Annotated[str | None, typer.Option("--paid", help="What was paid. Default: the plan's price.")] = None,
    prepaid: Annotated[bool, typer.Option("--prepaid", help="For as many periods as the plan's prepay says.")] = False,
) -> Output:
    """Note a payment: the subscription is paid further, and gets the period that is due."""
    from gateway.billing.subscriptions import price_units

    units = None if paid is None else price_units(paid, office.desk.catalog().currency)
    changed = await office.subscriptions.renew(
        account, plan=plan, periods=periods, prepaid=prepaid, key=key, paid=units
    )
    return _account(changed, office)


@command(groups.subscription, "cancel", Reach.DELIVERY)
async def cancel(
    office: Office,
    account: AccountRef,
    now: Annotated[bool, typer.Option("--now", help="At once, not at the end of what is paid.")] = False,
    yes: Yes = False,
) -> Output:
    """Let the subscription end with what is paid of it."""
    found = await office.accounts.get(account)
    when = "now" if now else "with its period"
    confirm(f"End the {found.subscription.plan} subscription of {found.name} {when}?", yes=yes)
    return _account(await office.subscriptions.cancel(found.id, now=now), office)


@command(groups.subscription, "resume", Reach.DELIVERY)
async def resume(office: Office, account: AccountRef) -> Output:
    """Take back a cancellation, or a change of plan, that has not come yet."""
    return _account(await office.subscriptions.resume(account), office)


@command(groups.subscription, "extend", Reach.DELIVERY)
async def extend(office: Office, account: AccountRef, ends_at: Moment) -> Output:
    """Move the running period's end, and a trial's with it; an ended one runs again."""
    ends_ms = later_ms(ends_at, office.desk.now_ms(), param="--ends-at")
    return _account(await office.subscriptions.extend(account, ends_at_ms=ends_ms), office)


def _terms(price: str | None, allowance: list[str], entitlement: list[str]) -> Terms:
    from gateway.billing.subscriptions import Terms

    own = pairs(entitlement, param="--entitlement", what="NAME=VALUE, once per name")
    entitlements = {name: int(value) if value.isascii() and value.isdigit() else value for name, value in own.items()}
    return Terms(price, pairs(allowance, param="--allowance"), entitlements)


def _change(change: Change, office: Office) -> Output:
    from gateway.billing.views import change_view

    view = change_view(change, office.desk.catalog(), office.desk.now_ms())
    return record(view, f"{ONE_SHOWN} effective_at credit")


def _account(account: Account, office: Office) -> Output:
    from gateway.billing.views import account_view

    return record(account_view(account, office.desk.catalog(), office.desk.now_ms()), ONE_SHOWN)
