"""``/admin/v1/accounts``: accounts made, found, changed, suspended, brought in from a file; their teams and users."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from gateway.billing.http.answers import AccountAnswer, AccountWithWallets, BalanceAnswer, TeamAnswer, UserAnswer
from gateway.billing.http.models import NAME_MAX, IdPageQuery, Name, NoQuery, PageOf, Strict, Text
from gateway.billing.http.route import Call, Raw, Route, Who
from gateway.billing.importing import FILE_BYTES_MAX, bring_in, rows_of
from gateway.billing.views import View, account_view, balance_view, holdings_view, team_view, user_view
from gateway.domain.accounts import Account, AccountStatus
from gateway.store.bulk import NewAccount

CSV: Final = "text/csv"
_FILE: Final = "the file"


class AccountsQuery(IdPageQuery):
    plan: Annotated[str | None, Field(max_length=NAME_MAX)] = None
    status: Literal["active", "suspended"] | None = None
    search: Annotated[
        str | None, Field(min_length=1, max_length=NAME_MAX, description="A part of a name, e-mail or id.")
    ] = None


class NewAccountBody(Strict):
    name: Name
    plan: Annotated[Name | None, Field(description="Default: the config's default_plan.")] = None
    email: Name | None = None
    external_id: Name | None = None


class AccountChanges(Strict):
    """What is not there stays; an empty e-mail or external id takes it away."""

    name: Name | None = None
    email: Name | None = None
    external_id: Name | None = None


class ReasonBody(Strict):
    reason: Annotated[Text, Field(max_length=500, description="For the audit log.")] = ""


class NewTeam(Strict):
    name: Name
    external_id: Name | None = None


class NewUser(NewTeam):
    email: Name | None = None
    team: Annotated[Name | None, Field(description="Its id or external id.")] = None


class AccountsAnswer(Strict):
    items: list[AccountAnswer]


async def accounts(call: Call[AccountsQuery, None]) -> View:
    which = call.query
    page = await call.office.accounts.list(
        after=which.cursor,
        limit=which.limit,
        plan=which.plan,
        status=None if which.status is None else AccountStatus(which.status),
        search=which.search,
    )
    return {"items": [shown_account(call, account) for account in page.items], "next": page.next}


async def create(call: Call[NoQuery, NewAccountBody]) -> View:
    body = call.body
    new = NewAccount(body.name, body.plan, body.email, body.external_id)
    return shown_account(call, await call.office.accounts.create(new))


async def bring(call: Call[NoQuery, bytes]) -> View:
    made = await bring_in(call.office.accounts, rows_of(call.body, _FILE), _FILE)
    return {"items": [shown_account(call, account) for account in made]}


async def show(call: Call[NoQuery, None]) -> View:
    found, holdings = await call.office.accounts.holdings(await call.office.accounts.get(call.path("account")))
    return {**shown_account(call, found), "wallets": holdings_view(holdings, call.office.desk.catalog())}


async def change(call: Call[NoQuery, AccountChanges]) -> View:
    body = call.body
    changed = await call.office.accounts.rename(
        call.path("account"), name=body.name, email=body.email, external_id=body.external_id
    )
    return shown_account(call, changed)


async def suspend(call: Call[NoQuery, ReasonBody]) -> View:
    return await _set_status(call, AccountStatus.SUSPENDED)


async def let_call(call: Call[NoQuery, ReasonBody]) -> View:
    return await _set_status(call, AccountStatus.ACTIVE)


async def _set_status(call: Call[NoQuery, ReasonBody], status: AccountStatus) -> View:
    return shown_account(
        call, await call.office.accounts.set_status(call.path("account"), status, reason=call.body.reason)
    )


async def balance(call: Call[NoQuery, None]) -> View:
    desk = call.office.desk
    return balance_view(await call.office.reports.balance(call.path("account")), desk.catalog(), desk.now_ms())


async def teams(call: Call[IdPageQuery, None]) -> View:
    which = call.query
    page = await call.office.members.teams_page(call.path("account"), after=which.cursor, limit=which.limit)
    return {"items": [team_view(team) for team in page.items], "next": page.next}


async def create_team(call: Call[NoQuery, NewTeam]) -> View:
    body = call.body
    return team_view(
        await call.office.members.create_team(call.path("account"), body.name, external_id=body.external_id)
    )


async def team(call: Call[NoQuery, None]) -> View:
    account = await call.office.accounts.get(call.path("account"))
    return team_view(await call.office.members.team(account.id, call.path("team")))


async def users(call: Call[IdPageQuery, None]) -> View:
    which = call.query
    page = await call.office.members.users_page(call.path("account"), after=which.cursor, limit=which.limit)
    return {"items": [user_view(user) for user in page.items], "next": page.next}


async def create_user(call: Call[NoQuery, NewUser]) -> View:
    body = call.body
    made = await call.office.members.create_user(
        call.path("account"), body.name, external_id=body.external_id, email=body.email, team_ref=body.team
    )
    return user_view(made)


async def user(call: Call[NoQuery, None]) -> View:
    account = await call.office.accounts.get(call.path("account"))
    return user_view(await call.office.members.user(account.id, call.path("user")))


def shown_account(call: Call[Any, Any], found: Account) -> View:
    """The account as it is now."""
    desk = call.office.desk
    return account_view(found, desk.catalog(), desk.now_ms())


_ONE: Final = "/admin/v1/accounts/{account}"
ROUTES: Final = (
    Route("GET", "/admin/v1/accounts", Who.ADMIN, accounts, PageOf[AccountAnswer], "List or find accounts.",
          query=AccountsQuery),
    Route("POST", "/admin/v1/accounts", Who.ADMIN, create, AccountAnswer, "Make an account.",
          body=NewAccountBody, status=201),
    Route("POST", "/admin/v1/imports", Who.ADMIN, bring, AccountsAnswer,
          "Make all accounts of a CSV file (name, plan, email, external_id), or none.",
          body=Raw(CSV), body_bytes_max=FILE_BYTES_MAX, status=201),
    Route("GET", _ONE, Who.ADMIN, show, AccountWithWallets, "Show an account and what it has used."),
    Route("PATCH", _ONE, Who.ADMIN, change, AccountAnswer, "Change what an account is called.", body=AccountChanges),
    Route("POST", f"{_ONE}/suspend", Who.ADMIN, suspend, AccountAnswer, "Refuse its calls from the next one on.",
          body=ReasonBody),
    Route("POST", f"{_ONE}/resume", Who.ADMIN, let_call, AccountAnswer, "Let a suspended account call again.",
          body=ReasonBody),
    Route("GET", f"{_ONE}/balance", Who.ADMIN, balance, BalanceAnswer, "What its next call would find."),
    Route("GET", f"{_ONE}/teams", Who.ADMIN, teams, PageOf[TeamAnswer], "List its teams.", query=IdPageQuery),
    Route("POST", f"{_ONE}/teams", Who.ADMIN, create_team, TeamAnswer, "Make a team.", body=NewTeam, status=201),
    Route("GET", f"{_ONE}/teams/{{team}}", Who.ADMIN, team, TeamAnswer, "Show a team."),
    Route("GET", f"{_ONE}/users", Who.ADMIN, users, PageOf[UserAnswer], "List its users.", query=IdPageQuery),
    Route("POST", f"{_ONE}/users", Who.ADMIN, create_user, UserAnswer, "Make a user.", body=NewUser, status=201),
    Route("GET", f"{_ONE}/users/{{user}}", Who.ADMIN, user, UserAnswer, "Show a user."),
)  # fmt: skip
