"""Odd streams: every line end, giant lines in little memory, and nothing that looks like usage and is not."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.usage import AtLeast, Basis, Exact, NotServed, Usage
from gateway.providers.adapter import Scanner
from gateway.providers.families import family
from gateway.providers.sse import EVENT_BYTES_MAX, HELD_BYTES_MAX, event_data, events
from gateway.providers.tokens import preload
from tests.unit.providers.goldens import ADAPTERS, call_of, run

MODELS = {"anthropic": "claude-sonnet-4-5", "openai_chat": "gpt-5", "openai_responses": "gpt-5"}
MB = 1024 * 1024


def scanner_of(dialect: str, *, hidden: bool = False) -> Scanner:
    call = call_of(dialect, MODELS[dialect])
    call.usage_hidden = hidden
    return ADAPTERS[dialect].scanner(call, content_type="text/event-stream", input_tokens=11, family=family(call.model))


CHUNK = b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"Hello"}}]}'
USAGE = b'data: {"id":"c","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
DONE = b"data: [DONE]"


# --- line ends ---------------------------------------------------------------------------------------------------

# (an event with its end, and what the specification makes of it)
EVENTS = [
    (b"data: x\n\n", (b"", b"x")),
    (b"data:x\r\n\r\n", (b"", b"x")),
    (b"data:  x\r\r", (b"", b" x")),
    (b"event: e\ndata: x\n\r\n", (b"e", b"x")),
    (b"event:e\r\ndata: x\r\n\n", (b"e", b"x")),
    (b"data: a\ndata: b\ndata\n\n", (b"", b"a\nb\n")),
    (b": comment\nid: 1\nretry: 5\n\n", (b"", b"")),
    (b"\xef\xbb\xbfdata: x\n\n", (b"", b"x")),
    (b"\ndata: x\n\n", (b"", b"x")),
    (b"data: x", (b"", b"x")),
    (b"datax: y\ndata : z\n\n", (b"", b"")),
]


@pytest.mark.parametrize(("event", "wanted"), EVENTS)
def test_an_event_is_read_as_the_specification_says(event: bytes, wanted: tuple[bytes, bytes]) -> None:
    assert event_data(event) == wanted


def test_events_are_taken_apart_at_any_blank_line() -> None:
    whole = [event for event, _ in EVENTS if event.endswith((b"\n", b"\r")) and not event.startswith(b"\n")]
    assert list(events(b"".join(whole))) == whole


ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    ends=st.lists(st.sampled_from(ENDS), min_size=3, max_size=7),
    cuts=st.lists(st.integers(0, 800), max_size=12),
    hidden=st.booleans(),
    last_end=st.booleans(),
)
def test_any_mix_of_line_ends_cut_anywhere_is_the_same_stream(
    ends: list[bytes], cuts: list[int], hidden: bool, last_end: bool
) -> None:
    texts = [CHUNK] * (len(ends) - 2) + [USAGE, DONE]
    parts = [text + end for text, end in zip(texts, ends, strict=True)]
    if not last_end:
        parts[-1] = DONE
    data = b"".join(parts)
    wanted = b"".join(part for part in parts if not hidden or not part.startswith(USAGE))
    places = sorted({cut for cut in cuts if cut < len(data)} | {0, len(data)})
    pieces = [data[start:end] for start, end in pairwise(places)]
    scanner = scanner_of("openai_chat", hidden=hidden)
    assert run(scanner, pieces) == wanted
    assert scanner.outcome() == Exact(Usage(input=3, output=4))
    assert scanner.complete


def test_a_part_of_an_event_waits_for_the_rest() -> None:
    scanner = scanner_of("openai_chat")
    assert scanner.feed(CHUNK[:20]) == b""
    assert scanner.event_boundary()
    assert scanner.feed(CHUNK[20:] + b"\n") == b""
    assert scanner.feed(b"\ndata") == CHUNK + b"\n\n"
    assert scanner.event_boundary()
    assert scanner.finish() == b"data"


def test_a_part_that_grows_large_goes_through_as_it_comes() -> None:
    scanner = scanner_of("openai_chat", hidden=True)
    head = CHUNK[:60] + b"x" * HELD_BYTES_MAX
    assert scanner.feed(head) == head
    assert not scanner.event_boundary()
    assert scanner.feed(b"more") == b"more"
    assert scanner.feed(CHUNK[60:] + b"\n\n" + USAGE + b"\n\n") == CHUNK[60:] + b"\n\n"
    assert scanner.event_boundary()


# --- giants ------------------------------------------------------------------------------------------------------


def feed_giant(scanner: Scanner, head: bytes, filling: bytes, size_bytes: int, tail: bytes) -> int:
    """Feed one huge event in network-sized pieces; the peak of memory that it took."""
    piece = filling * (65_536 // len(filling))
    tracemalloc.start()
    try:
        given = len(scanner.feed(head))
        for _ in range(size_bytes // len(piece)):
            given += len(scanner.feed(piece))
        given += len(scanner.feed(tail))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert given == len(head) + len(piece) * (size_bytes // len(piece)) + len(tail)
    return peak


def test_only_a_chunk_of_usage_and_nothing_else_is_hidden() -> None:
    """What the client may want besides, it gets; and the next chunk's usage is still hidden."""
    for more in (b'"moderation":{"flagged":true}', b'"error":{"message":"slow"}'):
        scanner = scanner_of("openai_chat", hidden=True)
        told = USAGE[:-1] + b"," + more + b"}\n\n"
        assert scanner.feed(CHUNK + b"\n\n") + scanner.feed(told) == CHUNK + b"\n\n" + told
        assert scanner.feed(USAGE + b"\n\n") == b""


@pytest.mark.parametrize("hidden", [False, True])
def test_a_long_stream_of_short_events_passes_in_little_memory(hidden: bool) -> None:
    event = CHUNK + b"\n\n"
    scanner = scanner_of("openai_chat", hidden=hidden)
    preload()
    tracemalloc.start()
    try:
        for _ in range(20_000):
            assert scanner.feed(event) is event
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(event) * 20_000 / 4


@pytest.mark.parametrize("dialect", list(MODELS))
def test_a_line_of_50_megabytes_passes_in_little_memory(dialect: str) -> None:
    scanner = scanner_of(dialect, hidden=dialect == "openai_chat")
    peak = feed_giant(scanner, b'data: {"type":"padding","padding":"', b"x", 50 * MB, b'"}\n\n')
    assert peak < 2 * MB
    assert scanner.event_boundary()
    assert scanner.output_tokens_seen() == 0  # padding is no output
    if dialect == "openai_chat":
        assert scanner.feed(CHUNK + b"\n\n" + USAGE + b"\n\n") == CHUNK + b"\n\n"
        assert scanner.outcome() == Exact(Usage(input=3, output=4))
    else:
        assert scanner.outcome() == NotServed()


def test_a_giant_event_without_an_end_still_reports_its_usage() -> None:
    scanner = scanner_of("openai_responses")
    head = b'event: response.completed\ndata: {"type":"response.completed","response":{"output":[{"text":"'
    scanner.feed(head)
    for _ in range(20):
        scanner.feed(b"x" * 60_000)
    scanner.feed(b'"}],"usage":{"input_tokens":5,"output_tokens":6},"metadata":{}}}\n')
    scanner.finish()
    assert scanner.outcome() == Exact(Usage(input=5, output=6))


@pytest.mark.parametrize("rest", [b"", b"event: ping\ndata: {}\n\n", b"data: half"])
@pytest.mark.parametrize("kind", [b"completed", b"incomplete"])
def test_usage_at_the_end_of_a_giant_last_event_is_found(kind: bytes, rest: bytes) -> None:
    """A response of megabytes (images, long reasoning) repeats all its output before its usage."""
    scanner = scanner_of("openai_responses")
    head = b'event: response.%b\r\ndata: {"type":"response.%b","response":{"output":[{"text":"' % (kind, kind)
    tail = (
        b'\\"usage\\":{\\"input_tokens\\":1,\\"output_tokens\\":1}"}],"tools":[{"usage":{"input_tokens":0}}],'
        b'"usage":{"input_tokens":7,"output_tokens":8,"output_tokens_details":{"reasoning_tokens":2}},"user":null}}'
    )
    peak = feed_giant(scanner, head, b"word ", 3 * MB, tail)
    out = scanner.feed(b"\r\n\r\n" + rest)
    assert out + scanner.finish() == b"\r\n\r\n" + rest
    assert peak < 2 * MB
    assert scanner.complete
    assert scanner.outcome() == Exact(Usage(input=7, output=8, reasoning=2))


def test_a_giant_first_event_of_messages_still_reports_its_input() -> None:
    scanner = scanner_of("anthropic")
    head = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","padding":"'
    feed_giant(scanner, head, b"x", MB, b'","usage":{"input_tokens":70,"output_tokens":1}}}\n\n')
    scanner.feed(b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}\n\n')
    outcome = scanner.outcome()
    assert isinstance(outcome, AtLeast)
    assert outcome.usage == Usage(input=70, output=2)


@pytest.mark.parametrize("usage", [b'{"input_tokens":5', b'{"input_tokens":5,"x":"}"', b'{"a":{}', b"{oops}"])
def test_half_a_usage_object_at_the_end_of_a_giant_is_no_report(usage: bytes) -> None:
    scanner = scanner_of("openai_responses")
    head = b'event: response.completed\ndata: {"type":"response.completed","response":{"output":"'
    feed_giant(scanner, head, b"x", MB, b'","usage":' + usage + b"\n\n")
    assert scanner.complete
    assert isinstance(scanner.outcome(), AtLeast)


def test_giant_output_is_estimated_when_the_provider_says_nothing() -> None:
    scanner = scanner_of("openai_chat")
    scanner.feed(CHUNK + b"\n\n")
    scanner.feed(CHUNK[:-5])  # within its text
    for _ in range(10):
        scanner.feed(b"word " * 20_000)
    outcome = scanner.outcome()
    assert isinstance(outcome, AtLeast)
    assert outcome.basis is Basis.ESTIMATED
    assert 100_000 < outcome.usage.output < 1_000_000 // 3


def test_many_events_take_no_more_memory_than_few() -> None:
    scanner = scanner_of("anthropic")
    event = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    event += b'"text":" some more words"}}\n\n'
    scanner.feed(event)
    tracemalloc.start()
    try:
        for _ in range(20_000):
            scanner.feed(event)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 512 * 1024
    assert scanner.output_tokens_seen() == -(-3 * 20_001 * 1250 // 1000)


# --- what looks like something ------------------------------------------------------------------------------------


def text_delta(text: bytes) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text


def test_text_that_looks_like_usage_or_an_end_is_text() -> None:
    scanner = scanner_of("openai_chat", hidden=True)
    data = b"".join(
        text_delta(text)
        for text in (
            b'\\"usage\\":{\\"prompt_tokens\\":0,\\"completion_tokens\\":0}',
            b"usage",
            b"[DONE]",
            b"data: [DONE]\\n\\n",
            b"error",
            b'\\"choices\\":[],\\"usage\\":{\\"total_tokens\\":1}',
        )
    )
    assert run(scanner, [data]) == data
    assert not scanner.complete
    outcome = scanner.outcome()
    assert isinstance(outcome, AtLeast)
    assert outcome.usage.output > 30


def test_an_empty_chunk_changes_nothing() -> None:
    scanner = scanner_of("openai_chat")
    assert scanner.feed(b"") == b""
    assert scanner.feed(CHUNK) == b""
    assert scanner.feed(b"") == b""
    assert scanner.feed(b"\n\n") == CHUNK + b"\n\n"


@pytest.mark.parametrize("data", [b": keep-alive\n\n" * 3, b"event: ping\ndata: {}\n\n", b"retry: 3000\n\n", b"\n\n\n"])
@pytest.mark.parametrize("dialect", list(MODELS))
def test_pings_and_comments_are_no_answer_yet(dialect: str, data: bytes) -> None:
    scanner = scanner_of(dialect)
    assert run(scanner, [data]) == data
    assert scanner.outcome() == NotServed()


def test_rubbish_where_json_should_be_passes_and_counts_as_nothing() -> None:
    for dialect in MODELS:
        scanner = scanner_of(dialect)
        data = b'data: {"usage": {"output_tokens": 5}, "error": oops\n\ndata: \xff\xfe\n\ndata: [1, "usage"]\n\n'
        assert run(scanner, [data]) == data
        assert scanner.outcome() == NotServed()


def test_output_is_counted_as_one_text_however_it_was_streamed() -> None:
    text = 'The quick brown fox — 世界 🚀 — jumps over "the" lazy dog.\n' * 150
    counts = set()
    for size in (1, 2, 7, 50, len(text)):
        scanner = scanner_of("openai_responses")
        for at in range(0, len(text), size):
            piece = text[at : at + size].encode().replace(b'"', b'\\"')
            piece = piece.replace(b"\n", b"\\n")
            scanner.feed(b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n' % piece)
        counts.add(scanner.output_tokens_seen())
    assert max(counts) - min(counts) <= 2
    assert len(text) < EVENT_BYTES_MAX
