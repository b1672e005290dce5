"""The operators' listener: metrics, readiness, reload. Its own credential, never a customer's key."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import AdminTokenNotSet, InvalidApiKey, MissingApiKey, TollgateError

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Operator:
    """What the listener needs from the worker."""

    token: Callable[[], str]  # of the running config; "" = the admin API is off
    ready: Callable[[], Awaitable[bool]]
    render_metrics: Callable[[], Awaitable[bytes]]
    reload: Callable[[], Awaitable[list[str]]]  # the problems; empty = taken into use


def admin_app(operator: Operator) -> web.Application:
    """/metrics and /readyz answer everybody who reaches this listener; /admin/v1 needs the token."""
    app = web.Application(middlewares=[_guard(operator)])

    async def metrics(_: web.Request) -> web.Response:
        body = await operator.render_metrics()
        return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})

    async def readyz(_: web.Request) -> web.Response:
        is_ready = await operator.ready()
        return web.Response(status=200 if is_ready else 503, text="ready\n" if is_ready else "not ready\n")

    async def reload(_: web.Request) -> web.Response:
        problems = await operator.reload()
        return web.json_response({"reloaded": not problems, "problems": problems}, status=400 if problems else 200)

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/readyz", readyz)
    app.router.add_post("/admin/v1/reload", reload)
    return app


def _guard(operator: Operator) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in ("/metrics", "/readyz"):
                _check(operator.token(), request.headers.get("Authorization", ""))
            return await handler(request)
        except TollgateError as error:
            return web.json_response({"error": {"code": error.code, "message": error.message}}, status=error.status)

    return guard


def _check(token: str, authorization: str) -> None:
    """Raises AdminTokenNotSet, MissingApiKey, InvalidApiKey."""
    if not token:
        raise AdminTokenNotSet
    scheme, _, sent = authorization.partition(" ")
    if scheme.lower() != "bearer" or not sent:
        raise MissingApiKey("Send the admin token as 'Authorization: Bearer ...'.")
    if not hmac.compare_digest(sent.strip().encode(), token.encode()):
        raise InvalidApiKey("The admin token is not valid.")
