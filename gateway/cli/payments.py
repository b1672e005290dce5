"""``tollgate packages …`` and ``payments …``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.accounts import AccountRef, Reason
from gateway.cli.frame import Reach, command
from gateway.cli.terminal import Output, listing, record

if TYPE_CHECKING:
    from gateway.billing.office import Office

PACKAGES_SHOWN: Final = "name label price currency grants plans"
PAYMENTS_SHOWN: Final = "id at account kind what amount currency state refunded provider"
GIVEN_SHOWN: Final = "payment package new grants"


@command(groups.packages, "list")
async def list_packages(
    office: Office,
    account: Annotated[str | None, typer.Option("--account", help="Only what this account may buy.")] = None,
) -> Output:
    """List what can be bought once."""
    from gateway.billing.money_views import package_view

    found = None if account is None else await office.accounts.get(account)
    views = [package_view(package, office.desk.catalog()) for package in office.packages.list(found)]
    return listing(views, PACKAGES_SHOWN, nothing="There are no packages.")


@command(groups.packages, "give", Reach.DELIVERY)
async def give_package(
    office: Office,
    account: AccountRef,
    package: Annotated[str, typer.Argument(metavar="PACKAGE")],
    payment: Annotated[
        str | None, typer.Option("--payment", help="Your name of the payment; the same one again gives nothing.")
    ] = None,
    reason: Reason = "",
) -> Output:
    """Give an account a package that was paid elsewhere, or is a present."""
    from gateway.billing.money_views import given_view

    _, given = await office.packages.give(account, package, payment=payment, reason=reason)
    notes = () if given.is_new else ("It was given before: nothing was done.",)
    return record(given_view(given, office.desk.catalog()), GIVEN_SHOWN, notes=notes)


@command(groups.payments, "list")
async def list_payments(
    office: Office,
    account: Annotated[str | None, typer.Argument(metavar="[ACCOUNT]", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    after: Annotated[str | None, typer.Option("--after", metavar="CURSOR", help="The page behind this cursor.")] = None,
) -> Output:
    """List payments, the newest first."""
    from gateway.billing.money_views import payment_view

    page = await office.packages.payments(account, cursor=after, limit=limit)
    found = [payment_view(payment) for payment in page.items]
    more = (f"more: --after {page.next}",) if page.next else ()
    return listing(found, PAYMENTS_SHOWN, notes=more, nothing="There are no payments.")


@command(groups.payments, "refund", Reach.DELIVERY)
async def refund_payment(
    office: Office,
    payment: Annotated[str, typer.Argument(metavar="PAYMENT", help="Its id.")],
    amount: Annotated[str | None, typer.Option("--amount", help="How much so far; default: all.")] = None,
    reason: Reason = "",
) -> Output:
    """Take back what a payment granted, once its money was given back; Stripe's are refunded at Stripe."""
    from gateway.billing.money_views import payment_view

    done = await office.packages.refund(payment, refunded=amount, reason=reason)
    return record(payment_view(done), "id account what amount refunded currency state")
