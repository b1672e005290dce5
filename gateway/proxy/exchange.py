"""From an open hold to its end: forward → relay → settle.

Rules
1. The hold ends exactly once, in ``_settle``, on the outcome that is known by then; the answer never waits for it.
2. Before the first byte nothing is charged, unless the client itself walked away from a call that had been sent.
3. A break in the middle becomes the dialect's error event between two events, and a broken connection within one.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from gateway.domain.usage import AtLeast, Basis, NotServed, Outcome, Usage
from gateway.errors import TollgateError, UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable
from gateway.providers.adapter import Scanner
from gateway.proxy import answers, headers, relay
from gateway.proxy.admit import Bound
from gateway.proxy.forward import Forwarded, forward
from gateway.proxy.gateway import DRAINS_MAX, Gateway
from gateway.proxy.parse import Asked
from gateway.proxy.relay import End
from gateway.proxy.settle import make_bill, settle
from gateway.proxy.visit import Visit
from gateway.quota.admission import Admission, Bill


class Exchange:
    """One admitted call and its upstream."""

    def __init__(self, gateway: Gateway, visit: Visit, asked: Asked, admission: Admission, bound: Bound) -> None:
        self.gateway = gateway
        self.visit = visit
        self.asked = asked
        self.adapter = asked.adapter
        self.admission = admission
        self.bound = bound
        self.forwarded: Forwarded | None = None
        self.scanner: Scanner | None = None
        self.end = End.COMPLETE
        self._made: Bill | None = None
        self._draining = False
        self._stopping = False

    async def run(self) -> None:
        """Every way out goes through ``_settle``."""
        self.gateway.open.add(self)
        try:
            self.forwarded = await self._forward()
            with relay.Departure(self.visit, self.forwarded.reply.close, self._patience_s):
                if self.forwarded.reply.status >= 400:
                    await self._pass_error_on(self.forwarded)
                elif self.forwarded.reply.headers.get("Content-Type", "").startswith("text/event-stream"):
                    await self._stream(self.forwarded, self._scan(self.forwarded), b"")
                else:
                    await self._answer_whole(self.forwarded)
        except TollgateError as error:
            self._fail(error)
        finally:
            self.gateway.open.discard(self)
            await self._settle()

    def stop(self) -> None:
        """Shutdown: the grace time is over; end the answer with an error and settle what was produced."""
        self._stopping = True
        if self.forwarded is not None:
            self.forwarded.reply.close()

    # --- forward -------------------------------------------------------------------------------------------------

    async def _forward(self) -> Forwarded:
        """Raises what ``forward`` raises, and UpstreamInterrupted when the client left and nobody waits any more."""
        request, loop = self.visit.request, asyncio.get_running_loop()
        passed = headers.to_upstream(request.headers.items())
        try:
            async with asyncio.timeout(None) as patience:
                with relay.Departure(self.visit, lambda: patience.reschedule(loop.time()), self._patience_s):
                    return await forward(
                        self.gateway, self.asked, self.admission, self.bound, passed, request.rel_url.raw_query_string
                    )
        except TimeoutError as error:
            raise UpstreamInterrupted from error

    def _patience_s(self) -> float:
        """The client has left: how long may its call go on for nobody?"""
        policy = self.admission.plan.on_disconnect
        self.end = End.CLIENT_LEFT
        if policy == "drain" and not self._draining and self.gateway.drains < DRAINS_MAX:
            self._draining = True
            self.gateway.drains += 1
        self.gateway.metrics.disconnects.add((policy,), 1)
        return self.gateway.config.settings.drain_s if self._draining else 0.0

    # --- relay ---------------------------------------------------------------------------------------------------

    def _scan(self, forwarded: Forwarded) -> Scanner:
        """Raises UpstreamUnreachable for an answer that could not be metered."""
        if forwarded.reply.headers.get("Content-Encoding", "identity") != "identity":
            raise UpstreamUnreachable("The provider sent an encoded answer that was not asked for.")
        self.scanner = self.adapter.scanner(
            self.asked.call,
            status=forwarded.reply.status,
            content_type=forwarded.reply.headers.get("Content-Type", ""),
            input_tokens=self.bound.input_tokens,
            family=self.bound.family,
        )
        self.gateway.quota.holds.first_byte(self.admission.hold)
        return self.scanner

    def _headers(self, forwarded: Forwarded) -> dict[str, str]:
        now_ms = self.gateway.quota.clock.now_ms()
        told = headers.to_client(forwarded.reply.headers)
        told.update(answers.admitted_headers(self.admission, self.adapter, now_ms=now_ms))
        return told

    async def _pass_error_on(self, forwarded: Forwarded) -> None:
        """The upstream's own error, verbatim but for what names our account there. Charges nothing."""
        body, _ = await relay.read_whole(forwarded.reply, relay.ERROR_BYTES_MAX)
        self.end = End.UPSTREAM_ERROR
        told = headers.to_client(forwarded.reply.headers)
        told["Tollgate-Request-Id"] = self.admission.hold.hold_id
        told["Tollgate-Error-Source"] = "upstream"
        self._answer(web.Response(status=forwarded.reply.status, body=self.adapter.mask(body), headers=told))

    async def _answer_whole(self, forwarded: Forwarded) -> None:
        """A JSON answer: held until it is whole, so that its price stands in the headers."""
        scanner = self._scan(forwarded)
        body, whole = await relay.read_whole(forwarded.reply, relay.BUFFERED_BYTES_MAX)
        out = scanner.feed(body)
        if not whole:
            await self._stream(forwarded, scanner, out)
            return
        out += scanner.finish()
        told = self._headers(forwarded)
        self._made = self._bill()
        told.update(answers.charged_headers(self.admission, self._made.row.charged))
        self._answer(web.Response(status=forwarded.reply.status, body=out, headers=told))

    async def _stream(self, forwarded: Forwarded, scanner: Scanner, first: bytes) -> None:
        """Chunks as they come; a break in the middle is told in the dialect's words."""
        response = web.StreamResponse(status=forwarded.reply.status, headers=self._headers(forwarded))
        writer = relay.Writer(self.visit, response)
        self.gateway.count_stream(+1)
        try:
            await writer.start()
            if first:
                await writer.write(first)
            await relay.stream(self.visit, forwarded.reply, scanner, writer)
        except (UpstreamInterrupted, UpstreamTimeout) as error:
            self.end = self._end_of(error)
            if scanner.event_boundary():
                await writer.write(self.adapter.error_event(error, self.admission.hold.hold_id, scanner))
            else:
                writer.abort()
        finally:
            self.gateway.count_stream(-1)
        self._answer(response)

    def _end_of(self, error: TollgateError) -> End:
        if self.visit.left:
            return End.CLIENT_LEFT
        return End.SHUTDOWN if self._stopping else End.UPSTREAM_ERROR

    def _answer(self, response: web.StreamResponse) -> None:
        facts, plan = self.asked.facts, self.admission.plan.name
        self.gateway.metrics.requests.add((self.adapter.name, facts.model or "other", plan, str(response.status)), 1)
        self.visit.answer(response)

    def _fail(self, error: TollgateError) -> None:
        """Nothing was answered yet: answer the error."""
        self.end = self._end_of(error)
        if self.visit.is_answered:
            return
        self._answer(
            answers.error_response(
                error,
                self.adapter,
                request_id=self.admission.hold.hold_id,
                quota_status=self.gateway.config.settings.quota_status,
            )
        )

    # --- settle --------------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        """What is known of the usage now."""
        outcome = self.scanner.outcome() if self.scanner is not None else NotServed()
        refused = self.forwarded is not None and self.forwarded.reply.status >= 400
        if isinstance(outcome, NotServed) and self.visit.left and not refused:
            return AtLeast(Usage(input=self.bound.input_tokens), Basis.ESTIMATED)
        return outcome

    def _bill(self) -> Bill:
        return make_bill(
            self.gateway,
            self.admission,
            self._outcome(),
            status=self.forwarded.reply.status if self.forwarded is not None else 0,
            end=self.end.value,
            upstream=self.forwarded.upstream.name if self.forwarded is not None else None,
        )

    async def _settle(self) -> None:
        if self.forwarded is not None:
            self.forwarded.reply.close()
        if self._draining:
            self.gateway.drains -= 1
        started_s = time.perf_counter()
        await settle(self.gateway, self.admission, self._made or self._bill(), self.bound, self._outcome())
        self.gateway.metrics.overhead.observe(("settle",), time.perf_counter() - started_s)
