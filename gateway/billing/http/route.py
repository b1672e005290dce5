"""A route of the billing APIs as data: the one description that serves it, documents it and tests it.

Rules
1. A file of routes is a table ``ROUTES: Final = (Route(…), …)`` of coroutine functions; ``tables`` joins the tables.
2. ``query`` and ``body`` say all that a route takes: what they do not name is refused. The handler's annotation
   ``Call[Query, Body]`` names the same two.
3. ``answer`` and ``others`` say all that a route answers besides errors, which look alike everywhere.

Not here: what happens around a handler (``frame``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel

from gateway.billing.http.models import NoQuery
from gateway.billing.office import Office
from gateway.domain.accounts import Account, Caller
from gateway.store.idempotency import Begun

if TYPE_CHECKING:
    from gateway.billing.http.frame import Frame

BODY_BYTES_MAX: Final = 65_536
JSON: Final = "application/json"
Q = TypeVar("Q")
B = TypeVar("B")


class Who(Enum):
    """Whose credential a route takes."""

    PUBLIC = "public"  # nobody's
    KEY = "key"  # an account's key, or a service key that names the account
    SHOPPER = "shopper"  # nobody's where the config shows prices to everybody, else as KEY
    ADMIN = "admin"  # the operators' token, on their listener


@dataclass(frozen=True, slots=True)
class Raw:
    """A body or answer that is no JSON: its media type; as a body it reaches the handler as bytes.

    ``media`` None: a body of any type (a webhook whose signature is over its bytes)."""

    media: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answers when the content alone does not say it: another status, more headers."""

    content: object
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, B]):
    """One request, understood: who asks, for what, and the services to do it with (their actor is who asks)."""

    id: str
    office: Office
    frame: Frame
    request: web.Request
    query: Q
    body: B
    key: str | None  # as it was sent; never logged
    caller: Caller | None
    sent: object = None  # the body's JSON, without the account's name
    begun: Begun | None = None  # of a request with an Idempotency-Key: where all that it makes has its ids from

    @property
    def account(self) -> Account:
        """The account this call is for: on routes with a key there always is one."""
        assert self.caller is not None and self.caller.account is not None, "only a route with a key has an account"
        return self.caller.account

    def path(self, name: str) -> str:
        """A part of the path, such as ``id`` of ``/api/v1/holds/{id}``."""
        return self.request.match_info[name]


Handler = Callable[[Call[Any, Any]], Awaitable[object]]


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """``handler`` answers a mapping, a list or a model (JSON with ``status``), an ``Answer``, or a response of its own
    (streams); it raises ``TollgateError`` for everything else. See ``frame`` for what is around it."""

    method: str
    path: str
    who: Who
    handler: Handler
    answer: type[BaseModel] | Raw
    summary: str
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | Raw | None = None
    status: int = 200
    others: Mapping[int, type[BaseModel]] = field(default_factory=dict)  # answers with other statuses
    body_bytes_max: int = BODY_BYTES_MAX
    idempotent: bool = False  # takes an Idempotency-Key, and goes on to its end when its client leaves
    compares_rev: bool = False  # its work compares the account's rev in Redis: a caller may be remembered


def number(plain: str) -> orjson.Fragment:
    """A plain decimal as a JSON number with exactly these digits."""
    return orjson.Fragment(plain)
