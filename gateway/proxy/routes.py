"""What the customers' listener serves besides metered calls: models, health, and a clear no for everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from fnmatch import fnmatchcase

from aiohttp import web
from uuid_utils import uuid7

from gateway.edge import SERVER
from gateway.errors import MethodNotAllowed, RouteNotMetered, TollgateError, UnknownModel
from gateway.providers import models as bodies
from gateway.providers.adapter import Adapter
from gateway.providers.registry import ADAPTERS, error_adapter
from gateway.proxy.answers import error_response
from gateway.proxy.authenticate import authenticate
from gateway.proxy.gateway import Gateway
from gateway.proxy.handler import serve
from gateway.quota.service import plan_of

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Check = Callable[[], Awaitable[bool]]

CUT_S = 2.0


def front(gateway: Gateway, inner: Handler) -> Handler:
    """Metered routes go straight to the data plane; everything else through the application."""

    async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
        adapter = ADAPTERS.get(request.rel_url.raw_path)  # spelled exactly so: what is encoded or doubled is not ours
        if adapter is None:
            return await inner(request)
        if request.method != "POST":
            return _refused(gateway, adapter, MethodNotAllowed(), {"Allow": "POST"})
        return await serve(gateway, adapter, request)

    return dispatch


def add_routes(app: web.Application, gateway: Gateway, ready: Check) -> None:
    """Routes of the customers' listener."""

    async def root(_: web.Request) -> web.Response:
        return web.json_response({"name": "tollgate", "status": "ok"})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        is_ready = not gateway.draining and await ready()
        return web.Response(status=200 if is_ready else 503, text="ready\n" if is_ready else "not ready\n")

    async def models(request: web.Request) -> web.Response:
        return await _models(gateway, request)

    async def models_only_get(request: web.Request) -> web.Response:
        return _refused(gateway, error_adapter(request.headers), MethodNotAllowed(), {"Allow": "GET, HEAD"})

    async def unmetered(request: web.Request) -> web.Response:
        return _refused(gateway, error_adapter(request.headers), RouteNotMetered())

    app.router.add_get("/", root)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{id:.+}", models)
    app.router.add_route("*", "/v1/models", models_only_get)
    app.router.add_route("*", "/v1/models/{id:.+}", models_only_get)
    app.router.add_route("*", "/v1/{rest:.*}", unmetered)
    app.on_response_prepare.append(_without_versions)


async def _without_versions(_: web.Request, response: web.StreamResponse) -> None:
    """Nobody needs to know which library answers."""
    response.headers.update(SERVER)


async def _models(gateway: Gateway, request: web.Request) -> web.Response:
    """What the caller's plan allows, in the shape of the SDK that asks (``anthropic-version`` tells)."""
    adapter = error_adapter(request.headers)
    try:
        _, caller = await authenticate(gateway, request.headers)
        config = gateway.config
        plan = plan_of(caller, config.catalog)
        allowed = [
            model_id
            for model in config.catalog.models
            if any(config.settings.upstreams[name].on for name in model.upstreams)
            for model_id in model.ids
            if plan.models is None or any(fnmatchcase(model_id, pattern) for pattern in plan.models)
        ]
        wanted = request.match_info.get("id")
        if wanted is None:
            return _json(bodies.model_list(allowed, adapter.dialect))
        if wanted not in allowed:
            raise UnknownModel(param="model")
        return _json(bodies.model(wanted, adapter.dialect))
    except TollgateError as error:
        return _refused(gateway, adapter, error)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _refused(
    gateway: Gateway, adapter: Adapter, error: TollgateError, more: dict[str, str] | None = None
) -> web.Response:
    refused = error_response(error, adapter, request_id=str(uuid7()), quota_status=gateway.config.settings.quota_status)
    refused.headers.update(more or {})
    return refused.response()


async def drain(gateway: Gateway, grace_s: float) -> None:
    """Shutdown: let open answers finish within the grace time, then end them with an error; write what is owed."""
    gateway.draining = True
    if not await gateway.tasks.drained(grace_s):
        for exchange in tuple(gateway.open):
            exchange.stop()
        await gateway.tasks.drained(CUT_S)
    with suppress(TimeoutError):  # what SQL did not take by now lies in the outbox, and the reaper brings it home
        async with asyncio.timeout(CUT_S):
            await gateway.quota.scribe.drained()
            await gateway.quota.notices.drained()
