"""Upstreams' own errors: whose fault, who may retry, and nothing that names our account."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest, tollgate_member
from gateway.providers import spelling
from gateway.providers.upstream_errors import Fault, fault, mask, mask_events
from tests.unit.providers.goldens import ADAPTERS

OURS = Fault(is_ours=True, is_retryable=True, needs_alert=True)
THEIRS = Fault(is_ours=False, is_retryable=False, needs_alert=False)
PASSING = Fault(is_ours=False, is_retryable=True, needs_alert=False)
BROKE = Fault(is_ours=False, is_retryable=True, needs_alert=True)

FAULTS = [
    (401, b'{"error":{"message":"Incorrect API key provided"}}', OURS),
    (402, b'{"type":"error","error":{"type":"billing_error"}}', OURS),
    (403, b'{"type":"error","error":{"type":"permission_error"}}', OURS),
    (403, b'{"error":{"message":"requires moderation","metadata":{"reasons":["violence"]}}}', THEIRS),
    (400, b'{"error":{"type":"invalid_request_error"}}', THEIRS),
    (400, b'{"error":{"message":"Your credit balance is too low to access the Anthropic API."}}', BROKE),
    (404, b"", THEIRS),
    (413, b"", THEIRS),
    (422, b"", THEIRS),
    (408, b"", PASSING),
    (429, b'{"error":{"code":"rate_limit_exceeded"}}', PASSING),
    (429, b'{"error":{"code":"insufficient_quota"}}', BROKE),
    (500, b"", PASSING),
    (502, b"", PASSING),
    (503, b"", PASSING),
    (504, b"", PASSING),
    (529, b"", PASSING),
]


@pytest.mark.parametrize(("status", "body", "wanted"), FAULTS)
def test_an_error_is_classified_by_status_and_body(status: int, body: bytes, wanted: Fault) -> None:
    assert fault(status, body) == wanted


MASKED = [
    (
        b"Incorrect API key provided: sk-proj-abc123DEF456_x-y. You can find your key",
        b"Incorrect API key provided: sk-***. You can find your key",
    ),
    (b"Incorrect API key provided: sk-ant-***********wxyz.", b"Incorrect API key provided: sk-***."),
    (
        b"Rate limit reached for gpt-5 in organization org-AbCdEf123456 on tokens per min",
        b"Rate limit reached for gpt-5 in organization org-*** on tokens per min",
    ),
    (b"Project `proj_AbC123xyz` does not have access to model", b"Project `proj_***` does not have access to model"),
    (b"workspace wrkspc_011CZkZaBF1tNoB5wlCeusgy", b"workspace wrkspc_***"),
    (
        b"your organization's rate limit (org: 0f9bdd2b-8d22-4a7c-9d2b-1f3e5a7c9b11, model: claude)",
        b"your organization's rate limit (org: ***, model: claude)",
    ),
    (b"key tg-own-secret-1 is wrong", b"key *** is wrong"),
    (b"a task-oriented risk-based disk-usage message", b"a task-oriented risk-based disk-usage message"),
    (b'{"error":{"message":"plain"}}', b'{"error":{"message":"plain"}}'),
]


@pytest.mark.parametrize(("body", "wanted"), MASKED)
def test_what_names_our_account_is_masked(body: bytes, wanted: bytes) -> None:
    assert mask(body, ["tg-own-secret-1", ""]) == wanted


UUID = b"0192f0c4-3f6e-7c1a-9f00-1234567890ab"
PLAIN = b'data: {"choices":[{"delta":{"content":"the id is ' + UUID + b', \\"error\\": {org-abcdef123456}"}}]}\n\n'
NO_ERROR = b'data: {"response":{"error":null,"id":"org-abcdef123456"}}\n\n'


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        (PLAIN, PLAIN),
        (NO_ERROR, NO_ERROR),
        (
            b'event: error\ndata: {"type": "error", "error": {"message": "org-abcdef123456, key k3y"}}\n\n',
            b'event: error\ndata: {"type": "error", "error": {"message": "org-***, key ***"}}\n\n',
        ),
        (b'data: {"error":{"message":"' + UUID + b'"}}\n\n', b'data: {"error":{"message":"***"}}\n\n'),
        (b'data: {"type":"error","message":"k3y"}\r\n\r\n', b'data: {"type":"error","message":"***"}\r\n\r\n'),
    ],
)
def test_only_an_error_within_a_stream_is_masked(events: bytes, wanted: bytes) -> None:
    assert mask_events(events, ["k3y"]) == wanted
    assert mask_events(PLAIN + events + PLAIN, ["k3y"]) == PLAIN + wanted + PLAIN


# --- limits ------------------------------------------------------------------------------------------------------

DURATIONS = [(-5, "0ms"), (0, "0ms"), (120, "120ms"), (1000, "1s"), (1001, "2s"), (59_000, "59s"), (360_000, "6m0s")]


@pytest.mark.parametrize(("milliseconds", "wanted"), [*DURATIONS, (3_605_000, "1h0m5s")])
def test_durations_are_written_as_openai_writes_them(milliseconds: int, wanted: str) -> None:
    assert spelling.duration(milliseconds) == wanted


def test_each_dialect_has_its_own_rate_limit_headers() -> None:
    now_ms = 1_700_000_000_000
    for dialect in ("openai_chat", "openai_responses"):
        headers = ADAPTERS[dialect].rate_limit_headers(
            {"requests": (60, -2, now_ms + 61_000), "uses": (1, 1, now_ms)}, now_ms
        )
        assert headers == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m1s",
        }
    headers = ADAPTERS["anthropic"].rate_limit_headers({"tokens": (60, 5, now_ms + 1), "uses": (1, 1, now_ms)}, now_ms)
    assert headers == {
        "anthropic-ratelimit-tokens-limit": "60",
        "anthropic-ratelimit-tokens-remaining": "5",
        "anthropic-ratelimit-tokens-reset": "2023-11-14T22:13:21Z",
    }


def test_an_error_without_facts_still_tells_its_reason() -> None:
    member = tollgate_member(BadRequest("empty_body", "Empty."))
    assert member["reason"] == "empty_body"
    assert {name for name, value in member.items() if value} == {"reason"}
