"""The operators' listener: metrics, readiness, the admin API. Its own credential, never a customer's key.

Rules
1. /metrics and /readyz answer everybody who reaches this listener; for all else, even what is not there, the admin
   token comes first. Without a token in the config all else is off.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import replace
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from uuid_utils import uuid7

from gateway.billing.http import tables
from gateway.billing.http.frame import Frame, errors_as_json
from gateway.billing.http.operator import Operator
from gateway.errors import AdminTokenNotSet, InvalidApiKey, MissingApiKey, TollgateError

log = logging.getLogger(__name__)

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPEN: Final = ("/metrics", "/readyz")


def admin_app(operator: Operator, frame: Frame) -> web.Application:
    app = web.Application(middlewares=[_guard(operator, frame), errors_as_json(frame)])

    async def metrics(_: web.Request) -> web.Response:
        body = await operator.render_metrics()
        return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})

    async def readyz(_: web.Request) -> web.Response:
        is_ready = await operator.ready()
        return web.Response(status=200 if is_ready else 503, text="ready\n" if is_ready else "not ready\n")

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/readyz", readyz)
    replace(frame, operator=operator).mount(app, tables.OPERATORS)
    return app


def _guard(operator: Operator, frame: Frame) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in _OPEN:
                _check(operator.token(), request.headers.get("Authorization", ""))
        except TollgateError as error:
            log.warning("an operator's request was turned away: %s", error.code)
            return frame.refused(error, str(uuid7()))
        return await handler(request)

    return guard


def _check(token: str, authorization: str) -> None:
    """Raises AdminTokenNotSet, MissingApiKey, InvalidApiKey."""
    if not token:
        raise AdminTokenNotSet
    scheme, _, sent = authorization.partition(" ")
    if scheme.lower() != "bearer" or not sent:
        raise MissingApiKey("Send the admin token as 'Authorization: Bearer ...'.")
    if not hmac.compare_digest(sent.strip().encode("utf-8", "surrogateescape"), token.encode()):
        raise InvalidApiKey("The admin token is not valid.")
