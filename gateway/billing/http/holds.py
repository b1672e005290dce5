"""``/api/v1/holds``: work outside the proxy that is held while it runs."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from gateway.billing.http.metering import ItemBody, Quantity, UsageBody, asker_of, once_of, service_of
from gateway.billing.http.models import Amount, NoQuery, Strict, When
from gateway.billing.http.route import Call, Route, Who
from gateway.billing.metered_holds import TTL_MAX_S, Held, MeteredHolds
from gateway.billing.metering import Item
from gateway.billing.views import View, exactly, quantity, usage_tokens_view
from gateway.domain.units import UnitError, parse_duration_s


def _ttl(value: Any) -> Any:
    """Seconds, or a duration such as 90s."""
    if not isinstance(value, str):
        return value
    try:
        return parse_duration_s(value)
    except UnitError as error:
        raise ValueError(str(error)) from error


Ttl = Annotated[
    int,
    BeforeValidator(_ttl),
    Field(ge=1, le=TTL_MAX_S),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": TTL_MAX_S},
                {"type": "string", "pattern": "^[0-9]{1,10}(s|m|h|d|w)$"},
            ]
        }
    ),
]


class HoldBody(ItemBody):
    """What to set aside. ``ttl``: how long it lives without a word from its client."""

    ttl: Ttl | None = None


class MoreBody(Strict):
    """What comes on top: a quantity, an amount or usage, more time, or both."""

    quantity: Quantity | None = None
    amount: Amount | None = None
    usage: UsageBody | None = None
    ttl: Ttl | None = None


class ActualBody(Strict):
    """What it really was; nothing: what was held for."""

    quantity: Quantity | None = None
    amount: Amount | None = None
    usage: UsageBody | None = None


class NoBody(Strict):
    """Nothing is asked."""


class UsageTokens(Strict):
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int


class HoldAnswer(Strict):
    """A hold, or a metered call (``quantity`` null). ``basis``, ``usage`` and ``ended_at`` are there once it was
    charged; ``expires_at`` is when it lapses without a word from its client."""

    id: str
    state: Literal["open", "settled", "released", "lapsed"]
    used: str | None
    quantity: str | None
    wallet: str
    held: str
    charged: str
    overrun: str
    remaining: str
    basis: Literal["provider", "counted", "estimated", "hold"] | None
    usage: UsageTokens | None
    model: str | None
    user: str | None
    team: str | None
    metadata: dict[str, Any]
    ttl: int
    created_at: When
    expires_at: When | None
    ended_at: When | None
    shadow: str | None
    warning: str | None


def hold_view(held: Held) -> View:
    meter = held.meter
    return {
        "id": held.id,
        "state": held.state,
        "used": held.name,
        "quantity": held.quantity,
        "wallet": held.wallet,
        "held": quantity(meter, held.held),
        "charged": quantity(meter, held.charged),
        "overrun": quantity(meter, held.overrun),
        "remaining": quantity(meter, held.remaining),
        "basis": None if held.basis is None else held.basis.value,
        "usage": None if held.usage is None else usage_tokens_view(held.usage),
        "model": held.model,
        "user": held.user_id,
        "team": held.team_id,
        "metadata": dict(held.metadata),
        "ttl": held.ttl_s,
        "created_at": exactly(held.created_at_ms),
        "expires_at": exactly(held.expires_at_ms) if held.expires_at_ms else None,
        "ended_at": exactly(held.ended_at_ms) if held.ended_at_ms else None,
        "shadow": held.shadow,
        "warning": held.warning,
    }


def holds_of(call: Call[Any, Any]) -> MeteredHolds:
    return MeteredHolds(call.office.desk, call.frame.metered, service_of(call))


def _item(body: MoreBody | ActualBody) -> Item:
    usage = None if body.usage is None else body.usage.usage()
    return Item(quantity=body.quantity, amount=body.amount, usage=usage)


async def reserve(call: Call[NoQuery, HoldBody]) -> View:
    body = call.body
    held = await holds_of(call).reserve(body.asker(call), body.item(), ttl_s=body.ttl, once=once_of(call))
    return hold_view(held)


async def hold(call: Call[NoQuery, None]) -> View:
    return hold_view(await holds_of(call).get(call.account.id, call.path("id")))


async def extend(call: Call[NoQuery, MoreBody]) -> View:
    body = call.body
    held = await holds_of(call).extend(asker_of(call), call.path("id"), _item(body), ttl_s=body.ttl, once=once_of(call))
    return hold_view(held)


async def settle(call: Call[NoQuery, ActualBody]) -> View:
    return hold_view(await holds_of(call).settle(asker_of(call), call.path("id"), _item(call.body)))


async def release(call: Call[NoQuery, NoBody]) -> View:
    return hold_view(await holds_of(call).release(asker_of(call), call.path("id")))


_ONE: Final = "/api/v1/holds/{id}"
ROUTES: Final = (
    Route("POST", "/api/v1/holds", Who.KEY, reserve, HoldAnswer, "Set aside what work will cost.",
          body=HoldBody, status=201, idempotent=True, compares_rev=True),
    Route("GET", _ONE, Who.KEY, hold, HoldAnswer, "A hold, or what a metered call came to.", compares_rev=True),
    Route("POST", f"{_ONE}/extend", Who.KEY, extend, HoldAnswer, "Take more, give it more time, or both.",
          body=MoreBody, idempotent=True, compares_rev=True),
    Route("POST", f"{_ONE}/settle", Who.KEY, settle, HoldAnswer, "End it with what it really was.",
          body=ActualBody, idempotent=True, compares_rev=True),
    Route("POST", f"{_ONE}/release", Who.KEY, release, HoldAnswer, "End it without a charge.",
          body=NoBody, idempotent=True, compares_rev=True),
)  # fmt: skip
