"""What we take from providers and what we say ourselves parses in the official SDKs, into the right types."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway import errors
from gateway.providers import models
from gateway.providers.adapter import Scanner
from gateway.providers.sse import event_data, events
from tests.unit.providers.goldens import ADAPTERS, BODIES, STREAMS, Golden, title
from tests.unit.providers.sdks import always, anthropic_client, openai_client, stream_of

STRICT: dict[tuple[str, bool], TypeAdapter[Any]] = {
    ("anthropic", True): TypeAdapter(RawMessageStreamEvent),
    ("anthropic", False): TypeAdapter(Message),
    ("openai_chat", True): TypeAdapter(ChatCompletionChunk),
    ("openai_chat", False): TypeAdapter(ChatCompletion),
    ("openai_responses", True): TypeAdapter(ResponseStreamEvent),
    ("openai_responses", False): TypeAdapter(Response),
}
PARSED = [golden for golden in STREAMS if golden.expected.get("sdk", True)]
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


def read(dialect: str, data: bytes) -> list[Any]:
    """The events that the SDK makes of a stream."""
    if dialect == "anthropic":
        client = anthropic_client(stream_of(data))
        return list(client.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True))
    sdk = openai_client(stream_of(data))
    if dialect == "openai_chat":
        return list(sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    return list(sdk.responses.create(model="m", input="Hello", stream=True))


def visible(dialect: str, parsed: list[Any]) -> str:
    """The output that an application would see."""
    pieces: list[str] = []
    for event in parsed:
        if dialect == "anthropic" and event.type == "content_block_delta":
            delta = event.delta
            pieces.append(
                getattr(delta, "text", None) or getattr(delta, "thinking", None) or getattr(delta, "partial_json", "")
            )
        elif dialect == "openai_chat" and event.choices:
            delta = event.choices[0].delta
            pieces.append(delta.content or "")
            pieces.extend(call.function.arguments or "" for call in delta.tool_calls or ())
        elif dialect == "openai_responses" and event.type.endswith(".delta"):
            pieces.append(event.delta)
    return "".join(pieces)


@pytest.mark.parametrize("golden", PARSED, ids=title)
def test_a_golden_stream_is_what_the_sdk_reads(golden: Golden) -> None:
    failure = golden.expected.get("error")
    if failure is None:
        parsed = read(golden.dialect, golden.data)
        if golden.expected["text"] is not None:
            assert visible(golden.dialect, parsed) == golden.expected["text"]
        return
    sdk = anthropic if golden.dialect == "anthropic" else openai
    with pytest.raises(sdk.APIError) as raised:
        read(golden.dialect, golden.data)
    if golden.dialect == "anthropic":
        assert raised.value.type == "overloaded_error"  # type: ignore[attr-defined]


@pytest.mark.parametrize("golden", [g for g in PARSED if g.expected.get("strict", True)], ids=title)
def test_every_event_of_a_golden_stream_has_all_that_the_sdk_types_promise(golden: Golden) -> None:
    known = STRICT[golden.dialect, True]
    for event in events(golden.data):
        name, data = event_data(event)
        if data.startswith(b"[DONE]") or name in (b"ping", b"error") or b'"error":{"message"' in data:
            continue
        known.validate_python(json.loads(data))


@pytest.mark.parametrize("golden", BODIES, ids=title)
def test_a_golden_body_has_all_that_the_sdk_types_promise(golden: Golden) -> None:
    STRICT[golden.dialect, False].validate_python(json.loads(golden.data))
    answer = always(200, golden.data)
    if golden.dialect == "anthropic":
        message = anthropic_client(answer).messages.create(model="m", max_tokens=9, messages=MESSAGES)
        block = message.content[0]
        assert isinstance(block, anthropic.types.TextBlock)
        assert block.text == golden.expected["text"]
    elif golden.dialect == "openai_chat":
        completion = openai_client(answer).chat.completions.create(model="m", messages=MESSAGES)
        assert completion.choices[0].message.content == golden.expected["text"]
    else:
        assert openai_client(answer).responses.create(model="m", input="Hi").output_text == golden.expected["text"]


# --- our own errors ----------------------------------------------------------------------------------------------

DETAIL = errors.RefusalDetail(
    scope="account",
    limit="6000",
    used="5990",
    held="0",
    needed="120",
    available="10",
    resets_at="2026-12-01T00:00:00Z",
    hint="Upgrade.",
    plans=("pro",),
)

LOGIN = ("AuthenticationError", "authentication_error", None, "invalid_request_error", "invalid_api_key")
BILLING = (None, "billing_error", None, "insufficient_quota", "insufficient_quota")
LASTING = ("RateLimitError", "rate_limit_error", "enforced_spend_limit_reached", "insufficient_quota")
PASSING = ("RateLimitError", "rate_limit_error", "ramp_limit_exceeded", "rate_limit_exceeded", "rate_limit_exceeded")
OURS = ("InternalServerError", "api_error", None, "server_error")


def denied(code: str) -> tuple[str | None, ...]:
    return ("PermissionDeniedError", "permission_error", None, "invalid_request_error", code)


# (error, (Anthropic's class, type, error_code, OpenAI's type, code)): CONTRACT §3, row by row
REFUSALS = [
    (errors.MissingApiKey, LOGIN),
    (errors.InvalidApiKey, LOGIN),
    (errors.AccountSuspended, denied("account_suspended")),
    (errors.TrialExpired, BILLING),
    (errors.SubscriptionInactive, BILLING),
    (errors.FeatureNotInPlan, denied("feature_not_in_plan")),
    (errors.ModelNotInPlan, denied("model_not_in_plan")),
    (errors.LimitExceeded, (*LASTING, "insufficient_quota")),
    (errors.InsufficientTokens, (*LASTING, "insufficient_quota")),
    (errors.BudgetExceeded, (*LASTING, "insufficient_quota")),
    (errors.CallTooLarge, (*LASTING, "insufficient_quota")),
    (errors.HeldElsewhere, PASSING),
    (errors.RateLimited, PASSING),
    (errors.ConcurrencyLimited, PASSING),
    (
        errors.IdempotencyConflict,
        ("ConflictError", "conflict_error", None, "invalid_request_error", "idempotency_conflict"),
    ),
    (errors.UnknownModel, ("NotFoundError", "not_found_error", None, "invalid_request_error", "model_not_found")),
    (errors.PriceMissing, (*OURS, "price_missing")),
    (errors.QuotaUnavailable, (*OURS, "quota_unavailable")),
    (errors.Overloaded, (*OURS, "overloaded")),
    (errors.UpstreamMisconfigured, (*OURS, "upstream_misconfigured")),
    (errors.UpstreamUnreachable, (*OURS, "upstream_unreachable")),
    (errors.UpstreamTimeout, ("InternalServerError", "timeout_error", None, "server_error", "upstream_timeout")),
]


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: row[0].code)
def test_a_refusal_becomes_the_sdks_own_exception(row: tuple[Any, ...]) -> None:
    kind, (class_name, anthropic_type, error_code, openai_type, openai_code) = row
    error: errors.TollgateError = kind(detail=DETAIL, title="Title")
    body = ADAPTERS["anthropic"].error_body(error, "req_1")
    with pytest.raises(anthropic.APIStatusError) as refused:
        anthropic_client(always(error.status, body, **{"request-id": "req_1"})).messages.create(
            model="m", max_tokens=9, messages=MESSAGES
        )
    assert class_name is None or isinstance(refused.value, getattr(anthropic, class_name))
    assert (refused.value.type, refused.value.error_code) == (anthropic_type, error_code)
    assert refused.value.api_message == error.message
    member = json.loads(body)["error"]["tollgate"]
    assert member["reason"] == error.code
    assert {name: member[name] for name in ("scope", "needed", "available")} == {
        "scope": "account",
        "needed": "120",
        "available": "10",
    }
    assert member["plans"] == ["pro"]

    for name in ("openai_chat", "openai_responses"):
        body = ADAPTERS[name].error_body(error, "req_1")
        with pytest.raises(openai.APIStatusError) as failed:
            openai_client(always(error.status, body)).responses.create(model="m", input="Hello")
        assert class_name is None or isinstance(failed.value, getattr(openai, class_name))
        assert (failed.value.type, failed.value.code, failed.value.param) == (openai_type, openai_code, None)
        assert failed.value.body["tollgate"]["reason"] == error.code  # type: ignore[index]
        assert error.message in failed.value.message


def test_a_spend_limit_is_anthropics_typed_error() -> None:
    body = ADAPTERS["anthropic"].error_body(errors.LimitExceeded(), "req_1")
    with pytest.raises(anthropic.EnforcedSpendLimitReachedError):
        anthropic_client(always(429, body)).messages.create(model="m", max_tokens=9, messages=MESSAGES)


def test_a_bad_request_names_its_field() -> None:
    error = errors.BadRequest("invalid_max_tokens", "No.", param="max_tokens")
    with pytest.raises(openai.BadRequestError) as raised:
        body = ADAPTERS["openai_chat"].error_body(error, "req_1")
        openai_client(always(400, body)).chat.completions.create(model="m", messages=MESSAGES)
    assert (raised.value.code, raised.value.param) == ("invalid_max_tokens", "max_tokens")
    assert raised.value.body["tollgate"]["reason"] == "invalid_max_tokens"  # type: ignore[index]


# --- our own events ----------------------------------------------------------------------------------------------


def cut_after(dialect: str, name: str, count: int) -> tuple[Scanner, bytes]:
    """A scanner that has seen the first events of a golden stream, and these events."""
    golden = next(golden for golden in STREAMS if (golden.dialect, golden.name) == (dialect, name))
    scanner = golden.scanner()
    begun = b"".join(list(events(golden.data))[:count])
    return scanner, scanner.feed(begun)


@pytest.mark.parametrize(
    ("dialect", "name"),
    [("anthropic", "thinking_tool.sse"), ("openai_chat", "hello.sse"), ("openai_responses", "hello.sse")],
)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_our_error_in_the_middle_of_a_stream_is_raised_by_the_sdk(dialect: str, name: str, count: int) -> None:
    scanner, begun = cut_after(dialect, name, count)
    event = ADAPTERS[dialect].error_event(errors.UpstreamInterrupted(), "req_1", scanner)
    sdk = anthropic if dialect == "anthropic" else openai
    with pytest.raises(sdk.APIError, match="broke off"):
        read(dialect, begun + event)


def test_a_responses_error_event_goes_on_with_the_numbering() -> None:
    scanner, _ = cut_after("openai_responses", "hello.sse", 6)
    event = ADAPTERS["openai_responses"].error_event(errors.UpstreamInterrupted(), "req_1", scanner)
    name, data = event_data(event)
    content = json.loads(data)
    assert name == b"error"
    assert content["sequence_number"] == 6
    assert (content["type"], content["code"], content["param"]) == ("error", "upstream_interrupted", None)
    assert content["error"]["code"] == "upstream_interrupted"
    STRICT["openai_responses", True].validate_python(content)


# --- models ------------------------------------------------------------------------------------------------------


def test_models_are_listed_in_the_shape_of_either_sdk() -> None:
    ids = ["claude-sonnet-4-5", "gpt-5", "gpt-5"]
    for_openai = openai_client(always(200, models.model_list(ids, "openai"))).models.list()
    assert [model.id for model in for_openai] == ["claude-sonnet-4-5", "gpt-5"]
    for_anthropic = anthropic_client(always(200, models.model_list(ids, "anthropic"))).models.list()
    assert [(model.id, model.type, model.lifecycle) for model in for_anthropic] == [
        ("claude-sonnet-4-5", "model", "active"),
        ("gpt-5", "model", "active"),
    ]
    TypeAdapter(list[anthropic.types.ModelInfo]).validate_python([model.model_dump() for model in for_anthropic])
    one = openai_client(always(200, models.model("gpt-5", "openai"))).models.retrieve("gpt-5")
    assert (one.id, one.object, one.owned_by) == ("gpt-5", "model", "tollgate")
    other = anthropic_client(always(200, models.model("gpt-5", "anthropic"))).models.retrieve("gpt-5")
    assert (other.id, other.created_at.year) == ("gpt-5", 1970)


def test_anthropics_list_has_pages_that_its_sdk_follows() -> None:
    ids = [f"m{number}" for number in range(7)]

    def answer(request: Any) -> Any:
        return always(200, models.model_list(ids, "anthropic", dict(request.url.params)))(request)

    client = anthropic_client(answer)
    assert [model.id for model in client.models.list(limit=3)] == ids
    page = client.models.list(before_id="m5", limit=2)
    assert [model.id for model in page.data] == ["m3", "m4"]
    assert page.has_more is True
    assert json.loads(models.model_list(ids, "anthropic", {"limit": "x", "after_id": "none"}))["has_more"] is False
    assert json.loads(models.model_list([], "anthropic"))["first_id"] is None
