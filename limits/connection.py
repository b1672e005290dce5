"""One multiplexed connection to one Redis-protocol server, kept up for ever.

Rules
1. All commands issued in one turn of the event loop leave in one write; replies are matched in order (FIFO).
2. A command that isn't answered in time fails with ``EngineUnavailable(sent=True)``; its late reply is still matched,
   and dropped. Nothing is ever sent twice from here.
3. A server that is silent while commands wait is dropped and dialled anew. While it is away commands fail at once
   with ``sent=False``; only the very first dial, and the first after a connection that just ended, is waited for.
4. Whatever waits is bounded: in number and in time.

Not here: what commands mean (``engine``), which server has a key (``cluster``).
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, cast

import hiredis

from limits.errors import EngineUnavailable
from limits.resp import Argument, Script, Spelled, code_of, error_of, pack, pack_eval, pack_evalsha
from limits.values import dataclass

# One more poll of the socket before a deadline counts: a reply that is already there beats its timeout. When this
# process was the slow one (its timer fired late), the server gets as much more time, within bounds.
RECHECK_S = 0.002
OWN_DELAY_S = 0.02
OWN_DELAY_MAX_S = 1.0
STEADY_S = 1.0  # a connection that lived shorter than this is dialled again with backoff
NEVER_S = float("inf")
NOTHING = object()

StateListener = Callable[[str, bool, str], None]
# Told of every script: its name, and the seconds until its answer was read here, what the own loop adds included. One
# that failed is told too: a time-out shows as what it is.
ScriptListener = Callable[[tuple[str, ...], float], None]


def nobody(name: tuple[str, ...], seconds: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how to enter. Its ``str`` never shows the credentials."""

    host: str = ""
    port: int = 6379
    path: str = ""  # a unix socket, instead of host and port
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to wait, in seconds, and how much may wait."""

    command_timeout_s: float = 0.25
    connect_timeout_s: float = 1.0
    silence_s: float = 0.5  # without a byte while commands wait
    backoff_first_s: float = 0.02
    backoff_max_s: float = 0.5
    waiting_max: int = 16_384  # commands


Waiting = tuple[asyncio.Future[Any], float] | None  # the caller and its deadline; None: a reply nobody wants


class Link(asyncio.Protocol):
    """One transport: bytes in, replies matched to ``waiting`` in order."""

    def __init__(self, on_lost: Callable[[Link], None]) -> None:
        self.waiting: deque[Waiting] = deque()
        self.quiet_since = time.monotonic()
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()
        self.lost = self.loop.create_future()
        self._on_lost = on_lost
        self._reader = hiredis.Reader(notEnoughData=NOTHING)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's doesn't inherit from asyncio's
        descriptor = transport.get_extra_info("socket")
        if descriptor is not None and descriptor.family != socket.AF_UNIX:
            descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self.quiet_since = time.monotonic()
        reader, waiting = self._reader, self.waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not NOTHING:
                caller = waiting.popleft()
                if caller is not None and not caller[0].done():
                    caller[0].set_result(reply)
        except (hiredis.ProtocolError, IndexError):  # not a Redis server, or a reply without a command
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        self._on_lost(self)

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def fail_all(self, reason: str) -> None:
        """Tell every caller that its command's effect is unknown."""
        waiting, self.waiting = self.waiting, deque()
        for caller in waiting:
            if caller is not None and not caller[0].done():
                caller[0].set_exception(EngineUnavailable(reason, sent=True))


@dataclass(slots=True)
class Queued:
    """A command that waits for the connection: it has not left."""

    data: bytes
    ignored: int
    caller: asyncio.Future[Any]
    deadline: float


class Node:
    """One server. ``send`` is the hot path: no coroutine, no object but a future and a tuple."""

    def __init__(self, address: Address, timing: Timing, on_state: StateListener | None = None) -> None:
        self.address = address
        self._timing = timing
        self._on_state = on_state
        self._link: Link | None = None
        self._out: list[bytes] = []
        self._queue: deque[Queued] = deque()
        self._patient = True  # commands may wait for the dial under way
        self._reason = "not connected"
        self._dialling: asyncio.Task[None] | None = None
        self._dialled_at = 0.0
        self._attempts = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = NEVER_S
        self._rechecking = False
        self._delayed_s = 0.0  # time given for delays of our own since deadlines were last met
        self._closed = False

    @property
    def up(self) -> bool:
        return self._link is not None

    @property
    def away(self) -> bool:
        """Known to be away: commands fail at once."""
        return self._link is None and not self._patient

    @property
    def idle(self) -> bool:
        """Nothing waits for this server."""
        return not self._queue and (self._link is None or not self._link.waiting)

    def send(self, data: bytes, timeout_s: float, *, ignored: int = 0) -> asyncio.Future[Any]:
        """Send packed commands; the future gets the last one's raw reply, errors as ``hiredis.ReplyError`` values.

        ``data`` holds ``ignored`` commands before the last, whose replies are dropped.
        Raises EngineUnavailable (at once, or through the future).
        """
        link = self._link
        if link is None:
            return self._send_later(data, timeout_s, ignored)
        now = time.monotonic()
        waiting = link.waiting
        if not waiting:
            link.quiet_since = now
        elif len(waiting) >= self._timing.waiting_max:
            raise EngineUnavailable(f"{len(waiting)} commands wait for {self.address}", sent=False)
        deadline = now + timeout_s
        future: asyncio.Future[Any] = link.loop.create_future()
        for _ in range(ignored):
            waiting.append(None)
        waiting.append((future, deadline))
        if not self._out:
            link.loop.call_soon(self._flush)
        self._out.append(data)
        if deadline < self._due:
            self._arm(deadline - now)
        return future

    def _send_later(self, data: bytes, timeout_s: float, ignored: int) -> asyncio.Future[Any]:
        """Queue for the dial under way, or refuse at once when the server is known to be away."""
        if self._closed:
            raise EngineUnavailable(f"the connection to {self.address} is closed", sent=False)
        if self._dialling is None or self._dialling.done():
            self._dial_soon()
        if not self._patient or len(self._queue) >= self._timing.waiting_max:
            raise EngineUnavailable(f"{self.address} is away: {self._reason}", sent=False)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        deadline = time.monotonic() + timeout_s
        self._queue.append(Queued(data, ignored, future, deadline))
        if deadline < self._due:
            self._arm(timeout_s)
        return future

    def _flush(self) -> None:
        if self._out and self._link is not None:
            out, self._out = self._out, []
            self._link.write(out[0] if len(out) == 1 else b"".join(out))

    # --- deadlines ---------------------------------------------------------------------------------------------

    def _arm(self, in_s: float) -> None:
        """Look at the deadlines in ``in_s`` seconds (the earliest is what is kept)."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = time.monotonic() + in_s
        self._timer = asyncio.get_running_loop().call_later(in_s, self._watch)

    def _watch(self) -> None:
        now = time.monotonic()
        late_s = min(now - self._due, OWN_DELAY_MAX_S - self._delayed_s)
        self._timer, self._due = None, NEVER_S
        deadlines = [caller[1] for caller in self._callers() if not caller[0].done()]
        silent_at = self._silent_at()
        earliest = min((*deadlines, silent_at))
        if earliest > now:
            self._rechecking, self._delayed_s = False, 0.0
            if earliest < NEVER_S:
                self._arm(earliest - now)
        elif late_s > OWN_DELAY_S:
            self._rechecking = True
            self._delayed_s += late_s
            self._arm(late_s)
        elif not self._rechecking:
            self._rechecking = True
            self._arm(RECHECK_S)
        else:
            self._rechecking, self._delayed_s = False, 0.0
            self._expire(now)
            if silent_at <= now:
                self.drop(f"no answer for {self._timing.silence_s} s")
            else:
                self._arm(RECHECK_S)

    def _callers(self) -> list[tuple[asyncio.Future[Any], float]]:
        waiting = self._link.waiting if self._link is not None else ()
        return [caller for caller in waiting if caller is not None] + [(q.caller, q.deadline) for q in self._queue]

    def _silent_at(self) -> float:
        """When the server's silence is too long: never while nothing waits, nor while its oldest command may last."""
        if self._link is None or not self._link.waiting:
            return NEVER_S
        oldest = next((caller[1] for caller in self._link.waiting if caller is not None), 0.0)
        return max(self._link.quiet_since + self._timing.silence_s, oldest)

    def _expire(self, now: float) -> None:
        limit = f"{self.address} did not answer in time"
        for caller in self._link.waiting if self._link is not None else ():
            if caller is not None and caller[1] <= now and not caller[0].done():
                caller[0].set_exception(EngineUnavailable(limit, sent=True))
        for queued in self._queue:
            if queued.deadline <= now and not queued.caller.done():
                queued.caller.set_exception(EngineUnavailable(f"no connection to {self.address} yet", sent=False))
        self._queue = deque(queued for queued in self._queue if not queued.caller.done())

    # --- the connection ----------------------------------------------------------------------------------------

    def drop(self, reason: str) -> None:
        """Give up on this connection and dial anew: commands fail at once until the server answers again."""
        link = self._link
        if link is not None:
            self._lose(link, reason, patient=False)
            link.abort()

    def _lose(self, link: Link, reason: str, *, patient: bool) -> None:
        if link is not self._link:
            return
        self._link = None
        self._out.clear()
        self._reason = reason
        self._patient = patient
        if time.monotonic() - self._dialled_at >= STEADY_S:
            self._attempts = 0
        link.fail_all(f"{self.address}: {reason}")
        self._tell(up=False)
        if not self._closed:
            self._dial_soon()

    def _tell(self, *, up: bool) -> None:
        if self._on_state is not None:
            self._on_state(str(self.address), up, "" if up else self._reason)

    def _dial_soon(self) -> None:
        self._dialling = asyncio.get_running_loop().create_task(self._dial_until_up(), name=f"redis {self.address}")

    async def _dial_until_up(self) -> None:
        while True:
            if self._attempts:
                spread = random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
                first, most = self._timing.backoff_first_s, self._timing.backoff_max_s
                await asyncio.sleep(spread * min(most, first * 2 ** min(self._attempts - 1, 10)))
            self._attempts += 1
            try:
                link = await self._dial()
            except (OSError, EngineUnavailable) as error:
                self._refuse_queue(str(error) or type(error).__name__)
                continue
            self._dialled_at = time.monotonic()
            self._dialling = None
            self._link = link
            self._patient = True
            self._tell(up=True)
            self._send_queue()
            return

    def _refuse_queue(self, reason: str) -> None:
        self._reason, self._patient = reason, False
        queue, self._queue = self._queue, deque()
        for queued in queue:
            if not queued.caller.done():
                queued.caller.set_exception(EngineUnavailable(f"{self.address} is away: {reason}", sent=False))

    def _send_queue(self) -> None:
        queue, self._queue = self._queue, deque()
        assert self._link is not None
        for queued in queue:
            if not queued.caller.done():
                self._link.waiting.extend([None] * queued.ignored)
                self._link.waiting.append((queued.caller, queued.deadline))
                self._out.append(queued.data)
        self._link.quiet_since = time.monotonic()
        self._flush()

    async def _dial(self) -> Link:
        """Connect and introduce ourselves. Raises OSError (also when it takes too long), EngineUnavailable."""
        link = Link(lambda link: self._lose(link, "the server closed the connection", patient=True))
        dialling = asyncio.ensure_future(self._reach(link))
        try:
            if not await _in_time(dialling, self._timing.connect_timeout_s):
                raise TimeoutError
            dialling.result()
        except BaseException:
            dialling.cancel()
            await asyncio.wait((dialling,))
            link.abort()
            raise
        return link

    async def _reach(self, link: Link) -> None:
        address, loop = self.address, asyncio.get_running_loop()
        if address.path:
            await loop.create_unix_connection(lambda: link, address.path)
        else:
            await loop.create_connection(lambda: link, address.host, address.port, ssl=address.tls)
        await self._greet(link)

    async def _greet(self, link: Link) -> None:
        """AUTH, SELECT and PING in one write: the server counts as up when it has answered all of them."""
        address, commands = self.address, []
        if address.password:
            commands.append(pack(b"AUTH", *((address.username,) if address.username else ()), address.password))
        if address.db:
            commands.append(pack(b"SELECT", address.db))
        commands.append(pack(b"PING"))
        loop = asyncio.get_running_loop()
        replies: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        link.waiting.extend((reply, NEVER_S) for reply in replies)
        link.write(b"".join(commands))
        await asyncio.wait((asyncio.gather(*replies), link.lost), return_when=asyncio.FIRST_COMPLETED)
        if link.lost.done():
            raise ConnectionResetError("the server closed the connection")
        for reply in replies:
            if isinstance(reply.result(), hiredis.ReplyError):
                raise EngineUnavailable(str(reply.result()), sent=False)

    async def close(self) -> None:
        """Close for good; whatever still waits fails."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
            await asyncio.wait((dialling,))
        self._refuse_queue("closed")
        link = self._link
        if link is not None:
            self._flush()
            self._lose(link, "closed", patient=False)
            link.abort()
            await link.lost


async def _in_time(work: asyncio.Future[None], limit_s: float) -> bool:
    """Whether it ended in time; by as much as this process was late itself to look, it may take longer."""
    began_s = time.monotonic()
    await asyncio.wait((work,), timeout=limit_s)
    if not work.done():
        late_s = time.monotonic() - began_s - limit_s
        await asyncio.wait((work,), timeout=max(RECHECK_S, min(late_s, OWN_DELAY_MAX_S)))
    return work.done()


# Errors after which another connection may find another server: a failover behind one name, a changed password.
ELSEWHERE = frozenset(("READONLY", "MASTERDOWN", "NOAUTH"))


class NodeClient:
    """``limits.client.Client`` on one server."""

    def __init__(
        self,
        address: Address,
        timing: Timing,
        on_state: StateListener | None = None,
        on_script: ScriptListener = nobody,
    ) -> None:
        self._node = Node(address, timing, on_state)
        self._timeout_s = timing.command_timeout_s
        self._on_script = on_script

    @property
    def up(self) -> bool:
        return self._node.up

    async def evalsha(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Argument] | Spelled,
        *,
        timeout_s: float | None = None,
    ) -> Any:
        began_s, limit_s = time.monotonic(), timeout_s or self._timeout_s
        try:
            reply = await self._node.send(pack_evalsha(script, keys, args), limit_s)
            if isinstance(reply, hiredis.ReplyError):
                if code_of(reply) == "NOSCRIPT":
                    left_s = began_s + limit_s - time.monotonic()
                    reply = await self._node.send(pack_eval(script, keys, args), left_s)
                return self._checked(reply)
            return reply
        finally:
            self._on_script((script.name,), time.monotonic() - began_s)

    async def execute(self, *args: Argument, key: bytes | None = None, timeout_s: float | None = None) -> Any:
        return self._checked(await self._node.send(pack(*args), timeout_s or self._timeout_s))

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, hiredis.ReplyError):
            if code_of(reply) in ELSEWHERE:
                self._node.drop(str(reply))
            raise error_of(reply)
        return reply

    async def close(self) -> None:
        await self._node.close()
