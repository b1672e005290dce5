"""Answers byte by byte, without a network: what is one, where it ends, and what is refused."""

from __future__ import annotations

import pytest

from gateway.proxy.leg.answer import Answer
from gateway.proxy.leg.connection import BUFFER_BYTES, HEAD_BYTES_MAX, HEADERS_MAX
from tests.support.wires import Outcome, Wire, play, read

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # no loop has a part in it

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = OK + b"Content-Length: 5\r\n\r\n"
HELLO = LENGTH + b"hello"
CHUNKS = CHUNKED + b'2;a=b;c="d"\r\nhe\r\n3\r\nllo\r\n0\r\nDigest: x\r\nE: f\r\n\r\n'
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

# Each is whole, with the body "hello" (or none), and leaves its connection free, or not.
WHOLE = {
    "a length": (HELLO, 200, b"hello", True),
    "chunks with extensions and trailers": (CHUNKS, 200, b"hello", True),
    "other spellings": (OK + b"transfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n00\r\n\r\n", 200, b"hello", True),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "an error": (b"HTTP/1.1 529 Overloaded\r\nContent-Length: 5\r\n\r\nhello", 529, b"hello", True),
    "a redirect": (b"HTTP/1.1 302 F\r\nLocation: http://x/\r\nContent-Length: 5\r\n\r\nhello", 302, b"hello", True),
    "interim answers first": (INTERIM + HELLO, 200, b"hello", True),
    "close": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", False),
    "close, with chunks": (OK + b"connection: Close\r\n" + CHUNKS.removeprefix(OK), 200, b"hello", False),
    "HTTP/1.0": (HELLO.replace(b"1.1", b"1.0"), 200, b"hello", False),
    "HTTP/1.0, kept": (HELLO.replace(b"1.1", b"1.0").replace(b"\r\nC", b"\r\nConnection: keep-alive\r\nC", 1), 200,
                       b"hello", True),
    "an upgrade nobody asked for": (OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello", 200,
                                    b"hello", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n", 304, b"", True),
    # These announce a body that they must not have. If it comes, it must not be the next call's answer.
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, b"", False),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", False),
    "204 with chunks": (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204, b"", False),
}  # fmt: skip

# What may stand behind a whole answer: the answer is good, its connection is not.
BEHIND = [b"X", b"HTTP/1.1 2", HELLO, b"\0", b"0\r\n\r\n"]

REFUSED = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "ICE": b"ICE/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "an empty line first": b"\r\n" + HELLO,
    "HTTP/2.0": HELLO.replace(b"1.1", b"2.0"),
    "HTTP/0.9": HELLO.replace(b"1.1", b"0.9"),
    "HTTP/1.2": HELLO.replace(b"1.1", b"1.2"),
    "lower case": HELLO.replace(b"HTTP", b"http"),
    "two digits": HELLO.replace(b"200", b"20"),
    "four digits": HELLO.replace(b"200", b"2000"),
    "letters": HELLO.replace(b"200", b"2x0"),
    "a sign": HELLO.replace(b"200", b"+20"),
    "status 099": HELLO.replace(b"200", b"099"),
    "status 000": HELLO.replace(b"200", b"000"),
    "status 600": HELLO.replace(b"200", b"600"),
    "status 999": HELLO.replace(b"200", b"999"),
    "two spaces": HELLO.replace(b" 200", b"  200"),
    "101": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "101 without an upgrade": b"HTTP/1.1 101 Switching\r\n\r\n",
    "an interim answer with a body": b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello" + HELLO,
    "an interim answer with chunks": b"HTTP/1.1 103 Early\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    "line feeds alone": HELLO.replace(b"\r\n", b"\n"),
    "one line feed alone": OK + b"A: b\nContent-Length: 5\r\n\r\nhello",
    "a carriage return alone": OK + b"A: b\rContent-Length: 5\r\n\r\nhello",
    "a folded line": OK + b"A: b\r\n c\r\nContent-Length: 5\r\n\r\nhello",
    "a NUL": OK + b"A: b\0c\r\nContent-Length: 5\r\n\r\nhello",
    "a space before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "no name": OK + b": b\r\nContent-Length: 5\r\n\r\nhello",
    "no colon": OK + b"Abc\r\nContent-Length: 5\r\n\r\nhello",
    "length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks and length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": OK + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "a hexadecimal length": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "an empty length": OK + b"Content-Length: \r\n\r\nhello",
    "an endless length": OK + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked, gzip": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\n" + CHUNKED.removeprefix(OK) + b"5\r\nhello\r\n0\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\nhello",
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\nhello",
}  # fmt: skip

REFUSALS = {"BadAnswer", "HttpParserError", "HttpParserInvalidStatusError", "HttpParserUpgrade"}

BAD_CHUNKS = {
    "no number": b"zz\r\nhello\r\n",
    "hexadecimal prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a sign": b"-5\r\nhello\r\n0\r\n\r\n",
    "a space": b"5 \r\nhello\r\n0\r\n\r\n",
    "an empty size": b"\r\nhello\r\n0\r\n\r\n",
    "an endless size": b"fffffffffffffffff\r\nhello\r\n",
    "a line feed alone": b"5\nhello\n0\n\n",
    "data longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "data shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "a length as trailer": b"5\r\nhello\r\n0\r\nContent-Length: 7\r\n\r\n",
}


def every_split(data: bytes) -> list[list[bytes]]:
    """In two at every byte, and byte by byte."""
    splits = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [*splits, [data[at : at + 1] for at in range(len(data))]]


@pytest.mark.parametrize("case", WHOLE)
async def test_a_whole_answer_is_the_same_however_it_is_cut(case: str) -> None:
    data, status, body, is_kept = WHOLE[case]
    whole = await play([data])
    assert (whole.status, whole.body, whole.error, whole.is_kept) == (status, body, None, is_kept)
    for pieces in every_split(data):
        assert await play(pieces) == whole, pieces


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("end", ["eof", "reset"])
async def test_an_answer_that_breaks_off_anywhere_is_never_whole(case: str, end: str) -> None:
    """Before the end of the head there is no answer; after it, what came is given and the break is told."""
    data, status, body, _ = WHOLE[case]
    head = data.index(b"\r\n\r\n", data.rindex(b"HTTP/1.")) + 4
    for at in range(len(data)):
        outcome = await play([data[:at]], end)
        if at < head:
            assert outcome == Outcome(error="ConnectionResetError"), at
        else:
            assert (outcome.status, outcome.error) == (status, "interrupted by ConnectionResetError"), at
            assert body.startswith(outcome.body), at


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("behind", BEHIND)
async def test_what_stands_behind_an_answer_spoils_its_connection_and_not_the_answer(case: str, behind: bytes) -> None:
    data, status, body, _ = WHOLE[case]
    outcome = await play([data + behind])
    assert (outcome.status, outcome.body, outcome.error, outcome.is_kept) == (status, body, None, False)


@pytest.mark.parametrize("data", [b"X", b"\r\n", HELLO])
async def test_what_comes_while_nobody_asked_ends_the_connection(data: bytes) -> None:
    wire = Wire()
    wire.ask()
    wire.come(HELLO)
    assert wire.is_kept and wire.connection.is_free
    wire.come(data)
    assert not wire.is_kept and not wire.is_open and not wire.connection.is_free


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_no_answer_is_refused_however_it_is_cut(case: str) -> None:
    data = REFUSED[case]
    for pieces in [[data], *every_split(data)]:
        outcome = await play(pieces)
        assert outcome.status is None, pieces
        assert outcome.error in REFUSALS, pieces


@pytest.mark.parametrize("case", BAD_CHUNKS)
async def test_a_broken_chunk_interrupts_the_answer_however_it_is_cut(case: str) -> None:
    data = CHUNKED + BAD_CHUNKS[case]
    for pieces in [[data], *every_split(data)]:
        outcome = await play(pieces)
        assert outcome.error == "interrupted by HttpParserError", pieces
        assert b"hello\r\n".startswith(outcome.body) and not outcome.is_kept


async def test_a_body_with_neither_length_nor_chunks_ends_with_its_stream() -> None:
    data = OK + b"\r\nhello"
    for pieces in [[data], *every_split(data)]:
        assert await play(pieces, "eof") == Outcome(200, {}, b"hello")
        broken = await play(pieces, "reset")
        assert (broken.body, broken.error) == (b"hello", "interrupted by ConnectionResetError")


# --- heads -----------------------------------------------------------------------------------------------------------


async def test_headers_are_named_in_lower_case_and_repeated_ones_are_lists() -> None:
    wire = Wire()
    begun = wire.ask()
    wire.come(
        b"HTTP/1.1 200 OK\r\nX-Request-Id: r1 \t\r\nEMPTY:\r\nLink: a\r\nlink: b\r\n"
        b"Latin: caf\xe9\r\nUtf: caf\xc3\xa9\r\nContent-Length: 0\r\n\r\n"
    )
    answer = begun.result()
    assert isinstance(answer, Answer)
    assert answer.headers == {
        "x-request-id": "r1",
        "empty": "",
        "link": "a, b",
        "latin": b"caf\xe9".decode("utf-8", "surrogateescape"),
        "utf": "café",
        "content-length": "0",
    }


@pytest.mark.parametrize("read_bytes", [100, 4_096, BUFFER_BYTES])
@pytest.mark.parametrize("excess", [-100, 1])
async def test_a_head_of_up_to_64_kb_is_taken(read_bytes: int, excess: int) -> None:
    """Names and values count, a little framing does not."""
    value = b"v" * (HEAD_BYTES_MAX + excess - len(b"AContent-Length5"))
    data = OK + b"A: " + value + b"\r\nContent-Length: 5\r\n\r\nhello"
    outcome = await play([data[at : at + read_bytes] for at in range(0, len(data), read_bytes)])
    assert outcome.error == (None if excess < 0 else "BadAnswer")


@pytest.mark.parametrize("filling", [b"A: " + b"v" * 1_000, b"v" * 1_000], ids=["headers", "one value"])
async def test_a_head_without_an_end_is_not_waited_for(filling: bytes) -> None:
    wire = Wire()
    begun = wire.ask()
    wire.come(OK + b"B: ")
    came_bytes = 0
    while wire.is_open:
        wire.come(filling + (b"\r\n" if filling.startswith(b"A") else b""))
        came_bytes += 1_000
    assert came_bytes <= HEAD_BYTES_MAX + 2_000
    assert not isinstance(begun.result(), Answer)


@pytest.mark.parametrize(("count", "error"), [(HEADERS_MAX, None), (HEADERS_MAX + 1, "BadAnswer")])
async def test_a_head_has_at_most_200_headers(count: int, error: str | None) -> None:
    outcome = await play([OK + b"A: b\r\n" * (count - 1) + b"Content-Length: 5\r\n\r\nhello"])
    assert outcome.error == error


async def test_interim_answers_do_not_go_on_for_ever() -> None:
    wire = Wire()
    begun = wire.ask()
    for _ in range(10_000):
        wire.come(INTERIM)
    assert not wire.is_open and not isinstance(begun.result(), Answer)


@pytest.mark.parametrize(
    "opening",
    [b"5;", b"5\r\nhello\r\n0\r\nA: ", b"5\r\nhello\r\n0\r\n"],
    ids=["an extension", "a trailer", "trailers"],
)
async def test_what_a_body_has_beside_its_data_is_bounded(opening: bytes) -> None:
    wire = Wire()
    begun = wire.ask()
    wire.come(CHUNKED + opening)
    came_bytes = 0
    while wire.is_open:
        wire.come(b"A: bcdefg\r\n" * 10 if opening.endswith(b"0\r\n") else b"x" * 100)
        came_bytes += 100
    assert came_bytes <= HEAD_BYTES_MAX + 100
    answer = begun.result()
    assert isinstance(answer, Answer)
    assert (await read(answer, wire)).error == "interrupted by BadAnswer"
