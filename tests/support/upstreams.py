"""Upstreams that misbehave as told: raw bytes for any request, a broken connection, or nothing at all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.sockets import reset_writer


@dataclass(slots=True)
class Scripted:
    """Answers each request with ``answer``; None breaks the connection instead."""

    url: str
    answer: bytes | None
    then_close: bool = False  # in order, wherever the answer is
    requests: list[bytes] = field(default_factory=list)  # heads
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                self.requests.append(head)
                if self.answer is None:
                    reset_writer(writer)
                    return
                writer.write(self.answer)
                await writer.drain()
                if self.then_close:
                    writer.close()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()


def whole(status: str, body: bytes, **headers: str) -> bytes:
    """A response with its length; names in ``headers`` are written with underscores."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@asynccontextmanager
async def scripted(
    answer: bytes | None, *, tls: ssl.SSLContext | None = None, then_close: bool = False
) -> AsyncIterator[Scripted]:
    """Listen on a free port."""
    upstream = Scripted("", answer, then_close)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    upstream.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        for writer in upstream.writers:
            writer.transport.abort()
