"""What the billing APIs answer, field by field: the views of ``gateway.billing.views`` as models, for the document.

Rules
1. A view and its model have the same fields: every answer of a test run is held against its model.
2. Amounts are plain decimals in a text, or ``unlimited`` or ``custom``; instants RFC 3339 in UTC or null.
"""

from __future__ import annotations

from typing import Literal

from gateway.billing.http.models import Strict, When

Scope = Literal["account", "team", "user", "key"]


class Uses(Strict):
    max: int
    per_s: int


class LimitsAnswer(Strict):
    """Only what is limited is there."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    uses: Uses | None = None


class PlanAnswer(Strict):
    name: str
    label: str
    price: str
    currency: str
    period: str
    renews: Literal["by_itself", "when_paid", "never"]
    allowance: dict[str, str]  # wallet → amount
    ends: str
    clamp: int | None
    on_exhausted: str
    on_disconnect: str
    on_abandon: str
    models: list[str] | None
    features: list[str] | None
    limits: dict[Scope, LimitsAnswer]
    default: bool
    version: str


class PlansAnswer(Strict):
    items: list[PlanAnswer]


class AccountAnswer(Strict):
    """An account with its subscription, as it is now."""

    id: str
    name: str
    external_id: str | None
    email: str | None
    status: Literal["active", "suspended"]
    plan: str
    subscription_status: Literal["trialing", "active", "past_due", "expired", "cancelled"]
    period_starts_at: When | None
    period_ends_at: When | None
    trial_starts_at: When | None
    trial_ends_at: When | None
    cancel_at_period_end: bool
    created_at: When
