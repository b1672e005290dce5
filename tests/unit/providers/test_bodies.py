"""Bad bodies: each is refused with its own code and field, whatever the dialect. Numbers are the bad-input table's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.providers import bodies
from tests.unit.providers.goldens import ADAPTERS

GOOD: dict[str, dict[str, Any]] = {
    "anthropic": {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]},
    "openai_chat": {"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}]},
    "openai_responses": {"model": "gpt-5", "input": "Hello"},
}
BOUND = {"anthropic": "max_tokens", "openai_chat": "max_completion_tokens", "openai_responses": "max_output_tokens"}
every_dialect = pytest.mark.parametrize("dialect", list(GOOD))


def refusal(dialect: str, body: bytes) -> tuple[str, str | None]:
    """(code, param) of the refusal of a body."""
    with pytest.raises(BadRequest) as refused:
        ADAPTERS[dialect].parse(body, {})
    assert refused.value.status == 400
    assert len(refused.value.message) < 200
    return refused.value.code, refused.value.param


def body_of(dialect: str, **fields: Any) -> bytes:
    return json.dumps({**GOOD[dialect], **fields}).encode()


RAW = [
    # 1 nothing there
    (b"", "empty_body"),
    (b" \r\n\t", "empty_body"),
    # 2 not JSON
    (b"hello", "invalid_json"),
    (b'{"model": "gpt-5",}', "invalid_json"),
    (b'{"model": "gpt-5"} {}', "invalid_json"),
    (b"{'model': 'gpt-5'}", "invalid_json"),
    (b'{"model": "a\x00b"}', "invalid_json"),
    (b'{"model": "gpt', "invalid_json"),
    # 3 not an object
    (b"[]", "invalid_request"),
    (b"null", "invalid_request"),
    (b'"text"', "invalid_request"),
    (b"17", "invalid_request"),
    (b"true", "invalid_request"),
    # 4, 7 numbers that only some parsers can hold
    (b'{"model": "gpt-5", "temperature": NaN}', "invalid_json"),
    (b'{"model": "gpt-5", "temperature": -Infinity}', "invalid_json"),
    (b'{"model": "gpt-5", "seed": ' + b"9" * 10_000 + b"}", "invalid_json"),
    (b'{"model": "gpt-5", "top_p": 1e999}', "invalid_json"),
    (b'{"max_tokens": 1e999', "invalid_json"),
    (b"[1e999]", "invalid_json"),
    # 6 depth
    (b"[" * 1_000 + b"]" * 1_000, "too_deep"),
    (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
    (b'{"metadata":' * 600 + b"1" + b"}" * 600, "too_deep"),
    (b'{"model":"m","x":' + b"[" * 201 + b"]" * 201 + b"}", "too_deep"),
    # 8 encodings
    (b'{"model": "gpt-5", "user": "\\ud800"}', "invalid_encoding"),
    (b'{"model": "gpt-5", "user": "\\udc00x"}', "invalid_encoding"),
    (b'{"model": "\xff"}', "invalid_encoding"),
    (b'{"model": "\xed\xa0\x80"}', "invalid_encoding"),
    (b'{"model": "\xc0\xaf"}', "invalid_encoding"),
    (b'\xef\xbb\xbf{"model": "gpt-5"}', "invalid_encoding"),
    ('{"model": "gpt-5"}'.encode("utf-16"), "invalid_encoding"),
    ('{"model": "gpt-5"}'.encode("utf-16-le"), "invalid_encoding"),
    ('{"model": "gpt-5"}'.encode("utf-32-be"), "invalid_encoding"),
    # 13
    (b"{}", "invalid_request"),
]


@every_dialect
@pytest.mark.parametrize(("raw", "code"), RAW, ids=[f"{n}-{code}" for n, (_, code) in enumerate(RAW)])
def test_what_is_no_good_json_object_is_refused_with_its_own_code(dialect: str, raw: bytes, code: str) -> None:
    assert refusal(dialect, raw)[0] == code


def test_invalid_json_tells_the_line_and_the_column() -> None:
    with pytest.raises(BadRequest, match="line 2 column 12"):
        bodies.parse_object(b'{\n  "model": gpt\n}')


def test_a_message_never_repeats_what_was_sent() -> None:
    for raw in (b'{"model": "tg_secret\x00"}', b'{"api_key": "tg_secret"}', b'{"model": "tg_secret", "model": "x"}'):
        with pytest.raises(BadRequest) as refused:
            ADAPTERS["openai_chat"].parse(raw, {})
        assert "tg_secret" not in refused.value.message


# --- duplicates --------------------------------------------------------------------------------------------------

PADDING = json.dumps("x" * 5_000).encode()
DUPLICATES = [
    (b'{"model": "a", "model": "b"}', "model"),
    (b'{"model": "a", "max_tokens": 1, "max_tokens": 100000}', "max_tokens"),
    (b'{"max_output_tokens": 1, "model": "a", "max_output_tokens": null}', "max_output_tokens"),
    (b'{"model": "a", "stream": true, "stream": false}', "stream"),
    (b'{"model": "a", "n": 1, "n": 100}', "n"),
    (b'{"model": "a", "best_of": 1, "best_of": 100}', "best_of"),
    (b'{"model": "a", "mod\\u0065l": "b"}', "model"),
    (b'{"model": "a", "\\u006d\\u006F\\u0064\\u0065\\u006c": "b"}', "model"),
    (b'{"model" : "a", "user": "model", "model"\n\t: "b"}', "model"),
    (b'{"max_completion_token\\u0073": 1, "model": "a", "max_completion_tokens": 2}', "max_completion_tokens"),
    (b'{"model": "a", "padding": ' + PADDING + b', "model": "b"}', "model"),
    (b'{"model": "a", "padding": ' + PADDING + b', "max\\u005ftokens": 1, "max_tokens": 2}', "max_tokens"),
]


@every_dialect
@pytest.mark.parametrize(("raw", "name"), DUPLICATES)
def test_a_field_that_metering_reads_is_never_there_twice(dialect: str, raw: bytes, name: str) -> None:
    assert refusal(dialect, raw) == ("duplicate_key", name)


@every_dialect
@pytest.mark.parametrize("padding", ["", "x" * 5_000])
def test_the_same_words_elsewhere_are_no_duplicates(dialect: str, padding: str) -> None:
    body = body_of(dialect, metadata={"model": "model", "n": "stream", "x": padding}, user='"model": "x"')
    call = ADAPTERS[dialect].parse(body, {})
    assert call.model == GOOD[dialect]["model"]


# --- fields ------------------------------------------------------------------------------------------------------

FIELDS: list[tuple[dict[str, Any], str, str]] = [
    # 14, 18 model
    ({"model": 5}, "invalid_request", "model"),
    ({"model": None}, "invalid_request", "model"),
    ({"model": ""}, "invalid_request", "model"),
    ({"model": ["gpt-5"]}, "invalid_request", "model"),
    ({"model": "../../admin"}, "invalid_request", "model"),
    ({"model": "gpt-5\r\nX-Injected: 1"}, "invalid_request", "model"),
    ({"model": "m" * 10_000}, "invalid_request", "model"),
    # 24
    ({"stream": "yes"}, "invalid_request", "stream"),
    ({"stream": 1}, "invalid_request", "stream"),
    ({"stream": []}, "invalid_request", "stream"),
    # 26
    ({"api_base": "http://evil.test"}, "field_not_allowed", "api_base"),
    ({"base_url": "http://evil.test"}, "field_not_allowed", "base_url"),
    ({"api_key": "sk-x"}, "field_not_allowed", "api_key"),
    ({"extra_headers": {"x": "y"}}, "field_not_allowed", "extra_headers"),
    # shapes
    ({"tools": {}}, "invalid_request", "tools"),
    ({"tools": "all"}, "invalid_request", "tools"),
]


@every_dialect
@pytest.mark.parametrize(("fields", "code", "param"), FIELDS)
def test_a_bad_field_is_named(dialect: str, fields: dict[str, Any], code: str, param: str) -> None:
    assert refusal(dialect, body_of(dialect, **fields)) == (code, param)


@every_dialect
@pytest.mark.parametrize("value", ["-1", "1.5", '"5"', "true", "1e999", "9223372036854775808", "1e3", "[]", "{}"])
def test_a_bound_that_is_no_positive_integer_is_refused(dialect: str, value: str) -> None:
    fields = {name: value for name, value in GOOD[dialect].items() if name != "max_tokens"}
    body = json.dumps(fields)[:-1] + f', "{BOUND[dialect]}": {value}}}'
    assert refusal(dialect, body.encode()) == ("invalid_max_tokens", BOUND[dialect])


def test_a_bound_of_zero_warms_anthropics_cache_and_is_nothing_elsewhere() -> None:
    assert ADAPTERS["anthropic"].parse(body_of("anthropic", max_tokens=0), {}).output_tokens_asked == 0
    assert refusal("openai_chat", body_of("openai_chat", max_tokens=0)) == ("invalid_max_tokens", "max_tokens")
    assert refusal("openai_responses", body_of("openai_responses", max_output_tokens=0))[0] == "invalid_max_tokens"


@pytest.mark.parametrize("messages", [None, [], {}, "hi", ["hi"], [None], [[]]])
@pytest.mark.parametrize("dialect", ["anthropic", "openai_chat"])
def test_messages_are_a_list_of_objects_that_is_not_empty(dialect: str, messages: Any) -> None:
    assert refusal(dialect, body_of(dialect, messages=messages)) == ("invalid_request", "messages")


@pytest.mark.parametrize("name", ["n", "best_of"])
@pytest.mark.parametrize("value", [0, -1, 10**6, 1.5, "2", True])
def test_a_number_of_choices_is_from_1_to_128(name: str, value: Any) -> None:
    assert refusal("openai_chat", body_of("openai_chat", **{name: value})) == ("invalid_request", name)


CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": 5, "max_completion_tokens": 5}, "invalid_request", "max_tokens"),
    ({"stream": True, "stream_options": "usage"}, "invalid_request", "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "invalid_request", "include_usage"),
]


@pytest.mark.parametrize(("fields", "code", "param"), CHAT)
def test_bad_fields_of_chat(fields: dict[str, Any], code: str, param: str) -> None:
    assert refusal("openai_chat", body_of("openai_chat", **fields)) == (code, param)


RESPONSES: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "invalid_request", "input"),
    ({"input": []}, "invalid_request", "input"),
    ({"input": 5}, "invalid_request", "input"),
    ({"input": {}}, "invalid_request", "input"),
    ({"input": ["text"]}, "invalid_request", "input"),
    ({"background": True}, "field_not_allowed", "background"),
    ({"text": "plain"}, "invalid_request", "text"),
]


@pytest.mark.parametrize(("fields", "code", "param"), RESPONSES)
def test_bad_fields_of_responses(fields: dict[str, Any], code: str, param: str) -> None:
    assert refusal("openai_responses", body_of("openai_responses", **fields)) == (code, param)


@pytest.mark.parametrize("budget", [None, "1024", -1, 0, 1.5, True])
def test_a_thinking_budget_is_a_positive_integer(budget: Any) -> None:
    thinking = {"type": "enabled", "budget_tokens": budget}
    assert refusal("anthropic", body_of("anthropic", thinking=thinking))[1] == "thinking.budget_tokens"
    assert refusal("anthropic", body_of("anthropic", thinking="on")) == ("invalid_request", "thinking")


# --- what is right -----------------------------------------------------------------------------------------------


def test_what_a_call_asks_for_is_read() -> None:
    call = ADAPTERS["anthropic"].parse(
        body_of("anthropic", stream=True, thinking={"type": "enabled", "budget_tokens": 2048}, max_tokens=4096), {}
    )
    assert (call.model, call.stream, call.output_tokens_asked) == ("claude-sonnet-4-5", True, 4096)
    assert (call.output_floor, call.choices, call.usage_hidden) == (2048, 1, False)
    call = ADAPTERS["openai_chat"].parse(body_of("openai_chat", n=3, best_of=None, max_tokens=7), {})
    assert (call.stream, call.output_tokens_asked, call.choices, call.usage_hidden) == (False, 7, 3, False)
    call = ADAPTERS["openai_responses"].parse(body_of("openai_responses", previous_response_id="resp_1"), {})
    assert (call.output_tokens_asked, call.extra) == (None, {"context_unseen": "previous_response_id"})


@pytest.mark.parametrize(
    ("options", "hidden"),
    [(None, True), ({}, True), ({"include_usage": False}, True), ({"include_usage": None}, True),
     ({"include_usage": True}, False), ({"include_obfuscation": False}, True)],
)  # fmt: skip
def test_usage_is_hidden_from_who_did_not_ask_for_it(options: Any, hidden: bool) -> None:
    call = ADAPTERS["openai_chat"].parse(body_of("openai_chat", stream=True, stream_options=options), {})
    assert call.usage_hidden is hidden
    assert not ADAPTERS["openai_chat"].parse(body_of("openai_chat", stream_options=options), {}).usage_hidden


@every_dialect
def test_forged_usage_and_unknown_fields_change_nothing(dialect: str) -> None:
    plain = ADAPTERS[dialect].parse(body_of(dialect), {})
    forged = ADAPTERS[dialect].parse(body_of(dialect, usage={"input_tokens": 0}, cost=0, metadata={"tags": ["x"]}), {})
    assert (forged.prompt, forged.output_tokens_asked) == (plain.prompt, plain.output_tokens_asked)


def test_a_body_may_be_as_deep_as_the_limit() -> None:
    depth = bodies.DEPTH_MAX - 1
    assert bodies.parse_object(b'{"x":' + b"[" * depth + b"]" * depth + b"}")["x"]
    with pytest.raises(BadRequest, match="deeper than 200"):
        bodies.parse_object(b'{"x":' + b"[" * (depth + 1) + b"]" * (depth + 1) + b"}")
