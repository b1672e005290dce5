"""``tollgate accounts …``, ``teams …`` and ``users …``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gateway.cli import groups
from gateway.cli.frame import Reach, command
from gateway.cli.reading import later_ms
from gateway.cli.terminal import Output, listing, record, table
from gateway.errors import RequestError

if TYPE_CHECKING:
    from gateway.billing.office import Office

ACCOUNTS_SHOWN: Final = "id name external_id email status plan subscription_status period_ends_at"
ONE_SHOWN: Final = (
    "id name external_id email status plan subscription_status "
    "period_starts_at period_ends_at trial_starts_at trial_ends_at paid_until next_plan created_at"
)
TEAMS_SHOWN: Final = "id name external_id created_at"
USERS_SHOWN: Final = "id name external_id email team created_at"

AccountRef = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Id, external id or e-mail.")]
Name = Annotated[str, typer.Argument(metavar="NAME")]
External = Annotated[str | None, typer.Option("--external-id", help="The app's own name for it.")]
Email = Annotated[str | None, typer.Option("--email")]
Reason = Annotated[str, typer.Option("--reason", help="For the audit log.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


@command(groups.accounts, "create")
async def create(
    office: Office,
    name: Name,
    plan: Annotated[str | None, typer.Option("--plan", help="Default: the config's default_plan.")] = None,
    email: Email = None,
    external_id: External = None,
) -> Output:
    """Make an account; it starts on the default plan or the one named."""
    from gateway.billing.views import account_view
    from gateway.store.bulk import NewAccount

    account = await office.accounts.create(NewAccount(name, plan, email, external_id))
    return record(account_view(account, office.desk.catalog(), office.desk.now_ms()), ONE_SHOWN)


@command(groups.accounts, "list")
async def list_accounts(
    office: Office,
    plan: Annotated[str | None, typer.Option("--plan", help="Only those on this plan.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 0,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Those made after this one.")] = None,
) -> Output:
    """List accounts, the oldest first."""
    from gateway.billing.views import account_view

    found: list[dict[str, object]] = []
    while True:
        page = await office.accounts.list(after=after, limit=limit - len(found) if limit else 1000, plan=plan)
        found += [account_view(account, office.desk.catalog(), office.desk.now_ms()) for account in page.items]
        after = page.next
        if after is None or (limit and len(found) >= limit):
            break
    notes = () if after is None else (f"There are more: --after {after}",)
    return listing(found, ACCOUNTS_SHOWN, notes=notes, nothing="There is no account yet.")


@command(groups.accounts, "show")
async def show(office: Office, account: AccountRef) -> Output:
    """Show an account: plan, status, trial, period, and what it has used of its limits."""
    from gateway.billing.views import account_view, holdings_view

    found, holdings = await office.accounts.holdings(await office.accounts.get(account))
    wallets = holdings_view(holdings, office.desk.catalog())
    view = account_view(found, office.desk.catalog(), office.desk.now_ms())
    head = record(view, ONE_SHOWN)
    lines = (*head.lines, "", *table(wallets, "wallet limit used")) if wallets else head.lines
    return Output({**view, "wallets": wallets}, lines)


@command(groups.accounts, "set", Reach.DELIVERY)
async def set_account(
    office: Office,
    account: AccountRef,
    name: Annotated[str | None, typer.Option("--name")] = None,
    email: Email = None,
    external_id: External = None,
    trial_ends_at: Annotated[
        str | None, typer.Option("--trial-ends-at", help="A time, a date, or a duration from now such as 7d.")
    ] = None,
    used: Annotated[
        str | None, typer.Option("--used", metavar="AMOUNT", help="What counts as used of the plan's running period.")
    ] = None,
    wallet: Annotated[str | None, typer.Option("--wallet", help="Of --used, when there is more than one.")] = None,
    reason: Reason = "",
) -> Output:
    """Change what an account is called, its trial's end, or its used amount; an empty text takes a name away."""
    from gateway.billing.views import account_view

    if all(value is None for value in (name, email, external_id, trial_ends_at, used)):
        raise RequestError("Say what to change: --name, --email, --external-id, --trial-ends-at or --used.")
    found = await office.accounts.get(account)
    if trial_ends_at is not None:
        ends_ms = later_ms(trial_ends_at, office.desk.now_ms(), param="--trial-ends-at")
        await office.subscriptions.move_trial_end(found.id, ends_at_ms=ends_ms)
    if used is not None:
        await office.grants.set_used(found.id, used, wallet=wallet, reason=reason)
    if name is not None or email is not None or external_id is not None:
        await office.accounts.rename(found.id, name=name, email=email, external_id=external_id)
    changed = await office.accounts.get(found.id)
    return record(account_view(changed, office.desk.catalog(), office.desk.now_ms()), ONE_SHOWN)


@command(groups.accounts, "suspend", Reach.DELIVERY)
async def suspend(office: Office, account: AccountRef, reason: Reason = "") -> Output:
    """Refuse the account's calls from the next one on."""
    from gateway.billing.views import account_view
    from gateway.domain.accounts import AccountStatus

    changed = await office.accounts.set_status(account, AccountStatus.SUSPENDED, reason=reason)
    return record(account_view(changed, office.desk.catalog(), office.desk.now_ms()), "id name status")


@command(groups.accounts, "resume", Reach.DELIVERY)
async def resume(office: Office, account: AccountRef, reason: Reason = "") -> Output:
    """Let a suspended account call again."""
    from gateway.billing.views import account_view
    from gateway.domain.accounts import AccountStatus

    changed = await office.accounts.set_status(account, AccountStatus.ACTIVE, reason=reason)
    return record(account_view(changed, office.desk.catalog(), office.desk.now_ms()), "id name status")


@command(groups.accounts, "import")
async def bring_in(
    office: Office,
    file: Annotated[
        Path, typer.Argument(metavar="FILE.csv", help="With a heading: name, and optionally plan, email, external_id.")
    ],
) -> Output:
    """Make all accounts of a CSV file, or none if a row is bad."""
    from gateway.billing import importing
    from gateway.billing.views import account_view

    with file.open("rb") as opened:
        data = opened.read(importing.FILE_BYTES_MAX + 1)
    made = await importing.bring_in(office.accounts, importing.rows_of(data, str(file)), str(file))
    found = [account_view(account, office.desk.catalog(), office.desk.now_ms()) for account in made]
    return listing(found, ACCOUNTS_SHOWN, notes=(f"{len(made)} accounts imported",), nothing="The file has no rows.")


@command(groups.teams, "create")
async def create_team(office: Office, account: AccountRef, name: Name, external_id: External = None) -> Output:
    """Make a team."""
    from gateway.billing.views import team_view

    return record(team_view(await office.members.create_team(account, name, external_id=external_id)))


@command(groups.teams, "list")
async def list_teams(office: Office, account: AccountRef) -> Output:
    """List an account's teams."""
    from gateway.billing.views import team_view

    found = await office.members.teams(account)
    return listing([team_view(team) for team in found], TEAMS_SHOWN, nothing="This account has no teams.")


@command(groups.teams, "show")
async def show_team(
    office: Office, account: AccountRef, team: Annotated[str, typer.Argument(metavar="TEAM", help="Id or external id.")]
) -> Output:
    """Show a team."""
    from gateway.billing.views import team_view

    return record(team_view(await office.members.team((await office.accounts.get(account)).id, team)))


@command(groups.users, "create")
async def create_user(
    office: Office,
    account: AccountRef,
    name: Name,
    team: Annotated[str | None, typer.Option("--team", help="Id or external id.")] = None,
    email: Email = None,
    external_id: External = None,
) -> Output:
    """Make a user; those that calls name are made on first sight."""
    from gateway.billing.views import user_view

    made = await office.members.create_user(account, name, external_id=external_id, email=email, team_ref=team)
    return record(user_view(made))


@command(groups.users, "list")
async def list_users(office: Office, account: AccountRef) -> Output:
    """List an account's users."""
    from gateway.billing.views import user_view

    found = await office.members.users(account)
    return listing([user_view(user) for user in found], USERS_SHOWN, nothing="This account has no users.")


@command(groups.users, "show")
async def show_user(
    office: Office, account: AccountRef, user: Annotated[str, typer.Argument(metavar="USER", help="Id or external id.")]
) -> Output:
    """Show a user."""
    from gateway.billing.views import user_view

    return record(user_view(await office.members.user((await office.accounts.get(account)).id, user)))
