"""Around every route of the billing APIs: who asks, what is asked, and how it is answered.

To add routes: a file beside this one with handlers and their table, and the table's name in ``tables``::

    class GrantBody(Strict):
        amount: Amount
        reason: Name = ""

    async def grant(call: Call[NoQuery, GrantBody]) -> View:
        meter, made = await call.office.grants.grant(call.path("account"), call.body.amount, reason=call.body.reason)
        return grant_view(made, meter)

    ROUTES: Final = (
        Route("POST", "/admin/v1/accounts/{account}/grants", Who.ADMIN, grant, GrantAnswer, "Give an amount.",
              body=GrantBody, status=201),
    )

A handler translates: it calls one service of ``call.office`` (whose desk has the caller as its actor: ``admin`` or
``key:PREFIX``) and shows what that answered. It raises ``TollgateError``; it never builds an error's response itself.
``call.account`` is the account the key may act for, as SQL has it now; ``call.caller`` has team, user and budgets too.
``call.frame.quota`` and ``call.frame.callers`` are there for routes that hold. Amounts in answers are ``meter.format``
texts, where numbers are promised ``number(text)``; a status of its own is ``Answer(content, status=429)``; a stream is
a response that the handler prepares and returns. ``OpenAPI`` and the table of who may what follow from the same rows:
``tests/billing/test_access.py`` needs a row there.

Rules
1. First the credential (401, 403), then the path, the query and the body (400, 413, 415), then the account named.
2. Of a key the database is asked at each call, so that a revoked one ends at once; only where the work itself compares
   the account's ``rev`` in Redis (``compares_rev``) is a caller remembered.
3. A service key names its account by ``Tollgate-Account``, ``account`` or ``organizationId``; a foreign account is
   answered as an unknown one.
4. Every error has one shape. What is no ``TollgateError`` is a bug: logged with the request's id, answered 500 without
   a word of it. No key and no body is ever logged.

Not here: what routes do, and the admin token's check for a whole listener (``gateway.billing.admin``).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler as AppHandler
from pydantic import BaseModel, ValidationError
from uuid_utils import uuid7

from gateway import json_bodies
from gateway.billing.alerts.live import LiveEvents
from gateway.billing.desk import Desk, shown
from gateway.billing.http.models import Named
from gateway.billing.http.operator import Operator
from gateway.billing.http.route import JSON, Answer, Call, Raw, Route, Who
from gateway.billing.office import office_at
from gateway.domain.accounts import Caller
from gateway.edge import SERVER, check_media, read_body, refusal_headers, status_of
from gateway.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    Refusal,
    RequestError,
    StoreUnavailable,
    TollgateError,
    tollgate_member,
)
from gateway.quota.callers import FRESH_S, Callers
from gateway.quota.credentials import account_ref, bind, key_of, named
from gateway.quota.keys import display_prefix
from gateway.quota.metered import Metered
from gateway.quota.service import Quota
from gateway.store.common import storable
from gateway.store.idempotency import Begun, Replay

log = logging.getLogger(__name__)

BODY_S: Final = 30.0
IDEMPOTENCY_KEY_MAX: Final = 255
_ADMIN_ACTOR: Final = "admin"
_NAMES: Final = tuple(Named.model_fields)


class Explain(Protocol):
    """What the data plane would decide about a call, and why: see ``gateway.proxy.explain``."""

    async def __call__(
        self,
        document: Any,
        *,
        headers: Mapping[str, str],
        caller: Caller,
        refresh: Callable[[Caller], Awaitable[Caller]],
    ) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """What handlers work with. ``desk``'s actor is replaced by who asks."""

    desk: Desk
    live: LiveEvents
    callers: Callers
    quota: Quota
    metered: Metered
    quota_status: Callable[[], int]  # of lasting quota refusals: 429 or 402
    spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]  # work that nobody's leaving ends
    public_pricing: Callable[[], bool]  # whether prices are read without a key
    explain: Explain
    operator: Operator | None = None  # on the operators' listener

    @property
    def operations(self) -> Operator:
        assert self.operator is not None, "only the operators' listener has an operator"
        return self.operator

    def mount(self, app: web.Application, routes: Iterable[Route]) -> None:
        """Serve these routes through ``app``."""
        for route in routes:
            app.router.add_route(route.method, route.path, self._served(route))

    def _served(self, route: Route) -> AppHandler:
        async def serve(request: web.Request) -> web.StreamResponse:
            call_id = str(uuid7())
            try:
                call = await self._understood(route, request, call_id)
                if route.idempotent:
                    return await asyncio.shield(self.spawn(self._once(route, call)))
                return _response(route, await route.handler(call), call_id)
            except TollgateError as error:
                problem = error
            except Exception:
                log.exception("%s %s failed, request %s", route.method, route.path, call_id)
                problem = TollgateError()
            if request.writer.output_size > 0:
                raise ConnectionError("an answer had begun")
            return self.refused(problem, call_id)

        return serve

    async def _once(self, route: Route, call: Call[Any, Any]) -> web.StreamResponse:
        """A request that may be repeated: with an ``Idempotency-Key`` it is done once, and answered again as then."""
        key = named(call.request.headers, "Idempotency-Key", IDEMPOTENCY_KEY_MAX)
        if key is None:
            return _response(route, await route.handler(call), call.id)
        done = self.desk.store.idempotency
        begun = await done.begin(_scope(call), key, _digest(call.sent), now_ms=self.desk.now_ms())
        if isinstance(begun, Replay):
            headers = {
                **SERVER,
                "Tollgate-Request-Id": call.id,
                "Cache-Control": "no-store",
                "Tollgate-Replayed": "true",
            }
            return web.Response(status=begun.status, body=begun.answer, content_type=JSON, headers=headers)
        ending: Callable[[Begun], Awaitable[None]] = done.leave
        try:
            response = _response(route, await route.handler(replace(call, begun=begun)), call.id)
            assert isinstance(response, web.Response) and isinstance(response.body, bytes), "what is kept is whole"
            keep = partial(done.finish, status=response.status, answer=response.body.decode())
            ending = keep if response.status < 400 else done.give_up
            return response
        except TollgateError as error:
            ending = done.leave if error.status >= 500 else done.give_up
            raise
        finally:
            with suppress(StoreUnavailable):  # then the next one takes it over, and finds what was done
                await ending(begun)

    def refused(self, error: TollgateError, call_id: str) -> web.Response:
        """An error's response."""
        headers = refusal_headers(error, request_id=call_id)
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return web.Response(
            status=status_of(error, self.quota_status()),
            body=orjson.dumps({"error": problem_of(error)}),
            content_type=JSON,
            headers=headers,
        )

    async def _understood(self, route: Route, request: web.Request, call_id: str) -> Call[Any, Any]:
        """The request with its parts parsed and its caller known. Raises TollgateError."""
        key, caller = None, None
        fresh_s = FRESH_S if route.compares_rev else 0.0
        if route.who is Who.KEY or (route.who is Who.SHOPPER and not self.public_pricing()):
            key = key_of(request.headers)
            caller = await self.callers.by_key(key, fresh_s=fresh_s)
        if not all(storable(part) for part in request.match_info.values()):
            raise NotFound
        query = _query(request)
        body = await _body(route, request)
        if caller is not None:
            ref = _named_account(request, query, body)
            caller = await self.callers.naming(caller, ref, fresh_s=fresh_s)
            caller = await bind(self.callers, caller, request.headers)
        desk = replace(self.desk, actor=_ADMIN_ACTOR if key is None else f"key:{display_prefix(key)}")
        return Call(
            id=call_id,
            office=office_at(desk),
            frame=self,
            request=request,
            query=_validated(route.query, query),
            body=_validated(route.body, body) if isinstance(route.body, type) else body,
            key=key,
            caller=caller,
            sent=body,
        )


def problem_of(error: TollgateError) -> dict[str, object]:
    """An error, as it stands under ``error``."""
    problem: dict[str, object] = {"code": error.code, "message": error.message}
    if error.param is not None:
        problem["param"] = error.param
    if isinstance(error, Refusal) or error.detail is not None:
        problem["tollgate"] = tollgate_member(error)
    return problem


def _scope(call: Call[Any, Any]) -> str:
    """Where an ``Idempotency-Key`` counts: whose credential, for which account, on which route."""
    who, account = ("admin", "") if call.caller is None else (call.caller.key_id, call.account.id)
    return f"{who} {account} {call.request.method} {call.request.path}"


def _digest(sent: object) -> str:
    """The same for the same JSON, in whatever order and spacing it came."""
    return hashlib.sha256(orjson.dumps(sent, option=orjson.OPT_SORT_KEYS)).hexdigest()


def errors_as_json(frame: Frame) -> Any:
    """The middleware for what reaches no route: 404 and 405 look like every other error."""

    @web.middleware
    async def guard(request: web.Request, handler: AppHandler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as error:
            response = frame.refused(MethodNotAllowed(), str(uuid7()))
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        except web.HTTPNotFound:
            return frame.refused(NotFound("There is no such route."), str(uuid7()))

    return guard


def _query(request: web.Request) -> dict[str, Any]:
    """Raises BadRequest: a name that stands twice could mean either."""
    query: dict[str, Any] = {}
    for name, value in request.query.items():
        if name in query:
            raise BadRequest("invalid_parameter", f"{shown(name)} is there twice.", param=shown(name))
        if not storable(value):
            raise BadRequest("invalid_parameter", f"{shown(name)} must not have NUL characters.", param=shown(name))
        query[name] = value
    return query


async def _body(route: Route, request: web.Request) -> Any:
    """The body's JSON value, or its bytes, or None where none is taken. Raises RequestError in all its kinds."""
    if route.body is None:
        return None
    if request.can_read_body:
        check_media(request, route.body.media if isinstance(route.body, Raw) else JSON)
    data = await read_body(request, bytes_max=route.body_bytes_max, within_s=BODY_S)
    if isinstance(route.body, Raw):
        return data
    if not data and not any(field.is_required() for field in route.body.model_fields.values()):
        return {}
    return json_bodies.loaded(data)


def _named_account(request: web.Request, query: dict[str, Any], body: Any) -> str | None:
    """Takes the account's name out of where it stands. Raises RequestError when two places name different ones."""
    found = {account_ref(request.headers)}
    for place in (query, body):
        if isinstance(place, dict):
            found |= {place.pop(name, None) for name in _NAMES if isinstance(place.get(name), str | None)}
    found.discard(None)
    if len(found) > 1:
        raise RequestError("The request names two different accounts.", param="account")
    return found.pop() if found else None


def _validated(model: type[BaseModel], value: Any) -> BaseModel:
    """Raises BadRequest: unknown_field, missing_field, invalid_parameter."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(shown(str(part)) for part in first["loc"] if part != "") or None
    name = param or "The request"
    match first["type"]:
        case "extra_forbidden":
            raise BadRequest("unknown_field", f"{name} is not known here.", param=param)
        case "missing":
            raise BadRequest("missing_field", f"{name} is missing.", param=param)
    raise BadRequest("invalid_parameter", f"{name}: {first['msg'].removeprefix('Value error, ')}.", param=param)


def _response(route: Route, result: object, call_id: str) -> web.StreamResponse:
    """What a handler answered, as a response."""
    if isinstance(result, web.StreamResponse):
        return result
    status, headers = route.status, {**SERVER, "Tollgate-Request-Id": call_id, "Cache-Control": "no-store"}
    if isinstance(result, Answer):
        status, headers, result = result.status, {**headers, **result.headers}, result.content
    if isinstance(result, bytes) and isinstance(route.answer, Raw):
        return web.Response(status=status, body=result, headers={**headers, "Content-Type": str(route.answer.media)})
    return web.Response(status=status, body=orjson.dumps(result, default=_jsonable), content_type=JSON, headers=headers)


def _jsonable(value: object) -> object:
    """Models and read-only mappings, for orjson."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
