"""What arrives on a socket and is no decent request: refused or ignored; never smuggled on, never repeated, and never
waited for without end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
import pytest

from gateway.quota.keys import new_key
from tests.support.bills import usage_rows
from tests.support.calls import ANTHROPIC, CHAT, request_bytes
from tests.support.gateways import PROVIDER_KEY, Local
from tests.support.processes import eventually
from tests.support.simulators import LocalModels
from tests.support.sockets import connection
from tests.support.tuning import tune

BODY = orjson.dumps(CHAT.body("output=5"))


async def exchange(gateway: Local, sent: bytes, *, then_end: bool = True) -> bytes:
    """Everything that comes back until the server closes, or says nothing more for lack of anything to answer."""
    async with connection(gateway.url) as client:
        client.send(sent)
        if then_end:
            client.send(b"GET /end HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return await client.closed()


def accepted(answers: bytes) -> int:
    """How many metered calls were answered with 200."""
    return answers.count(b"HTTP/1.1 200 OK\r\n")


def chat(key: str, *lines: str, body: bytes = BODY, length: bool = True, path: str = CHAT.path) -> bytes:
    """A chat request with further header lines, exactly as given."""
    head = [f"POST {path} HTTP/1.1", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    if length:
        head.append(f"Content-Length: {len(body)}")
    if not any(line.lower().startswith("host") for line in lines):
        head.append("Host: gateway")
    return ("\r\n".join([*head, *lines]) + "\r\n\r\n").encode("utf-8", "surrogateescape") + body


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"

REFUSED = [
    # (what, further lines, with Content-Length, body): an answer of 400 or a closed connection, and nothing forwarded
    ("36 CL and TE", ["Transfer-Encoding: chunked"], True, BODY),
    ("37 two lengths", [f"Content-Length: {len(BODY) + 1}"], True, BODY),
    ("38 TE chunked, identity", ["Transfer-Encoding: chunked, identity"], False, CHUNKED),
    ("38 TE unknown", ["Transfer-Encoding: xchunked"], False, CHUNKED),
    ("38 TE twice", ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], False, CHUNKED),
    ("39 CL +5", [f"Content-Length: +{len(BODY)}"], False, BODY),
    ("39 CL 0x", ["Content-Length: 0x10"], False, BODY),
    ("39 CL -1", ["Content-Length: -1"], False, BODY),
    ("40 two hosts", ["Host: a", "Host: b"], True, BODY),
    ("42 space before colon", ["X-Odd : y"], True, BODY),
    ("42 folded line", ["X-Odd: y\r\n folded"], True, BODY),
    ("42 bare LF", ["X-Odd: y\nX-Even: z"], True, BODY),
    ("42 NUL in a value", ["X-Odd: a\0b"], True, BODY),
    ("42 NUL in a name", ["X-O\0dd: ab"], True, BODY),
    ("43 a header of 9 KB", ["X-Odd: " + "y" * 9_000], True, BODY),
    ("44 200 headers", [f"X-Odd-{number}: y" for number in range(200)], True, BODY),
    ("52 a chunk size that is none", ["Transfer-Encoding: chunked"], False, b"zz\r\n" + BODY),
    ("52 a chunk size of 20 digits", ["Transfer-Encoding: chunked"], False, b"f" * 20 + b"\r\n" + BODY),
]


async def test_what_two_parsers_could_read_in_two_ways_is_refused(gateway: Local, models: LocalModels) -> None:
    """The upstream sees exactly as many calls as were answered with 200."""
    key, account = await gateway.account("pro")
    for what, lines, length, body in REFUSED:
        answers = await exchange(gateway, chat(key, *lines, body=body, length=length))
        assert accepted(answers) == len(await models.journal.entries()) == 0, f"{what}: {answers!r}"
        assert not answers or answers.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), f"{what}: {answers!r}"
        assert key.encode() not in answers and b"X-Odd" not in answers, what
    await gateway.settled()
    assert not await usage_rows(gateway, account.id)


ACCEPTED = [
    # (what, further lines, with Content-Length, body): served once, as any other
    ("plain", [], True, BODY),
    ("chunked", ["Transfer-Encoding: chunked"], False, CHUNKED),
    ("52 chunk extensions", ["Transfer-Encoding: chunked"], False, CHUNKED.replace(b"\r\n", b";a=b\r\n", 1)),
    ("47 Connection names ours", ["Connection: authorization, x-internal", "X-Internal: 1"], True, BODY),
    ("50 h2c", ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"], True, BODY),
    ("53 forged addresses", ["X-Forwarded-For: 127.0.0.1", "X-Real-IP: 10.0.0.1", "Forwarded: for=x"], True, BODY),
]


async def test_what_is_unusual_but_clear_is_served_once(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("pro")
    for number, (what, lines, length, body) in enumerate(ACCEPTED, 1):
        async with connection(gateway.url) as client:
            client.send(chat(key, *lines, body=body, length=length))
            assert (await client.head()).status == 200, what
            await client.rest()
            if "close" not in client.answer.headers.get("connection", ""):  # type: ignore[union-attr]
                client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await client.head()).status == 200, f"after {what}"
        entries = await models.journal.entries()
        assert len(entries) == number, what
        names = set(entries[-1]["header_names"])
        assert names <= {"host", "content-type", "authorization", "accept-encoding", "user-agent", "content-length"}, (
            what
        )
    await gateway.settled()
    assert len(await usage_rows(gateway, account.id)) == len(ACCEPTED)


async def test_pipelined_calls_are_each_served_and_charged_once(gateway: Local, models: LocalModels) -> None:
    key, account = await gateway.account("pro")
    assert accepted(await exchange(gateway, chat(key) * 3)) == 3
    await models.journal.entries(wait=3)
    await gateway.settled()
    assert len(await usage_rows(gateway, account.id)) == len(await models.journal.entries()) == 3


ODD_PATHS = [
    "/v1/../v1/chat/completions", "/v1/./chat/completions", "/v1/chat%2fcompletions", "/v1%2Fchat/completions",
    "/v1/%63hat/completions", "//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/",
    "/v1/chat/completions;x", "/v1/chat/completions%00", "/v1/../admin/v1/accounts", "/v1/%2e%2e/admin",
    "/V1/chat/completions", "/admin/v1/accounts", "/metrics", "/v1/files", "/v1/fine_tuning/jobs",
    "/v1/messages/batches", "/v1/assistants", "/v1beta/models", "/anthropic/v1/messages",
]  # fmt: skip


async def test_only_the_exact_routes_are_served(gateway: Local, models: LocalModels) -> None:
    """Row 46: authentication and routing see one path, and it is spelled one way."""
    key = await gateway.key("pro")
    for path in ODD_PATHS:
        answers = await exchange(gateway, chat(key, path=path))
        assert answers.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), f"{path}: {answers!r}"
    assert not await models.journal.entries()


async def test_the_host_in_a_request_decides_nothing(gateway: Local, models: LocalModels) -> None:
    """Rows 40, 41, 45: another host, an odd one, an absolute address: the upstream's comes from the config alone."""
    key = await gateway.key("pro")
    served = 0
    for sent in (
        chat(key, "Host: evil.example"),
        chat(key, "Host: a/#"),
        chat(key, "Host: a/?"),
        chat(key, "Host:"),
        chat(key, path="http://evil.example/v1/chat/completions"),
        chat(key, path="http://evil.example/admin/v1/accounts"),
    ):
        answers = await exchange(gateway, sent)
        served += accepted(answers)
        assert answers.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), answers
    entries = await models.journal.entries()
    assert len(entries) == served >= 1
    assert {entry["headers"]["host"] for entry in entries} == {models.url.removeprefix("http://")}


METHODS = [
    # (method, path, Allow)
    *((method, CHAT.path, "POST") for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")),
    ("GET", "/v1/messages/count_tokens", "POST"),
    *((method, "/v1/models", "GET, HEAD") for method in ("POST", "PUT", "DELETE", "PATCH")),
    ("POST", "/v1/models/gpt-5", "GET, HEAD"),
]


async def test_another_method_is_405_and_says_which_is_allowed(gateway: Local, models: LocalModels) -> None:
    """Rows 49 and 51."""
    key = await gateway.key("pro")
    for method, path, allow in METHODS:
        async with connection(gateway.url) as client:
            client.send(request_bytes(method, path, {"host": "x", "authorization": f"Bearer {key}"}))
            answer = await client.head()
        assert (answer.status, answer.headers.get("allow")) == (405, allow), f"{method} {path}"
    assert (await exchange(gateway, b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(
        (b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.1 405 ")
    )
    assert not await models.journal.entries()


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(gateway: Local, models: LocalModels) -> None:
    """curl does, with larger bodies; without an answer it waits a second."""
    key = await gateway.key("pro")
    head, _, body = chat(key, "Expect: 100-continue").partition(b"\r\n\r\n")
    async with connection(gateway.url) as client:
        client.send(head + b"\r\n\r\n")
        assert (await client.head()).status == 100
        client.send(body)
        assert (await client.head()).status == 200
    async with connection(gateway.url) as client:
        client.send((head + b"\r\n\r\n").replace(key.encode(), b"tg_wrong"))
        assert (await client.head()).status == 401, "before the body is sent"
    async with connection(gateway.url) as client:
        client.send(chat(key, "Expect: a miracle"))
        assert (await client.head()).status == 417
    assert len(await models.journal.entries()) == 1


CREDENTIALS = [
    # (header lines, status, reason; None = served). K is a good key, L another good one, W one with a wrong tail.
    ([], 401, "missing_api_key"),
    (["Authorization: Bearer"], 401, "invalid_api_key"),
    (["Authorization: Bearer "], 401, "invalid_api_key"),
    (["Authorization: Basic dXNlcjpwYXNz"], 401, "invalid_api_key"),
    (["Authorization: K"], 401, "invalid_api_key"),
    (["Authorization: Bearer K", "x-api-key: L"], 400, "ambiguous_credentials"),
    (["Authorization: Bearer K", "Authorization: Bearer L"], 400, "ambiguous_credentials"),
    (["Authorization: Bearer K", "Authorization: Bearer K"], 400, "ambiguous_credentials"),
    (["x-api-key: K", "x-api-key: L"], 400, "ambiguous_credentials"),
    (["Authorization: Bearer K", "x-api-key: K"], 200, None),
    (["Authorization: Bearer sk-other", "x-api-key: K"], 200, None),
    (["Authorization: Bearer K", "x-api-key: sk-ant-other"], 200, None),
    (["Authorization: Basic dXNlcjpwYXNz", "x-api-key: K"], 200, None),
    (["authorization: bearer K"], 200, None),
    (["Authorization: Bearer ' OR 1=1--"], 401, "invalid_api_key"),
    (["Authorization: Bearer tg_' OR 1=1--"], 401, "invalid_api_key"),
    (["Authorization: Bearer tg_" + "x" * 7_000], 401, "invalid_api_key"),
    (["Authorization: Bearer tg_schlüssel"], 401, "invalid_api_key"),
    (["Authorization: Bearer tg_\udcff\udcfe"], 401, "invalid_api_key"),
    (["Authorization: Bearer W"], 401, "invalid_api_key"),
    (["Authorization: Bearer P"], 401, "invalid_api_key"),
]


async def test_exactly_one_key_of_ours_counts_and_all_bad_ones_look_alike(gateway: Local, models: LocalModels) -> None:
    """Rows 54 to 63."""
    key, other = await gateway.key("pro"), await gateway.key("pro")
    names = {"K": key, "L": other, "W": f"{key[:-6]}{new_key()[-6:]}", "P": PROVIDER_KEY}
    bad = set()
    for lines, status, reason in CREDENTIALS:
        sent = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Content-Length: {len(BODY)}"]
        for line in lines:
            words = line.split(" ")
            sent.append(" ".join([*words[:-1], names.get(words[-1], words[-1])]))
        async with connection(gateway.url) as client:
            client.send(("\r\n".join(sent) + "\r\n\r\n").encode("utf-8", "surrogateescape") + BODY)
            answer = await client.head()
            body = orjson.loads(await client.rest())
        assert answer.status == status, f"{lines}: {body}"
        if reason is not None:
            assert body["error"]["tollgate"]["reason"] == reason, lines
            assert not any(name in orjson.dumps(body) for name in (b"OR 1=1", b"schl", key.encode())), lines
        if reason == "invalid_api_key":
            bad.add((body["error"]["message"], answer.headers["x-should-retry"]))
    assert len(bad) == 1
    assert len(await models.journal.entries()) == sum(1 for _, status, _ in CREDENTIALS if status == 200)


async def test_a_malformed_request_is_neither_repeated_nor_logged(
    gateway: Local, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp would log the broken header line, key and all, and send it back."""
    caplog.set_level(logging.DEBUG)
    key = await gateway.key("pro")
    for sent in (
        f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key : {key}\r\n\r\n",
        f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\0\r\n\r\n",
        f"POST /v1/messages?key={key} HTTP/9.9\r\nHost: x\r\n\r\n",
        f"{key} / HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /{key} HTTP/1.1\r\nHost x\r\n\r\n",
        f"\x16\x03\x01{key}\r\n\r\n",
    ):
        answers = await exchange(gateway, sent.encode(), then_end=False)
        assert b" 400 " in answers.split(b"\r\n")[0], sent
        assert key.encode() not in answers and b"tg_" not in answers
    told = [record.getMessage() for record in caplog.records if not record.name.startswith("aiosqlite")]
    assert not [line for line in told if "tg_" in line or "x-api-key" in line]


async def test_no_answer_tells_versions(gateway: Local) -> None:
    key = await gateway.key("pro")
    sent = [
        chat(key),
        chat("tg_wrong"),
        chat(key, body=orjson.dumps(CHAT.body("status=400"))),
        chat(key, body=orjson.dumps(CHAT.body("output=5", stream=True))),
        chat(key, "Broken :"),
        chat(key, path="/v1/files"),
        chat(key, path="/nowhere"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    for request in sent:
        async with connection(gateway.url) as client:
            client.send(request)
            answer = await client.head()
        assert answer.headers["server"] == "tollgate", request
        assert "python" not in str(answer.headers).lower() and "aiohttp" not in str(answer.headers).lower()


async def test_a_connection_that_keeps_us_waiting_for_a_request_is_closed(gateway: Local) -> None:
    """A silent one, half of the headers, and half of the headers after a good request. Idle between two is allowed."""
    key = await gateway.key("pro")
    gateway.worker.gateway.patience.headers_s = 0.1

    async def is_closed(first: bytes, sent: bytes) -> None:
        async with connection(gateway.url) as client:
            if first:
                client.send(first)
                await client.rest()
            client.send(sent)
            await client.closed(within_s=8.0)

    async with connection(gateway.url) as patient:
        patient.send(chat(key))
        await patient.rest()
        await asyncio.gather(
            is_closed(b"", b""),
            is_closed(b"", b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-"),
            is_closed(chat(key), b"POST /v"),
        )
        patient.answer = None
        patient.send(chat(key))
        assert (await patient.head()).status == 200


async def test_a_body_that_does_not_come_is_408_and_its_connection_closed(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("pro")
    gateway.worker.gateway.patience.body_s = 0.1
    async with connection(gateway.url) as client:
        client.send(chat(key)[:-5])
        answer = await client.head()
        assert answer.status == 408
    async with connection(gateway.url) as client:
        client.send(chat(key, path="/v1/files")[:-5])
        assert (await client.head()).status == 404, "nobody waits for the body of a route that is none"
    assert not await models.journal.entries()


async def test_a_body_that_breaks_off_is_forgotten(gateway: Local, models: LocalModels) -> None:
    key = await gateway.key("pro")
    async with connection(gateway.url) as client:
        client.send(chat(key)[:-5])
        await eventually(lambda: gateway.worker.gateway.tasks, what="the call has begun")
        client.reset()
    await eventually(lambda: not len(gateway.worker.gateway.tasks), what="the call is over")
    assert not await models.journal.entries()


async def test_hundreds_of_silent_sockets_do_not_disturb_a_call(gateway: Local) -> None:
    key = await gateway.key("pro")
    silent: list[Any] = []
    try:
        for _ in range(300):
            _, writer = await asyncio.open_connection(*gateway.url.removeprefix("http://").split(":"))
            silent.append(writer)
        assert accepted(await exchange(gateway, chat(key))) == 1
    finally:
        for writer in silent:
            writer.transport.abort()


async def test_anthropics_routes_tell_errors_in_anthropics_shape(gateway: Local) -> None:
    """Also for what is wrong before a dialect's parser sees it."""
    for path, version, shape in (
        (ANTHROPIC.path, False, "anthropic"),
        ("/v1/files", True, "anthropic"),
        ("/v1/files", False, "openai"),
        (CHAT.path, True, "openai"),
    ):
        lines = ["anthropic-version: 2023-06-01"] if version else []
        async with connection(gateway.url) as client:
            client.send(chat("tg_wrong", *lines, path=path))
            await client.head()
            body = orjson.loads(await client.rest())
        assert ("request_id" in body and body.get("type") == "error") is (shape == "anthropic"), path


async def test_a_size_limit_that_was_reloaded_counts_for_the_next_call(gateway: Local) -> None:
    key = await gateway.key("pro")
    tune(gateway, body_max_bytes=len(BODY) - 1)
    async with connection(gateway.url) as client:
        client.send(chat(key))
        assert (await client.head()).status == 413
    tune(gateway, body_max_bytes=len(BODY))
    assert accepted(await exchange(gateway, chat(key))) == 1
