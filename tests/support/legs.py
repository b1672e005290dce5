"""Calls through a leg, as short as tests want them; and listeners that never take anybody in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.proxy.leg.answer import Answer
from gateway.proxy.leg.client import HttpLeg

WITHIN_S = 10.0


async def ask(
    leg: HttpLeg,
    url: str,
    body: bytes = b"{}",
    *,
    first_byte_s: float = WITHIN_S,
    idle_s: float = WITHIN_S,
    leaving: Callable[[], None] = lambda: None,
) -> Answer:
    """An answer's beginning."""
    headers = {b"content-type": b"application/json"}
    fixed = ((b"x-api-key", b"sk-test"),)
    return await leg.send(url, headers, body, fixed=fixed, first_byte_s=first_byte_s, idle_s=idle_s, leaving=leaving)


async def rest(answer: Answer) -> bytes:
    """All that an answer still has."""
    body = bytearray()
    while piece := await answer.read():
        body += piece
    return bytes(body)


async def whole(leg: HttpLeg, url: str, body: bytes = b"{}") -> bytes:
    """A whole answer's body."""
    answer = await ask(leg, url, body)
    assert answer.status == 200
    return await rest(answer)


async def turns(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextmanager
def full_listener() -> Iterator[tuple[str, int]]:
    """An address where a connection attempt gets no answer at all, for its queue is full."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    try:
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            waiting.append(client)
        yield listener.getsockname()
    finally:
        for sock in (*waiting, listener):
            sock.close()
