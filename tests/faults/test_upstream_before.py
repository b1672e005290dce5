"""An upstream that fails before its first byte costs nothing, frees the hold at once, and may be followed by others."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.simulator import problems
from tests.support.bills import STEPS, assert_settled_to, tokens_served, usage_rows
from tests.support.calls import ANTHROPIC, CHAT, DIALECTS, Dialect
from tests.support.gateways import PROVIDER_KEY, Local
from tests.support.processes import free_port
from tests.support.simulators import LocalModels
from tests.support.tuning import add_upstream, set_upstream, tune
from tests.support.upstreams import scripted, whole

TLS = Path(__file__).resolve().parents[1] / "data" / "tls"


async def ask(gateway: Local, dialect: Dialect, key: str, steering: str, **more: Any) -> tuple[int, Any, bytes]:
    """(status, headers, body) of one call."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            gateway.url + dialect.path, json=dialect.body(steering, **more), headers=dialect.headers(key)
        ) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def nothing_was_charged(gateway: Local, account_id: str) -> None:
    await assert_settled_to(gateway, account_id, 0)
    assert not await usage_rows(gateway, account_id)
    assert not gateway.worker.gateway.open


FAULTS = [
    # (steering, status, reason, worth retrying)
    ("reset=before", 502, "upstream_unreachable", True),
    ("ttfb=60000", 504, "upstream_timeout", True),
    ("redirect=1", 502, "upstream_misconfigured", False),
    ("gzip=1", 502, "upstream_unreachable", True),
    ("status=401", 502, "upstream_misconfigured", False),
    ("status=402", 502, "upstream_misconfigured", False),
    ("status=403", 502, "upstream_misconfigured", False),
    ("status=401 kind=key", 502, "upstream_misconfigured", False),
]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_a_fault_before_the_first_byte_is_an_error_of_the_dialect_and_costs_nothing(
    dialect: Dialect, stream: bool, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("pro")
    tune(gateway, first_byte_s=0.3)
    for steering, status, reason, worth in FAULTS:
        got, headers, body = await ask(gateway, dialect, key, steering, stream=stream)
        answer = orjson.loads(body)
        assert (got, dialect.error_code(answer)) == (status, reason), steering
        assert headers["x-should-retry"] == ("true" if worth else "false"), steering
        assert ("retry-after" in headers) is worth, steering
        assert headers["Tollgate-Error-Source"] == "gateway", steering
        for secret in (PROVIDER_KEY, "sk-proj", "api.openai", "credit balance", "x-api-key", "simulated"):
            assert secret not in body.decode(), steering
    await nothing_was_charged(gateway, account.id)
    assert not await models.journal.entries(tag="redirected")
    assert {entry["route"] for entry in await models.journal.entries()} == {dialect.path}, "no redirect was followed"


VERBATIM = [
    # (steering, status)
    ("status=400", 400),
    ("status=400 kind=context", 400),
    ("status=404", 404),
    ("status=413", 413),
    ("status=429 retry_after=7", 429),
    ("status=429 kind=quota", 429),
    ("status=500", 500),
    ("status=503", 503),
    ("status=529 retry_after=3", 529),
]


MASKED = {
    problems.ANTHROPIC_ORGANIZATION: "***",
    problems.OPENAI_ORGANIZATION: "org-***",
    problems.OPENAI_PROJECT: "proj_***",
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_an_upstreams_own_error_goes_through_verbatim_but_for_who_we_are(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("pro")
    for number, (steering, status) in enumerate(VERBATIM):
        got, headers, body = await ask(gateway, dialect, key, f"{steering} tag=verbatim-{number}")
        assert got == status, steering
        assert headers["Tollgate-Error-Source"] == "upstream", steering
        assert headers.get("retry-after") == ("7" if "=7" in steering else "3" if "=3" in steering else None), steering
        (entry,) = await models.journal.ended(f"verbatim-{number}")
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                models.url + dialect.path, json=dialect.body(steering), headers=dialect.headers("sk-any")
            ) as answer,
        ):
            direct = await answer.text()
        for secret, masked in MASKED.items():
            assert secret not in body.decode(), steering
            direct = direct.replace(secret, masked)
        their_id = entry["request_id"]
        mine = orjson.loads(body.decode().replace(their_id, "id"))
        theirs = orjson.loads(direct)
        if "request_id" in theirs:
            theirs["request_id"] = "id"
        assert mine["error"] == theirs["error"], steering
    await nothing_was_charged(gateway, account.id)


async def test_an_upstream_that_cannot_be_reached_is_a_502_that_says_nothing_of_where_it_is(
    gateway: Local, models: LocalModels
) -> None:
    """Refused, unknown name, untrusted certificate: no key leaves before TLS stands."""
    key, account = await gateway.account("pro")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem", TLS / "server.key")
    async with scripted(b"", tls=context) as untrusted:
        for url in (
            f"http://127.0.0.1:{free_port()}",
            "http://no-such-host.invalid",
            untrusted.url,
        ):
            set_upstream(gateway, "anthropic", url=url)
            gateway.worker.gateway.breakers = type(gateway.worker.gateway.breakers)()
            status, _, body = await ask(gateway, ANTHROPIC, key, "")
            assert (status, ANTHROPIC.error_code(orjson.loads(body))) == (502, "upstream_unreachable"), url
            assert not any(word in body.decode() for word in ("127.0.0.1", 'invalid"', "ertificate", "sk-")), body
        assert not untrusted.requests
    await nothing_was_charged(gateway, account.id)


async def test_an_error_that_never_ends_is_left_as_a_first_byte_that_never_comes(gateway: Local) -> None:
    """However long each pause may be: here no pause is too long."""
    key, account = await gateway.account("pro")
    tune(gateway, first_byte_s=0.3, idle_s=600.0)
    async with scripted(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 1000\r\n\r\nand so on") as upstream:
        set_upstream(gateway, "anthropic", url=upstream.url)
        status, _, body = await ask(gateway, ANTHROPIC, key, "")
        assert (status, ANTHROPIC.error_code(orjson.loads(body))) == (504, "upstream_timeout")
        assert len(upstream.requests) == 1
    await nothing_was_charged(gateway, account.id)


ANSWERS_OF_THE_FIRST = [
    # (what the first upstream does, None = break the connection)
    None,
    whole("429 Too Many Requests", b'{"error":{"message":"slow down"}}', retry_after="9"),
    whole("500 Internal Server Error", b'{"error":{"message":"oops"}}'),
    whole("502 Bad Gateway", b"<html>"),
    whole("503 Service Unavailable", b""),
    whole("529 Overloaded", b"{}"),
    whole("401 Unauthorized", b"{}"),
    whole("403 Forbidden", b"{}"),
    whole("302 Found", b"", location="http://127.0.0.1:9/elsewhere"),
    b"nonsense\r\n\r\n",
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
async def test_another_upstream_answers_when_the_first_one_fails_and_it_is_charged_once(
    dialect: Dialect, gateway: Local, models: LocalModels
) -> None:
    key, account = await gateway.account("pro")
    charged = 0
    async with scripted(None) as first:
        add_upstream(gateway, dialect.dialect, first.url, first=True)
        for number, answer in enumerate(ANSWERS_OF_THE_FIRST):
            gateway.worker.gateway.breakers = type(gateway.worker.gateway.breakers)()
            first.answer = answer
            status, headers, body = await ask(gateway, dialect, key, f"output=10 tag=second-{number}")
            assert status == 200, (answer, body)
            (entry,) = await models.journal.ended(f"second-{number}")
            charged += tokens_served(entry)
            assert headers["Tollgate-Charged"] == str(tokens_served(entry))
        assert len(first.requests) == len(ANSWERS_OF_THE_FIRST)
    await assert_settled_to(gateway, account.id, charged * STEPS)
    rows = await usage_rows(gateway, account.id)
    assert [row["upstream"] for row in rows] == [dialect.dialect] * len(ANSWERS_OF_THE_FIRST)


async def test_failover_stops_when_the_retry_budget_is_spent(gateway: Local, models: LocalModels) -> None:
    """1.2 attempts a request in the long run: an outage behind us is not made worse by us."""
    key = await gateway.key("pro")
    async with scripted(whole("503 Service Unavailable", b"{}")) as first:
        add_upstream(gateway, "openai", first.url, first=True)
        gateway.worker.gateway.retries.left = 2
        statuses = []
        for _ in range(12):
            gateway.worker.gateway.breakers = type(gateway.worker.gateway.breakers)()
            status, _, _ = await ask(gateway, CHAT, key, "tag=budget")
            statuses.append(status)
    assert statuses.count(200) == len(await models.journal.entries(tag="budget")) == 2 + 12 * 0.2 // 1
    assert set(statuses) == {200, 503}


async def test_the_next_key_is_tried_when_one_is_revoked(gateway: Local, models: LocalModels) -> None:
    """Half of the calls would fail otherwise, for as long as nobody looks."""
    key = await gateway.key("pro")
    async with scripted(whole("401 Unauthorized", b"{}")) as upstream:
        set_upstream(gateway, "openai", url=upstream.url, keys=("sk-one", "sk-two", "sk-three"))
        status, _, _ = await ask(gateway, CHAT, key, "")
    assert status == 502
    keys = {head.split(b"authorization: ")[1].split(b"\r\n")[0] for head in upstream.requests}
    assert keys == {b"Bearer sk-one", b"Bearer sk-two", b"Bearer sk-three"}


async def test_a_key_that_is_refused_is_told_to_the_operator_once_a_minute(
    gateway: Local, caplog: pytest.LogCaptureFixture
) -> None:
    key = await gateway.key("pro")
    for _ in range(5):
        await ask(gateway, CHAT, key, "status=401")
    told = [record.getMessage() for record in caplog.records if "credential" in record.getMessage()]
    assert told == ["upstream openai answered 401 to our own credential or billing"]
