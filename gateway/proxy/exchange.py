"""From an open hold to its end: forward → relay → settle.

Rules
1. The hold ends exactly once, in ``_settle``, on the outcome that is known by then; the answer never waits for it.
2. Before the first byte nothing is charged, unless the client itself walked away from a call that had been sent.
3. A break in the middle becomes the dialect's error event between two events, and a broken connection within one.
4. A client that leaves ends nothing by itself: its plan says whether the rest is drained (capped in time and in
   number) or cut. Whoever has left before the call was sent gets no call.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from aiohttp import web

from gateway.domain.usage import AtLeast, Basis, NotServed, Outcome, Usage
from gateway.errors import TollgateError, UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable
from gateway.metrics import OTHER
from gateway.providers.adapter import Scanner
from gateway.proxy import answers, headers, relay
from gateway.proxy.admit import Bound, counted
from gateway.proxy.forward import Forwarded, Outgoing, forward
from gateway.proxy.gateway import Gateway
from gateway.proxy.laps import SETTLE
from gateway.proxy.parse import Asked
from gateway.proxy.relay import End
from gateway.proxy.settle import make_bill, settle
from gateway.proxy.visit import Visit, Whole
from gateway.quota.admission import Admission, Bill

_RESTARTED = "The gateway is being stopped or restarted. What was produced is charged."
CLIENT_LEFT_STATUS = 499  # in the metrics: nobody saw an answer


class Exchange:
    """One admitted call and its upstream."""

    def __init__(self, gateway: Gateway, visit: Visit, asked: Asked, admission: Admission, bound: Bound) -> None:
        self.gateway = gateway
        self.visit = visit
        self.asked = asked
        self.adapter = asked.adapter
        self.admission = admission
        self.bound = bound
        self.outgoing: Outgoing | None = None
        self.forwarded: Forwarded | None = None
        self.scanner: Scanner | None = None
        self.end: str = End.COMPLETE
        self._made: tuple[Outcome, Bill] | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._streams = False
        self._was_done = False  # the client left with its whole answer
        self._was_cut = False
        self._stopping = False

    async def run(self) -> None:
        """Every way out goes through ``_settle``."""
        self.gateway.open.add(self)
        self.visit.when_left(self._left)
        try:
            if self.visit.left or self._was_cut:  # there is nobody to serve
                raise UpstreamInterrupted
            self.outgoing = self._outgoing()
            forwarded = self.forwarded = await forward(self.gateway, self.outgoing)
            content_type = forwarded.reply.headers.get("content-type", "")
            if forwarded.error_body is not None:
                self._pass_error_on(forwarded, forwarded.error_body)
            elif content_type.startswith("text/event-stream"):
                await self._stream(forwarded, self._scan(forwarded, content_type), b"")
            else:
                await self._answer_whole(forwarded, content_type)
        except TollgateError as error:
            self._fail(error)
        except asyncio.CancelledError:
            if not self._is_cut_while_asking():
                raise
            self._fail(UpstreamInterrupted())
        finally:
            self.visit.when_left(None)
            self.gateway.open.discard(self)
            await self._settle()

    # --- leaving -------------------------------------------------------------------------------------------------

    def _left(self) -> None:
        """The client is gone. Called once. Whoever closes at the dialect's own end, as OpenAI's SDK does, has not hung
        up: what is left is the upstream's end of the connection."""
        self._was_done = self._streams and self.scanner is not None and self.scanner.complete
        goes_on = self._was_done or self.admission.plan.on_disconnect == "drain"
        is_drained = goes_on and self.gateway.drains < self.gateway.drains_max
        if not self._was_done:
            self.gateway.metrics.disconnects.add(("drain" if is_drained else "cut",), 1)
            self.end = End.CLIENT_LEFT
        if is_drained:
            self.gateway.drains += 1
            drain_s = self.asked.config.settings.drain_s
            self._drain = asyncio.get_running_loop().call_later(drain_s, self._cut)
        else:
            self._cut()

    def stop(self) -> None:
        """Shutdown: the grace time is over; end the answer with an error and settle what was produced."""
        self._stopping = True
        self._cut()

    def _cut(self) -> None:
        """End whatever is awaited from the upstream, now."""
        if self._was_cut:
            return
        self._was_cut = True
        if self.forwarded is not None:
            self.forwarded.reply.close()
        elif self.outgoing is not None and self.visit.call is not None:
            self.visit.call.cancel()  # ``forward`` is what is being awaited

    def _is_cut_while_asking(self) -> bool:
        """Whether it was ``_cut`` that cancelled ``forward``, and nobody else; its cancellation is taken back."""
        call = self.visit.call
        return self._was_cut and self.forwarded is None and call is not None and not call.uncancel()

    # --- forward -------------------------------------------------------------------------------------------------

    def _outgoing(self) -> Outgoing:
        request = self.visit.request
        return Outgoing(
            self.asked,
            self.admission,
            self.bound,
            headers.to_upstream(request.raw_headers),
            request.rel_url.raw_query_string,
            self.visit.laps,
        )

    # --- relay ---------------------------------------------------------------------------------------------------

    def _scan(self, forwarded: Forwarded, content_type: str) -> Scanner:
        """Raises UpstreamUnreachable for an answer that could not be metered."""
        encoding = forwarded.reply.headers.get("content-encoding", "identity")
        if encoding != "identity":
            name = forwarded.upstream.name
            self.gateway.alarms.tell(f"{name} encoding", "upstream %s encodes its answers unasked", name)
            raise UpstreamUnreachable("The provider sent an encoded answer that was not asked for.")
        self.scanner = self.adapter.scanner(
            self.asked.call,
            content_type=content_type,
            input_tokens=self.bound.input_counted,
            family=self.bound.family,
        )
        self.gateway.quota.holds.first_byte(self.admission.hold)
        self.visit.laps.first_byte(self.asked.facts.model or OTHER)
        return self.scanner

    def _headers(self, forwarded: Forwarded, *, now_ms: int, charged: int | None = None) -> dict[str, str]:
        told = headers.to_client(forwarded.reply.headers)
        answers.tell_quota(told, self.admission, self.asked, self.bound, now_ms=now_ms, charged=charged)
        return told

    def _pass_error_on(self, forwarded: Forwarded, body: bytes) -> None:
        """The upstream's own error, verbatim but for what names our account there. Charges nothing."""
        self.end = self._end_of(End.UPSTREAM_ERROR)
        told = headers.to_client(forwarded.reply.headers)
        told.update(answers.upstream_error_headers(self.admission))
        self._answer(Whole(forwarded.reply.status, told, body))

    async def _answer_whole(self, forwarded: Forwarded, content_type: str) -> None:
        """A JSON answer: held until it is whole, so that its price stands in the headers."""
        scanner = self._scan(forwarded, content_type)
        body, whole = await relay.read_whole(forwarded.reply, scanner, self.visit.laps)
        if not whole:
            await self._stream(forwarded, scanner, body)
            return
        came_s = time.perf_counter()
        if "json" in content_type and relay.is_cut(scanner):
            raise UpstreamInterrupted
        self._made = _, bill = await self._bill()
        told = self._headers(forwarded, now_ms=bill.row.ended_at_ms, charged=bill.row.charged)
        self._answer(Whole(forwarded.reply.status, told, body))
        self.visit.laps.relay_s += time.perf_counter() - came_s

    async def _stream(self, forwarded: Forwarded, scanner: Scanner, first: bytes) -> None:
        """Chunks as they come; a break in the middle is told in the dialect's words."""
        self._streams = True
        came_s = time.perf_counter()
        seen = self._seen(forwarded.reply.status)
        head = self._headers(forwarded, now_ms=self.gateway.quota.clock.now_ms())
        response = web.StreamResponse(status=forwarded.reply.status, headers=head)
        writer = relay.Writer(self.visit, response)
        self.gateway.count_stream(+1)
        try:
            await writer.start()
            if first and writer.write(first):
                await writer.drain()
            self.visit.laps.relay_s += time.perf_counter() - came_s
            await relay.stream(self.visit, forwarded.reply, scanner, writer, forwarded.upstream.keys)
            if scanner.failed:
                self.end = self._end_of(End.UPSTREAM_ERROR)
        except (UpstreamInterrupted, UpstreamTimeout) as error:
            self.end = self._end_of(End.UPSTREAM_ERROR)
            if scanner.event_boundary() and not writer.within_event:
                told = self._truly(error)
                if writer.write(self.adapter.error_event(told, self.admission.hold.hold_id, scanner)):
                    await writer.drain()
            else:
                writer.break_off()
        except BaseException:
            writer.break_off()
            raise
        finally:
            self.gateway.count_stream(-1)
        self._count(seen)
        self.visit.answer(response)

    def _truly(self, error: TollgateError) -> TollgateError:
        """Who broke off: it may have been us."""
        return UpstreamInterrupted(_RESTARTED, retry_after_s=error.retry_after_s) if self._stopping else error

    def _end_of(self, otherwise: str) -> str:
        if self.visit.left:
            return End.COMPLETE if self._was_done else End.CLIENT_LEFT
        return End.SHUTDOWN if self._stopping else otherwise

    def _answer(self, response: Whole) -> None:
        self._count(self._seen(response.status))
        self.visit.answer(response)

    def _seen(self, status: int) -> int:
        """A status that is answered now, as the metrics know it."""
        return CLIENT_LEFT_STATUS if self.visit.left else status

    def _count(self, status: int) -> None:
        facts, plan = self.asked.facts, self.admission.plan.name
        self.gateway.metrics.requests.add((self.adapter.name, facts.model or OTHER, plan, str(status)), 1)

    def _fail(self, error: TollgateError) -> None:
        """Nothing was answered yet: answer the error, even if nobody is there to read it."""
        self.end = self._end_of(End.UPSTREAM_ERROR)
        response = answers.error_response(
            self._truly(error),
            self.adapter,
            request_id=self.admission.hold.hold_id,
            quota_status=self.asked.config.settings.quota_status,
        )
        self._answer(response)

    # --- settle --------------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        """What is known of the usage now. Who walks away from a call that was sent owes at least its input."""
        outcome = self.scanner.outcome() if self.scanner is not None else NotServed()
        if isinstance(outcome, NotServed) and self.visit.left and self._was_cut and self._is_with_provider():
            return AtLeast(Usage(input=self.bound.input_counted), Basis.ESTIMATED)
        return outcome

    def _is_with_provider(self) -> bool:
        """Whether a provider has the call, and did not refuse it."""
        return self.outgoing is not None and self.outgoing.sent and not self.outgoing.refused

    async def _bill(self) -> tuple[Outcome, Bill]:
        """What is known now, and what it comes to. An input bounded by its bytes is counted after all when the answer
        does not tell it."""
        outcome = self._outcome()
        if self.bound.input_expected is not None and isinstance(outcome, AtLeast) and not outcome.usage.input_total:
            self.bound = await counted(self.gateway.counter, self.asked)
            work = self.admission.work
            self.admission.work = replace(work, input_tokens=self.bound.input_tokens, input_expected=None)
        return outcome, make_bill(
            self.gateway,
            self.admission,
            outcome,
            status=self.forwarded.reply.status if self.forwarded is not None else 0,
            end=self.end,
            upstream=self.forwarded.upstream.name if self.forwarded is not None else None,
        )

    async def _settle(self) -> None:
        """The upstream is let go first: what comes after the bill must not come at all."""
        if self.forwarded is not None:
            self.forwarded.reply.close()
            if self.forwarded.error_body is None:
                self.visit.laps.provider(self.forwarded.upstream.name)
        self.visit.laps.answered()
        if self._drain is not None:
            self._drain.cancel()
            self.gateway.drains -= 1
        started_s = time.perf_counter()
        try:
            outcome, bill = self._made or await self._bill()
            await settle(self.gateway, self.admission, bill, self.bound, outcome)
        except BaseException:  # whatever went wrong: a hold that nobody ends must not be renewed
            self.gateway.quota.holds.remove(self.admission.hold)
            raise
        self.gateway.metrics.overhead.observe(SETTLE, time.perf_counter() - started_s)
