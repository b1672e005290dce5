"""Step 4: ask the model. One upstream after another until one begins to answer, within the retry budget.

Rules
1. Only before the first byte may a call go to the next upstream; after it, never. One upstream at a time.
2. What the provider says against *our* credential or billing is not the client's business: 502, and an alert.
3. Upstream hosts come from the config alone; the client chooses nothing of the address but the query string. A
   redirect is not followed: it would take our key elsewhere.
4. An error is read whole before anything is decided: its body says whose fault it is. It may take as long as a first
   byte.
5. An upstream whose breaker is open is passed over at once: nobody waits for what does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from gateway.config.model import Upstream
from gateway.errors import TollgateError, UpstreamMisconfigured, UpstreamTimeout, UpstreamUnreachable
from gateway.providers.upstream_errors import Fault, fault, mask
from gateway.proxy.admit import Bound
from gateway.proxy.breaker import OPEN_S, Breaker, Permit
from gateway.proxy.gateway import Gateway
from gateway.proxy.headers import fixed
from gateway.proxy.laps import CONNECT, Laps
from gateway.proxy.parse import Asked
from gateway.proxy.upstream import Reply
from gateway.quota.admission import Admission
from limits.values import dataclass

log = logging.getLogger(__name__)

ERROR_BYTES_MAX = 262_144
_LEFT_ALONE = "The provider does not answer at present. Nothing was sent to it, nothing was charged."
Attempt = tuple[Upstream, str]  # and one of its keys


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An upstream that began to answer; or its error, whole and masked."""

    upstream: Upstream
    reply: Reply
    error_body: bytes | None = None


@dataclass(slots=True)
class Outgoing:
    """The request as every upstream gets it, and what a provider may know of it so far: whoever cuts it must know
    whether it costs."""

    asked: Asked
    admission: Admission
    bound: Bound
    headers: Mapping[bytes, bytes]
    query: str
    laps: Laps
    sent: bool = False  # it began to leave
    refused: bool = False  # and was answered with an error

    def leaving(self) -> None:
        self.sent, self.refused = True, False
        self.laps.lap(CONNECT)

    def url(self, upstream: Upstream) -> str:
        return upstream.url + self.asked.adapter.upstream_path + (f"?{self.query}" if self.query else "")

    def body(self, upstream: Upstream) -> bytes:
        """As received, unless a rewrite is due: alias, injected or lowered bound, include_usage."""
        output = self.bound.output_tokens if self.admission.clamped_to is None else self.admission.clamped_to
        return self.asked.adapter.rewrite(
            self.asked.call,
            model=self.asked.model.rename,
            output_tokens_max=None if output == self.asked.call.output_tokens_asked else output,
            output_field=upstream.output_field,
        )


def attempts(upstreams: Iterable[Upstream]) -> deque[Attempt]:
    """Every upstream with each of its keys, in the config's order; the keys of one are drawn by lot."""
    waiting: deque[Attempt] = deque()
    for upstream in upstreams:
        keys: Sequence[str] = upstream.keys
        if len(keys) > 1:
            keys = random.sample(keys, len(keys))
        for key in keys:
            waiting.append((upstream, key))
    return waiting


async def forward(gateway: Gateway, outgoing: Outgoing) -> Forwarded:
    """The first upstream that answers, or the last one's error. Raises UpstreamUnreachable, UpstreamTimeout,
    UpstreamMisconfigured."""
    gateway.retries.earn()
    waiting = attempts(outgoing.asked.upstreams)
    last: Forwarded | TollgateError | None = None
    while waiting:
        upstream, key = waiting.popleft()
        outgoing.sent = False
        breaker = gateway.breakers.of(upstream.name)
        permit = breaker.enter()
        if permit is None:
            last = last or UpstreamUnreachable(_LEFT_ALONE, retry_after_s=max(1, math.ceil(breaker.wait_s())))
            waiting = _others(waiting, upstream)
            continue
        try:
            last = await _attempt(gateway, outgoing, upstream, key)
        except UpstreamUnreachable as error:
            _failed(breaker, permit, upstream)
            last = error
            waiting = _others(waiting, upstream)
        except BaseException:  # the client left, or a bug of ours: neither says anything of the upstream
            breaker.gave_up(permit)
            raise
        else:
            if last.reply.status >= 500:
                _failed(breaker, permit, upstream)
            elif breaker.succeeded(permit):
                log.warning("upstream %s answers again", upstream.name)
            if last.error_body is None:
                return last
            refused = _judge(gateway, upstream.name, last.reply.status, last.error_body)
            last = refused.error or last
            if not refused.retryable:
                break
        if waiting and not gateway.retries.spend():
            break
    if not isinstance(last, Forwarded):
        raise last or UpstreamUnreachable()
    return last


def _others(waiting: Iterable[Attempt], upstream: Upstream) -> deque[Attempt]:
    """What is left without this upstream's other keys."""
    return deque(other for other in waiting if other[0].name != upstream.name)


def _failed(breaker: Breaker, permit: Permit, upstream: Upstream) -> None:
    if breaker.failed(permit):
        log.warning("upstream %s fails again and again and is left alone for %d s", upstream.name, OPEN_S)


async def _attempt(gateway: Gateway, outgoing: Outgoing, upstream: Upstream, key: str) -> Forwarded:
    """One request to one upstream. Raises UpstreamUnreachable, UpstreamTimeout."""
    settings, metrics = outgoing.asked.config.settings, gateway.metrics
    try:
        reply = await gateway.leg.send(
            outgoing.url(upstream),
            outgoing.headers,
            outgoing.body(upstream),
            fixed=fixed(upstream.dialect, key),
            first_byte_s=settings.first_byte_s,
            idle_s=settings.idle_s,
            leaving=outgoing.leaving,
        )
    except UpstreamUnreachable as error:
        metrics.upstream_requests.add((upstream.name, error.code), 1)
        _ended(outgoing, upstream)
        cause = type(error.__cause__ or error).__name__
        gateway.alarms.tell(f"{upstream.name} {cause}", "upstream %s does not answer: %s", upstream.name, cause)
        raise
    metrics.upstream_requests.add((upstream.name, str(reply.status)), 1)
    if reply.status < 300:
        return Forwarded(upstream, reply)
    outgoing.refused = True
    try:
        body = await _error_body(reply, settings.first_byte_s)
    finally:
        reply.close()
        _ended(outgoing, upstream)
    return Forwarded(upstream, reply, mask(body, upstream.keys))


def _ended(outgoing: Outgoing, upstream: Upstream) -> None:
    """An attempt that gave no answer to relay: its time was the provider's, if it had anything to do."""
    if outgoing.sent:
        outgoing.laps.provider(upstream.name)
    else:
        outgoing.laps.restart()


async def _error_body(reply: Reply, whole_s: float) -> bytes:
    """``whole_s`` bounds all of it: one that drips would hold the call, and what it holds. Raises UpstreamUnreachable,
    UpstreamTimeout."""
    body = bytearray()
    try:
        async with asyncio.timeout(whole_s):
            while len(body) <= ERROR_BYTES_MAX and (piece := await reply.read()):
                body += piece
    except TimeoutError as error:
        raise UpstreamTimeout from error
    return bytes(body[:ERROR_BYTES_MAX])


@dataclass(frozen=True, slots=True)
class _Refused:
    """An upstream's error: what the client gets if nobody answers (None: that very error)."""

    error: TollgateError | None
    retryable: bool


def _judge(gateway: Gateway, name: str, status: int, body: bytes) -> _Refused:
    """An upstream's error is the client's, ours, or perhaps not another upstream's."""
    redirected = status < 400
    found = Fault(True, True, True) if redirected else fault(status, body)
    if found.needs_alert:
        gateway.alarms.tell(
            f"{name} {status}",
            "upstream %s answered %d to our own %s",
            name,
            status,
            "address" if redirected else "credential or billing",
        )
    return _Refused(UpstreamMisconfigured() if found.is_ours else None, found.is_retryable)
