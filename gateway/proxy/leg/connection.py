"""One connection to an upstream: a request out, an answer in, and again.

Rules
1. A connection carries one call at a time, and serves again only after an answer that ended where it said it would,
   with nothing behind it, to a request that had wholly left. Whatever comes while nobody asked ends the connection.
2. An answer ends with its length, its last chunk or, where it has neither, with the sender's own end of the stream:
   over TLS that is its close_notify, not a cut line. Anything else is a break.
3. Bounded are the head (with all interim ones), what a body brings beside its data (chunk extensions, trailers), and
   what waits for a slow reader: ``UNREAD_BYTES_HIGH`` and one read more (64 KB; with TLS, that the loop chooses, 256).
4. One timer for each connection, moved only when it fires: a request and a chunk cost none.

Not here: whom to connect to, and which connections are kept.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from math import inf
from typing import Protocol, cast

import httptools

from gateway.proxy.leg.answer import Answer
from gateway.proxy.leg.headers import headers_of

HEAD_BYTES_MAX = 65_536
HEADERS_MAX = 200
UNREAD_BYTES_HIGH = 32_768
BUFFER_BYTES = 65_536
_JOINED_BYTES_MAX = 65_536  # a larger body is not copied behind its head
_TIMER_GRAIN_S = 0.001  # event loops round
_H = ord("H")  # llhttp would take RTSP/ and ICE/ too

# What a connection is doing.
_FREE, _ASKED, _ANSWERING, _ANSWERED, _GONE = range(5)


class BadAnswer(Exception):
    """The upstream's answer is not one that we take."""


class Untouched(ConnectionError):
    """The connection had ended before the request: the upstream has seen nothing of it."""


class Home(Protocol):
    """Where connections are kept."""

    def put(self, connection: Connection) -> None:
        """It is free again."""

    def lose(self, connection: Connection) -> None:
        """It is over."""


class Connection(asyncio.BufferedProtocol):
    """A protocol of asyncio's, and the callbacks of the parser that it feeds."""

    def __init__(self, home: Home, buffer: memoryview, line: asyncio.Transport | None = None) -> None:
        """``buffer`` may be shared by all connections of a loop: what is read is parsed before anybody else reads.

        ``line`` is the transport below TLS. For a slow reader it is this that is paused: TLS itself would read on, and
        (uvloop's) lose what it has not yet deciphered when the upstream ends the connection.
        """
        self._home = home
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._line = line
        self._stage = _FREE
        self._due_s = inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf
        # Of the call that it carries:
        self._begun: asyncio.Future[Answer | Exception] | None = None
        self._answer: Answer | None = None
        self._asked_bytes = 0
        self._idle_s = inf
        self._pairs: list[tuple[bytes, bytes]] = []
        self._stray_bytes = 0  # since there was a head, or data
        self._is_clean = True
        self._is_open_ended = False
        self._wrong: BadAnswer | None = None

    # --- its owner's side ------------------------------------------------------------------------------------------

    @property
    def is_free(self) -> bool:
        return self._stage == _FREE and self._transport is not None and not self._transport.is_closing()

    def ask(
        self, head: bytes, body: bytes, *, due_s: float, idle_s: float, leaving: Callable[[], None]
    ) -> asyncio.Future[Answer | Exception]:
        """Send a request. Resolves to the answer when it begins, or to why there is none: Untouched, TimeoutError when
        the loop's time is ``due_s``, or what broke. ``idle_s`` bounds each later wait."""
        begun = self._begun = self._loop.create_future()
        transport = self._transport
        if self._stage != _FREE or transport is None or transport.is_closing():
            begun.set_result(Untouched("closed before the request"))
            self._drop(ConnectionResetError())
            return begun
        self._stage = _ASKED
        body_bytes = len(body)
        self._asked_bytes = len(head) + body_bytes
        self._idle_s = idle_s
        self._stray_bytes = 0
        self._is_clean = True
        if body_bytes <= _JOINED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        if transport.is_closing():
            self._drop(Untouched("closed before the request's first byte"))
        else:
            leaving()
            self.expect(due_s)
        return begun

    def expect(self, due_s: float) -> None:
        """Unless something else happens, end at ``due_s``."""
        self._due_s = due_s
        if due_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due_s, self._check_time)
            self._timer_s = due_s

    def wait_for_more(self) -> asyncio.Future[None]:
        self.expect(self._loop.time() + self._idle_s)
        return self._loop.create_future()

    def resume(self) -> None:
        if self._line is not None:
            self._line.resume_reading()

    def abandon(self) -> None:
        """Whoever asked wants nothing more of it. Idempotent."""
        self._drop(ConnectionAbortedError())

    def _check_time(self) -> None:
        self._timer, self._timer_s = None, inf
        if self._stage == _ANSWERING and (self._answer is None or self._answer.waiter is None):
            return  # it is the reader who takes its time; its next wait sets the timer
        if self._due_s > self._loop.time() + _TIMER_GRAIN_S:
            if self._due_s != inf:
                self.expect(self._due_s)
            return
        self._drop(TimeoutError("nothing came in time"))

    # --- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._line = self._line or self._transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        parser = self._parser
        if parser is None or (self._stage != _ASKED and self._stage != _ANSWERING):
            self._drop(BadAnswer("nobody asked"))
            return
        if not self._stray_bytes and self._stage == _ASKED and self._buffer[0] != _H:
            self._drop(BadAnswer("not HTTP"))
            return
        self._stray_bytes += nbytes
        try:
            parser.feed_data(self._buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._drop(error)
            return
        if self._wrong is not None:
            self._drop(self._wrong)
        elif self._stage == _ANSWERED:
            self._finish()
        elif self._stray_bytes > HEAD_BYTES_MAX:
            self._drop(BadAnswer("too much beside the data"))
        elif self._answer is not None and self._answer.pieces:
            self._give(self._answer, nbytes)

    def _give(self, answer: Answer, nbytes: int) -> None:
        """Pieces came."""
        answer.unread_bytes += nbytes
        answer.wake()
        if answer.unread_bytes > UNREAD_BYTES_HIGH and not answer.is_paused and self._line is not None:
            answer.is_paused = True
            self._line.pause_reading()

    def eof_received(self) -> None:
        """The upstream's own end of the stream; the transport then closes itself."""
        if self._stage == _ANSWERING and self._is_open_ended:
            self._stage = _ANSWERED
            self._is_clean = False
            self._finish()
        elif self._stage == _ASKED and not self._stray_bytes and self._has_all_unsent():
            self._drop(Untouched("closed before the request arrived"))
        else:
            self._drop(ConnectionResetError("closed"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop(exc or ConnectionResetError("closed"))
        if self._timer is not None:
            self._timer.cancel()
        self._parser = self._transport = self._line = self._timer = None

    def _has_all_unsent(self) -> bool:
        """Whether the peer's system has acknowledged nothing of the request.

        An upstream that ends a connection just as we use it answers our bytes with a reset, never with an
        acknowledgement. So they wait in our system still, and the call may be made again: nobody has seen it. Where
        something was acknowledged, somebody may have read it, and the call may be costing money already.
        """
        transport = self._transport
        if transport is None:
            return False
        try:
            waiting = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return False
        unsent_bytes: int = struct.unpack("i", waiting)[0]
        return unsent_bytes + transport.get_write_buffer_size() >= self._asked_bytes  # TLS only adds to it

    # --- the parser's side -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._stage != _ASKED:
            self._is_clean = False  # something came behind the answer

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == _ASKED:
            self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        if self._stage != _ASKED or self._parser is None or self._begun is None:
            return
        pairs, self._pairs = self._pairs, []
        status = self._parser.get_status_code()
        headers = headers_of(pairs)
        self._wrong = self._wrong or self._judge(status, headers, pairs)
        if self._wrong is not None:
            return
        if status < 200:
            return
        self._is_open_ended = "content-length" not in headers and "transfer-encoding" not in headers
        # These never have a body: one that comes all the same must not be the next call's answer.
        self._is_clean = status not in (204, 304) or self._is_open_ended
        self._stage = _ANSWERING
        self._stray_bytes = 0
        self._due_s = inf
        self._answer = Answer(self, status, headers)
        self._begun.set_result(self._answer)
        self._begun = None

    def _judge(self, status: int, headers: dict[str, str], pairs: list[tuple[bytes, bytes]]) -> BadAnswer | None:
        """What llhttp lets pass and we don't."""
        assert self._parser is not None
        if not 100 <= status <= 599 or status == 101:
            return BadAnswer("no such status")
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            return BadAnswer("no such version")
        if len(pairs) > HEADERS_MAX:
            return BadAnswer("too many headers")
        # One read holds no more; a head of several reads is summed.
        if self._stray_bytes > HEAD_BYTES_MAX and sum(len(name) + len(value) for name, value in pairs) > HEAD_BYTES_MAX:
            return BadAnswer("too large a head")
        is_coded = "transfer-encoding" in headers
        if is_coded and headers["transfer-encoding"].lower() != "chunked":
            return BadAnswer("no such transfer coding")
        if status < 200 and (is_coded or "content-length" in headers):
            return BadAnswer("an interim answer with a body")
        if self._begun is None or self._begun.done():
            return BadAnswer("nobody waits any more")
        return None

    def on_body(self, data: bytes) -> None:
        self._stray_bytes = 0
        if self._stage == _ANSWERING and self._answer is not None:
            self._answer.pieces.append(data)

    def on_message_complete(self) -> None:
        if self._stage == _ANSWERING and self._parser is not None:
            self._stage = _ANSWERED
            self._is_clean = self._is_clean and self._parser.should_keep_alive()

    # --- ends ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The answer is whole."""
        answer, self._answer = self._answer, None
        transport = self._transport
        assert answer is not None
        assert transport is not None
        if self._is_clean and not transport.is_closing() and not transport.get_write_buffer_size():
            if answer.is_paused:
                self.resume()
            self._stage = _FREE
            self._home.put(self)
        else:
            self._drop(ConnectionAbortedError())
        answer.end()

    def _drop(self, cause: Exception) -> None:
        """Over, whatever it was doing."""
        stage, self._stage = self._stage, _GONE
        if stage == _GONE:
            return
        begun, self._begun = self._begun, None
        answer, self._answer = self._answer, None
        if begun is not None and not begun.done():
            begun.set_result(cause)
        if answer is not None:
            if stage == _ANSWERED:
                answer.end()
            else:
                answer.break_off(cause)
        if self._transport is not None:
            self._transport.abort()
        self._home.lose(self)
