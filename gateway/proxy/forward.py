"""Step 4: ask the model. One upstream after another until one gives a first byte, within the retry budget.

Rules
1. Only before the first byte may a call go to the next upstream; after it, never.
2. What the provider says against *our* credential or billing is not the client's business: 502 and an alert.
3. Upstream hosts come from the config alone; the client chooses nothing of the address but the query string.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.config.model import Upstream
from gateway.errors import TollgateError, UpstreamMisconfigured, UpstreamUnreachable
from gateway.proxy.admit import Bound
from gateway.proxy.gateway import Gateway
from gateway.proxy.headers import credential
from gateway.proxy.parse import Asked
from gateway.proxy.upstream import Reply
from gateway.quota.admission import Admission

log = logging.getLogger(__name__)

_OWN_FAULT = frozenset({401, 402, 403})
_TRY_NEXT = frozenset({408, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An upstream that began to answer."""

    upstream: Upstream
    reply: Reply


def candidates(gateway: Gateway, asked: Asked) -> list[Upstream]:
    """The model's upstreams that are on and speak this dialect, in order; a lone one is tried twice."""
    upstreams = [
        upstream
        for name in asked.model.upstreams
        if (upstream := gateway.config.settings.upstreams[name]).on and upstream.dialect == asked.adapter.dialect
    ]
    if not upstreams:
        raise UpstreamUnreachable("No upstream of this model speaks this dialect.")
    return upstreams


def rewritten(asked: Asked, admission: Admission, bound: Bound, upstream: Upstream) -> bytes:
    """The body as received, unless a rewrite is due (DESIGN: alias, injected or lowered bound, include_usage)."""
    output = bound.output_tokens if admission.clamped_to is None else admission.clamped_to
    return asked.adapter.rewrite(
        asked.call,
        model=asked.model.rename,
        output_tokens_max=None if output == asked.call.output_tokens_asked else output,
        output_field=upstream.output_field,
    )


async def forward(
    gateway: Gateway, asked: Asked, admission: Admission, bound: Bound, headers: Mapping[str, str], query: str
) -> Forwarded:
    """Raises UpstreamUnreachable, UpstreamTimeout, UpstreamMisconfigured."""
    settings = gateway.config.settings
    gateway.retries.earn()
    upstreams = candidates(gateway, asked)
    last: TollgateError = UpstreamUnreachable()
    for index, upstream in enumerate(upstreams):
        started_s = time.perf_counter()
        key = upstream.keys[0] if len(upstream.keys) == 1 else random.choice(upstream.keys)  # noqa: S311  # balance
        url = upstream.url + asked.adapter.upstream_path + (f"?{query}" if query else "")
        try:
            reply = await gateway.leg.send(
                url,
                {**headers, **credential(upstream.dialect, key)},
                rewritten(asked, admission, bound, upstream),
                first_byte_s=settings.first_byte_s,
                idle_s=settings.idle_s,
            )
        except TollgateError as error:
            last = error
            gateway.metrics.upstream_requests.add((upstream.name, error.code), 1)
        else:
            gateway.metrics.upstream_requests.add((upstream.name, str(reply.status)), 1)
            gateway.metrics.upstream_seconds.observe((upstream.name,), time.perf_counter() - started_s)
            more = index + 1 < len(upstreams)
            if reply.status in _OWN_FAULT:
                reply.close()
                log.error("upstream %s answered %d to our own credential", upstream.name, reply.status)
                last = UpstreamMisconfigured()
            elif not (reply.status in _TRY_NEXT and more and gateway.retries.spend()):
                return Forwarded(upstream, reply)
            else:
                reply.close()
                continue
        if index + 1 < len(upstreams) and not gateway.retries.spend():
            break
    raise last
