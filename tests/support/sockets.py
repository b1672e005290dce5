"""A client that is nothing but a socket: it reads exactly as much as it is told, and leaves as rudely as it likes."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from yarl import URL

WITHIN_S = 10.0


class Broken(Exception):
    """The connection ended before the answer did."""


@dataclass(slots=True)
class Answer:
    """The head of a response."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytearray = field(default_factory=bytearray)  # what was read of it, without chunk framing
    ended: bool = False  # the last chunk, or all of the length


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answer: Answer | None = None

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> Answer:
        """Read up to the end of the headers. Raises Broken."""
        async with asyncio.timeout(WITHIN_S):
            try:
                text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise Broken from error
        first, *lines = text.rstrip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.answer = Answer(int(first.split()[1]), headers)
        return self.answer

    async def piece(self) -> bytes:
        """One chunk of a chunked body; b"" after the last one. Raises Broken."""
        assert self.answer is not None
        async with asyncio.timeout(WITHIN_S):
            try:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                data = await self.reader.readexactly(size + 2)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise Broken from error
        self.answer.body += data[:-2]
        self.answer.ended = size == 0
        return data[:-2]

    async def events(self, count: int) -> int:
        """Read until ``count`` events have come, or the answer has ended; how many came."""
        assert self.answer is not None
        while self.answer.body.count(b"\n\n") < count and await self.piece():
            pass
        return self.answer.body.count(b"\n\n")

    async def rest(self) -> bytes:
        """The whole body. Raises Broken."""
        answer = self.answer or await self.head()
        if "content-length" in answer.headers:
            async with asyncio.timeout(WITHIN_S):
                try:
                    answer.body += await self.reader.readexactly(int(answer.headers["content-length"]))
                except (asyncio.IncompleteReadError, ConnectionError) as error:
                    raise Broken from error
            answer.ended = True
        else:
            while await self.piece():
                pass
        return bytes(answer.body)

    def forget(self) -> None:
        """Drop what was read of the body: it may be large."""
        assert self.answer is not None
        self.answer.body.clear()

    async def closed(self, within_s: float = WITHIN_S) -> bytes:
        """Wait until the server closes; what it sent until then."""
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def reset(self) -> None:
        """Leave with a RST, whatever is on its way."""
        reset_writer(self.writer)


def reset_writer(writer: asyncio.StreamWriter) -> None:
    """Close with a RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def connection(url: str, *, receive_bytes: int | None = None) -> AsyncIterator[Client]:
    """A connection to the server at ``url``; ``receive_bytes`` makes the kernel's buffer small."""
    place = URL(url)
    sock = socket.socket()
    sock.setblocking(False)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(sock, (place.host, place.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1_048_576)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        writer.transport.abort()
