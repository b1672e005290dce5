"""An answer cut in any way gives the client the same bytes and the gateway the same usage."""

from __future__ import annotations

import re

import pytest

from gateway.domain.usage import AtLeast, NotServed
from tests.unit.providers.goldens import ALL, BODIES, STREAMS, Golden, run, title

every_answer = pytest.mark.parametrize("golden", ALL, ids=title)
every_stream = pytest.mark.parametrize("golden", STREAMS, ids=title)
HIDDEN = [golden for golden in STREAMS if golden.expected.get("hidden")]
_PAIRS_BYTES_MAX = 420


def without_usage_chunk(data: bytes) -> bytes:
    """The stream as the client gets it when it did not ask for usage: that event is gone, nothing else."""
    events = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)|(?<=\r\r)", data)
    kept = [event for event in events if not (b"_tokens" in event and re.search(rb'"choices"\s*:\s*\[\s*\]', event))]
    assert len(kept) == len(events) - 1
    return b"".join(kept)


@every_answer
def test_an_answer_fed_whole_passes_unchanged_and_reports_its_usage(golden: Golden) -> None:
    scanner = golden.scanner()
    assert run(scanner, [golden.data]) == golden.data
    golden.check(scanner.outcome())
    assert scanner.complete is golden.expected.get("complete", True)


@every_answer
def test_an_answer_cut_at_any_byte_is_the_same_answer(golden: Golden) -> None:
    for cut in range(1, len(golden.data)):
        scanner = golden.scanner()
        assert run(scanner, [golden.data[:cut], golden.data[cut:]]) == golden.data, cut
        golden.check(scanner.outcome())


@every_answer
def test_who_asks_in_the_middle_what_came_of_an_answer_changes_nothing(golden: Golden) -> None:
    scanner = golden.scanner()
    sent = b""
    for at in range(0, len(golden.data), 50):
        sent += scanner.feed(golden.data[at : at + 50])
        scanner.outcome()
        scanner.output_tokens_seen()
    assert sent + scanner.finish() == golden.data
    golden.check(scanner.outcome())


@every_answer
def test_an_answer_that_drips_byte_by_byte_is_the_same_answer(golden: Golden) -> None:
    scanner = golden.scanner()
    assert run(scanner, [bytes([byte]) for byte in golden.data]) == golden.data
    golden.check(scanner.outcome())


@pytest.mark.parametrize("golden", [g for g in STREAMS if len(g.data) <= _PAIRS_BYTES_MAX], ids=title)
def test_a_short_stream_cut_at_any_two_bytes_is_the_same_stream(golden: Golden) -> None:
    for first in range(1, len(golden.data)):
        for second in range(first + 1, len(golden.data)):
            scanner = golden.scanner(hidden=True)
            pieces = [golden.data[:first], golden.data[first:second], golden.data[second:]]
            assert run(scanner, pieces) == golden.data, (first, second)
            golden.check(scanner.outcome())


@every_stream
def test_pieces_of_any_size_are_the_same_stream(golden: Golden) -> None:
    for size in (2, 3, 5, 7, 64, 100, 1000, 1460):
        scanner = golden.scanner()
        pieces = [golden.data[at : at + size] for at in range(0, len(golden.data), size)]
        assert run(scanner, pieces) == golden.data, size
        golden.check(scanner.outcome())


# --- the hidden usage chunk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", HIDDEN, ids=title)
def test_the_usage_chunk_that_nobody_asked_for_is_hidden_whatever_the_cut(golden: Golden) -> None:
    wanted = without_usage_chunk(golden.data)
    for cut in range(len(golden.data)):
        scanner = golden.scanner(hidden=True)
        assert run(scanner, [golden.data[:cut], golden.data[cut:]]) == wanted, cut
        golden.check(scanner.outcome())


@pytest.mark.parametrize("golden", HIDDEN, ids=title)
def test_the_usage_chunk_is_hidden_byte_by_byte(golden: Golden) -> None:
    scanner = golden.scanner(hidden=True)
    assert run(scanner, [bytes([byte]) for byte in golden.data]) == without_usage_chunk(golden.data)
    golden.check(scanner.outcome())


@pytest.mark.parametrize("golden", [g for g in STREAMS if g not in HIDDEN], ids=title)
def test_nothing_else_is_ever_hidden(golden: Golden) -> None:
    for size in (1, 10, len(golden.data)):
        scanner = golden.scanner(hidden=True)
        pieces = [golden.data[at : at + size] for at in range(0, len(golden.data), size)]
        assert run(scanner, pieces) == golden.data
        golden.check(scanner.outcome())


def test_chunks_of_whole_events_pass_as_the_very_same_object() -> None:
    for golden in STREAMS:
        for event in re.split(rb"(?<=\n\n)", golden.data):
            if event.endswith(b"\n\n") and b"\r" not in golden.data:
                scanner = golden.scanner()
                assert scanner.feed(event) is event


# --- answers that break off --------------------------------------------------------------------------------------


@every_stream
def test_the_client_of_a_broken_stream_has_whole_events_only(golden: Golden) -> None:
    for cut in range(len(golden.data)):
        scanner = golden.scanner()
        given = scanner.feed(golden.data[:cut])
        assert golden.data.startswith(given)
        assert scanner.event_boundary()
        assert given == b"" or given.endswith((b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\r", b"\r\n\n"))


@every_stream
def test_usage_of_a_broken_stream_never_shrinks_as_more_of_it_comes(golden: Golden) -> None:
    if golden.expected["outcome"] != "exact":
        return
    scanner = golden.scanner()
    seen = 0
    for at in range(0, len(golden.data), 16):
        scanner.feed(golden.data[at : at + 16])
        assert scanner.output_tokens_seen() >= seen
        seen = scanner.output_tokens_seen()
        outcome = scanner.outcome()
        if isinstance(outcome, AtLeast):
            assert outcome.usage.input_total > 0 or golden.usage.input_total == 0
    scanner.finish()
    golden.check(scanner.outcome())


@every_answer
def test_before_the_first_byte_nothing_was_served(golden: Golden) -> None:
    scanner = golden.scanner()
    assert scanner.outcome() == NotServed()
    assert not scanner.complete
    assert scanner.event_boundary()


@pytest.mark.parametrize("golden", BODIES, ids=title)
def test_a_whole_answer_that_breaks_off_is_counted_by_what_came(golden: Golden) -> None:
    whole = golden.scanner()
    whole.feed(golden.data)
    for cut in range(1, len(golden.data)):
        scanner = golden.scanner()
        scanner.feed(golden.data[:cut])
        outcome = scanner.outcome()
        assert isinstance(outcome, AtLeast)
        assert not scanner.complete
        assert 0 < outcome.usage.output <= max(cut, whole.output_tokens_seen() + 4)  # half a word, half an escape
    assert scanner.output_tokens_seen() == whole.output_tokens_seen() > 0
