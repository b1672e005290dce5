"""What both clients share: requests as bytes, answers as objects, and when to try again. No I/O.

Rules
1. Amounts and quantities are exact decimals; a float is refused where it would be an amount.
2. Each request that changes something has an Idempotency-Key, so that its repeat changes nothing more.
3. It is tried again only where the server says that this helps, or where no answer came, and not for ever.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

from tollgate.errors import Conflict, InvalidRequest, MeteringError, Refused, Unavailable

Quantity = str | int | Decimal
ATTEMPTS_MAX: Final = 30
FIRST_PAUSE_S, PAUSE_MAX_S = 0.1, 2.0
_QUOTA_STATUS: Final = (402, 403, 429)


@dataclass(frozen=True, slots=True)
class Item:
    """What is used: one of ``service``, ``feature``, and ``wallet`` with its ``amount``.

    A quantity counts units; of what takes time it may be a duration: ``61.2s``. ``tokens``: model tokens, such as
    ``{"input_tokens": 900}``."""

    service: str | None = None
    feature: str | None = None
    wallet: str | None = None
    amount: Quantity | None = None
    quantity: Quantity | None = None
    model: str | None = None
    tokens: Mapping[str, int] | None = None
    user: str | None = None
    team: str | None = None
    job: str | None = None
    job_type: str | None = None
    metadata: Mapping[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """Only what was said."""
        plain = ("service", "feature", "wallet", "model", "user", "team", "job", "job_type", "metadata")
        body: dict[str, Any] = {name: value for name in plain if (value := getattr(self, name)) is not None}
        return {**body, **measure(self.quantity, self.amount, self.tokens)}


@dataclass(frozen=True, slots=True)
class Use:
    """A use that was charged, or would be."""

    id: str
    used: str
    quantity: str
    wallet: str
    cost: Decimal
    charged: Decimal
    remaining: Decimal
    dry_run: bool
    warning: str | None
    shadow: str | None  # why it would have been refused, if the plan were not in shadow


@dataclass(frozen=True, slots=True)
class HoldState:
    """A hold as it stood when the server answered."""

    id: str
    state: str  # open | settled | released | lapsed
    used: str | None
    quantity: str | None
    wallet: str
    held: Decimal
    charged: Decimal
    overrun: Decimal
    remaining: Decimal
    ttl_s: int
    expires_at: datetime | None
    warning: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; sent again it is the same one."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Wire:
    """How requests of one credential look. ``account``: for a service key, whom it acts for."""

    key: str = field(repr=False)
    account: str | None = None

    def request(self, method: str, path: str, body: object = None, *, idempotency_key: str | None = None) -> Request:
        headers = {"Authorization": f"Bearer {self.key}", "Accept": "application/json"}
        if self.account is not None:
            headers["Tollgate-Account"] = self.account
        if method != "GET":
            headers["Content-Type"] = "application/json"
        if method != "GET" and not (isinstance(body, dict) and body.get("dry_run")):  # what takes nothing: ask afresh
            headers["Idempotency-Key"] = idempotency_key or str(uuid4())
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        return Request(method, path, headers, content)


def measure(quantity: Quantity | None, amount: Quantity | None, tokens: Mapping[str, int] | None) -> dict[str, Any]:
    """How much, as a body says it. Raises TypeError for a float: write ``"1.5"`` or ``Decimal("1.5")``."""
    body: dict[str, Any] = {}
    for name, value in (("quantity", quantity), ("amount", amount)):
        if isinstance(value, float | bool):
            raise TypeError(f"{name} is exact: a text, an int or a Decimal, not {type(value).__name__}")
        if value is not None:
            body[name] = format(value, "f") if isinstance(value, Decimal) else str(value)
    if tokens is not None:
        body["usage"] = dict(tokens)
    return body


def answer_of(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The answer's JSON object. Raises MeteringError."""
    try:
        content = json.loads(body) if body else {}
    except ValueError:
        content = {}
    if status < 400 and isinstance(content, dict):
        return content
    raise error_of(status, headers, content if isinstance(content, dict) else {})


def error_of(status: int, headers: Mapping[str, str], content: Mapping[str, Any]) -> MeteringError:
    """An error's answer as an exception."""
    told = content.get("error")
    if isinstance(told, str):  # a refusal in the words of the app
        problem: Mapping[str, Any] = {"message": content.get("detail", told), "tollgate": content.get("tollgate", {})}
    else:
        problem = told if isinstance(told, dict) else {}
    detail = problem.get("tollgate") or {}
    reason = str(problem.get("code") or detail.get("reason") or f"http_{status}")
    kind: type[MeteringError] = InvalidRequest
    if status >= 500:
        kind = Unavailable
    elif status == 409:
        kind = Conflict
    elif status in _QUOTA_STATUS and detail:
        kind = Refused
    should = {name.lower(): value for name, value in headers.items()}
    retry_after = float(should.get("retry-after", "1")) if should.get("x-should-retry") == "true" else None
    message = str(problem.get("message") or f"The server answered {status}.")
    return kind(reason, message, status, retry_after, problem.get("param"), detail)


def unreachable(error: Exception) -> Unavailable:
    """No answer came: whatever it was, the same request may be sent again."""
    return Unavailable("unreachable", f"{type(error).__name__}: {error}", retry_after=0.0)


def pause_s(error: MeteringError, attempt: int, spent_s: float, patience_s: float) -> float | None:
    """How long to wait before this attempt (from 1) is repeated; None when it is not."""
    if error.retry_after is None or attempt >= ATTEMPTS_MAX:
        return None
    backoff_s = min(PAUSE_MAX_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * (1 + random.random())  # noqa: S311  # not a secret
    wait_s = max(error.retry_after, backoff_s)
    return wait_s if spent_s + wait_s <= patience_s else None


def use_of(content: Mapping[str, Any]) -> Use:
    return Use(
        id=content["id"],
        used=content["used"],
        quantity=content["quantity"],
        wallet=content["wallet"],
        cost=Decimal(content["cost"]),
        charged=Decimal(content["charged"]),
        remaining=Decimal(content["remaining"]),
        dry_run=content["dry_run"],
        warning=content["warning"],
        shadow=content["shadow"],
    )


def uses_of(content: Mapping[str, Any]) -> list[Use | MeteringError]:
    """A list's answers, in its order: uses, and errors that were not raised."""
    items: Sequence[Mapping[str, Any]] = content["items"]
    return [use_of(item) if item["success"] else error_of(item["status"], {}, item) for item in items]


def hold_of(content: Mapping[str, Any]) -> HoldState:
    expires = content["expires_at"]
    return HoldState(
        id=content["id"],
        state=content["state"],
        used=content["used"],
        quantity=content["quantity"],
        wallet=content["wallet"],
        held=Decimal(content["held"]),
        charged=Decimal(content["charged"]),
        overrun=Decimal(content["overrun"]),
        remaining=Decimal(content["remaining"]),
        ttl_s=content["ttl"],
        expires_at=None if expires is None else datetime.fromisoformat(expires),
        warning=content["warning"],
        metadata=content["metadata"],
    )
