"""``/admin/v1``: what was told to whom, and the whole installation at a glance."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from gateway.billing.alerts.service import alert_view
from gateway.billing.http.models import NAME_MAX, PageOf, PageQuery, SpanQuery, Strict, When
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.insight import insight_view, month_until
from gateway.billing.views import View

Kind = Literal[
    "threshold", "low_balance", "trial_ending", "trial_expired", "refused", "payment_failed", "rapid_use", "spike"
]
Filtered = Annotated[str | None, Field(max_length=NAME_MAX)]


class AlertsQuery(PageQuery):
    """``state``: only those with a delivery in it."""

    account: Filtered = None
    kind: Kind | None = None
    state: Literal["pending", "sent", "failed"] | None = None


class InsightQuery(SpanQuery):
    """``from`` and ``to``: by default the running month in UTC."""

    account: Filtered = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class DeliveryAnswer(Strict):
    channel: Literal["webhook", "email"]
    state: Literal["pending", "sent", "failed"]
    attempts: int
    next_at: When | None
    last_error: str | None


class AlertAnswer(Strict):
    """``detail`` has what its kind has."""

    id: str
    at: When
    account: str
    kind: Kind
    title: str
    text: str
    detail: dict[str, Any]
    deliveries: list[DeliveryAnswer]


class FeatureUseAnswer(Strict):
    feature: str
    wallet: str
    calls: int
    charged: str
    tokens: int


class UserUseAnswer(Strict):
    """``user`` null: calls that named nobody."""

    account: str
    user: str | None
    wallet: str
    calls: int
    charged: str
    tokens: int


class RiskAnswer(Strict):
    """``runs_out_at`` null: its pace is slow enough, but little is left."""

    account: str
    name: str
    external_id: str | None
    plan: str
    wallet: str
    granted: str
    available: str
    used_percent: str
    per_day: str
    runs_out_at: When | None


class InsightAnswer(Strict):
    from_: When = Field(alias="from")
    to: When
    features: list[FeatureUseAnswer]
    users: list[UserUseAnswer]
    at_risk: list[RiskAnswer]


async def alerts(call: Call[AlertsQuery, None]) -> View:
    which = call.query
    page = await call.office.alerts.list(
        which.account, kind=which.kind, state=which.state, cursor=which.cursor, limit=which.limit
    )
    return {"items": [alert_view(record) for record in page.items], "next": page.next}


async def insight(call: Call[InsightQuery, None]) -> View:
    desk, which = call.office.desk, call.query
    from_ms, to_ms = month_until(desk.now_ms(), which.from_ms, which.to_ms)
    found = await call.office.insight.look(which.account, from_ms=from_ms, to_ms=to_ms, limit=which.limit)
    return insight_view(found, desk.catalog())


ROUTES: Final = (
    Route("GET", "/admin/v1/alerts", Who.ADMIN, alerts, PageOf[AlertAnswer],
          "What was told to whom, the newest first, and how far it got.", query=AlertsQuery),
    Route("GET", "/admin/v1/insight", Who.ADMIN, insight, InsightAnswer,
          "What is used most, by feature and by user, and the wallets at risk; of all accounts or of one.",
          query=InsightQuery),
)  # fmt: skip
