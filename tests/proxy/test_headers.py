"""What crosses the gateway in headers and query strings, and what stays on its side."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest
from yarl import URL

from gateway.proxy.headers import to_client
from gateway.proxy.names import NAME_BYTES_MAX, NAMES_MAX, Names
from gateway.simulator import problems
from tests.support.bills import STEPS, assert_settled_to, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, Dialect
from tests.support.gateways import PROVIDER_KEY, Local, local
from tests.support.simulators import LocalModels, anthropic_client
from tests.support.tuning import set_upstream
from tests.support.upstreams import scripted

ALLOWED = {"content-type", "accept", "openai-beta", "accept-encoding", "user-agent", "host", "content-length"}
SENT = {
    "accept": "application/json",
    "openai-beta": "assistants=v2",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "prompt-caching-2024-07-31,files-api",
    "anthropic-something-new": "1",
    # none of these
    "anthropic-organization-id": "org-mine",
    "anthropic-workspace-id": "ws-mine",
    "openai-organization": "org-mine",
    "openai-project": "proj-mine",
    "accept-encoding": "gzip, br",
    "accept-language": "de",
    "authorization-extra": "x",
    "cookie": "session=canary",
    "connection": "keep-alive, Anthropic-Hop",
    "anthropic-hop": "by-hop",
    "keep-alive": "timeout=5",
    "proxy-authorization": "Basic eDp5",
    "te": "trailers",
    "forwarded": "for=10.0.0.1",
    "via": "1.1 somewhere",
    "x-forwarded-for": "10.0.0.1",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "https",
    "x-real-ip": "10.0.0.1",
    "x-request-id": "mine",
    "x-stainless-retry-count": "1",
    "x-stainless-lang": "python",
    "idempotency-key": "mine",
    "origin": "https://evil.example",
    "referer": "https://evil.example/page",
    "user-agent": "canary/1.0",
    "tollgate-job": "job-1",
    "tollgate-job-type": "nightly",
    "tollgate-metadata": '{"a":1}',
    **{f"x-custom-{number}": "canary" for number in range(30)},
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_the_upstream_sees_only_the_headers_on_the_list(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    """Sixty are sent. Our key is replaced by the provider's."""
    key = await gateway.key("pro")
    assert len(SENT) >= 60
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            gateway.url + dialect.path,
            json=dialect.body("output=5 tag=sixty"),
            headers={**SENT, **dialect.headers(key)},
        ) as answer,
    ):
        assert answer.status == 200
    (entry,) = await models.journal.ended("sixty")
    credential = "x-api-key" if dialect is ANTHROPIC else "authorization"
    dialects_own = {"anthropic-version", "anthropic-beta", "anthropic-something-new"}
    assert set(entry["header_names"]) == ALLOWED | dialects_own | {credential}
    assert len(entry["header_names"]) == len(set(entry["header_names"]))
    assert entry["key_sha256"] == hashlib.sha256(PROVIDER_KEY.encode()).hexdigest()
    assert entry["headers"]["accept-encoding"] == "identity"
    assert entry["headers"]["user-agent"] == "tollgate"
    assert entry["headers"]["anthropic-beta"] == SENT["anthropic-beta"]
    assert entry["headers"]["content-type"] == "application/json"


async def test_a_repeated_header_arrives_as_one_list(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("pro")
    headers = [*ANTHROPIC.headers(key).items(), ("anthropic-beta", "one"), ("anthropic-beta", "two,three")]
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + ANTHROPIC.path, json=ANTHROPIC.body("tag=list"), headers=headers) as answer,
    ):
        assert answer.status == 200
    (entry,) = await models.journal.ended("list")
    assert entry["headers"]["anthropic-beta"] == "one, two,three"


KINDS = [
    # (steering, stream)
    ("output=5", False),
    ("output=5", True),
    ("status=400", False),
    ("status=429 retry_after=5", True),
    ("status=500", False),
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_the_client_sees_nothing_of_our_account_at_the_provider(dialect: Dialect, gateway: Local) -> None:
    """No cookie, organization, project or rate limit of the upstream's; its request id goes through."""
    key = await gateway.key("pro")
    secrets = (problems.ANTHROPIC_ORGANIZATION, problems.OPENAI_ORGANIZATION, problems.OPENAI_PROJECT, "simulated")
    for steering, stream in KINDS:
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                gateway.url + dialect.path, json=dialect.body(steering, stream=stream), headers=dialect.headers(key)
            ) as answer,
        ):
            names = {name.lower() for name in answer.headers}
            told = str(dict(answer.headers)) + await answer.text()
        assert not names & {"set-cookie", "openai-organization", "openai-project", "anthropic-organization-id"}
        assert not [name for name in names if "ratelimit" in name], steering
        assert not [secret for secret in secrets if secret in told], steering
        assert answer.headers["Server"] == "tollgate" and len(answer.headers.getall("Server")) == 1
        assert answer.headers["request-id" if dialect is ANTHROPIC else "x-request-id"].startswith("req_"), steering
        assert "Tollgate-Request-Id" in answer.headers


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_header_that_is_no_text_is_not_passed_on_and_harms_nothing(stream: bool, gateway: Local) -> None:
    """No proxy can say what the bytes of a header mean that is not UTF-8."""
    key, account = await gateway.account("pro")
    usage = '"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}'
    body = f'{{"choices":[],{usage}}}'.encode()
    kind, body = ("text/event-stream", b"data: %b\n\ndata: [DONE]\n\n" % body) if stream else ("application/json", body)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nopenai-version: caf\xe9\r\nx-request-id: req_1\r\n"
    answer = head % kind.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
    options = {"stream_options": {"include_usage": True}} if stream else {}
    async with scripted(answer) as upstream:
        set_upstream(gateway, "openai", url=upstream.url)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                gateway.url + CHAT.path, json=CHAT.body(stream=stream, **options), headers=CHAT.headers(key)
            ) as got,
        ):
            assert (got.status, await got.read()) == (200, body)
    assert got.headers["x-request-id"] == "req_1" and "openai-version" not in got.headers
    await assert_settled_to(gateway, account.id, 7 * STEPS)


QUERIES = ["beta=true", "a=b%20c&d=%2F&e=+", "x=%C3%BC", "a=1&a=2&b=", "%zz=1", "key=[1]"]


async def test_a_query_string_is_forwarded_as_it_came_and_routes_nothing(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("pro")
    direct, through = [], []
    for base, found, credential in ((models.url, direct, "sk-x"), (gateway.url, through, key)):
        await models.journal.clear()
        async with aiohttp.ClientSession() as session:
            for query in QUERIES:
                url = f"{base}{ANTHROPIC.path}?{query}"
                async with session.post(
                    URL(url, encoded=True),
                    json=ANTHROPIC.body("output=5"),
                    headers=ANTHROPIC.headers(credential),
                ) as answer:
                    assert answer.status == 200, query
        found.extend(entry["query"] for entry in await models.journal.entries())
    assert through == direct


RATED = """\
  rated: {label: Rated, price: 1, period: 30d, renews: by_itself, allowance: {tokens: 100},
          limits: {account: {requests_per_minute: 3}}}
"""


async def test_counting_tokens_is_free_and_rate_limited(models: LocalModels, valkey_url: str, tmp_path: Path) -> None:
    async with local(models.url, valkey_url, tmp_path, plans=RATED) as gateway:
        key, account = await gateway.account("rated")
        request: dict[str, Any] = {
            "model": ANTHROPIC.model,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": "word " * 400}],
        }
        async with anthropic_client(gateway.url, key=key) as client:
            counts = [(await client.messages.count_tokens(**request)).input_tokens for _ in range(3)]
            with pytest.raises(anthropic.RateLimitError) as refused:
                await client.messages.count_tokens(**request)
        assert len(set(counts)) == 1 and counts[0] > 400, "more than the whole wallet could pay for"
        assert refused.value.body["error"]["tollgate"]["reason"] == "rate_limited"  # type: ignore[index]
        assert len(await models.journal.entries()) == 3
        await assert_settled_to(gateway, account.id, 0)
        assert [row["charged"] for row in await usage_rows(gateway, account.id)] == [0, 0, 0]


async def test_a_free_answer_says_nothing_of_wallets(gateway: Local) -> None:
    key = await gateway.key("pro")
    body = {name: value for name, value in ANTHROPIC.body().items() if name != "max_tokens"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/v1/messages/count_tokens", json=body, headers=ANTHROPIC.headers(key)) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Tollgate-Charged"] == "0"
        assert not {"Tollgate-Wallet", "Tollgate-Held", "Tollgate-Remaining"} & set(answer.headers)


async def test_no_other_dialect_counts_tokens(gateway: Local) -> None:
    key = await gateway.key("pro")
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/v1/responses/input_tokens", json=CHAT.body(), headers=CHAT.headers(key)) as answer,
    ):
        assert answer.status == 404


def test_an_upstreams_header_that_would_not_stay_on_its_line_is_left_out() -> None:
    """No value of a provider's begins a header of its own, whichever way the answer is written."""
    for value in ("a\r\nset-cookie: b", "a\nb", "a\rb", "a\0b", "a\tb", "a\x7fb", "a\udc80b", "a\u2028b"):
        assert to_client({"x-request-id": value, "retry-after": "1"}) == {"retry-after": "1"}, repr(value)
    assert to_client({"x-request-id": "é b", "server": "theirs"}) == {"x-request-id": "é b"}


def test_what_is_remembered_of_header_names_is_bounded() -> None:
    """Callers choose the names; what is said of one does not depend on what was forgotten."""
    asked: list[bytes] = []

    def judge(raw: bytes) -> bytes:
        asked.append(raw)
        return raw.lower()

    names = Names(judge)
    assert [names[b"Accept"], names[b"Accept"]] == [b"accept", b"accept"] and asked == [b"Accept"]
    long = b"X" * (NAME_BYTES_MAX + 1)
    assert names[long] == long.lower() and long not in names
    for number in range(2 * NAMES_MAX):
        assert names[b"X-%d" % number] == b"x-%d" % number
        assert len(names) <= NAMES_MAX
    assert names[b"Accept"] == b"accept"
