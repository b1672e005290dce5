"""One metered call, from the client's first byte to its settled charge. All control flow of the data plane is here.

Rules
1. A hold is open from ``admit`` to ``settle``; the upstream sees the call only in between.
2. ``settle`` runs in a ``finally``: there is no way out of a call that leaves its hold to the lease.
3. The call runs as a tracked task of its own; a client that leaves cancels its wait, never the accounting.
"""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web
from uuid_utils import uuid7

from gateway.errors import Refusal, TollgateError
from gateway.providers.adapter import Adapter
from gateway.proxy.admit import admit
from gateway.proxy.answers import error_response
from gateway.proxy.authenticate import authenticate
from gateway.proxy.exchange import Exchange
from gateway.proxy.gateway import Gateway
from gateway.proxy.parse import Asked, parse
from gateway.proxy.visit import Visit

log = logging.getLogger(__name__)


async def serve(gateway: Gateway, adapter: Adapter, request: web.BaseRequest) -> web.StreamResponse:
    """aiohttp's side: start the call, wait for its answer."""
    visit = Visit(request)
    call = gateway.tasks.spawn(handle(gateway, adapter, visit))
    call.add_done_callback(lambda _: _answer_anyway(gateway, adapter, visit, call))
    return await visit.wait()


def _answer_anyway(gateway: Gateway, adapter: Adapter, visit: Visit, call: asyncio.Task[None]) -> None:
    """A bug of ours must not leave a client waiting: 500, and a log line that says where, but not what was asked."""
    error = None if call.cancelled() else call.exception()
    if error is not None:
        log.error("a call failed", exc_info=error)
    if not visit.is_answered:
        refuse(gateway, adapter, visit, TollgateError(), None, str(uuid7()))


async def handle(gateway: Gateway, adapter: Adapter, visit: Visit) -> None:
    """Meter one call: authenticate → parse → admit → forward → relay → settle."""
    started_s = visit.began_s
    request = visit.request
    metrics = gateway.metrics
    asked: Asked | None = None
    try:
        key, caller = await authenticate(gateway, request.headers)
        authenticated_s = time.perf_counter()
        metrics.overhead.observe(("authenticate",), authenticated_s - started_s)
        asked = await parse(gateway.config, adapter, request, body_s=gateway.patience.body_s)
        metrics.overhead.observe(("parse",), time.perf_counter() - authenticated_s)
        admission, bound = await admit(gateway, key, caller, asked, request.headers)
    except TollgateError as error:
        refuse(gateway, adapter, visit, error, asked, str(uuid7()))
        return
    metrics.overhead.observe(("total",), time.perf_counter() - started_s)
    await Exchange(gateway, visit, asked, admission, bound).run()


def refuse(
    gateway: Gateway, adapter: Adapter, visit: Visit, error: TollgateError, asked: Asked | None, request_id: str
) -> None:
    """Answer with an error of ours, and count it."""
    response = error_response(error, adapter, request_id=request_id, quota_status=gateway.config.settings.quota_status)
    if isinstance(error, Refusal) or error.status in (401, 403, 503):
        scope = error.detail.scope if error.detail is not None and error.detail.scope else "account"
        gateway.metrics.denials.add((error.code, scope), 1)
    model = asked.facts.model if asked is not None and asked.facts.model else "other"
    gateway.metrics.requests.add((adapter.name, model, "none", str(response.status)), 1)
    visit.answer(response)
