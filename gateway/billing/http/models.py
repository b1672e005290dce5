"""What requests are made of, for all routes: strict models, and the types of amounts, instants and pages.

Rules
1. A field that is not named is refused; a text that no database can hold is refused.
2. Amounts are plain decimals in a text (a JSON integer is taken too, a float never), instants RFC 3339 with their zone.
3. A list is asked for with ``limit`` and ``cursor``; its ``next`` is the cursor of the following page, null at the end.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from gateway.billing.desk import instant_ms
from gateway.errors import RequestError
from gateway.store.common import PAGE_MAX, storable

PAGE_DEFAULT: Final = 100
NAME_MAX: Final = 200
_AMOUNT: Final = r"^[+-]?[0-9]+(\.[0-9]+)?$"
_INSTANT: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].+)?$"
T = TypeVar("T")


def _storable(text: str) -> str:
    if not storable(text):
        raise ValueError("a text without NUL characters")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError('expected a text such as "1.5" or an integer: a fraction in JSON is not exact')
    return str(value) if type(value) is int else value


def _instant(text: Any, info: ValidationInfo) -> int:
    if not isinstance(text, str):
        raise ValueError("a time such as 2026-12-01T00:00:00Z")
    try:
        return instant_ms(text, param=info.field_name or "time")
    except RequestError as error:
        raise ValueError(error.message.partition(": ")[2] or error.message) from error


Text = Annotated[str, AfterValidator(_storable)]
Name = Annotated[str, Field(max_length=NAME_MAX), AfterValidator(_storable)]
Amount = Annotated[
    str,
    BeforeValidator(_plain),
    Field(max_length=40),
    AfterValidator(_storable),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": _AMOUNT, "maxLength": 40}, {"type": "integer"}]}),
]
Instant = Annotated[
    int,  # Unix ms
    BeforeValidator(_instant),
    WithJsonSchema({"type": "string", "pattern": _INSTANT, "examples": ["2026-12-01T00:00:00Z", "2026-12-01"]}),
]
When = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]  # in answers


class Strict(BaseModel):
    """A request's or answer's object: no other fields than these, nothing converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)


class Query(BaseModel):
    """A request's query: everything in it is text, and is read as what it should be."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class NoQuery(Query):
    """Takes nothing."""


class PageQuery(Query):
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    cursor: Annotated[str | None, Field(max_length=NAME_MAX, description="The page before's `next`.")] = None


class IdPageQuery(PageQuery):
    """Of a list in the order of ids."""

    cursor: Annotated[str | None, Field(pattern="^[0-9a-f-]{36}$", description="The page before's `next`.")] = None


class SpanQuery(Query):
    """Half-open in time: ``from`` <= t < ``to``."""

    from_ms: Annotated[Instant | None, Field(alias="from")] = None
    to_ms: Annotated[Instant | None, Field(alias="to")] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.from_ms is not None and self.to_ms is not None and self.from_ms > self.to_ms:
            raise ValueError("from must not be after to")
        return self


class TimesQuery(SpanQuery, PageQuery):
    """A page of what lies between two instants."""


class Named(BaseModel):
    """How a service key names the account in a body: by our id or by the app's own. ``Tollgate-Account`` does too."""

    account: Name | None = None
    organizationId: Name | None = None  # noqa: N815  # as the apps spell it


class PageOf(Strict, Generic[T]):
    """One page of a list; ``next`` is null at its end."""

    items: list[T]
    next: str | None


class Refused(Strict):
    """Why quota or plan said no. Amounts are plain decimals of the meter."""

    reason: str
    scope: str | None
    limit: str | None
    used: str | None
    held: str | None
    needed: str | None
    available: str | None
    resets_at: str | None
    hint: str | None
    plans: list[str]
    title: str | None = None


class Problem(Strict):
    """``type`` only stands in answers to what is no valid HTTP (a request line of 9 KB): no route has seen those."""

    type: str | None = None
    code: str
    message: str
    param: str | None = None
    tollgate: Refused | None = None


class ErrorBody(Strict):
    """Every error of these APIs."""

    error: Problem
