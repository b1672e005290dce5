"""Who may what: every route × {owner, service key, another account's key, nobody, operator}, from the route tables.

Rules
1. A route without a row in ``examples`` fails here.
2. No answer to anybody else has a word of the owner in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pydantic import BaseModel

from gateway.billing.http import tables
from gateway.billing.http.models import ErrorBody
from gateway.billing.http.route import Route, Who
from tests.billing.examples import CUSTOMERS, OPERATORS, Example
from tests.support.apis import ADMIN_TOKEN, Apis, Reply

CANARY = "canary-owner"


@dataclass(slots=True)
class World:
    """The owner with one of everything, another account, and a service key."""

    apis: Apis
    owner: str
    other: str
    service: str
    names: dict[str, str]

    def path(self, route: Route, example: Example) -> str:
        return route.path.format(**self.names) + (f"?{example.query}" if example.query else "")

    async def ask(self, route: Route, example: Example, *, key: str | None, account: str | None = None) -> Reply:
        headers = {**example.headers, **({"Tollgate-Account": account} if account else {})}
        return await self.apis.call(
            route.method, self.path(route, example), key=key, headers=headers, json=example.json, data=example.data
        )

    async def operate(self, route: Route, example: Example, *, token: str | None = ADMIN_TOKEN) -> Reply:
        headers = dict(example.headers)
        path = self.path(route, example)
        return await self.apis.admin(
            route.method, path, token=token, headers=headers, json=example.json, data=example.data
        )

    def words(self) -> list[bytes]:
        """What only the owner may read."""
        own = ("account", "team", "user", "key", "id")
        return [CANARY.encode(), *(self.names[name].encode() for name in own)]


@pytest.fixture
async def world(one: Apis) -> AsyncIterator[World]:
    owner, account = await one.gateway.account(
        "pro", name=f"{CANARY} Inc", external_id=f"{CANARY}-id", email=f"{CANARY}@example.com"
    )
    other, _ = await one.gateway.account("pro", name="Other")
    at = f"/admin/v1/accounts/{account.id}"
    team = (await one.admin("POST", f"{at}/teams", json={"name": f"{CANARY} crew", "external_id": "crew"})).json()
    user = (await one.admin("POST", f"{at}/users", json={"name": f"{CANARY} Ann", "external_id": "ann"})).json()
    key = (await one.admin("POST", f"{at}/keys", json={"name": f"{CANARY} key"})).json()
    budget = {"scope": "team", "id": "crew", "meter": "tokens", "amount": "100"}
    assert (await one.admin("POST", f"{at}/budgets", json=budget)).status == 200
    paid = {"key": "invoice-0"}
    assert (await one.admin("POST", f"{at}/subscription/renew", json=paid)).status == 200
    names = {"account": account.id, "team": team["id"], "user": user["id"], "key": key["id"], "plan": "pro"}
    gift = (await one.admin("POST", f"{at}/packages", json={"package": "small", "payment": "order-1"})).json()
    hold = await one.held(account)
    held = (await one.call("POST", "/api/v1/holds", key=owner, json={"feature": "job"})).json()
    names |= {"number": "1", "id": held["id"], "hold": hold, "payment": gift["payment"]}
    yield World(one, owner, other, await one.service_key(), names)


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert {named(route) for route in tables.CUSTOMERS} == set(CUSTOMERS)
    assert {named(route) for route in tables.OPERATORS} == set(OPERATORS)


def test_each_listener_serves_only_its_own_kind_of_caller() -> None:
    assert {route.who for route in tables.OPERATORS} == {Who.ADMIN}
    assert Who.ADMIN not in {route.who for route in tables.CUSTOMERS}


def assert_shaped(route: Route, example: Example, answer: Reply) -> None:
    """As the row says, and as the document promises."""
    wanted = example.status or route.status
    assert answer.status == wanted, (named(route), answer.status, answer.body)
    model = route.answer if answer.status == route.status else route.others.get(answer.status, ErrorBody)
    if isinstance(model, type) and issubclass(model, BaseModel):
        model.model_validate_json(answer.body)
    else:
        assert answer.headers["Content-Type"].partition(";")[0] == model.media


def assert_hides(world: World, answer: Reply) -> None:
    assert not [word for word in world.words() if word in answer.body], answer.body


@pytest.mark.parametrize("route", tables.CUSTOMERS, ids=named)
async def test_a_customers_route_answers_each_caller_what_is_its_own(route: Route, world: World) -> None:
    example = CUSTOMERS[named(route)]
    if route.who is Who.PUBLIC:
        answer = await world.ask(route, example, key=None)
        assert_shaped(route, example, answer)
        assert_hides(world, answer)
        return
    for key in (None, ADMIN_TOKEN, "tg_nonsense"):
        assert (await world.ask(route, example, key=key)).status == 401
    for account in (world.names["account"], f"{CANARY}-id", "nobody"):
        answer = await world.ask(route, example, key=world.other, account=account)
        assert (answer.status, answer.code) == (404, "account_not_found")
        assert_hides(world, answer)
    unnamed = await world.ask(route, example, key=world.service)
    assert unnamed.status == 404
    foreign = await world.ask(route, example, key=world.other)
    assert_hides(world, foreign)
    assert foreign.status == 404 or "{" not in route.path
    assert_shaped(route, example, await world.ask(route, example, key=world.service, account=f"{CANARY}-id"))
    if not example.once:
        assert_shaped(route, example, await world.ask(route, example, key=world.owner))


@pytest.mark.parametrize("route", tables.OPERATORS, ids=named)
async def test_an_operators_route_answers_the_operator_alone(route: Route, world: World) -> None:
    example = OPERATORS[named(route)]
    for token in (None, "wrong", world.owner, world.other, world.service):
        answer = await world.operate(route, example, token=token)
        assert answer.status == 401
        assert_hides(world, answer)
    on_the_other_listener = await world.ask(route, example, key=world.owner)
    assert on_the_other_listener.status in (404, 200 if route.path == "/openapi.json" else 404)
    assert_hides(world, on_the_other_listener)
    assert_shaped(route, example, await world.operate(route, example))


async def test_a_tampered_cursor_is_refused_by_every_list(world: World) -> None:
    """Every list of the operators takes its own cursor and no other."""
    for route in tables.OPERATORS:
        if "cursor" in {field.alias or name for name, field in route.query.model_fields.items()}:
            path = route.path.format(**world.names)
            answer = await world.apis.admin("GET", f"{path}?cursor=nonsense")
            assert (answer.status, answer.param) == (400, "cursor"), named(route)
