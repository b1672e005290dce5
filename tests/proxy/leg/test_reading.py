"""Who reads an answer: what it is given, when it waits, and how long."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import UpstreamInterrupted, UpstreamTimeout
from gateway.proxy.leg.answer import Answer
from gateway.proxy.leg.connection import BUFFER_BYTES, UNREAD_BYTES_HIGH
from tests.support.wires import Wire

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = OK + b"Content-Length: 5\r\n\r\n"
HELLO = LENGTH + b"hello"


async def begun(wire: Wire, data: bytes = LENGTH, *, idle_s: float = 1e9) -> Answer:
    asked = wire.ask(idle_s=idle_s)
    wire.come(data)
    answer = asked.result()
    assert isinstance(answer, Answer)
    return answer


async def waiting(answer: Answer) -> asyncio.Task[bytes]:
    """A reader that waits."""
    task = asyncio.create_task(answer.read())
    await asyncio.sleep(0)
    assert answer.waiter is not None
    return task


async def test_pieces_that_wait_are_given_as_one() -> None:
    wire = Wire()
    answer = await begun(wire, CHUNKED)
    for piece in (b"1\r\nh\r\n", b"1\r\ne\r\n2\r\nll\r\n"):
        wire.come(piece)
    assert await answer.read() == b"hell"
    reader = await waiting(answer)
    wire.come(b"1\r")
    wire.come(b"\no\r\n")
    assert await reader == b"o"
    wire.come(b"0\r\n\r\n")
    assert await answer.read() == b"" == await answer.read()
    assert wire.is_kept


async def test_half_a_frame_wakes_nobody() -> None:
    wire = Wire()
    answer = await begun(wire, CHUNKED)
    reader = await waiting(answer)
    for byte in b"5\r\n":
        wire.come(bytes([byte]))
        await asyncio.sleep(0)
        assert not reader.done()
    wire.come(b"h")
    assert await reader == b"h"


async def test_an_answer_that_was_closed_never_looks_whole() -> None:
    for data in (LENGTH, LENGTH + b"he", HELLO):
        wire = Wire()
        answer = await begun(wire, data)
        answer.close()
        answer.close()
        with pytest.raises(UpstreamInterrupted):
            await answer.read()
        assert wire.is_open == (data == HELLO), "what is whole need not end its connection"


async def test_closing_wakes_the_reader() -> None:
    wire = Wire()
    answer = await begun(wire)
    reader = await waiting(answer)
    answer.close()
    with pytest.raises(UpstreamInterrupted):
        await reader
    assert not wire.is_open


async def test_closing_late_leaves_the_connection_s_next_call_alone() -> None:
    wire = Wire()
    first = await begun(wire, HELLO)
    second = await begun(wire)
    first.close()
    wire.come(b"world")
    assert await second.read() == b"world" and await second.read() == b""


async def test_a_cancelled_reader_ends_the_connection() -> None:
    wire = Wire()
    answer = await begun(wire)
    reader = await waiting(answer)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert not wire.is_open
    with pytest.raises(UpstreamInterrupted):
        await answer.read()


async def test_a_slow_reader_stops_the_upstream_and_a_quick_one_does_not() -> None:
    wire = Wire()
    size = 50_000_000
    answer = await begun(wire, OK + b"Content-Length: %d\r\n\r\n" % size)
    came_bytes = highest_bytes = 0
    while came_bytes < size:
        while wire.is_reading and came_bytes < size:
            wire.come(b"x" * min(BUFFER_BYTES, size - came_bytes))
            came_bytes += BUFFER_BYTES
        data = await answer.read()
        highest_bytes = max(highest_bytes, len(data))
        assert wire.is_reading
    assert highest_bytes <= UNREAD_BYTES_HIGH + BUFFER_BYTES
    assert wire.is_kept and await answer.read() == b""


async def test_a_reader_that_takes_each_piece_never_stops_the_upstream() -> None:
    wire, pieces = Wire(), 100
    answer = await begun(wire, OK + b"Content-Length: %d\r\n\r\n" % (pieces * 1_000))
    for _ in range(pieces):
        wire.come(b"x" * 1_000)
        assert wire.is_reading
        await answer.read()


async def test_a_connection_whose_last_answer_waits_unread_listens_again() -> None:
    """Or nobody would notice that it ends."""
    wire = Wire()
    size = UNREAD_BYTES_HIGH + 10
    answer = await begun(wire, OK + b"Content-Length: %d\r\n\r\n" % size)
    wire.come(b"x" * (size - 5))
    assert not wire.is_reading
    wire.come(b"x" * 5)
    assert wire.is_kept and wire.is_reading
    wire.end()
    assert len(await answer.read()) == size and await answer.read() == b""


async def test_an_answer_before_the_end_of_its_request_is_given_and_spoils_its_connection() -> None:
    wire = Wire()
    wire.unsent_bytes = 1_000_000
    answer = await begun(wire, HELLO)
    assert await answer.read() == b"hello" and await answer.read() == b""
    assert not wire.is_kept and not wire.is_open


# --- time ------------------------------------------------------------------------------------------------------------


async def test_silence_is_a_timeout_of_who_waits_for_it() -> None:
    wire = Wire()
    answer = await begun(wire, LENGTH + b"he", idle_s=5)
    assert await answer.read() == b"he"
    reader = await waiting(answer)
    await wire.clock.passes(4.9)
    assert not reader.done()
    await wire.clock.passes(0.2)
    for late in (reader, answer.read()):
        with pytest.raises(UpstreamTimeout):
            await late
    assert not wire.is_open


async def test_a_reader_that_takes_its_time_is_no_silence() -> None:
    """The timer fires while nobody waits, and nothing happens; it is set anew by the next wait."""
    wire = Wire()
    answer = await begun(wire, idle_s=5)
    reader = await waiting(answer)
    await wire.clock.passes(4)
    wire.come(b"he")
    assert await reader == b"he"
    await wire.clock.passes(60)
    assert wire.is_open
    reader = await waiting(answer)
    await wire.clock.passes(4)
    assert not reader.done()
    await wire.clock.passes(2)
    with pytest.raises(UpstreamTimeout):
        await reader


async def test_each_piece_begins_the_silence_anew_and_sets_no_timer() -> None:
    wire = Wire()
    answer = await begun(wire, CHUNKED, idle_s=5)
    for _ in range(1_000):
        reader = await waiting(answer)
        await wire.clock.passes(0.1)
        wire.come(b"1\r\nx\r\n")
        assert await reader == b"x"
    assert len(wire.clock.timers) <= 2 + 100 / 5 * 1.1
    reader = await waiting(answer)
    await wire.clock.passes(5.1)
    with pytest.raises(UpstreamTimeout):
        await reader


async def test_an_answer_that_does_not_begin_in_time_ends_the_connection() -> None:
    """Interim answers are no beginning."""
    wire = Wire()
    asked = wire.ask(first_byte_s=30, idle_s=5)
    await wire.clock.passes(29.9)
    wire.come(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert not asked.done()
    await wire.clock.passes(0.2)
    assert isinstance(asked.result(), TimeoutError) and not wire.is_open


async def test_the_timer_of_one_call_does_not_end_the_next() -> None:
    wire = Wire()
    for _ in range(50):
        answer = await begun(wire, LENGTH, idle_s=5)
        reader = await waiting(answer)
        await wire.clock.passes(4)
        wire.come(b"hello")
        assert await reader == b"hello" and await answer.read() == b""
    assert wire.is_open and len(wire.clock.timers) < 50 * 2


async def test_a_free_connection_ends_when_it_is_due() -> None:
    wire = Wire()
    for _ in range(3):
        await begun(wire, HELLO, idle_s=5)
        wire.connection.expect(wire.clock.now_s + 30)
        await wire.clock.passes(29.9)
        assert wire.is_open and wire.connection.is_free
    await wire.clock.passes(0.2)
    assert not wire.is_open and not wire.connection.is_free
