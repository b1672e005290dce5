"""Who alerts are told to, in tests: a webhook receiver and a mail server that behave as they are told.

async with receivers.http() as receiver: receiver.next = ["500", "hang", "ok"]; ...; receiver.received
async with receivers.mail() as server: ...; server.letters
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import orjson
from aiohttp import web


@dataclass
class Call:
    """One request as it came. ``outcome`` is what the receiver then did."""

    headers: dict[str, str]
    body: bytes
    outcome: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Receiver:
    """``next``: what to do with the following requests, in order; then ``ok`` for ever.

    ok | hang | reset | redirect | flood (an endless body) | a status
    """

    url: str = ""
    next: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    elsewhere: int = 0  # requests that followed a redirect
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def received(self) -> list[Call]:
        """What was answered with a 2xx."""
        return [call for call in self.calls if call.outcome in ("ok", "flood")]

    async def until(self, enough: Callable[[Receiver], bool]) -> None:
        while not enough(self):
            self._came.clear()
            await self._came.wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        outcome = self.next.pop(0) if self.next else "ok"
        self.calls.append(Call({name.lower(): value for name, value in request.headers.items()}, body, outcome))
        self._came.set()
        if outcome == "hang":
            await asyncio.Event().wait()
        if outcome == "reset":
            assert request.transport is not None
            request.transport.abort()  # type: ignore[attr-defined]
        if outcome == "redirect":
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        if outcome == "flood":
            response = web.StreamResponse()
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                while True:
                    await response.write(b"x" * 65536)
            return response
        return web.Response(status=200 if outcome in ("ok", "reset") else int(outcome))

    async def lost(self, _: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()


@contextlib.asynccontextmanager
async def http() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hooks", receiver.handle)
    app.router.add_route("*", "/elsewhere", receiver.lost)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks?token=canary-url"
        yield receiver
    finally:
        await runner.cleanup()


@dataclass
class MailServer:
    """Speaks enough SMTP. ``next``: replies to the following RCPTs instead of 250; ``hang``: greets nobody."""

    tls: ssl.SSLContext | None = None  # offered as STARTTLS
    wants: tuple[str, str] | None = None  # user and password
    next: list[str] = field(default_factory=list)
    hang: bool = False
    port: int = 0
    letters: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)  # per letter

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(text: str) -> None:
            writer.write(text.encode() + b"\r\n")
            await writer.drain()

        if self.hang:
            await reader.read()
            return
        await say("220 test")
        encrypted = writer.get_extra_info("sslcontext") is not None
        is_known = self.wants is None
        while line := (await reader.readline()).decode().strip():
            self.said.append(line)
            verb = line.partition(" ")[0].upper()
            if verb == "EHLO":
                await say("250-test")
                if self.tls is not None and not encrypted:
                    await say("250-STARTTLS")
                await say("250-AUTH PLAIN\r\n250 8BITMIME")
            elif verb == "STARTTLS":
                assert self.tls is not None
                await say("220 go")
                await writer.start_tls(self.tls)
                encrypted = True
            elif verb == "AUTH":
                _, user, password = base64.b64decode(line.split(" ")[2]).decode().split("\0")
                is_known = (user, password) == self.wants
                await say("235 ok" if is_known else "535 5.7.8 no")
            elif verb == "RCPT":
                reply = self.next.pop(0) if self.next else "250 ok"
                if reply.startswith("250"):
                    self.recipients.append(line.partition("<")[2].partition(">")[0])
                await say(reply if is_known else "530 who are you")
            elif verb == "DATA":
                await say("354 go on")
                data = await reader.readuntil(b"\r\n.\r\n")
                letter = message_from_bytes(data.removesuffix(b"\r\n.\r\n"), policy=default)
                assert isinstance(letter, EmailMessage)
                self.letters.append(letter)
                self.encrypted.append(encrypted)
                await say("250 kept")
            elif verb == "QUIT":
                await say("221 bye")
                return
            else:
                await say("250 ok")


@contextlib.asynccontextmanager
async def mail(*, smtps: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[MailServer]:
    server = MailServer(**options)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=smtps)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server
