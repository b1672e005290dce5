"""A TCP proxy inside the test: it can swallow replies, cut connections, and says what passed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Forwards ``127.0.0.1:port`` to a unix socket.

    While ``swallow`` is set, a connection on which the server answers goes mute for good: bytes inside a TCP stream are
    never lost without it.
    """

    def __init__(self, upstream_path: str) -> None:
        self.port = 0
        self.swallow = False
        self.connections = 0
        self.requests = bytearray()
        self._upstream_path = upstream_path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._upstream_path)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, upstream_writer}
        self._writers |= pair
        back = asyncio.get_running_loop().create_task(self._answers(upstream_reader, writer))
        self._tasks.add(back)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.requests += data
                upstream_writer.write(data)
        self._abort(pair)
        await back
        self._tasks.discard(back)

    async def _answers(self, upstream: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        mute = False
        with contextlib.suppress(ConnectionError):
            while data := await upstream.read(65536):
                mute = mute or self.swallow
                if not mute:
                    client.write(data)
        client.transport.abort()

    def _abort(self, writers: set[asyncio.StreamWriter]) -> None:
        for writer in writers:
            writer.transport.abort()
        self._writers -= writers

    def cut(self) -> None:
        """Reset every connection."""
        self._abort(set(self._writers))

    async def close(self) -> None:
        """Stop listening and reset every connection; ``start`` opens the same port again."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


@contextlib.asynccontextmanager
async def proxied(upstream_path: str) -> AsyncIterator[Proxy]:
    """A running proxy in front of a unix socket."""
    proxy = Proxy(upstream_path)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
