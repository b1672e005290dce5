"""``/admin/v1``: keys, of accounts and of the installation, and budgets. A key is told once, by what makes it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from gateway.billing.desk import duration_ms
from gateway.billing.http.answers import BudgetAnswer, Done, FreshKeyAnswer, KeyAnswer, RotatedKeyAnswer
from gateway.billing.http.models import Amount, IdPageQuery, Instant, Name, NoQuery, PageOf, Strict
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.views import View, budget_view, key_view
from gateway.errors import NotFound


class KeysQuery(IdPageQuery):
    revoked: Annotated[bool, Field(description="Revoked ones too.")] = False


class NewServiceKey(Strict):
    name: Name = ""
    expires_at: Instant | None = None


class NewKey(NewServiceKey):
    team: Annotated[Name | None, Field(description="Its id or external id.")] = None
    user: Annotated[Name | None, Field(description="Its id or external id.")] = None


class RotateBody(Strict):
    overlap: Annotated[
        str, Field(max_length=20, description="How long the old key still works; 0: not at all.", examples=["24h"])
    ] = "24h"


class NewBudget(Strict):
    scope: Literal["team", "user", "key"]
    id: Annotated[Name, Field(description="Its id; of a team or user also its external id.")]
    meter: Name
    amount: Amount
    period: Annotated[str, Field(max_length=20, description="month, year, once, or a duration such as 7d.")] = "month"


class BudgetsAnswer(Strict):
    items: list[BudgetAnswer]


async def keys(call: Call[KeysQuery, None]) -> View:
    return await _page(call, call.path("account"))


async def service_keys(call: Call[KeysQuery, None]) -> View:
    return await _page(call, None)


async def _page(call: Call[KeysQuery, None], account_ref: str | None) -> View:
    which = call.query
    page = await call.office.keys.page(account_ref, revoked=which.revoked, after=which.cursor, limit=which.limit)
    now_ms = call.office.desk.now_ms()
    return {"items": [key_view(key, now_ms) for key in page.items], "next": page.next}


async def create(call: Call[NoQuery, NewKey]) -> View:
    body = call.body
    fresh = await call.office.keys.create(
        call.path("account"),
        team_ref=body.team,
        user_ref=body.user,
        name=body.name,
        expires_at_ms=body.expires_at or 0,
    )
    return {**key_view(fresh.key, call.office.desk.now_ms()), "key": fresh.text}


async def create_service(call: Call[NoQuery, NewServiceKey]) -> View:
    fresh = await call.office.keys.create(None, name=call.body.name, expires_at_ms=call.body.expires_at or 0)
    return {**key_view(fresh.key, call.office.desk.now_ms()), "key": fresh.text}


async def show(call: Call[NoQuery, None]) -> View:
    return key_view(await call.office.keys.get(call.path("key")), call.office.desk.now_ms())


async def rotate(call: Call[NoQuery, RotateBody]) -> View:
    now_ms = call.office.desk.now_ms()
    fresh = await call.office.keys.rotate(call.path("key"), overlap_ms=duration_ms(call.body.overlap, param="overlap"))
    old = key_view(await call.office.keys.get(call.path("key")), now_ms)
    new = key_view(fresh.key, now_ms)
    return {**new, "key": fresh.text, "replaces": old["id"], "old_key_expires_at": old["expires_at"]}


async def revoke(call: Call[NoQuery, None]) -> View:
    return key_view(await call.office.keys.revoke(call.path("key")), call.office.desk.now_ms())


async def budgets(call: Call[NoQuery, None]) -> View:
    meters = call.office.desk.catalog().meters
    found = await call.office.budgets.list(call.path("account"))
    return {
        "items": [
            budget_view(budget, meters.get(budget.meter), call.office.desk.now_ms(), used) for budget, used in found
        ]
    }


async def set_budget(call: Call[NoQuery, NewBudget]) -> View:
    body = call.body
    meter, budget = await call.office.budgets.set(
        body.scope, body.id, meter=body.meter, text=body.amount, period=body.period, account_ref=call.path("account")
    )
    return budget_view(budget, meter, call.office.desk.now_ms())


async def remove_budget(call: Call[NoQuery, None]) -> Done:
    number = call.path("number")
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise NotFound("There is no such budget in this account.", param="number")
    await call.office.budgets.remove(call.path("account"), int(number))
    return Done()


_ONE: Final = "/admin/v1/accounts/{account}"
_KEY: Final = "/admin/v1/keys/{key}"
ROUTES: Final = (
    Route("GET", f"{_ONE}/keys", Who.ADMIN, keys, PageOf[KeyAnswer], "List its keys.", query=KeysQuery),
    Route("POST", f"{_ONE}/keys", Who.ADMIN, create, FreshKeyAnswer, "Make a key; it is told this once.",
          body=NewKey, status=201),
    Route("GET", "/admin/v1/keys", Who.ADMIN, service_keys, PageOf[KeyAnswer], "List the service keys.",
          query=KeysQuery),
    Route("POST", "/admin/v1/keys", Who.ADMIN, create_service, FreshKeyAnswer,
          "Make a service key, for a backend that acts for many accounts; it is told this once.",
          body=NewServiceKey, status=201),
    Route("GET", _KEY, Who.ADMIN, show, KeyAnswer, "Show what is known of a key."),
    Route("POST", f"{_KEY}/rotate", Who.ADMIN, rotate, RotatedKeyAnswer,
          "Make a new key in place of this one, which still works for a while.", body=RotateBody, status=201),
    Route("POST", f"{_KEY}/revoke", Who.ADMIN, revoke, KeyAnswer, "Refuse it from its next call on; twice is as once."),
    Route("GET", f"{_ONE}/budgets", Who.ADMIN, budgets, BudgetsAnswer, "List its teams', users' and keys' budgets."),
    Route("POST", f"{_ONE}/budgets", Who.ADMIN, set_budget, BudgetAnswer,
          "Set a budget; one in the same meter is replaced.", body=NewBudget),
    Route("DELETE", f"{_ONE}/budgets/{{number}}", Who.ADMIN, remove_budget, Done, "Lift a budget."),
)  # fmt: skip
