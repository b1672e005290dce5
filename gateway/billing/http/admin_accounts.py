"""``/admin/v1/accounts``: accounts made, found, changed, suspended, brought in from a file."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from gateway.billing.http.answers import AccountAnswer
from gateway.billing.http.models import NAME_MAX, PageOf, PageQuery
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.views import View, account_view
from gateway.domain.accounts import Account


class AccountsQuery(PageQuery):
    plan: Annotated[str | None, Field(max_length=NAME_MAX)] = None


async def accounts(call: Call[AccountsQuery, None]) -> View:
    which = call.query
    page = await call.office.accounts.list(after=which.cursor, limit=which.limit, plan=which.plan)
    return {"items": [_view(call, account) for account in page.items], "next": page.next}


async def account(call: Call[AccountsQuery, None]) -> View:
    return _view(call, await call.office.accounts.get(call.path("account")))


def _view(call: Call[AccountsQuery, None], found: Account) -> View:
    desk = call.office.desk
    return account_view(found, desk.catalog(), desk.now_ms())


ROUTES: Final = (
    Route("GET", "/admin/v1/accounts", Who.ADMIN, accounts, PageOf[AccountAnswer], "Accounts, the oldest first.",
          query=AccountsQuery),
    Route("GET", "/admin/v1/accounts/{account}", Who.ADMIN, account, AccountAnswer, "One account."),
)  # fmt: skip
