"""``GET /api/billing/events``: what happens to an account, as server-sent events.

Rules
1. The first event is the balance. ``warning``, ``refused`` and ``alert`` have ids: whoever comes back with
   ``Last-Event-ID`` is told what it missed first.
2. A comment every ``HEARTBEAT_S`` keeps the connection; with it the key and the account are looked at again, so that
   the stream of a revoked or suspended one ends.
3. A reader that takes nothing for ``SEND_S`` is cut off. At shutdown the stream ends.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import orjson
from aiohttp import web
from pydantic import Field

from gateway.billing.alerts.live import Event, Listener
from gateway.billing.http.models import Query
from gateway.billing.http.route import Call, Raw, Route, Who
from gateway.edge import SERVER
from gateway.errors import QuotaUnavailable, StoreUnavailable, TollgateError

HEARTBEAT_S: Final = 15.0
SEND_S: Final = 10.0
RETRY_MS: Final = 2_000
EVENT_STREAM: Final = "text/event-stream"
_BEAT: Final = Event("", {})
_HEADERS: Final = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no", **SERVER}


class EventsQuery(Query):
    """``limit``: end after this many events."""

    limit: Annotated[int, Field(ge=1, le=1000)] | None = None


async def events(call: Call[EventsQuery, None]) -> web.StreamResponse:
    live = call.frame.live
    first = await live.balance(call.account.id)
    listener = await live.listen(call.account.id)
    try:
        missed = await _missed(call)
        response = web.StreamResponse(headers={**_HEADERS, "Tollgate-Request-Id": call.id})
        await response.prepare(call.request)
        listener.balance = first.data
        await _tell(call, response, listener, [first, *missed])
        return response
    finally:
        live.leave(listener)


async def _missed(call: Call[EventsQuery, None]) -> list[Event]:
    """What came behind the last id that the client says it has; one that is no id is no client's of ours."""
    last = call.request.headers.get("Last-Event-ID", "")
    if not (last.isascii() and last.isdigit() and len(last) < 19):
        return []
    return await call.frame.live.missed(call.account.id, int(last))


async def _tell(
    call: Call[EventsQuery, None], response: web.StreamResponse, listener: Listener, first: list[Event]
) -> None:
    """Until it is over, the client leaves, or does not read."""
    told = {event.id for event in first}
    left = call.query.limit
    try:
        await _send(response, f"retry: {RETRY_MS}\n\n".encode())
        for event in first[:left]:
            await _send(response, written(event))
        left = None if left is None else left - len(first)
        while left is None or left > 0:
            event_or_none = await _next(listener)
            if event_or_none is None or (event_or_none is _BEAT and not await _still_known(call)):
                return
            if event_or_none is _BEAT:
                await _send(response, b": still here\n\n")
            elif event_or_none.id is None or event_or_none.id not in told:
                await _send(response, written(event_or_none))
                left = None if left is None else left - 1
    except TimeoutError:
        if call.request.transport is not None:
            call.request.transport.close()
    except ConnectionError:
        return


async def _next(listener: Listener) -> Event | None:
    """The next event, a sign of life when there is none for a while; None at the end."""
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            return await listener.next()
    except TimeoutError:
        return _BEAT


async def _still_known(call: Call[EventsQuery, None]) -> bool:
    """Whether the key would be let in now, for this account; while the database is away it is."""
    try:
        assert call.key is not None, "the route takes a key"
        await call.frame.callers.by_key(call.key, account_ref=call.account.id, fresh_s=0.0)
    except (StoreUnavailable, QuotaUnavailable):
        return True
    except TollgateError:
        return False
    return True


async def _send(response: web.StreamResponse, data: bytes) -> None:
    """Raises TimeoutError for a reader that does not read, ConnectionError for one that left."""
    async with asyncio.timeout(SEND_S):
        await response.write(data)


def written(event: Event) -> bytes:
    """An event as it goes over the wire."""
    number = b"" if event.id is None else b"id: %d\n" % event.id
    return b"%sevent: %s\ndata: %s\n\n" % (number, event.name.encode(), orjson.dumps(event.data))


ROUTES: Final = (
    Route(
        "GET", "/api/billing/events", Who.KEY, events, Raw(EVENT_STREAM),
        "What happens to the account, while it happens: balance, warning, refused, alert.", query=EventsQuery,
    ),
)  # fmt: skip
