"""``/api/billing``: what a customer sees and does with its own key."""

from __future__ import annotations

from typing import Final

from gateway.billing.http.answers import PlansAnswer
from gateway.billing.http.models import NoQuery
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.views import View, plan_view


async def plans(call: Call[NoQuery, None]) -> View:
    catalog = call.office.desk.catalog()
    return {"items": [plan_view(plan, catalog) for plan in catalog.plans.values()]}


ROUTES: Final = (
    Route("GET", "/api/billing/plans", Who.KEY, plans, PlansAnswer, "The plans that are for sale."),
)  # fmt: skip
