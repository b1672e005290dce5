"""One metered call, from the client's first byte to its settled charge. All control flow of the data plane is here.

Rules
1. A hold is open from ``admit`` to ``settle``; the upstream sees the call only in between.
2. ``settle`` runs in a ``finally``: there is no way out of a call that leaves its hold to the lease.
3. The call runs as a tracked task of its own; a client that leaves cancels its wait, never the accounting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web
from uuid_utils import uuid7

from gateway.domain.accounts import Caller
from gateway.errors import Refusal, TollgateError
from gateway.metrics import OTHER
from gateway.providers.adapter import Adapter
from gateway.proxy.admit import admit
from gateway.proxy.answers import error_response
from gateway.proxy.authenticate import authenticate
from gateway.proxy.exchange import Exchange
from gateway.proxy.gateway import Gateway
from gateway.proxy.laps import AUTHENTICATE, PARSE, Laps
from gateway.proxy.parse import Asked, parse
from gateway.proxy.visit import Visit, Whole

log = logging.getLogger(__name__)

Give = Callable[[Whole | web.StreamResponse], None]


async def serve(gateway: Gateway, adapter: Adapter, request: web.BaseRequest) -> web.StreamResponse:
    """For aiohttp's loop: begin the call, wait for its answer. Cancelled when the client disconnects."""
    answered: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()

    def give(response: Whole | web.StreamResponse) -> None:
        if not answered.done():
            answered.set_result(response.response() if isinstance(response, Whole) else response)

    visit = begin(gateway, adapter, request, give)
    try:
        return await answered
    except asyncio.CancelledError:
        visit.leave()
        raise


def begin(gateway: Gateway, adapter: Adapter, request: web.BaseRequest, give: Give) -> Visit:
    """Start the call. Its answer is given once; whoever serves the connection tells the visit when the client leaves.

    A streamed answer is given when it has been written, but for its last chunk."""
    visit = Visit(request, Laps(gateway.metrics), give)
    visit.call = gateway.tasks.spawn(handle(gateway, adapter, visit))
    return visit


async def handle(gateway: Gateway, adapter: Adapter, visit: Visit) -> None:
    """Meter one call: authenticate → parse → admit → forward → relay → settle.

    A bug of ours must not leave a client waiting: 500, and a log line that says where, but not what was asked."""
    try:
        exchange = await _admitted(gateway, adapter, visit)
        if exchange is not None:
            await exchange.run()
    except Exception as error:
        log.error("a call failed", exc_info=error)
    finally:
        if not visit.is_answered:
            refuse(gateway, adapter, visit, TollgateError(), None, None)


async def _admitted(gateway: Gateway, adapter: Adapter, visit: Visit) -> Exchange | None:
    """The call with its hold; None when it was refused."""
    request, laps = visit.request, visit.laps
    caller: Caller | None = None
    asked: Asked | None = None
    try:
        key, caller = await authenticate(gateway, request.headers)
        laps.lap(AUTHENTICATE)
        asked = await parse(gateway.config, adapter, request, laps, body_s=gateway.patience.body_s)
        laps.lap(PARSE)
        admission, bound = await admit(gateway, key, caller, asked, request.headers, laps)
    except TollgateError as error:
        refuse(gateway, adapter, visit, error, caller, asked)
        return None
    return Exchange(gateway, visit, asked, admission, bound)


def refuse(
    gateway: Gateway, adapter: Adapter, visit: Visit, error: TollgateError, caller: Caller | None, asked: Asked | None
) -> None:
    """Answer with an error of ours, and count it: ``caller`` and ``asked`` as far as they are known."""
    config, metrics = gateway.config, gateway.metrics
    response = error_response(error, adapter, request_id=str(uuid7()), quota_status=config.settings.quota_status)
    plan = "none"
    if caller is not None and caller.account is not None:
        plan = caller.account.subscription.plan
        plan = plan if plan in config.catalog.plans else OTHER
    if isinstance(error, Refusal) or error.status in (401, 403, 503):
        scope = error.detail.scope if error.detail is not None and error.detail.scope else "account"
        metrics.denials.add((error.code, scope), 1)
        if asked is not None and not adapter.free:
            metrics.feature_uses.add((asked.feature.name, plan, "refused"), 1)
    model = asked.facts.model if asked is not None and asked.facts.model else OTHER
    metrics.requests.add((adapter.name, model, plan, str(response.status)), 1)
    visit.answer(response)
