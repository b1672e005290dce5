"""The simulated models' HTTP server: ``build_app`` on a running loop, ``run`` as a process of its own.

Rules
1. Every request but those to the journal itself gets an entry, whatever its path: what a gateway must not forward
   would be seen.
2. The order is a provider's: credential, body, then the model. Steered faults come where such faults come from.

Not here: what a dialect says (``anthropic``, ``openai_*``), faults on the wire (``wire``), child processes (``child``).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from sys import intern
from typing import Any

import orjson
import uvloop
from aiohttp import web

from gateway.simulator import anthropic, headers, openai_simple, problems, steering
from gateway.simulator.answer import Ask, decide
from gateway.simulator.counting import preload_all
from gateway.simulator.journal import ENTRIES_MAX, NOTHING, End, Entry, Journal
from gateway.simulator.journal_routes import serve_journal
from gateway.simulator.problems import Problem
from gateway.simulator.routes import ROUTES, Route
from gateway.simulator.steering import SteeringError
from gateway.simulator.wire import PeerLeft, Wire, now_ms, reset

BODY_BYTES_MAX = 256 * 1024 * 1024  # more than any provider takes: the gateway's own limit is what tests look at
STALL_S_MAX = 300.0


@dataclass(slots=True)
class Models:
    """All simulated models behind one address."""

    journal: Journal = field(default_factory=Journal)
    stall_max_s: float = STALL_S_MAX

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request."""
        path = request.path
        if path.startswith("/journal"):
            return await serve_journal(self.journal, request)
        if path in ("/", "/healthz"):
            return web.Response(text="simulated models\n")
        entry = self.journal.open(
            received_at_ms=now_ms(), method=request.method, route=path, query=request.query_string
        )
        wire = Wire(request, entry, steering.NONE, self.stall_max_s)
        end = End.CUT_BY_CLIENT
        try:
            end = await self._answer(wire)
        except (ConnectionError, web.RequestPayloadError):
            # The peer left while it sent its request, or while it was answered.
            end = End.CUT_BY_CLIENT
        finally:
            self.journal.close(entry, end, now_ms=now_ms())
        return wire.response

    async def _answer(self, wire: Wire) -> End:
        request, entry = wire.request, wire.entry
        body = await request.read()
        route = ROUTES.get(request.path) if request.method == "POST" else None
        dialect = route.dialect if route is not None else _dialect_of(request)
        _describe(entry, request, body, dialect)
        try:
            wire.steering = steering.read(request.headers.get("x-simulate"), body)
            entry.tag = wire.steering.tag
            if wire.steering.reset is not None and wire.steering.reset.where == "before":
                if request.transport is None:
                    raise PeerLeft
                reset(request.transport)
                return End.RESET
            _check_key(entry, dialect)
            if route is None:
                return await _answer_listing(request, wire, dialect)
            ask = route.parse(_fields(body), request.headers)
            _describe_ask(entry, ask)
            if wire.steering.ttfb:
                await asyncio.sleep(wire.steering.ttfb / 1000)
            if wire.steering.status is not None:
                raise problems.steered(dialect, wire.steering.status, wire.steering.kind)
            return await _answer_call(route, ask, wire)
        except SteeringError as error:
            return await _refuse(wire, dialect, problems.invalid(str(error), param="x-simulate"))
        except Problem as problem:
            return await _refuse(wire, dialect, problem)


async def _answer_call(route: Route, ask: Ask, wire: Wire) -> End:
    """A metered call whose request is in order."""
    entry = wire.entry
    now = now_ms()
    answer = decide(ask, wire.steering, serial=entry.id, created_s=now // 1000)
    usage = entry.planned = answer.usage if route.is_billed else NOTHING
    sent = headers.answer(route.dialect, entry.request_id, now_s=now // 1000)
    if wire.steering.redirect:
        sent["Location"] = f"http://{wire.request.host}/redirected?from={entry.id}"
        await wire.whole(302, sent, b"", entry.served)
        return End.REDIRECTED
    if not ask.stream or route.stream is None:
        sent["Content-Type"] = "application/json"
        entry.status = 200
        return await wire.whole(200, sent, route.body(answer), usage)
    sent["Content-Type"] = "text/event-stream; charset=utf-8"
    sent["Cache-Control"] = "no-cache"
    entry.status = 200
    fault = problems.steered(route.dialect, 529 if route.dialect == "anthropic" else 500, wire.steering.kind)
    return await wire.stream(
        sent,
        route.stream.events(answer),
        usage,
        error=route.stream.error_event(fault, entry.request_id, wire.steering.error_event or 0),
        giant=route.stream.giant_line(answer),
    )


async def _answer_listing(request: web.BaseRequest, wire: Wire, dialect: str) -> End:
    """``GET /v1/models`` and one of them, in either shape; anything else is no route of any provider."""
    listing, _, model = request.path.removeprefix("/v1/").partition("/")
    body = None
    if request.method == "GET" and listing == "models":
        body = (anthropic if dialect == "anthropic" else openai_simple).models_body(model or None)
    if body is None:
        message = f"Invalid URL ({request.method} {request.path})"
        raise Problem(404, "not_found_error" if dialect == "anthropic" else "invalid_request_error", message)
    sent = headers.answer(dialect, wire.entry.request_id, now_s=now_ms() // 1000)
    sent["Content-Type"] = "application/json"
    wire.entry.status = 200
    return await wire.whole(200, sent, body, wire.entry.served)


async def _refuse(wire: Wire, dialect: str, problem: Problem) -> End:
    """An error answer. It bills nothing."""
    entry = wire.entry
    sent = headers.answer(dialect, entry.request_id, now_s=now_ms() // 1000)
    sent["Content-Type"] = "application/json"
    if dialect == "anthropic":
        sent["x-should-retry"] = "true" if problems.retryable(problem.status) else "false"
    if wire.steering.retry_after is not None:
        sent["retry-after"] = str(wire.steering.retry_after)
    entry.status = problem.status
    return await wire.whole(problem.status, sent, problems.body(dialect, problem, entry.request_id), entry.served)


def _describe(entry: Entry, request: web.BaseRequest, body: bytes, dialect: str) -> None:
    """What was received, before anything is judged."""
    # Clients repeat themselves: shared strings keep a full ring small.
    names = []
    for name, value in request.headers.items():
        lower = intern(name.lower())
        names.append(lower)
        if lower in headers.KEPT:
            entry.headers[lower] = intern(value)
    entry.header_names = tuple(names)
    entry.body_bytes = len(body)
    entry.body_sha256 = sha256(body).hexdigest()
    entry.dialect = dialect
    entry.request_id = headers.request_id(dialect, entry.id)
    for name in headers.GATEWAY_ID_HEADERS:
        if name in request.headers:
            entry.gateway_request_id = request.headers[name]
            break
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    # Where both are sent, Anthropic's API takes x-api-key.
    for name, key in (("x-api-key", request.headers.get("x-api-key", "")), ("authorization", bearer)):
        if key:
            entry.key_header, entry.key_sha256 = name, intern(sha256(key.encode()).hexdigest())
            break


def _describe_ask(entry: Entry, ask: Ask) -> None:
    """What the request asked for."""
    entry.model = ask.model
    entry.stream = ask.stream
    entry.max_tokens = ask.bound if ask.bound_field is not None else None
    entry.max_tokens_field = ask.bound_field
    entry.include_usage = ask.include_usage


def _check_key(entry: Entry, dialect: str) -> None:
    if dialect == "anthropic":
        if entry.key_header is None:
            raise Problem(401, "authentication_error", "x-api-key header is required")
    elif entry.key_header != "authorization":
        raise Problem(
            401,
            "invalid_request_error",
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer"
            " auth (i.e. Authorization: Bearer YOUR_KEY).",
        )


def _dialect_of(request: web.BaseRequest) -> str:
    return "anthropic" if "anthropic-version" in request.headers else "openai"


def _fields(body: bytes) -> Mapping[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise problems.invalid(f"The request body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise problems.invalid("The request body must be a JSON object.")
    return fields


def build_app(*, entries_max: int = ENTRIES_MAX, stall_max_s: float = STALL_S_MAX) -> tuple[web.Server, Models]:
    """The server of a running loop (for ``web.ServerRunner``), and its models with their journal."""
    models = Models(Journal(entries_max=entries_max), stall_max_s)

    def build_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)

    # A peer that leaves cancels its handler: as a provider, we stop producing.
    server = web.Server(
        models.handle, request_factory=build_request, handler_cancellation=True, access_log=None, lingering_time=0.0
    )
    return server, models


async def serve(host: str, port: int, *, entries_max: int = ENTRIES_MAX, stall_max_s: float = STALL_S_MAX) -> Serving:
    """Listen on ``host:port`` (0: any free port) of the running loop."""
    server, models = build_app(entries_max=entries_max, stall_max_s=stall_max_s)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=4096)
    await site.start()
    address = runner.addresses[0]
    return Serving(f"http://{address[0]}:{address[1]}", models, runner)


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that listens."""

    url: str
    models: Models
    runner: web.ServerRunner

    async def close(self) -> None:
        """Stop listening and drop what is open."""
        await self.runner.cleanup()


async def serve_until_signal(host: str, port: int, *, entries_max: int = ENTRIES_MAX) -> None:
    """Serve until SIGTERM or SIGINT."""
    serving = await serve(host, port, entries_max=entries_max)
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    print(f"simulated models listen on {serving.url}", flush=True)
    await stopped.wait()
    await serving.close()


def run(host: str, port: int, *, entries_max: int = ENTRIES_MAX) -> None:
    """``tollgate upstream``: serve in this process until a signal ends it."""
    preload_all()
    uvloop.run(serve_until_signal(host, port, entries_max=entries_max))
