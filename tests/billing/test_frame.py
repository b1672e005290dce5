"""Around every route: credentials, bodies, pages, and one shape for every error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import Field

from gateway.billing.http.frame import Frame, errors_as_json
from gateway.billing.http.models import Amount, ErrorBody, Instant, Name, NoQuery, Strict, TimesQuery
from gateway.billing.http.route import Answer, Call, Raw, Route, Who, number
from gateway.domain.accounts import AccountStatus
from gateway.errors import InsufficientTokens, RefusalDetail
from tests.support.apis import ADMIN_TOKEN, Apis, apis


class Deed(Strict):
    what: Name
    amount: Amount = "1"
    count: Annotated[int, Field(ge=0, le=5)] = 0
    at: Instant | None = None


async def who(call: Call[NoQuery, None]) -> dict[str, object]:
    return {"account": call.account.id, "actor": call.office.desk.actor, "user": call.caller and call.caller.user_id}


async def echo(call: Call[TimesQuery, Deed]) -> Answer:
    body = call.body
    content = {"what": body.what, "amount": body.amount, "exact": number("3.50"), "at": body.at, "to": call.query.to_ms}
    return Answer(content, status=201, headers={"Tollgate-Remaining": "7"})


async def refuse(_: Call[NoQuery, None]) -> None:
    raise InsufficientTokens(detail=RefusalDetail(scope="account", needed="3", available="1"))


async def fail(_: Call[NoQuery, Deed]) -> None:
    raise ValueError("canary-in-an-exception")


async def weigh(call: Call[NoQuery, bytes]) -> dict[str, object]:
    return {"bytes": len(call.body)}


ROUTES = (
    Route("GET", "/who", Who.KEY, who, Strict, "Who asks."),
    Route("POST", "/echo", Who.PUBLIC, echo, Strict, "What was said.", query=TimesQuery, body=Deed),
    Route("POST", "/who", Who.KEY, who, Strict, "Who asks.", body=Deed),
    Route("GET", "/refuse", Who.PUBLIC, refuse, Strict, "No."),
    Route("POST", "/fail", Who.PUBLIC, fail, Strict, "A bug.", body=Deed),
    Route("POST", "/weigh", Who.PUBLIC, weigh, Strict, "How much.", body=Raw(None), body_bytes_max=100),
    Route("GET", "/things/{id}", Who.PUBLIC, refuse, Strict, "A thing."),
)


@pytest.fixture
async def client(one: Apis, aiohttp_client: Any) -> TestClient[Any, Any]:
    """The routes above in the frame of a real worker."""
    frame: Frame = one.gateway.worker.frame
    app = web.Application(middlewares=[errors_as_json(frame)])
    frame.mount(app, ROUTES)
    client: TestClient[Any, Any] = await aiohttp_client(TestServer(app))
    return client


BODIES: list[tuple[str, bytes, str, int, str, str | None]] = [
    # what is wrong, the body, its type, status, code, param
    ("nothing", b"", "application/json", 400, "empty_body", None),
    ("no JSON", b"{", "application/json", 400, "invalid_json", None),
    ("a list", b"[]", "application/json", 400, "invalid_parameter", None),
    ("not a number", b'{"what":"x","count":NaN}', "application/json", 400, "invalid_json", None),
    ("no UTF-8", b'{"what":"\xff"}', "application/json", 400, "invalid_encoding", None),
    ("half a pair", b'{"what":"\\ud800"}', "application/json", 400, "invalid_encoding", None),
    ("a NUL", b'{"what":"a\\u0000b"}', "application/json", 400, "invalid_parameter", "what"),
    ("too deep", b'{"what":' + b"[" * 300 + b"]" * 300 + b"}", "application/json", 400, "too_deep", None),
    ("another type", b"what=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type", None),
    ("a field missing", b"{}", "application/json", 400, "missing_field", "what"),
    ("a field too many", b'{"what":"x","role":"admin"}', "application/json", 400, "unknown_field", "role"),
    ("a number in quotes", b'{"what":"x","count":"1"}', "application/json", 400, "invalid_parameter", "count"),
    ("out of range", b'{"what":"x","count":6}', "application/json", 400, "invalid_parameter", "count"),
    ("a fraction as amount", b'{"what":"x","amount":1.5}', "application/json", 400, "invalid_parameter", "amount"),
    ("a time without zone", b'{"what":"x","at":"2026-01-01T00"}', "application/json", 400, "invalid_parameter", "at"),
    ("no such day", b'{"what":"x","at":"2026-02-30"}', "application/json", 400, "invalid_parameter", "at"),
    ("too far away", b'{"what":"x","at":"9999-01-01"}', "application/json", 400, "invalid_parameter", "at"),
    ("too large", b'{"what":"' + b"x" * 70_000 + b'"}', "application/json", 413, "body_too_large", None),
]  # fmt: skip


@pytest.mark.parametrize(("what", "body", "media", "status", "code", "param"), BODIES, ids=[row[0] for row in BODIES])
async def test_a_bad_body_is_refused_with_its_reason(
    what: str, body: bytes, media: str, status: int, code: str, param: str | None, client: TestClient[Any, Any]
) -> None:
    answer = await client.post("/echo", data=body, headers={"Content-Type": media})
    problem = orjson.loads(await answer.read())["error"]
    assert (answer.status, problem["code"], problem.get("param")) == (status, code, param)
    assert answer.headers["x-should-retry"] == "false" and "retry-after" not in answer.headers


async def test_a_chunked_body_is_bounded_too(client: TestClient[Any, Any]) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 10_000

    answer = await client.post("/echo", data=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status == 413


async def test_a_compressed_body_is_refused(client: TestClient[Any, Any]) -> None:
    answer = await client.post("/echo", data=b"{}", headers={"Content-Encoding": "gzip"})
    assert answer.status == 415


QUERIES = [
    ("limit=0", "invalid_parameter", "limit"),
    ("limit=-1", "invalid_parameter", "limit"),
    ("limit=1000000000", "invalid_parameter", "limit"),
    ("limit=many", "invalid_parameter", "limit"),
    ("limit=1&limit=2", "invalid_parameter", "limit"),
    ("cursor=%00", "invalid_parameter", "cursor"),
    ("from=2026-01-02&to=2026-01-01", "invalid_parameter", None),
    ("from=yesterday", "invalid_parameter", "from"),
    ("to=2026-01-01T00:00:00", "invalid_parameter", "to"),
    ("from_ms=1", "unknown_field", "from_ms"),
    ("sort=name", "unknown_field", "sort"),
]


@pytest.mark.parametrize(("query", "code", "param"), QUERIES)
async def test_a_bad_query_is_refused_with_its_reason(
    query: str, code: str, param: str | None, client: TestClient[Any, Any]
) -> None:
    answer = await client.post(f"/echo?{query}", json={"what": "x"})
    problem = orjson.loads(await answer.read())["error"]
    assert (answer.status, problem["code"], problem.get("param")) == (400, code, param)


async def test_what_a_handler_says_is_answered_exactly(client: TestClient[Any, Any]) -> None:
    answer = await client.post(
        "/echo?to=2026-01-01", json={"what": "x", "amount": 7, "at": "2026-01-01T01:00:00+01:00"}
    )
    body = await answer.read()
    assert answer.status == 201 and answer.headers["Tollgate-Remaining"] == "7"
    assert b'"exact":3.50' in body and b'"amount":"7"' in body
    assert orjson.loads(body)["at"] == orjson.loads(body)["to"] == 1_767_225_600_000


async def test_a_refusal_tells_its_facts_and_whether_to_retry(client: TestClient[Any, Any]) -> None:
    answer = await client.get("/refuse")
    problem = orjson.loads(await answer.read())["error"]
    assert answer.status == 429 and answer.headers["x-should-retry"] == "false"
    assert problem["tollgate"]["reason"] == "insufficient_tokens" and problem["tollgate"]["needed"] == "3"


async def test_a_bug_is_logged_with_the_requests_id_and_answers_nothing_of_it(
    client: TestClient[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await client.post("/fail", json={"what": "canary-in-a-body"})
    body = await answer.read()
    assert answer.status == 500 and orjson.loads(body)["error"]["code"] == "internal_error"
    assert b"canary" not in body and b"Traceback" not in body
    assert answer.headers["Tollgate-Request-Id"] in caplog.text and "canary-in-a-body" not in caplog.text


async def test_raw_bodies_come_as_they_are_and_are_bounded_by_their_route(client: TestClient[Any, Any]) -> None:
    small = await client.post("/weigh", data=b"\x00\xff" * 50, headers={"Content-Type": "image/png"})
    large = await client.post("/weigh", data=b"x" * 101)
    assert (await small.json(), large.status) == ({"bytes": 100}, 413)


async def test_what_is_not_there_is_told_in_the_same_shape(client: TestClient[Any, Any]) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/who", 405, "method_not_allowed"),
        ("GET", "/things/%00", 404, "not_found"),
    ):
        answer = await client.request(method, path)
        assert (answer.status, orjson.loads(await answer.read())["error"]["code"]) == (status, code)
    assert "GET" in (await client.delete("/who")).headers["Allow"]


# --- who asks --------------------------------------------------------------------------------------------------------


async def test_a_key_asks_for_its_own_account_however_it_is_sent(one: Apis, client: TestClient[Any, Any]) -> None:
    key, account = await one.gateway.account("pro", external_id="mine")
    for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        for query in ("", "?account=mine", f"?organizationId={account.id}"):
            answer = await client.get(f"/who{query}", headers=headers)
            said = await answer.json()
            assert (said["account"], said["actor"]) == (account.id, f"key:{key[:9]}")


async def test_a_service_key_names_its_account_in_any_of_four_places(one: Apis, client: TestClient[Any, Any]) -> None:
    headers = {"Authorization": f"Bearer {await one.service_key()}"}
    _, account = await one.gateway.account("pro", external_id="app-7")
    asked = [
        await client.get("/who", headers={**headers, "Tollgate-Account": "app-7"}),
        await client.get("/who?account=app-7", headers=headers),
        await client.post("/who", headers=headers, json={"what": "x", "organizationId": "app-7"}),
        await client.post("/who", headers=headers, json={"what": "x", "account": account.id}),
    ]
    assert [(await answer.json())["account"] for answer in asked] == [account.id] * 4
    unnamed = await client.get("/who", headers=headers)
    two = await client.get("/who?account=app-7", headers={**headers, "Tollgate-Account": "app-8"})
    assert (unnamed.status, two.status) == (404, 400)


async def test_a_foreign_account_is_answered_as_an_unknown_one(one: Apis, client: TestClient[Any, Any]) -> None:
    key, _ = await one.gateway.account("pro")
    _, other = await one.gateway.account("pro", external_id="theirs")
    answers = []
    for name in ("theirs", other.id, "nobody"):
        answer = await client.get(f"/who?account={name}", headers={"x-api-key": key})
        answers.append((answer.status, await answer.read()))
    assert answers[0] == answers[1] == answers[2] and answers[0][0] == 404


async def test_bad_credentials_are_told_before_anything_else(one: Apis, client: TestClient[Any, Any]) -> None:
    key, _ = await one.gateway.account("pro")
    other, _ = await one.gateway.account("pro")
    for headers, status, code in (
        ({}, 401, "missing_api_key"),
        ({"x-api-key": "tg_nonsense"}, 401, "invalid_api_key"),
        ({"Authorization": "Basic abc"}, 401, "invalid_api_key"),
        ({"Authorization": f"Bearer {key}", "x-api-key": other}, 400, "ambiguous_credentials"),
    ):
        answer = await client.post("/who", data=b"no JSON", headers=headers)
        assert (answer.status, orjson.loads(await answer.read())["error"]["code"]) == (status, code)
        assert (answer.headers.get("WWW-Authenticate") is not None) == (status == 401)


async def test_a_revoked_key_and_a_suspended_account_end_at_once(one: Apis, client: TestClient[Any, Any]) -> None:
    key, account = await one.gateway.account("pro")
    headers = {"x-api-key": key}
    assert (await client.get("/who", headers=headers)).status == 200
    store = one.gateway.worker.store
    await store.accounts.set_status(account.id, AccountStatus.SUSPENDED, now_ms=1)
    assert (await client.get("/who", headers=headers)).status == 403
    kept = (await store.keys.list(account.id)).items[0]
    await store.keys.revoke(kept.id, now_ms=1)
    assert (await client.get("/who", headers=headers)).status == 401


async def test_a_user_named_by_a_header_is_part_of_the_caller(one: Apis, client: TestClient[Any, Any]) -> None:
    key, _ = await one.gateway.account("pro")
    first = await client.get("/who", headers={"x-api-key": key, "Tollgate-User": "ann"})
    again = await client.get("/who", headers={"x-api-key": key, "Tollgate-User": "ann"})
    assert (await first.json())["user"] == (await again.json())["user"] is not None


# --- the operators' listener -----------------------------------------------------------------------------------------


async def test_the_admin_token_comes_before_everything_but_metrics_and_readiness(one: Apis) -> None:
    key, _ = await one.gateway.account("pro")
    for token, code in ((None, "missing_api_key"), ("wrong", "invalid_api_key"), (key, "invalid_api_key")):
        for path in ("/admin/v1/accounts", "/openapi.json", "/nowhere"):
            answer = await one.admin("GET", path, token=token)
            assert (answer.status, answer.code) == (401, code)
    assert (await one.admin("GET", "/nowhere")).status == 404
    for path in ("/metrics", "/readyz"):
        assert (await one.admin("GET", path, token=None)).status == 200


async def test_without_a_token_in_the_config_the_admin_api_is_off(valkey_url: str, tmp_path: Path) -> None:
    async with apis(valkey_url, tmp_path, token="") as running:
        for token in (None, "", ADMIN_TOKEN):
            answer = await running.admin("GET", "/admin/v1/accounts", token=token)
            assert (answer.status, answer.code) == (403, "admin_token_not_set")
        assert (await running.admin("GET", "/metrics", token=None)).status == 200


async def test_the_customers_listener_knows_no_admin_route(one: Apis) -> None:
    answer = await one.get("/admin/v1/accounts", key=ADMIN_TOKEN)
    assert (answer.status, answer.code) == (404, "not_found")


async def test_accounts_are_listed_in_pages(running: Apis) -> None:
    made = [(await running.gateway.account("pro", name=f"A{number}"))[1].id for number in range(5)]
    seen: list[str] = []
    query = "?limit=2"
    while query:
        page = (await running.admin("GET", f"/admin/v1/accounts{query}")).json()
        seen += [account["id"] for account in page["items"]]
        query = f"?limit=2&cursor={page['next']}" if page["next"] else ""
    assert seen == made


async def test_plans_are_shown_to_a_key(running: Apis) -> None:
    answer = await running.get("/api/billing/plans", key=await running.gateway.key("trial"))
    shown = {plan["name"]: plan["price"] for plan in answer.json()["items"]}
    assert answer.status == 200 and shown["pro"] == "30"


async def test_what_is_no_http_is_answered_in_a_shape_that_the_document_knows(one: Apis) -> None:
    """A request line longer than the parser takes never reaches a route."""
    for url in (one.gateway.url, one.admin_url):
        answer = await one.ask("GET", f"{url}/openapi.json?cursor={'x' * 9_000}")
        assert answer.status == 400 and ErrorBody.model_validate_json(answer.body).error.code == "invalid_request"
