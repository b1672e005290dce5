"""``/api/v1/usage``: work outside the proxy, used in one call: one item, or a list of them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, RootModel, Tag, WithJsonSchema

from gateway.billing.http.frame import problem_of
from gateway.billing.http.models import Amount, Name, NoQuery, Problem, Refused, Strict, Text
from gateway.billing.http.route import Answer, Call, Route, Who
from gateway.billing.metering import Asker, Item, MeteringService, Once, Used
from gateway.billing.views import View, when
from gateway.domain.usage import Usage
from gateway.edge import refusal_headers, status_of
from gateway.errors import Refusal, TollgateError, tollgate_member

ITEMS_MAX: Final = 100
METADATA_BYTES_MAX: Final = 2048
_NUMBER: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)?$"


def _quantity(value: Any) -> Any:
    """A JSON number has the digits that it was written with, as long as they are few enough to be told apart."""
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    if len(orjson.dumps(value)) > METADATA_BYTES_MAX:
        raise ValueError(f"at most {METADATA_BYTES_MAX} bytes of JSON")
    return value


Quantity = Annotated[
    str,
    BeforeValidator(_quantity),
    Field(max_length=40),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": _NUMBER, "maxLength": 40}, {"type": "number"}]}),
]
Metadata = Annotated[dict[Text, Any], AfterValidator(_bounded)]
Tokens = Annotated[int, Field(ge=0, le=10**12)]


class UsageBody(Strict):
    """Model tokens that it took. ``input_tokens`` are those that were not cached; reasoning is a part of the output."""

    input_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    output_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0

    def usage(self) -> Usage:
        return Usage(
            input=self.input_tokens,
            cache_read=self.cached_tokens,
            cache_write=self.cache_write_tokens,
            output=self.output_tokens,
            reasoning=min(self.reasoning_tokens, self.output_tokens),
        )


class ItemBody(Strict):
    """One of service, feature, and wallet with its amount. A quantity is a number of units, or of what takes time a
    duration such as ``61.2s``."""

    service: Name | None = None
    feature: Name | None = None
    wallet: Name | None = None
    amount: Amount | None = None
    quantity: Quantity | None = None
    model: Name | None = None
    usage: UsageBody | None = None
    metadata: Metadata = Field(default_factory=dict)
    job: Name | None = None
    job_type: Name | None = None
    user: Annotated[Name | None, Field(min_length=1)] = None
    team: Annotated[Name | None, Field(min_length=1)] = None

    def asker(self, call: Call[Any, Any]) -> Asker:
        return asker_of(call, user=self.user, team=self.team)

    def item(self) -> Item:
        return Item(
            service=self.service,
            feature=self.feature,
            wallet=self.wallet,
            amount=self.amount,
            quantity=self.quantity,
            model=self.model,
            usage=None if self.usage is None else self.usage.usage(),
            metadata=self.metadata,
            job=self.job,
            job_type=self.job_type,
        )


class UseBody(ItemBody):
    dry_run: bool = False


class UseBodies(RootModel[Any]):
    """One use, or a list of them."""

    root: Annotated[
        Annotated[UseBody, Tag("")]
        | Annotated[Annotated[list[UseBody], Field(min_length=1, max_length=ITEMS_MAX)], Tag("items")],
        Discriminator(lambda value: "items" if isinstance(value, list) else ""),
    ]


class CreditInfo(Strict):
    tokensUsed: str  # noqa: N815  # as the apps spell it
    creditsRemaining: str  # noqa: N815
    totalTokensUsed: str  # noqa: N815


class UseAnswer(Strict):
    """``cost`` is what it costs, ``charged`` what was taken: nothing in a dry run, and where the plan is in shadow."""

    success: bool
    dry_run: bool
    id: str
    used: str
    quantity: str
    wallet: str
    cost: str
    charged: str
    remaining: str
    resets_at: str | None
    warning: str | None
    shadow: str | None
    creditInfo: CreditInfo  # noqa: N815


class RefusedItem(Strict):
    """Why one item of a list was not done."""

    success: Literal[False]
    status: int
    error: Problem


class UseItems(Strict):
    items: list[UseAnswer | RefusedItem]


class UseAnswers(RootModel[Any]):
    """One answer, or the answers to a list in its order."""

    root: UseAnswer | UseItems


class NoCredits(Strict):
    """A refusal for whose reason the config has words with a title."""

    error: str
    detail: str
    status: int
    tollgate: Refused


def use_view(used: Used) -> View:
    meter = used.meter
    return {
        "success": True,
        "dry_run": used.dry,
        "id": used.id,
        "used": used.name,
        "quantity": used.quantity,
        "wallet": meter.name,
        "cost": meter.format(used.cost),
        "charged": meter.format(used.charged),
        "remaining": meter.format(used.remaining),
        "resets_at": when(used.resets_at_ms),
        "warning": used.warning,
        "shadow": used.shadow,
        "creditInfo": {
            "tokensUsed": meter.tokens(used.charged),
            "creditsRemaining": meter.format(used.remaining),
            "totalTokensUsed": meter.tokens(used.used_ever),
        },
    }


def service_of(call: Call[Any, Any]) -> MeteringService:
    return MeteringService(call.office.desk, call.frame.metered, call.frame.callers)


def asker_of(call: Call[Any, Any], *, user: str | None = None, team: str | None = None) -> Asker:
    assert call.key is not None and call.caller is not None, "only with a key"
    return Asker(call.key, call.caller, user, team)


def once_of(call: Call[Any, Any]) -> Once | None:
    return None if call.begun is None else Once(call.begun.seed, call.begun.again)


async def use(call: Call[NoQuery, UseBodies]) -> object:
    bodies, service, once = call.body.root, service_of(call), once_of(call)
    if isinstance(bodies, UseBody):
        try:
            used = await service.use(bodies.asker(call), bodies.item(), dry=bodies.dry_run, once=once)
        except Refusal as refusal:
            if refusal.title is None:
                raise
            return _titled(call, refusal)
        return use_view(used)
    uses = [(body.asker(call), body.item(), body.dry_run) for body in bodies]
    done = await service.use_all(uses, once=once)
    return {"items": [use_view(each) if isinstance(each, Used) else _failed(call, each) for each in done]}


def _titled(call: Call[Any, Any], refusal: Refusal) -> Answer:
    """In the words of the config, as an app's own pages show them."""
    status = status_of(refusal, call.frame.quota_status())
    content = {
        "error": refusal.title,
        "detail": refusal.message,
        "status": status,
        "tollgate": tollgate_member(refusal),
    }
    return Answer(content, status=status, headers=refusal_headers(refusal, request_id=call.id))


def _failed(call: Call[Any, Any], error: TollgateError) -> View:
    status = status_of(error, call.frame.quota_status())
    return {"success": False, "status": status, "error": problem_of(error)}


ROUTES: Final = (
    Route("POST", "/api/v1/usage", Who.KEY, use, UseAnswers,
          "Check and charge a use, or each of a list; with `dry_run` only check.",
          body=UseBodies, others={402: NoCredits, 429: NoCredits}, idempotent=True, compares_rev=True),
)  # fmt: skip
