"""How tests steer simulated models: by header and by a marker in the prompt."""

from __future__ import annotations

import pytest

from gateway.simulator.steering import NONE, Reset, Steering, SteeringError, read

CASES: list[tuple[str | None, bytes, Steering]] = [
    # 1. Nothing asked for.
    (None, b"{}", NONE),
    (None, b'{"content":"simulate output=3"}', NONE),
    # 2. Either way of asking, either separator.
    ("output=7,chunk=2", b"{}", Steering(output=7, chunk=2)),
    ("output=7 chunk=2", b"{}", Steering(output=7, chunk=2)),
    (None, b'{"content":"say [[simulate output=7 chunk=2]] please"}', Steering(output=7, chunk=2)),
    (None, b'{"content":"[[simulate cached=1,cache_write_1h=2]]"}', Steering(cached=1, cache_write_1h=2)),
    ("cache-write=5", b"{}", Steering(cache_write=5)),
    # 3. The header wins key by key; of several markers the last counts.
    ("output=9", b"[[simulate output=7 chunk=2]]", Steering(output=9, chunk=2)),
    (None, b"[[simulate output=1 input=4]] ... [[simulate output=2]]", Steering(output=2)),
    # 4. Flags, words, resets.
    ("tool,thinking=1,redirect=0", b"", Steering(tool=True, thinking=True)),
    ("usage=missing,stop=max_tokens", b"", Steering(usage="missing", stop="max_tokens")),
    ("status=529,retry_after=3", b"", Steering(status=529, retry_after=3)),
    ("reset=before", b"", Steering(reset=Reset("before"))),
    ("reset=within:12", b"", Steering(reset=Reset("within", 12))),
    ("stall=0,truncate=2,error_event=3", b"", Steering(stall=0, truncate=2, error_event=3)),
    ("tag=a-b:c", b"", Steering(tag="a-b:c")),
]  # fmt: skip


@pytest.mark.parametrize(("header", "body", "expected"), CASES)
def test_steering_is_read_from_header_and_marker(header: str | None, body: bytes, expected: Steering) -> None:
    assert read(header, body) == expected


@pytest.mark.parametrize(
    "header",
    ["outputs=3", "output=", "output=-1", "output=1.5", "chunk=0", "usage=none", "stop=later", "reset=within",
     "reset=within:x", "reset=soon", "reset=after:3", "tool=yes", "delay=99999999", "output=1e3"],
)  # fmt: skip
def test_what_the_simulator_does_not_know_is_an_error_that_names_it(header: str) -> None:
    with pytest.raises(SteeringError, match=header.partition("=")[0]):
        read(header, b"")


def test_a_marker_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(SteeringError, match="not closed"):
        read(None, b'{"content":"[[simulate output=3"}')
