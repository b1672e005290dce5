"""A request that is not right is refused with the code that says why: nothing is forwarded, nothing held, nothing
written."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from tests.support.bills import STEPS, assert_settled_to, tokens_served, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, RESPONSES, Dialect
from tests.support.gateways import Local
from tests.support.simulators import LocalModels
from tests.support.tuning import tune, tune_models


async def post(
    gateway: Local, dialect: Dialect, key: str | None, data: Any, **headers: str
) -> tuple[int, Any, dict[str, Any]]:
    """(status, headers, answer) of a body sent as it is."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + dialect.path, data=data, headers=dialect.headers(key, **headers)) as answer,
    ):
        return answer.status, answer.headers, orjson.loads(await answer.read())


async def nothing_happened(gateway: Local, models: LocalModels, account_id: str) -> None:
    await gateway.settled()
    assert not await models.journal.entries()
    assert not len(gateway.worker.gateway.quota.holds)
    assert not await usage_rows(gateway, account_id)


def with_fields(dialect: Dialect, **fields: Any) -> bytes:
    body: bytes = orjson.dumps({**dialect.body(), **fields})
    return body


def without(dialect: Dialect, name: str) -> bytes:
    body = dialect.body()
    del body[name]
    return orjson.dumps(body)


def bound(dialect: Dialect, written: str) -> bytes:
    """A body with the output bound written so."""
    return with_fields(dialect, **{dialect.bound: 777}).replace(b"777", written.encode())


def content(dialect: Dialect) -> str:
    return "input" if dialect is RESPONSES else "messages"


def bodies(dialect: Dialect) -> list[tuple[str, bytes, str, str | None]]:
    """(what is wrong, body, code, param): rows 1 to 30 of the list of bad inputs."""
    name = content(dialect)
    good = with_fields(dialect)
    table: list[tuple[str, bytes, str, str | None]] = [
        ("1 empty", b"", "empty_body", None),
        ("1 white space", b" \n", "empty_body", None),
        ("2 not JSON", b'{"model":', "invalid_json", None),
        ("2 two values", good + b"{}", "invalid_json", None),
        ("3 a list", b"[%b]" % good, "invalid_request", None),
        ("3 a string", b'"model"', "invalid_request", None),
        ("3 null", b"null", "invalid_request", None),
        ("4 NaN", good.replace(b"{", b'{"temperature":NaN,', 1), "invalid_json", None),
        ("4 Infinity", good.replace(b"{", b'{"temperature":-Infinity,', 1), "invalid_json", None),
        ("5 model twice", good.replace(b"{", b'{"model":"gpt-5",', 1), "duplicate_key", "model"),
        ("5 model twice, spelled", good.replace(b"{", b'{"mo\\u0064el":"gpt-5",', 1), "duplicate_key", "model"),
        ("5 bound twice", bound(dialect, "5").replace(b"{", b'{"%b":9,' % dialect.bound.encode(), 1),
         "duplicate_key", dialect.bound),
        ("6 deep", good.replace(b"{", b'{"x":%b1%b,' % (b"[" * 1000, b"]" * 1000), 1), "too_deep", None),
        ("7 a 10,000-digit bound", bound(dialect, "9" * 10_000), "invalid_max_tokens", dialect.bound),
        ("8 half a surrogate", good.replace(b"sea", b"\\ud800"), "invalid_encoding", None),
        ("8 not UTF-8", good.replace(b"sea", b"\xff\xfe"), "invalid_encoding", None),
        ("8 BOM", b"\xef\xbb\xbf" + good, "invalid_encoding", None),
        ("8 UTF-16", good.decode().encode("utf-16"), "invalid_encoding", None),
        ("13 no model", without(dialect, "model"), "invalid_request", "model"),
        ("14 model a number", with_fields(dialect, model=5), "invalid_request", "model"),
        ("14 model null", with_fields(dialect, model=None), "invalid_request", "model"),
        ("14 model empty", with_fields(dialect, model=""), "invalid_request", "model"),
        ("18 model with ../", with_fields(dialect, model="../gpt-5"), "invalid_request", "model"),
        ("18 model with CRLF", with_fields(dialect, model="gpt-5\r\nx: y"), "invalid_request", "model"),
        ("18 model of 10 KB", with_fields(dialect, model="gpt-" + "5" * 10_000), "invalid_request", "model"),
        ("19 nothing to answer", without(dialect, name), "invalid_request", name),
        ("19 empty", with_fields(dialect, **{name: []}), "invalid_request", name),
        ("24 stream a string", with_fields(dialect, stream="yes"), "invalid_request", "stream"),
        ("26 api_base", with_fields(dialect, api_base="http://evil"), "field_not_allowed", "api_base"),
        ("26 base_url", with_fields(dialect, base_url="http://evil"), "field_not_allowed", "base_url"),
        ("26 api_key", with_fields(dialect, api_key="sk-x"), "field_not_allowed", "api_key"),
        ("26 extra_headers", with_fields(dialect, extra_headers={"x": "y"}), "field_not_allowed", "extra_headers"),
    ]  # fmt: skip
    table += [
        (f"20 bound {written}", bound(dialect, written), "invalid_max_tokens", dialect.bound)
        for written in ("-1", "1.5", '"5"', "true", "1e999", "9223372036854775808", "[]")
    ]
    if dialect is not ANTHROPIC:  # where 0 warms the cache
        table.append(("20 bound 0", bound(dialect, "0"), "invalid_max_tokens", dialect.bound))
    if dialect is not RESPONSES:
        table.append(("19 not a list", with_fields(dialect, messages="hello"), "invalid_request", "messages"))
        table.append(("19 not objects", with_fields(dialect, messages=["hello"]), "invalid_request", "messages"))
    if dialect is CHAT:
        both = with_fields(dialect, max_tokens=5, max_completion_tokens=5)
        table.append(("22 both bounds", both, "invalid_request", "max_tokens"))
        table += [
            (f"23 {field}={value}", with_fields(dialect, **{field: value}), "invalid_request", field)
            for field in ("n", "best_of")
            for value in (0, -1, 1_000_000, 1.5, "2")
        ]
        options = with_fields(dialect, stream=True, stream_options=[])
        table.append(("25 stream_options a list", options, "invalid_request", "stream_options"))
    return table


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_bad_body_is_refused_with_its_code_and_field(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("pro")
    for what, body, code, param in bodies(dialect):
        status, headers, answer = await post(gateway, dialect, key, body)
        assert (status, dialect.error_code(answer)) == (400, code), f"{what}: {answer}"
        if dialect is not ANTHROPIC:
            assert answer["error"]["param"] == param, what
            assert answer["error"]["type"] == "invalid_request_error", what
        else:
            assert answer["error"]["type"] == "invalid_request_error" and answer["type"] == "error", what
        assert headers["x-should-retry"] == "false" and "retry-after" not in headers, what
        assert "evil" not in str(answer) and "5555" not in str(answer), "what was sent is not repeated"
    await nothing_happened(gateway, models, account.id)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_what_is_sent_in_another_form_than_plain_json_is_refused(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """Rows 9 to 12: too large, declared and not; compressed, in whatever layers; another content type."""
    key, account = await gateway.account("pro")
    tune(gateway, body_max_bytes=10_000)
    good = with_fields(dialect)
    large = with_fields(dialect, metadata={"x": "y" * 20_000})
    bomb = gzip.compress(b" " * 50_000_000)

    async def in_chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 5_000):
            yield data[start : start + 5_000]

    table: list[tuple[str, Any, dict[str, str], int, str]] = [
        ("9 declared", large, {}, 413, "body_too_large"),
        ("9 chunked", in_chunks(large), {}, 413, "body_too_large"),
        ("10 gzip", gzip.compress(good), {"content_encoding": "gzip"}, 415, "unsupported_media_type"),
        ("10 stacked", good, {"content_encoding": "gzip, gzip"}, 415, "unsupported_media_type"),
        ("10 unknown", good, {"content_encoding": "zip"}, 415, "unsupported_media_type"),
        ("11 a bomb", bomb, {"content_encoding": "gzip"}, 415, "unsupported_media_type"),
        ("12 a form", good, {"content_type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ("12 text", good, {"content_type": "text/plain; charset=utf-8"}, 415, "unsupported_media_type"),
    ]
    for what, data, headers, status, code in table:
        got, _, answer = await post(gateway, dialect, key, data, **headers)
        assert (got, dialect.error_code(answer)) == (status, code), what
    await nothing_happened(gateway, models, account.id)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_model_that_is_not_served_is_refused_before_anything_is_held(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """Rows 15 and 17; and a model that exists, but does not speak this dialect."""
    key, account = await gateway.account("pro")
    status, _, answer = await post(gateway, dialect, key, with_fields(dialect, model="mystery-1"))
    assert (status, dialect.error_code(answer)) == (404, "unknown_model")
    other = CHAT.model if dialect is ANTHROPIC else ANTHROPIC.model
    status, _, answer = await post(gateway, dialect, key, with_fields(dialect, model=other))
    assert (status, dialect.error_code(answer)) == (404, "unknown_model")
    assert dialect.path in answer["error"]["message"]
    tune_models(gateway, rates=())
    status, headers, answer = await post(gateway, dialect, key, with_fields(dialect))
    assert (status, dialect.error_code(answer)) == (503, "price_missing")
    assert headers["x-should-retry"] == "false"
    await nothing_happened(gateway, models, account.id)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_bound_above_the_models_most_is_lowered_and_said_so(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """Row 21."""
    key = await gateway.key("drain")
    tune_models(gateway, output_max=300)
    body = dialect.body("output=2000 tag=lowered", **{dialect.bound: 5000})
    status, headers, _ = await post(gateway, dialect, key, orjson.dumps(body))
    (entry,) = await models.journal.ended("lowered")
    assert (status, headers["Tollgate-Clamped"]) == (200, "300")
    assert (entry["max_tokens"], entry["max_tokens_field"], entry["served"]["output"]) == (300, dialect.bound, 300)


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_what_a_client_claims_of_its_own_bill_has_no_effect(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """Rows 27 and 28: forged usage, special tokens in the text."""
    key, account = await gateway.account("pro")
    forged = {"usage": {"input_tokens": 0, "output_tokens": 0}, "cost": 0, "user": "somebody-else"}
    body = dialect.body("output=20 tag=forged", text="<|endoftext|><|im_start|> hello", **forged)
    status, headers, _ = await post(gateway, dialect, key, orjson.dumps(body))
    assert status == 200
    (entry,) = await models.journal.ended("forged")
    assert headers["Tollgate-Charged"] == str(tokens_served(entry))
    await assert_settled_to(gateway, account.id, tokens_served(entry) * STEPS)
    (row,) = await usage_rows(gateway, account.id)
    assert row["user_id"] is None


async def test_a_million_equal_letters_are_counted_in_bounded_time(gateway: Local, models: LocalModels) -> None:
    """Row 29: some tokenizers go quadratic on it."""
    key = await gateway.key("drain")
    body = CHAT.body("output=5 tag=letters", text="a" * 1_000_000)
    status, headers, _ = await post(gateway, CHAT, key, orjson.dumps(body))
    assert status == 200
    (entry,) = await models.journal.ended("letters")
    assert float(headers["Tollgate-Held"]) >= tokens_served(entry)


async def test_an_image_is_never_fetched_by_us(gateway: Local, models: LocalModels) -> None:
    """Row 30: its address goes on as it came; only the upstream hears of the call."""
    key = await gateway.key("drain")
    picture = f"{models.url}/pictures/169.254.169.254"
    parts = [{"type": "text", "text": "[[simulate tag=picture]]"}, {"type": "image_url", "image_url": {"url": picture}}]
    body = CHAT.body(messages=[{"role": "user", "content": parts}])
    status, _, _ = await post(gateway, CHAT, key, orjson.dumps(body))
    assert status == 200
    assert [entry["route"] for entry in await models.journal.entries()] == [CHAT.path]


async def test_a_stream_is_metered_whatever_it_says_of_its_usage(gateway: Local, models: LocalModels) -> None:
    """Row 25: include_usage false, null or true."""
    key, account = await gateway.account("pro")
    charged = 0
    for tag, more in (
        ("no", {"stream": True, "stream_options": {"include_usage": False}}),
        ("null", {"stream": True, "stream_options": None}),
        ("yes", {"stream": True, "stream_options": {"include_usage": True}}),
    ):
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                gateway.url + CHAT.path, json=CHAT.body(f"output=30 tag={tag}", **more), headers=CHAT.headers(key)
            ) as answer,
        ):
            assert answer.status == 200
            received = await answer.read()
        assert (b'"usage":{' in received) is (tag == "yes")
        (entry,) = await models.journal.ended(tag)
        charged += tokens_served(entry)
    await assert_settled_to(gateway, account.id, charged * STEPS)
    assert {row["basis"] for row in await usage_rows(gateway, account.id)} == {"provider"}
