"""A connection of the leg without a network: its transport is a list, and every byte comes when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

from gateway.errors import UpstreamInterrupted
from gateway.proxy.leg.answer import Answer
from gateway.proxy.leg.connection import BUFFER_BYTES, Connection

FAR_S = 1e9


@dataclass(slots=True)
class Outcome:
    """How a call ended. ``error``: why there is no answer, or no whole one."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str | None = None
    is_kept: bool = False


class Clock:
    """The little that a connection wants of its loop, in a time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.timers: list[Timer] = []  # every one that was ever set
        self.create_future = asyncio.get_running_loop().create_future

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when_s, call))
        return self.timers[-1]

    async def passes(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while due := [timer for timer in self.timers if timer.is_set and timer.when_s <= until_s]:
            timer = min(due, key=lambda timer: timer.when_s)
            self.now_s, timer.is_set = max(self.now_s, timer.when_s), False
            timer.call()
            await asyncio.sleep(0)
        self.now_s = until_s
        await asyncio.sleep(0)


@dataclass(slots=True)
class Timer:
    when_s: float
    call: Callable[[], None]
    is_set: bool = True

    def cancel(self) -> None:
        self.is_set = False


class Wire:
    """The connection's transport and its home, both."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sent = bytearray()
        self.is_open = True
        self.is_reading = True
        self.unsent_bytes = 0
        self.is_kept = False
        self.left = 0
        self.connection = Connection(self, memoryview(bytearray(BUFFER_BYTES)))
        self.connection._loop = cast(asyncio.AbstractEventLoop, self.clock)
        self.connection.connection_made(cast(asyncio.Transport, self))

    # --- a transport

    def write(self, data: bytes) -> None:
        self.sent += data

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.sent += b"".join(parts)

    def is_closing(self) -> bool:
        return not self.is_open

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def abort(self) -> None:
        self.is_open = False

    def get_extra_info(self, name: str) -> Wire:
        return self  # as the socket

    def fileno(self) -> int:
        return -1

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    # --- a home

    def put(self, connection: Connection) -> None:
        self.is_kept = True

    def lose(self, connection: Connection) -> None:
        self.is_kept = False

    # --- the test's side

    def ask(self, *, first_byte_s: float = FAR_S, idle_s: float = FAR_S) -> asyncio.Future[Answer | Exception]:
        due_s = self.clock.now_s + first_byte_s
        return self.connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"{}", due_s=due_s, idle_s=idle_s, leaving=self._leave)

    def _leave(self) -> None:
        self.left += 1

    def come(self, data: bytes) -> None:
        """Bytes arrive, in as many reads as they need."""
        for start in range(0, len(data), BUFFER_BYTES):
            piece = data[start : start + BUFFER_BYTES]
            if self.is_open:
                self.connection.get_buffer(-1)[: len(piece)] = piece
                self.connection.buffer_updated(len(piece))

    def end(self, *, reset: bool = False) -> None:
        """The peer ends the stream, or resets the connection."""
        if self.is_open and not reset:
            self.connection.eof_received()
        self.is_open = False
        self.connection.connection_lost(ConnectionResetError("reset") if reset else None)


async def play(pieces: Iterable[bytes], end: str = "open") -> Outcome:
    """One call whose answer comes in ``pieces``; then its connection stays ``open``, or ends: ``eof``, ``reset``."""
    wire = Wire()
    begun = wire.ask()
    for piece in pieces:
        wire.come(piece)
    if end != "open":
        wire.end(reset=end == "reset")
    if not begun.done():
        wire.connection.abandon()
        return Outcome(error="waiting")
    answer = begun.result()
    if not isinstance(answer, Answer):
        return Outcome(error=type(answer).__name__)
    return await read(answer, wire)


async def read(answer: Answer, wire: Wire) -> Outcome:
    """Read what has come of an answer."""
    outcome = Outcome(answer.status, dict(answer.headers.items()), is_kept=wire.is_kept)
    try:
        while True:
            if not answer.pieces and answer.source is not None:
                outcome.error = "waiting"
                answer.close()
                return outcome
            piece = await answer.read()
            if not piece:
                return outcome
            outcome.body += piece
    except UpstreamInterrupted as error:
        outcome.error = f"interrupted by {type(error.__cause__).__name__}"
        return outcome
