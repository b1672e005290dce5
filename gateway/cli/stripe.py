"""``tollgate stripe …``: what Stripe told, what was kept of it, and how its books compare with ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.accounts import AccountRef, Reason
from gateway.cli.frame import EX_FAILED, Reach, command
from gateway.cli.terminal import Output, Progress, listing, record

if TYPE_CHECKING:
    from gateway.billing.office import Office

EVENTS_SHOWN: Final = "id at type state why account customer"
TAKEN_SHOWN: Final = "id state why resumed"
DIFFERENCES_SHOWN: Final = "what id stripe ours healed why"
EventId = Annotated[str, typer.Argument(metavar="EVENT", help="Its id: evt_…")]


@command(groups.stripe, "events")
async def events(
    office: Office,
    kept: Annotated[bool, typer.Option("--kept", help="Only those that need a look.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    after: Annotated[str | None, typer.Option("--after", metavar="CURSOR", help="The page behind this cursor.")] = None,
) -> Output:
    """List what Stripe told, the newest first."""
    from gateway.billing.money_views import event_view

    page = await office.stripe.events(kept=kept, cursor=after, limit=limit)
    found = [event_view(event) for event in page.items]
    more = (f"more: --after {page.next}",) if page.next else ()
    return listing(found, EVENTS_SHOWN, notes=more, nothing="There are no such events.")


@command(groups.stripe, "retry", Reach.DELIVERY)
async def retry(
    office: Office,
    event: EventId,
    accept: Annotated[bool, typer.Option("--accept", help="Its amount is right, whatever the price says.")] = False,
) -> Output:
    """Let a kept event try again, after what was wrong was put right."""
    from gateway.billing.money_views import taken_view

    taken = await office.stripe.retry(event, accept=accept)
    return record(taken_view(taken), TAKEN_SHOWN, exit_code=0 if taken.state == "done" else EX_FAILED)


@command(groups.stripe, "ignore")
async def ignore(office: Office, event: EventId, reason: Reason = "") -> Output:
    """Put a kept event aside for good."""
    from gateway.billing.money_views import taken_view

    return record(taken_view(await office.stripe.ignore(event, reason=reason)), TAKEN_SHOWN)


@command(groups.stripe, "link", Reach.DELIVERY)
async def link(
    office: Office,
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Stripe's id: cus_…")],
    account: AccountRef,
) -> Output:
    """Say whose a customer at Stripe is; what waited for that goes on."""
    from gateway.billing.money_views import taken_view

    resumed = await office.stripe.link(customer, account)
    found = [taken_view(taken) for taken in resumed]
    return listing(found, "id state why", notes=("Linked.",), nothing="Nothing waited for it.")


@command(groups.stripe, "sync", Reach.DELIVERY)
async def sync(
    office: Office,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="How far back payments are looked at.")] = 35,
    apply: Annotated[bool, typer.Option("--apply", help="Bring ours into agreement.")] = False,
) -> Output:
    """Compare Stripe's subscriptions, invoices, payments and refunds with ours; exit 1 while something differs."""
    from gateway.billing.money_views import difference_view
    from gateway.billing.stripe.sync import Sync

    comparison = Sync(office.desk, days=days)
    reading = Progress("reading Stripe", 0)
    found = await comparison.events(reading.step)
    reading.close()
    comparing, differences = Progress("comparing", len(found)), []
    for event in sorted(found, key=lambda each: each.created_at_ms):
        difference = await comparison.compare(event)
        if difference is not None:
            differences.append(await comparison.heal(event, difference) if apply else difference)
        comparing.step()
    comparing.close()
    left = sum(difference.is_left for difference in differences)
    views = [difference_view(difference) for difference in differences]
    shown = listing(views, DIFFERENCES_SHOWN, nothing=f"{len(found)} compared: nothing differs.")
    return Output(shown.document, shown.lines, shown.notes, exit_code=EX_FAILED if left else 0)
