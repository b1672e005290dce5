"""One good request for every route of the billing APIs: what the tests of access and of the document ask.

A new route needs a row here, or ``test_access`` fails. ``{account}``, ``{key}``, … stand for objects of the owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Example:
    """``status`` None: the route's own; ``once``: a second request is answered otherwise."""

    json: Any = None
    data: bytes | None = None
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None
    once: bool = False


_ONE: Final = "/admin/v1/accounts/{account}"
CUSTOMERS: Final[dict[str, Example]] = {
    "GET /openapi.json": Example(),
    "GET /api/billing/plans": Example(),
    "GET /api/billing/events": Example(query="limit=1"),
    "POST /api/v1/holds": Example(json={"feature": "job", "quantity": 2, "ttl": "90s", "team": "crew"}),
    "GET /api/v1/holds/{id}": Example(),
    "POST /api/v1/holds/{id}/extend": Example(json={"quantity": 1, "ttl": 120}),
    "POST /api/v1/holds/{id}/settle": Example(json={"quantity": 1}),
    "POST /api/v1/holds/{id}/release": Example(),
    "POST /api/v1/usage": Example(json={"feature": "job", "quantity": 2, "user": "ann", "metadata": {"a": 1}}),
    "GET /api/billing/packages": Example(),
    "GET /api/billing/balance": Example(),
    "GET /api/billing/subscription": Example(),
    "POST /api/billing/subscribe": Example(json={"plan": "pro"}),
    "DELETE /api/billing/subscription": Example(query="now=false"),
    "GET /api/billing/transactions": Example(query="limit=1&wallet=tokens&from=2020-01-01"),
    "GET /api/billing/usage": Example(query="by=day,feature&limit=1"),
    "GET /api/billing/rates": Example(),
    "GET /api/billing/forecast": Example(),
    "GET /api/billing/keys": Example(),
    "GET /api/billing/usage.csv": Example(query="month=2026-11"),
    "GET /api/billing/transactions.csv": Example(query="wallet=tokens"),
    "POST /api/billing/purchase": Example(json={"plan": "pro"}, status=409),  # nobody configured payments
    "POST /webhooks/stripe": Example(data=b"{}", status=404),
    "POST /api/v1/explain": Example(json={"feature": "job"}),
    "GET /api/user/usage": Example(),
    "POST /api/v1/tokens/check-balance": Example(json={"featureUsed": "job", "action": "deduct", "userId": "ann"}),
    "GET /api/v1/tokens/stats": Example(),
}
OPERATORS: Final[dict[str, Example]] = {
    "GET /openapi.json": Example(),
    "GET /admin/v1/accounts": Example(query="search=canary&plan=pro&status=active"),
    "POST /admin/v1/accounts": Example(json={"name": "New", "plan": "pro", "external_id": "new"}),
    "POST /admin/v1/imports": Example(
        data=b"name,plan,email\nOne,pro,\nTwo,,two@example.com\n", headers={"Content-Type": "text/csv"}
    ),
    f"GET {_ONE}": Example(),
    f"PATCH {_ONE}": Example(json={"email": "other@example.com"}),
    f"POST {_ONE}/suspend": Example(json={"reason": "unpaid"}),
    f"POST {_ONE}/resume": Example(),
    f"GET {_ONE}/balance": Example(),
    f"GET {_ONE}/teams": Example(),
    f"POST {_ONE}/teams": Example(json={"name": "Night shift", "external_id": "night"}),
    f"GET {_ONE}/teams/{{team}}": Example(),
    f"GET {_ONE}/users": Example(query="limit=1"),
    f"POST {_ONE}/users": Example(json={"name": "Bob", "team": "crew", "email": "bob@example.com"}),
    f"GET {_ONE}/users/{{user}}": Example(),
    f"GET {_ONE}/keys": Example(query="revoked=true"),
    f"POST {_ONE}/keys": Example(json={"name": "laptop", "team": "crew", "expires_at": "2100-01-01"}),
    "GET /admin/v1/keys": Example(),
    "POST /admin/v1/keys": Example(json={"name": "backend"}),
    "GET /admin/v1/keys/{key}": Example(),
    "POST /admin/v1/keys/{key}/rotate": Example(json={"overlap": "1h"}),
    "POST /admin/v1/keys/{key}/revoke": Example(),
    f"GET {_ONE}/budgets": Example(),
    f"POST {_ONE}/budgets": Example(json={"scope": "user", "id": "ann", "meter": "tokens", "amount": "10"}),
    f"DELETE {_ONE}/budgets/{{number}}": Example(),
    "GET /admin/v1/plans": Example(),
    "GET /admin/v1/alerts": Example(query="kind=threshold&state=failed"),
    "GET /admin/v1/insight": Example(query="from=2025-01-01&limit=5"),
    "GET /admin/v1/plans/{plan}": Example(),
    f"POST {_ONE}/subscription": Example(json={"plan": "pro", "price": "25", "allowance": {"tokens": "700000"}}),
    f"POST {_ONE}/subscription/renew": Example(json={"periods": 1, "key": "invoice-1"}),
    f"POST {_ONE}/subscription/change": Example(json={"plan": "trial", "at_end": False}),
    f"POST {_ONE}/subscription/restart": Example(),
    f"POST {_ONE}/subscription/check": Example(),
    f"POST {_ONE}/subscription/refund": Example(json={"key": "invoice-0"}),
    f"POST {_ONE}/subscription/cancel": Example(json={}),
    f"POST {_ONE}/subscription/resume": Example(),
    f"POST {_ONE}/subscription/extend": Example(json={"ends_at": "2100-01-01T00:00:00Z"}),
    f"GET {_ONE}/grants": Example(),
    f"POST {_ONE}/grants": Example(json={"amount": "1.5", "wallet": "tokens", "reason": "sorry"}),
    f"POST {_ONE}/grants/{{number}}/revoke": Example(json={"reason": "a mistake"}),
    f"POST {_ONE}/used": Example(json={"used": "12.5", "wallet": "tokens", "reason": "a bad batch"}),
    f"POST {_ONE}/adjustments": Example(json={"amount": "-1.5", "wallet": "tokens"}),
    f"GET {_ONE}/usage": Example(query="from=2026-01-01&limit=5"),
    f"GET {_ONE}/usage/totals": Example(query="by=month,model"),
    f"GET {_ONE}/transactions": Example(query="wallet=tokens"),
    f"GET {_ONE}/log": Example(),
    "GET /admin/v1/log": Example(),
    f"POST {_ONE}/audit": Example(),
    "GET /admin/v1/config": Example(),
    "POST /admin/v1/reload": Example(),
    "GET /admin/v1/upstreams": Example(),
    f"GET {_ONE}/holds": Example(),
    f"POST {_ONE}/holds/{{hold}}/release": Example(json={"reason": "nobody ends it"}),
    "GET /admin/v1/packages": Example(),
    f"POST {_ONE}/packages": Example(json={"package": "small", "payment": "transfer-7"}),
    f"GET {_ONE}/payments": Example(),
    "GET /admin/v1/payments": Example(),
    "POST /admin/v1/payments/{payment}/refund": Example(json={"amount": "2.50", "reason": "half"}),
}
